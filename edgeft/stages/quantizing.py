"""The quantize stage: make the Q/DQ program, by calibration or by training."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from edgeft import calibration as calibrations
from edgeft import quantization, training
from edgeft.calibration import CalibrationRecipe
from edgeft.errors import BudgetError, DataError
from edgeft.recipe import Quantize
from edgeft.stages.common import accuracy, curve_results, parse_config, step_record
from edgeft.training import Batches
from edgeft.types import EpochRecord, FloatModel, Progress, QuantModel, silent


def quantize(
    model: FloatModel,
    train: Batches,
    val: Batches,
    config: Quantize | None = None,
    *,
    calibration: CalibrationRecipe | None = None,
    samples: Iterable[Any] | None = None,
    statistics: Batches | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> QuantModel:
    """Return the Q/DQ program of `model`: calibrated (ptq), or calibrated and trained (qat).

    Args:
        model: Trained float network; also the teacher of quantization-aware training.
        train: As in `finetune`.
        val: As in `finetune`.
        config: Settings; or keywords (`method="ptq"`).
        calibration: How ranges are found; the shipped recipe that `config.calibration` names by default.
        samples: Batches to calibrate with, labels optional; `statistics` by default.
        statistics: Unaugmented training batches for the batch norms' statistics; `train` by default.
        seed: As in `finetune`.
        checkpoint: As in `finetune`.
        progress: As in `finetune`.
        **settings: Fields of `recipe.Quantize`.

    Raises:
        ModelError: torch.export cannot capture the network.
        QuantizationError: The numerics do not hold (a range that is not finite, a batch norm left over).
        DataError: Fewer calibration samples than the calibration recipe asks for.
        BudgetError: `max_accuracy_drop` is missed; the message says by how much.
        ConfigError: A setting is unknown or out of range.
    """
    config = parse_config(Quantize, config, settings)
    recipe = calibration or calibrations.load(config.calibration)
    started = time.monotonic()
    teacher = copy.deepcopy(model.module).eval()
    source = dataclasses.replace(model, module=copy.deepcopy(model.module))
    # Folding bakes the running statistics into the weights; training with augmentation leaves them slightly off.
    statistics = train if statistics is None else statistics
    training.reestimate_batch_norm(source.module, statistics)
    source.module.eval()
    batches = list(_take(statistics if samples is None else samples, recipe.samples))
    graph = quantization.prepare(source)
    quantization.calibrate(graph, batches, recipe, progress=progress)
    curve: tuple[EpochRecord, ...] = ()
    if config.method == "qat":
        # Ranges stand still in the last third, so that the weights settle on fixed grids.
        phases = quantization.QatPhases(graph, observe_epochs=math.ceil(config.epochs * 2 / 3))
        curve = training.fit(
            graph,
            train,
            val,
            config,
            seed=seed,
            checkpoint=checkpoint,
            teacher=teacher,
            phases=phases,
            progress=progress,
        )
        phases.enter_evaluation()
    program = quantization.convert(graph, source, batches[0])
    float_accuracy, int8_accuracy = accuracy(teacher, val), accuracy(program.program, val)
    drop = float_accuracy - int8_accuracy
    if config.max_accuracy_drop is not None and drop > config.max_accuracy_drop:
        raise BudgetError(
            f"quantize.max_accuracy_drop = {config.max_accuracy_drop}: the {config.method} program loses {drop:.4f} "
            f"on the validation split ({float_accuracy:.4f} -> {int8_accuracy:.4f})",
            'train longer (quantize.epochs), use method = "qat", or allow a larger drop',
        )
    results = {"val_accuracy_float": float_accuracy, "val_accuracy": int8_accuracy, **curve_results(curve)}
    record = step_record("quantize", config, seed, started, results)
    return dataclasses.replace(program, history=(*model.history, record))


def _take(batches: Iterable[Any], count: int) -> Iterator[torch.Tensor]:
    """Yield inputs until `count` samples are reached; the last batch is cut."""
    taken = 0
    for batch in batches:
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        inputs = inputs[: count - taken]
        taken += len(inputs)
        yield inputs
        if taken >= count:
            return
    raise DataError(
        f"calibration asks for {count} samples, there are {taken}",
        "give more, or use a calibration recipe with fewer samples",
    )
