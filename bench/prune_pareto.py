"""Is pruning worth it: a pruned wide network beside an unpruned narrow one, accuracy over latency, both in int8.

Usage::

    python bench/prune_pareto.py bench/recipes/trashnet-prune.toml bench/recipes/trashnet-035.toml \
        bench/recipes/trashnet-224.toml [--budgets 0.7 0.5 0.3] [--seeds 0 1 2] [--json FILE] [--svg FILE]

The first recipe is run with each budget of latency, the others (a narrower network, the wide one unpruned) as they
are, for every seed; prunings of a seed share their fine-tuned network. In the end the files of all runs of a target are
timed together, in turns: latencies of different runs were taken at different times and are not compared. Accuracies
are those of the exported files on the test split; the plot shows each run and the means over the seeds.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pruning_runs
from rich.console import Console
from rich.table import Table

from edgeft import measure, records, target
from edgeft import recipe as recipes
from edgeft.measure import Variant
from edgeft.recipe import Recipe
from edgeft.types import ExportedArtifact

matplotlib.use("svg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Plot accuracy over latency of pruned and of narrow networks."
    )
    parser.add_argument("wide", type=Path, help="recipe that prunes")
    parser.add_argument("others", type=Path, nargs="+", help="recipes of the networks that are compared")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--svg", type=Path, help="file for the plot")
    chosen = parser.parse_args()
    wide, console = recipes.load(chosen.wide), Console()
    done: list[tuple[str, int, dict[str, Any], Path]] = []
    for seed in chosen.seeds:
        tuned = None
        for budget in chosen.budgets:
            settings = {"prune": {"budget": {"latency": budget}}}
            one = pruning_runs.variant(wide, f"{wide.name}-{budget:g}", seed=seed, sections=settings)
            console.print(f"[bold]{one.name}")
            report, workspace = pruning_runs.run(one, chosen.wide.parent, tuned)
            tuned = tuned or workspace
            done.append((f"{wide.name} {budget:g}", seed, report, workspace))
        for path in chosen.others:
            other = recipes.load(path)
            one = pruning_runs.variant(other, other.name, seed=seed, sections={})
            console.print(f"[bold]{one.name}")
            done.append((other.name, seed, *pruning_runs.run(one, path.parent)))
    points = [point for name in wide.targets for point in _timed(name, wide, chosen.wide.parent, done)]
    _show(points, console)
    if chosen.json:
        chosen.json.write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    if chosen.svg:
        _plot(points, wide.targets, chosen.svg)


def _timed(
    name: str, recipe: Recipe, base: Path, done: list[tuple[str, int, dict[str, Any], Path]]
) -> list[dict[str, Any]]:
    """Time the final files of all runs on one target in turns, and return a point for each."""
    profile = target.load(name, base)
    variants, inputs = [], None
    for network, seed, _, workspace in done:
        folder = next((workspace / "stages").glob(f"*-export-{name}"))
        artifact = records.decode(
            ExportedArtifact, json.loads((folder / "artifact.json").read_text()), folder
        )
        variants.append(Variant(label=f"{network} seed {seed}", artifact=artifact, profile=profile))
        if inputs is None:
            with np.load(next((workspace / "stages").glob(f"*-measure-{name}")) / "golden.npz") as golden:
                inputs = golden["inputs"]
    config = recipe.measure
    latencies = measure.latencies(
        variants,
        inputs,
        rounds=config.rounds,
        min_runs=config.min_runs,
        min_seconds=config.min_seconds,
    )
    points = []
    for (network, seed, report, _), latency in zip(done, latencies, strict=True):
        result = next(each for each in report["targets"] if each["target"] == name)
        points.append(
            {
                "target": name,
                "network": network,
                "seed": seed,
                "p50_ms": latency.p50_ms,
                "accuracy": result["accuracy"]["value"],
                "float_accuracy": result["baseline_accuracy"]["value"],
                "size_bytes": result["artifact"]["size_bytes"],
            }
        )
    return points


def _means(points: list[dict[str, Any]], name: str) -> dict[str, tuple[float, float]]:
    """Return network -> mean latency in ms and mean accuracy in percent over the seeds, on one target."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for point in points:
        if point["target"] == name:
            found[point["network"]].append((point["p50_ms"], 100 * point["accuracy"]))
    means = {network: np.mean(values, axis=0) for network, values in found.items()}
    return {network: (float(mean[0]), float(mean[1])) for network, mean in means.items()}


def _show(points: list[dict[str, Any]], console: Console) -> None:
    table = Table("target", "network", "ms", "accuracy [%], mean over seeds", "single seeds")
    for name in dict.fromkeys(point["target"] for point in points):
        for network, (ms, accuracy) in _means(points, name).items():
            single = [p for p in points if (p["target"], p["network"]) == (name, network)]
            values = ", ".join(f"{100 * p['accuracy']:.1f}" for p in single)
            table.add_row(name, network, f"{ms:.3f}", f"{accuracy:.2f}", values)
    console.print(table)


def _plot(points: list[dict[str, Any]], targets: list[str], path: Path) -> None:
    figure, axes = plt.subplots(1, len(targets), figsize=(5 * len(targets), 4), squeeze=False, sharey=True)
    for name, axis in zip(targets, axes[0], strict=True):
        means = _means(points, name)
        for number, (network, (ms, accuracy)) in enumerate(means.items()):
            single = [p for p in points if (p["target"], p["network"]) == (name, network)]
            color = f"C{number}"
            axis.scatter(
                [p["p50_ms"] for p in single], [100 * p["accuracy"] for p in single], s=14, color=color
            )
            axis.scatter([ms], [accuracy], s=70, color=color, marker="D", label=network)
        axis.set(title=name, xlabel="latency in int8, ms")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy in int8, %")
    axes[0][-1].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
