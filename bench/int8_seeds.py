"""What int8 costs and gives: one recipe for several seeds, by PTQ and by QAT, on every target of the recipe.

Usage::

    python bench/int8_seeds.py bench/recipes/trashnet-224.toml --seeds 0 1 2 [--methods ptq qat] [--json FILE]

Each seed is fine-tuned once; every method is a run of its own below ``runs/<recipe>-<seed>-<method>`` and continues
where it was stopped. Accuracies are those of the exported files on the test split. The drop is against the float
file of the same target, over all seeds: the counts of samples that became wrong and right are summed, and the
interval (Tango 1998, 95 %) treats the seeds as independent, which they are not quite: they share the test samples.
Latency ratios are the medians over the seeds' interleaved timings, against the 32-bit float file and against the
fastest float setting of the runtime.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import edgeft
from edgeft import recipe as recipes
from edgeft.measure.statistics import tango_interval, wilson_interval
from edgeft.recipe import Recipe

_COLUMNS = (
    *("target", "method", "float [%]", "int8 [%]", "drop in points [95 %]", "of f32 latency", "of fastest float"),
    *("size", "int8 as executed", "within 2 LSB [%]"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a recipe for several seeds, by PTQ and by QAT.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["ptq", "qat"], choices=["ptq", "qat", "auto"])
    parser.add_argument("--json", type=Path, help="file for the figures")
    chosen = parser.parse_args()
    console, base = Console(width=180), chosen.recipe.parent
    recipe = recipes.load(chosen.recipe)
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for seed in chosen.seeds:
        tuned: Path | None = None
        for method in chosen.methods:
            variant = _variant(recipe, seed, method)
            workspace = Path("runs") / variant.name
            if tuned is not None and not workspace.exists():
                # What this method does otherwise has another key and is done anew.
                shutil.copytree(tuned, workspace)
            console.print(f"[bold]{variant.name}")
            summary = edgeft.run(variant, base=base, workspace=workspace)
            tuned = workspace
            for result in (summary.report or {})["targets"]:
                found[result["target"], method].append(result)
    rows = [_row(target, method, results) for (target, method), results in found.items()]
    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(*(str(row[column]) for column in _COLUMNS))
    console.print(table)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _variant(recipe: Recipe, seed: int, method: str) -> Recipe:
    data = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    data |= {"name": f"{recipe.name}-{seed}-{method}", "seed": seed}
    data["quantize"] |= {"method": method}
    return Recipe.model_validate(data)


def _row(target: str, method: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    lost, gained = (sum(r["drop"][key] for r in results) for key in ("lost", "gained"))
    samples = sum(r["accuracy"]["samples"] for r in results)
    low, high = tango_interval(lost, gained, samples)
    shares = []
    for kind in ("baseline_accuracy", "accuracy"):
        right = round(sum(r[kind]["value"] * r[kind]["samples"] for r in results))
        ends = wilson_interval(right, samples)
        shares.append(f"{100 * right / samples:.2f} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]")
    precision = results[0]["latency"]["runtime"]["mac_precision"]
    against_f32 = [_against_f32(r) for r in results]
    fastest = [r["ratio"]["ratio"] for r in results]
    size = results[0]["artifact"]["size_bytes"] / results[0]["baseline"]["size_bytes"]
    values = (
        target,
        method,
        *shares,
        f"{100 * (lost - gained) / samples:.2f} [{100 * low:.2f}, {100 * high:.2f}]",
        f"{statistics.median(against_f32):.2f} ({', '.join(f'{r:.2f}' for r in against_f32)})",
        f"{statistics.median(fastest):.2f} ({', '.join(f'{r:.2f}' for r in fastest)})",
        f"{size:.2f}",
        ", ".join(f"{count} {kind}" for kind, count in precision.items()),
        ", ".join(f"{100 * r['parity']['within_2_lsb']:.2f}" for r in results),
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _against_f32(result: dict[str, Any]) -> float:
    """Return the ratio to the float setting that computes in 32 bits."""
    timings = [(result["baseline_latency"], result["ratio"])]
    timings += zip(result["other_float"], result["other_ratios"], strict=True)
    return next(
        float(ratio["ratio"])
        for latency, ratio in timings
        if "bfloat16" not in latency["runtime"]["mac_precision"]
    )


if __name__ == "__main__":
    main()
