"""The quantize stage with Neural Compressor as its engine: that tool's ranges and tuning, this one's checks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch

from edgeft.calibration import CalibrationRecipe
from edgeft.errors import BudgetError, ConfigError
from edgeft.quantization import neural_compressor
from edgeft.recipe import Quantize
from edgeft.stages.accuracy_aware import exceeds
from edgeft.stages.common import accuracy, right_answers, step_record
from edgeft.target import Numerics
from edgeft.training import Batches
from edgeft.types import FloatModel, Progress, QuantModel, silent

_ENGINE = 'quantize.engine = "neural-compressor"'


def quantize_with_neural_compressor(
    model: FloatModel,
    val: Batches,
    batches: Sequence[torch.Tensor],
    config: Quantize,
    recipe: CalibrationRecipe,
    *,
    numerics: Numerics | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> QuantModel:
    """Return the Q/DQ program that Neural Compressor makes: by default settings (ptq), or by its `autotune` (auto).

    Args:
        model: Trained float network; quantized as it is, its batch norms' statistics included.
        val: Batches of inputs and class indices that programs are scored on.
        batches: Inputs to calibrate with.
        config: Settings of the stage.
        recipe: Where `batches` come from; the ranges are found as Neural Compressor does.
        numerics: Integer numbers of the targets' kernels; the usual ones by default.
        seed: For the record.
        progress: Told how far calibration is.

    Raises:
        ConfigError: A setting belongs to the other engine.
        BudgetError: `max_accuracy_drop` is missed; the message says by how much.
        EdgeftError: As `quantization.neural_compressor.quantize`.
    """
    _refuse_others(config, recipe)
    started = time.monotonic()
    limit = config.max_accuracy_drop
    tuned = config.method == "auto"
    program = neural_compressor.quantize(
        model,
        batches,
        numerics=numerics,
        evaluate=(lambda candidate: accuracy(candidate, val)) if tuned else None,
        max_accuracy_drop=limit if tuned else None,
        progress=progress,
    )
    (before, samples), (after, _) = right_answers(model.module, val), right_answers(program.program, val)
    if limit is not None and exceeds((before - after) / samples, limit):
        raise BudgetError(
            f"quantize.max_accuracy_drop = {limit}: the best program of Neural Compressor loses "
            f"{(before - after) / samples:.4f} on the validation split ({before / samples:.4f} -> "
            f"{after / samples:.4f}; {samples} samples)",
            'use quantize.engine = "edgeft" with method = "auto", or allow a larger drop',
        )
    made = program.history[-1]
    results = {
        "method": config.method,
        "val_samples": samples,
        "val_accuracy_float": before / samples,
        "val_accuracy": after / samples,
        "float_layers": list(program.float_ops),
        "neural_compressor": {**made.config, **made.results, "versions": dict(made.versions)},
    }
    record = step_record("quantize", config, seed, started, results)
    return dataclasses.replace(program, history=(*model.history, record))


def _refuse_others(config: Quantize, recipe: CalibrationRecipe) -> None:
    """Raise `ConfigError` for what only edgeft's own engine does."""
    given = {
        "quantize.float_layers": config.float_layers,
        "quantize.observe_epochs": config.observe_epochs is not None,
        "quantize.scales": config.scales != "moving-average",
        "observer of the calibration recipe": recipe.observer != "minmax",
        "cross_layer_equalization of the calibration recipe": recipe.cross_layer_equalization,
        "bias_correction of the calibration recipe": recipe.bias_correction,
        "smooth_quant of the calibration recipe": recipe.smooth_quant is not None,
    }
    others = [name for name, value in given.items() if value]
    if others:
        raise ConfigError(
            f"{_ENGINE} does not know: {', '.join(others)}", 'leave it out, or use quantize.engine = "edgeft"'
        )
