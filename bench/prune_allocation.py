"""Where to cut, at equal latency: by importance over the whole network, the same share everywhere, or by chance.

Usage::

    python bench/prune_allocation.py bench/recipes/trashnet-prune.toml [--seeds 0] [--ways latency macs uniform]

The ways, each a run below ``runs/<recipe>-<way>-<seed>`` from the same fine-tuned network:

- ``latency``: the recipe's own budget, met by measuring; channels compete over the whole network,
- ``macs``: the same number as a budget of multiply-accumulates, which is what one asks for without a clock; its ratio
  of latencies is to be read beside its accuracy (the "times faster" columns). At the share of MACs that the search for
  latency ends with, a budget of MACs gives the very network of ``latency``: channels are ranked alike, the clock only
  decides how many go,
- ``uniform``: the same share of every layer, at the latency of the recipe's budget,
- ``random``: chance instead of importance, at the latency of the recipe's budget.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pruning_runs
from rich.console import Console

from edgeft import recipe as recipes
from edgeft.recipe import Recipe

WAYS = ("latency", "macs", "uniform", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare ways to decide where is cut, at equal latency.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", default=list(WAYS[:3]), choices=WAYS)
    parser.add_argument("--json", type=Path, help="file for the figures")
    chosen = parser.parse_args()
    recipe, console = recipes.load(chosen.recipe), Console()
    reports: dict[str, list[dict[str, Any]]] = {way: [] for way in chosen.ways}
    for seed in chosen.seeds:
        tuned = None
        for way in chosen.ways:
            one = pruning_runs.variant(
                recipe, f"{recipe.name}-{way}", seed=seed, sections={"prune": _settings(way, recipe)}
            )
            console.print(f"[bold]{one.name}")
            report, workspace = pruning_runs.run(one, chosen.recipe.parent, tuned)
            tuned = tuned or workspace
            reports[way].append(report)
    found = [row for way in chosen.ways for row in pruning_runs.rows(way, reports[way])]
    pruning_runs.show(found)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _settings(way: str, recipe: Recipe) -> dict[str, Any]:
    """Return what a way changes in the prune section."""
    if recipe.prune is None or recipe.prune.budget.kind != "latency":
        raise SystemExit("the recipe has no [prune] with a budget of latency")
    return {
        "latency": {},
        "macs": {"budget": {"macs": recipe.prune.budget.share}},
        "uniform": {"allocation": "uniform"},
        "random": {"criterion": "random"},
    }[way]


if __name__ == "__main__":
    main()
