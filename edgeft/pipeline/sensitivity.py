"""How sensitive each layer of a run's network is to quantization: a table for people and recipes, and its picture."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from edgeft import calibration, data, reporting
from edgeft.errors import ConfigError
from edgeft.pipeline.inputs import RunInputs
from edgeft.pipeline.progress import RunProgress
from edgeft.pipeline.walk import Walk, read_json
from edgeft.target import Numerics

SCHEMA, VERSION = "edgeft-sensitivity", 1
Table = dict[str, Any]


def file_name(numerics: Numerics) -> str:
    """Return the name, without a suffix, of the files in the workspace for one kind of numerics."""
    return f"sensitivity-{numerics.name}".rstrip("-")


def measure(run: RunInputs, walk: Walk, progress: RunProgress) -> list[Table]:
    """Measure the float network of a walk for every numerics of its targets.

    Leaves sensitivity.json and sensitivity.svg in the workspace (with the numerics' name in theirs, where they are
    not the usual ones) and returns the tables.

    Raises:
        ConfigError: The recipe does not quantize to int8.
    """
    from edgeft import stages

    config = run.recipe.quantize
    if config is None or not config.calibrates:
        raise ConfigError(
            'sensitivity is that of quantize.scheme = "int8", which the recipe does not ask for',
            "add a section [quantize]",
        )
    wanted = calibration.load(config.calibration, run.base)
    chosen = data.calibration_samples(run.splits.train, wanted, run.recipe.seed)
    tables = []
    for numerics in dict.fromkeys(profile.precision.numerics for profile in run.profiles):
        name = file_name(numerics)
        progress.stage_started(name, name)
        started = time.monotonic()
        found = stages.measure_sensitivity(
            run.pruned,
            run.training_batches(config),
            run.plain_batches(run.splits.val),
            config,
            calibration=wanted,
            numerics=numerics,
            samples=run.mixed_batches(chosen),
            statistics=run.mixed_batches(run.splits.train),
            progress=progress.stage_progress,
        )
        table = {
            "schema": SCHEMA,
            "version": VERSION,
            "network": _network(walk),
            "numerics": numerics.name,
            "calibration": wanted.id,
            "layers": reporting.plain([dataclasses.asdict(each) for each in found]),
        }
        walk.workspace.write_text(f"{name}.json", json.dumps(table, indent=1) + "\n")
        reporting.write_sensitivity(table["layers"], walk.workspace.path / f"{name}.svg")
        worst = max(found, key=lambda each: each.kl)
        progress.stage_finished(
            name, time.monotonic() - started, f"{len(found)} layers, most sensitive: {worst.layer}"
        )
        tables.append(table)
    return tables


def stored_layers(folder: Path, stage: str, network: str) -> list[Table]:
    """Return the layers of a table that was measured for a quantize stage's numerics and network, if there is one.

    Args:
        folder: The workspace.
        stage: Name of the quantize stage.
        network: Key of the stage that made the float network.
    """
    path = folder / f"sensitivity{stage.removeprefix('quantize')}.json"
    table: Table = read_json(path) if path.is_file() else {}
    layers: list[Table] = table.get("layers", []) if table.get("network") == network else []
    return layers


def _network(walk: Walk) -> str:
    """Return the key of the stage that made the float network."""
    return walk.keys.get("prune", walk.keys["finetune"])
