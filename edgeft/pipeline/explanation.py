"""What a recipe would do, said before anything is done: data, weights, layers, stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgeft import data, models
from edgeft.pipeline import preflight
from edgeft.recipe import Finetune, Recipe


def explain(recipe: Recipe, *, base: Path) -> list[str]:
    """Return lines that say what would be loaded, left out and fresh, and which blocks would be trained.

    Args:
        recipe: A parsed recipe.
        base: Folder that its paths are relative to.

    Raises:
        EdgeftError: Whatever `edgeft check` finds wrong.
    """
    lines = []
    for finding in preflight.check(recipe, base=base):
        if finding.error is not None:
            raise finding.error
        lines.append(f"{finding.topic}: {finding.text}")
    classes = data.scan(recipe.task, base).classes
    built = preflight.build_model(recipe, base, len(classes))
    parameters = sum(p.numel() for p in built.module.parameters())
    lines.append(f"network: {parameters:,} parameters")
    lines += _blocks(recipe.finetune or Finetune(method="none"), built)
    stages = [name for name in ("finetune", "prune", "quantize") if getattr(recipe, name) is not None]
    lines.append(f"stages: {', '.join(['data', *stages, 'export', 'measure', 'package'])}")
    return lines


def _blocks(config: Finetune, built: models.BuiltModel) -> Iterator[str]:
    """Say of every block, and of the head, how large it is and whether and how it learns."""
    sizes = {name: p.numel() for name, p in built.module.named_parameters()}
    blocks = models.blocks(built.module, built.head)
    trained = _trained_blocks(config, len(blocks))
    for index, block in enumerate(blocks):
        size = sum(count for name, count in sizes.items() if _below(name, block.prefixes))
        behind = len(blocks) - index
        rate = f", learning rate x{config.block_lr_decay**behind:.3g}" if config.block_lr_decay < 1 else ""
        joins = (
            f", joins in epoch {behind * config.unfreeze_every + 1}"
            if config.unfreeze_every is not None
            else ""
        )
        state = f"trained{rate}{joins}" if index >= len(blocks) - trained else "frozen"
        yield f"block {block.name}: {size:,} parameters, {state}"
    if built.head:
        size = sum(count for name, count in sizes.items() if _below(name, (built.head,)))
        state = "as it is" if config.method == "none" else "trained"
        yield f"head {built.head}: {size:,} parameters, {state}"


def _trained_blocks(config: Finetune, count: int) -> int:
    if config.method in ("none", "feature-extraction"):
        return 0
    return min(config.train_blocks or count, count)


def _below(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
