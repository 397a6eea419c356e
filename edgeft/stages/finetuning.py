"""The fine-tune stage: train a network on new data, by one of the methods of transfer learning."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch

from edgeft import training
from edgeft.errors import ConfigError
from edgeft.models import surgery
from edgeft.recipe import Finetune
from edgeft.stages.common import accuracy, advanced, curve_results, parse_config, step_record
from edgeft.training import Batches
from edgeft.types import EpochRecord, FloatModel, Progress, example_inputs, silent


def finetune(
    model: FloatModel,
    train: Batches,
    val: Batches,
    config: Finetune | None = None,
    *,
    head: str = "",
    teacher: torch.nn.Module | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    **settings: Any,
) -> FloatModel:
    """Train `model` on new data and return the epoch that was best on `val`.

    Args:
        model: Float network, its head already sized for the new classes.
        train: Batches of inputs (N, ...) and class indices (N,) int64, for example a DataLoader.
        val: The same, for choosing the epoch.
        config: Settings; or give them as keywords (`epochs=5, learning_rate=1e-3`).
        head: Dotted prefix of the fresh head, which learns faster (`head_lr_multiplier`). Where a setting needs
            to know the head and none is given, it is the last linear or convolutional layer.
        teacher: Network for the same inputs and classes that ``method = "distill"`` follows, and no other does.
        seed: Of everything random.
        checkpoint: File to resume from and to write after every epoch; cached features lie beside it.
        device: Where to train: ``cpu``, ``cuda`` or ``cuda:N``. The result is on the CPU.
        progress: Told how far it is.
        **settings: Fields of `recipe.Finetune`.

    Raises:
        ConfigError: A setting is unknown or out of range, or does not go with another one or with `teacher`.
        ModelError: The network has no head or blocks such as a setting needs.
        MissingDependencyError: The device is not there.
    """
    if teacher is not None and (config is None or config.teacher is None):
        settings["teacher"] = {"source": type(teacher).__qualname__}  # for the record
    config = parse_config(Finetune, config, settings)
    if config.method == "distill" and teacher is None:
        raise ConfigError('finetune.method = "distill": no teacher network was given', "give teacher=NETWORK")
    started = time.monotonic()
    module = copy.deepcopy(model.module)
    common: dict[str, Any] = {"seed": seed, "checkpoint": checkpoint, "device": device, "progress": progress}
    curve: tuple[EpochRecord, ...] = ()
    results: dict[str, Any] = {}
    head = _tuned_head(model, config, head)
    if config.method == "feature-extraction":
        curve, results["feature_seconds"] = training.fit_head(module, train, val, config, head=head, **common)
    elif config.method != "none":
        curve = training.fit(
            module,
            train,
            val,
            config,
            head=head,
            blocks=[block.prefixes for block in surgery.blocks(module, head)],
            **_teaching(model, config, teacher),
            **common,
        )
    module.eval()
    results |= {"val_accuracy": accuracy(module, val), **curve_results(curve)}
    return advanced(model, module, step_record("finetune", config, seed, started, results))


def _tuned_head(model: FloatModel, config: Finetune, given: str) -> str:
    """Return the head's dotted name: the given one, or the one that is found where a setting needs it."""
    if config.method == "retrain":
        return ""  # all weights are fresh
    needed = (
        config.method == "feature-extraction"
        or config.feature_weight > 0
        or config.train_blocks is not None
        or config.unfreeze_every is not None
        or config.block_lr_decay < 1
    )
    if given or not needed:
        return given
    return surgery.find_head(copy.deepcopy(model.module), example_inputs(model.preprocessing))


def _teaching(model: FloatModel, config: Finetune, teacher: torch.nn.Module | None) -> dict[str, Any]:
    """Return what `training.fit` has to know about the teacher."""
    if teacher is None:
        return {}
    copied = copy.deepcopy(teacher).eval()
    wanted = config.feature_weight > 0
    head = surgery.find_head(copied, example_inputs(model.preprocessing)) if wanted else ""
    return {"teacher": copied, "teacher_head": head}
