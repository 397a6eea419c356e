"""Compare the criteria of pruning: what is left of a trained network before any recovery.

Usage::

    python bench/pruning_criteria.py bench/recipes/trashnet.toml
        --weights runs/trashnet/stages/01-finetune/model.safetensors
        [--macs 0.8 0.65] [--images 128]

WEIGHTS are those of the recipe's network after fine-tuning. Each network is cut once, its batch norms are re-estimated
on training images, and it is held against the uncut one on validation images: agreement of the answers, accuracy, and
the Kullback-Leibler divergence of the softmax, which tells criteria apart where the others cannot. What recovery makes
of the differences is another question (``prune_allocation.py`` trains).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional

from edgeft import data, models, pruning, training
from edgeft import recipe as recipes
from edgeft.types import example_inputs

_BATCH = 32
_GRADIENT_BATCHES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the criteria of pruning, before any recovery.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="of the fine-tuned float network")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.8, 0.65])
    parser.add_argument("--images", type=int, default=128, help="for validation, and for the batch norms")
    parser.add_argument("--criteria", nargs="+", default=list(get_args(pruning.Criterion)))
    chosen = parser.parse_args()
    recipe, base = recipes.load(chosen.recipe), chosen.recipe.parent
    template = models.default_preprocessing(recipe.model, recipe.task.kind, base=base)
    splits = data.load(recipe.task, template, base=base, seed=recipe.seed)
    trained = recipe.model.model_copy(update={"weights": str(chosen.weights.resolve())})
    built = models.build(
        trained,
        len(splits.classes),
        base=base,
        seed=recipe.seed,
        preprocessing=splits.preprocessing,
        keep_head=True,
    )
    network = built.module.eval()
    loader = training.loader(splits.train, splits.preprocessing, batch_size=_BATCH, seed=recipe.seed)
    train = list(itertools.islice(loader, max(1, chosen.images // _BATCH)))
    order = torch.randperm(len(splits.val), generator=torch.Generator().manual_seed(0))[
        : chosen.images
    ].tolist()
    inputs, labels = torch.as_tensor(splits.val.inputs(order)), torch.as_tensor(splits.val.labels[order])
    uncut = logits(network, inputs)
    table = Table("criterion", "allocation", "MACs", "KL", "agreement", "accuracy")
    table.add_row("uncut", "", "1.00", "0", "100.0%", f"{share(uncut, labels):.1%}")
    for criterion in chosen.criteria:
        analysis = pruning.analyse(
            network,
            example_inputs(splits.preprocessing),
            criterion=criterion,
            channel_multiple=8,
            min_channels=8,
            gradients=gradients(network, train) if criterion == "taylor" else None,
        )
        for macs, allocation in itertools.product(chosen.macs, get_args(pruning.Allocation)):
            pruned = analysis.apply(analysis.widths(macs=macs, allocation=allocation)).module
            training.reestimate_batch_norm(pruned, train)
            got = logits(pruned.eval(), inputs)
            kl = functional.kl_div(
                got.log_softmax(1), uncut.log_softmax(1), log_target=True, reduction="batchmean"
            )
            table.add_row(
                criterion,
                allocation,
                f"{macs:.2f}",
                f"{kl:.3f}",
                f"{share(got, uncut.argmax(1)):.1%}",
                f"{share(got, labels):.1%}",
            )
    Console().print(table)


def logits(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return what `module` answers to all `inputs`, (N, K)."""
    with torch.no_grad():
        return torch.cat([module(batch) for batch in torch.split(inputs, _BATCH)])


def share(answers: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the share of right answers."""
    return float((answers.argmax(1) == wanted).float().mean())


def gradients(
    module: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the gradients of the loss, batch by batch."""
    for x, y in batches[:_GRADIENT_BATCHES]:
        names, parameters = zip(*module.named_parameters(), strict=True)
        loss = functional.cross_entropy(module(x), y)
        yield dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


if __name__ == "__main__":
    main()
