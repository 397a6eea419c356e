"""Compare the transfer methods on one recipe: same data, split and seed, accuracy of the exported float file.

Usage::

    python bench/transfer_methods.py bench/recipes/trashnet.toml [--epochs N] [--target cpu-onnxruntime]
        [--teacher SOURCE --teacher-weights FILE]

Each method is a run of its own below ``runs/<recipe>-<method>``. `retrain` starts from fresh weights at four times the
learning rate, which they want; `feature-extraction` trains the head for more epochs, because they cost next to nothing.
The teacher of `distill` is fine-tuned on the same data first: the recipe's own network unless --teacher names another.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import edgeft
from edgeft import recipe as recipes
from edgeft.recipe import Recipe

_HEAD_EPOCHS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the transfer methods on one recipe.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument(
        "--epochs", type=int, help="of each method but feature-extraction; the recipe's by default"
    )
    parser.add_argument("--target", default="cpu-onnxruntime")
    parser.add_argument("--teacher", help="source of another teacher network")
    parser.add_argument("--teacher-weights", help="its pretrained weights, relative to the recipe")
    chosen = parser.parse_args()
    console, base = Console(), chosen.recipe.parent
    recipe = recipes.load(chosen.recipe)
    rate = recipe.finetune.learning_rate if recipe.finetune else 1e-3
    epochs = {"epochs": chosen.epochs} if chosen.epochs else {}
    table = Table(
        "method", "test accuracy [95 %]", "macro F1", "epochs", "seconds per epoch", "seconds in all"
    )

    def run(method: str, model: dict[str, Any] | None = None, **finetune: Any) -> Path:
        variant = _variant(recipe, method, chosen.target, model or {}, finetune)
        console.print(f"[bold]{variant.name}")
        summary = edgeft.run(variant, base=base, workspace=Path("runs") / variant.name)
        report = summary.report or {}
        table.add_row(variant.name.removeprefix(f"{recipe.name}-"), *_row(report))
        return (summary.workspace / "stages" / "01-finetune" / "model.safetensors").resolve()

    run("retrain", **epochs, learning_rate=4 * rate)
    run("feature-extraction", epochs=_HEAD_EPOCHS, learning_rate=rate, augment="none", warmup_epochs=0)
    tuned = run("fine-tune", **epochs)
    teacher = {"source": recipe.model.source, "weights": str(tuned)}
    if chosen.teacher:
        model = {"source": chosen.teacher, "weights": chosen.teacher_weights}
        teacher = {"source": chosen.teacher, "weights": str(run("fine-tune", model, **epochs))}
    run("distill", **epochs, teacher=teacher)
    console.print(table)


def _variant(
    recipe: Recipe, method: str, target: str, model: dict[str, Any], finetune: dict[str, Any]
) -> Recipe:
    """Return the recipe with another method, in float and on one target."""
    data = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    for stage in ("prune", "quantize"):
        data.pop(stage, None)
    suffix = f"{method}-teacher" if model else method
    data |= {"name": f"{recipe.name}-{suffix}", "targets": [target], "model": data["model"] | model}
    data["finetune"] = data.get("finetune", {}) | {"method": method} | finetune
    data["measure"] = {"rounds": 2, "min_runs": 10, "min_seconds": 0.1}
    return Recipe.model_validate(data)


def _row(report: dict[str, Any]) -> list[str]:
    target = report["targets"][0]
    accuracy, tuned = target["accuracy"], next(s for s in report["stages"] if s["name"] == "finetune")
    epochs = tuned["results"]["epochs"]
    f1 = target["metrics"]["macro_f1"]["value"]
    return [
        f"{accuracy['value']:.1%} [{accuracy['low']:.1%}, {accuracy['high']:.1%}]",
        f"{f1:.3f}",
        str(len(epochs)),
        f"{sum(e['seconds'] for e in epochs) / len(epochs):.2f}",
        f"{tuned['seconds']:.0f}",
    ]


if __name__ == "__main__":
    main()
