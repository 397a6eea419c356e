"""What the pruning benches share: runs of one recipe with other settings, and their figures over several seeds."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import edgeft
from edgeft.measure.statistics import tango_interval
from edgeft.recipe import Recipe

Report = dict[str, Any]
COLUMNS = (
    *("target", "way", "MACs left", "predicted", "measured", "exports"),
    *("float [%]", "pruned int8 [%]", "drop in points [95 %]", "times faster than float32", "than fastest float"),
)  # fmt: skip


def variant(recipe: Recipe, name: str, *, seed: int, sections: Mapping[str, Any]) -> Recipe:
    """Return a recipe under another name and seed, with other settings in its sections (None leaves one out)."""
    data = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    data |= {"name": f"{name}-{seed}", "seed": seed}
    for section, settings in sections.items():
        if settings is None:
            data.pop(section, None)
        else:
            data[section] = data.get(section, {}) | settings
    return Recipe.model_validate(data)


def run(recipe: Recipe, base: Path, tuned: Path | None = None) -> tuple[Report, Path]:
    """Run a recipe below ``runs/`` and return its report and workspace.

    Args:
        recipe: The recipe.
        base: Folder that its paths are relative to.
        tuned: A workspace of the same seed and fine-tuning, whose finished stages up to there are shared.
    """
    workspace = Path("runs") / recipe.name
    if tuned is not None and not workspace.exists():
        for stage in ("00-data", "01-finetune"):
            shutil.copytree(tuned / "stages" / stage, workspace / "stages" / stage)
        shutil.copy(tuned / ".lock", workspace)  # what a workspace is told by
    return edgeft.run(recipe, base=base, workspace=workspace).report or {}, workspace


def rows(way: str, reports: Sequence[Report]) -> list[dict[str, str]]:
    """Return a row for every target, pooled over the seeds' reports.

    The drop is against the unpruned float file of the same target: the counts of samples that became wrong and right
    are summed over the seeds. Its interval (Tango 1998, 95 %) treats the seeds as independent, which they are not
    quite: they share the test samples.
    """
    return [
        _row(way, [report["targets"][index] for report in reports], [report["prune"] for report in reports])
        for index in range(len(reports[0]["targets"]))
    ]


def show(found: Sequence[Mapping[str, str]]) -> None:
    """Print rows as a table."""
    table = Table(*COLUMNS)
    for row in found:
        table.add_row(*(row[column] for column in COLUMNS))
    Console(width=200).print(table)


def _row(way: str, targets: list[Report], prunings: list[Report | None]) -> dict[str, str]:
    pruned = [each for each in prunings if each]
    searches = [each["search"] for each in pruned if each["search"]]
    name = targets[0]["target"]
    samples = sum(t["accuracy"]["samples"] for t in targets)
    lost, gained = (sum(t["drop"][key] for t in targets) for key in ("lost", "gained"))
    low, high = tango_interval(lost, gained, samples)
    measured = [each["measured"][name]["ratio"] for each in pruned if name in each["measured"]]
    values = (
        name,
        way,
        _each([p["plan"]["macs_after"] / p["plan"]["macs_before"] for p in pruned]),
        _each([s["candidates"][s["chosen"]]["value"] for s in searches if s["target"] == name]),
        _each(measured),
        ", ".join(str(s["exports"]) for s in searches) or "-",
        _each([100 * t["baseline_accuracy"]["value"] for t in targets], 1),
        _each([100 * t["accuracy"]["value"] for t in targets], 1),
        f"{100 * (lost - gained) / samples:.2f} [{100 * low:.2f}, {100 * high:.2f}]",
        _each([1 / _against_float32(t) for t in targets]),
        _each([1 / t["ratio"]["ratio"] for t in targets]),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _each(values: Sequence[float], digits: int = 2) -> str:
    """Return the median, and all values where there are several."""
    if not values:
        return "-"
    text = f"{statistics.median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({', '.join(f'{v:.{digits}f}' for v in values)})"


def _against_float32(target: Report) -> float:
    """Return the ratio to the float setting that computes in 32 bits."""
    timings = [(target["baseline_latency"], target["ratio"])]
    timings += zip(target["other_float"], target["other_ratios"], strict=True)
    return next(
        float(ratio["ratio"])
        for latency, ratio in timings
        if "bfloat16" not in latency["runtime"]["mac_precision"]
    )
