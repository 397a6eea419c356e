"""What pruning would do to a run's network, said before anything is changed: groups, shares, sensitivity, plan."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import edgeft
from edgeft import data, extras, reporting, target
from edgeft.errors import ConfigError
from edgeft.pipeline import budgets
from edgeft.pipeline.inputs import RunInputs
from edgeft.pipeline.progress import RunProgress
from edgeft.pipeline.walk import Walk, read_json
from edgeft.recipe import Prune
from edgeft.target import PruneLimits, TargetProfile

SCHEMA, VERSION, FILE = "edgeft-prune-plan", 2, "prune-plan.json"
_SAMPLES = 256
"""Validation samples that a group's sensitivity is measured on."""


def explain(run: RunInputs, walk: Walk, progress: RunProgress) -> dict[str, Any]:
    """Return the plan of the fine-tuned network of a walk, and leave it as prune-plan.json in the workspace.

    What was measured for the same network and settings before is not measured again, whatever the budget.

    A budget out of reach is among the results.

    Raises:
        ConfigError: The recipe has no prune section.
        ModelError: The network cannot be pruned.
    """
    from edgeft import stages

    config = run.recipe.prune
    if config is None:
        raise ConfigError("the recipe has no section [prune]", "add [prune] to the recipe")
    limits = target.common_prune_limits(run.profiles)
    timed = run.profiles[0] if config.target is None else target.load(config.target, run.base)
    facts = _facts(run, config, limits, timed, walk.keys["finetune"])
    known = _read(walk.workspace.path / FILE)
    if known.get("facts") == facts:
        progress.stage_reused("prune-plan", "prune plan")
        return known
    progress.stage_started("prune-plan", "prune plan")
    started = time.monotonic()
    count = min(_SAMPLES, len(run.splits.val))
    chosen = np.linspace(0, len(run.splits.val) - 1, count).round().astype(int).tolist()
    found = stages.plan_pruning(
        run.finetuned,
        run.mixed_batches(run.splits.train),
        run.plain_batches(data.subset(run.splits.val, chosen)),
        config,
        limits=limits,
        profile=budgets.profile(run),
        timed=timed,
        quantize=budgets.scheme(run),
        timing=run.recipe.measure,
        embedded=run.recipe.export.preprocess == "embedded",
        known=known if known and known["facts"]["measured"] == facts["measured"] else None,
        seed=run.recipe.seed,
        progress=progress.stage_progress,
    )
    plan: dict[str, Any] = {"schema": SCHEMA, "version": VERSION, "facts": facts, **reporting.plain(found)}
    walk.workspace.write_text(FILE, json.dumps(plan, indent=1) + "\n")
    planned = (
        f"{plan['plan']['macs_share']:.0%} of the MACs planned" if plan["plan"] else "budget out of reach"
    )
    summary = f"{len(plan['groups'])} groups, {planned}"
    progress.stage_finished("prune-plan", time.monotonic() - started, summary)
    return plan


def _facts(
    run: RunInputs, config: Prune, limits: PruneLimits, timed: TargetProfile, network: str
) -> dict[str, Any]:
    """Return what the plan depends on: what is measured of the groups, and what is asked for. Recovery is neither."""
    settings, scheme = config.model_dump(mode="json"), budgets.scheme(run)
    measured = {
        "network": network,
        "settings": {key: settings[key] for key in ("criterion", "keep", "floor", "rewrite")},
        "limits": limits.model_dump(mode="json"),
        "timed": timed.model_dump(mode="json", by_alias=True),
        "scheme": [scheme.scheme, scheme.float_layers],
        "seed": run.recipe.seed,
        "versions": {
            "edgeft": edgeft.__version__,
            **extras.versions("torch", "torch_pruning", "torchao", "onnx", *timed.runtime.requires),
        },
    }
    asked = {key: settings[key] for key in ("budget", "target", "allocation")}
    return {"measured": measured, "asked": asked | budgets.facts(run)}


def _read(path: Path) -> dict[str, Any]:
    known: dict[str, Any] = read_json(path) if path.is_file() else {}
    return known if (known.get("schema"), known.get("version")) == (SCHEMA, VERSION) else {}
