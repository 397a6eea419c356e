"""The quantize stage for schemes that need neither training nor calibration: fp16, int8-weights, int8-dynamic."""

from __future__ import annotations

import dataclasses
import time

from edgeft import quantization
from edgeft.errors import BudgetError, ConfigError
from edgeft.recipe import Quantize
from edgeft.stages.common import accuracy, step_record
from edgeft.target import Numerics
from edgeft.training import Batches
from edgeft.types import FloatModel, QuantModel


def shrink_weights(
    model: FloatModel, val: Batches, config: Quantize, *, numerics: Numerics | None = None, seed: int = 0
) -> QuantModel:
    """Return the program of `model` with its weights in the numbers of ``config.scheme``.

    Args:
        model: Trained float network.
        val: Batches of inputs and class indices that both are scored on.
        config: Settings of the stage.
        numerics: Integer numbers of the targets' kernels; the usual ones by default.
        seed: For the record.

    Raises:
        ConfigError: The scheme is ``none``.
        ModelError: torch.export cannot capture the network.
        QuantizationError: A weight does not fit, or there is no layer to quantize.
        BudgetError: `max_accuracy_drop` is missed; the message says by how much.
    """
    if config.scheme == "none":
        raise ConfigError(
            'quantize.scheme = "none": there is nothing to do', "export the float model instead"
        )
    started = time.monotonic()
    if config.scheme == "fp16":
        program = quantization.halve_weights(model)
    else:
        dynamic = config.scheme == "int8-dynamic"
        program = quantization.quantize_weights(model, numerics=numerics, dynamic=dynamic)
    before, after = accuracy(model.module, val), accuracy(program.program, val)
    if config.max_accuracy_drop is not None and before - after > config.max_accuracy_drop:
        raise BudgetError(
            f"quantize.max_accuracy_drop = {config.max_accuracy_drop}: the {config.scheme} program loses "
            f"{before - after:.4f} on the validation split ({before:.4f} -> {after:.4f})",
            'use scheme = "fp16" or "int8" with method = "auto", or allow a larger drop',
        )
    results = {"val_accuracy_float": before, "val_accuracy": after}
    record = step_record("quantize", config, seed, started, results)
    return dataclasses.replace(program, history=(*model.history, record))
