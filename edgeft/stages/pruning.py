"""The prune stage: cut channels to a budget and recover the accuracy."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

from edgeft import pruning, training
from edgeft.recipe import Prune
from edgeft.stages.common import accuracy, advanced, curve_results, parse_config, step_record
from edgeft.target import PruneLimits
from edgeft.training import Batches
from edgeft.types import FloatModel, Progress, example_inputs, silent


def prune(
    model: FloatModel,
    train: Batches,
    val: Batches,
    config: Prune | None = None,
    *,
    limits: PruneLimits | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> FloatModel:
    """Cut whole channels until the budget holds, then recover by distillation from the unpruned network.

    Args:
        model: Trained float network.
        train: As in `finetune`.
        val: As in `finetune`.
        config: Settings; or keywords (`budget={"macs": 0.5}`).
        limits: Channel multiple and minimum of the targets; 8 and 8 by default.
        seed: As in `finetune`.
        checkpoint: As in `finetune`.
        progress: As in `finetune`.
        **settings: Fields of `recipe.Prune`.

    Raises:
        BudgetError: The budget is out of reach; the message names the best that is.
        ModelError: The architecture cannot be pruned.
        ConfigError: A setting is unknown or out of range.
    """
    config = parse_config(Prune, config, settings)
    limits = limits or PruneLimits()
    started = time.monotonic()
    pruned = pruning.prune(
        model.module,
        example_inputs(model.preprocessing),
        macs=config.budget.macs,
        channel_multiple=limits.channel_multiple,
        min_channels=limits.min_channels,
        importance=config.importance,
    )
    cut_accuracy = accuracy(pruned.module, val)
    curve = training.fit(
        pruned.module,
        train,
        val,
        config,
        seed=seed,
        checkpoint=checkpoint,
        teacher=copy.deepcopy(model.module).eval(),
        progress=progress,
    )
    pruned.module.eval()
    results = {
        "plan": pruned.plan.to_dict(),
        "val_accuracy_before_recovery": cut_accuracy,
        "val_accuracy": accuracy(pruned.module, val),
        **curve_results(curve),
    }
    return advanced(model, pruned.module, step_record("prune", config, seed, started, results))
