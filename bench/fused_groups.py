"""A network that is hard to quantize: what each method costs it, and what each choice of fused groups.

Usage::

    python bench/fused_groups.py bench/recipes/cifar-mobilenetv3.toml [--methods ptq qat auto] [--json FILE]

Trains the recipe's float network once, then quantizes it by every method. Each target of the recipe is measured under
every choice of groups that one kernel may compute without rounding inside (`[precision] fused` of a profile): the
variants are profiles of their own, written beside the run. Accuracies are those of the exported files on the test
split; the drop is paired, with its 95 % interval (Tango 1998); ratios are to the runtime's fastest float, interleaved.
``auto`` is the accuracy-aware path at one point: its row says in which layers it went back to float.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import edgeft
from edgeft import recipe as recipes
from edgeft import schema, target
from edgeft.recipe import Recipe

_GROUPS: dict[str, list[str]] = {
    "none": [],
    "act": ["conv-activation"],
    "act-mul": ["conv-activation", "activation-mul"],
    "add": ["conv-add"],
}
_COLUMNS = (
    *("target", "fused", "method", "float [%]", "file [%]", "drop in points [95 %]", "of fastest float"),
    *("as executed", "mean LSB", "agreement [%]"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Methods x fused groups on one network.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument(
        "--methods", nargs="+", default=["ptq", "qat", "auto"], choices=["ptq", "qat", "auto"]
    )
    parser.add_argument("--fused", nargs="+", default=list(_GROUPS), choices=list(_GROUPS))
    parser.add_argument("--json", type=Path, help="file for the figures")
    chosen = parser.parse_args()
    console, base = Console(width=180), chosen.recipe.parent
    recipe = recipes.load(chosen.recipe)
    profiles = _profiles(recipe, chosen.fused, Path("runs") / f"{recipe.name}-targets", base)
    rows: list[dict[str, str]] = []
    tuned: Path | None = None
    for method in chosen.methods:
        variant = _variant(recipe, method, profiles)
        workspace = Path("runs") / variant.name
        if tuned is not None and not workspace.exists():
            # What this method does otherwise has another key and is done anew.
            shutil.copytree(tuned, workspace)
        console.print(f"[bold]{variant.name}")
        report = edgeft.run(variant, base=base, workspace=workspace).report or {}
        tuned = workspace
        in_float = sorted({name for stage in report["quantize"] for name in stage["float_layers"]})
        if in_float:
            console.print(f"{method}: {len(in_float)} layers in float: {', '.join(in_float)}")
        rows += [_row(method, result) for result in report["targets"]]
    table = Table(*_COLUMNS)
    for row in sorted(rows, key=lambda row: (row["target"], row["fused"])):
        table.add_row(*(row[column] for column in _COLUMNS))
    console.print(table)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _profiles(recipe: Recipe, groups: list[str], folder: Path, base: Path) -> list[str]:
    """Write a profile per target of the recipe and choice of groups; return their absolute paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in recipe.targets:
        profile = target.load(name, base)
        # A .tflite file has a rounding behind every integer op: without one, the op is a float op.
        for choice in ["none"] if profile.export.format == "tflite" else groups:
            identity = f"{profile.id}--{choice}"
            fused = profile.precision.model_copy(update={"fused": _GROUPS[choice]})
            path = (folder / f"{identity}.toml").resolve()
            path.write_text(
                schema.dump(profile.model_copy(update={"id": identity, "precision": fused})), encoding="utf-8"
            )
            paths.append(str(path))
    return paths


def _variant(recipe: Recipe, method: str, profiles: list[str]) -> Recipe:
    data = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    data |= {"name": f"{recipe.name}-{method}", "targets": profiles}
    data["quantize"] |= {"method": method}
    return Recipe.model_validate(data)


def _row(method: str, result: dict[str, Any]) -> dict[str, str]:
    name, fused = result["target"].split("--")
    drop, ratio, parity = result["drop"], result["ratio"], result["parity"]
    precision = result["latency"]["runtime"]["mac_precision"]
    values = (
        name,
        fused,
        method,
        f"{100 * result['baseline_accuracy']['value']:.2f}",
        f"{100 * result['accuracy']['value']:.2f}",
        f"{100 * drop['value']:.2f} [{100 * drop['low']:.2f}, {100 * drop['high']:.2f}]",
        f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
        ", ".join(f"{count} {kind}" for kind, count in precision.items()),
        f"{parity['mean_lsb']:.2f}",
        f"{100 * parity['agreement']:.2f}",
    )
    return dict(zip(_COLUMNS, values, strict=True))


if __name__ == "__main__":
    main()
