"""What pruning to a measured latency costs and gives: one recipe for several seeds, on every target of the recipe.

Usage::

    python bench/prune_seeds.py bench/recipes/trashnet-prune.toml --seeds 0 1 2 [--json FILE]

Every seed is a run of its own below ``runs/<recipe>-<seed>``, which continues where it was stopped. "predicted" is the
latency of the chosen candidate over the unpruned network's at the same scheme, before any training; "measured" that of
the final file, in turns with the same unpruned file. Accuracies are those of the exported files on the test split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pruning_runs
from rich.console import Console

from edgeft import recipe as recipes


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a recipe that prunes for several seeds.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="file for the figures")
    chosen = parser.parse_args()
    recipe, console = recipes.load(chosen.recipe), Console()
    reports = []
    for seed in chosen.seeds:
        one = pruning_runs.variant(recipe, recipe.name, seed=seed, sections={})
        console.print(f"[bold]{one.name}")
        reports.append(pruning_runs.run(one, chosen.recipe.parent)[0])
    found = pruning_runs.rows("pruned", reports)
    pruning_runs.show(found)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
