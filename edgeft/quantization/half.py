"""Half precision: the float network with its weights rounded to fp16 (IEEE 754 binary16).

The values are what is halved, not the arithmetic: CPUs compute in float32 on them. Arithmetic in fp16 belongs to
targets whose devices have it.
"""

from __future__ import annotations

import dataclasses

import torch

from edgeft.errors import QuantizationError
from edgeft.quantization.capture import float_program
from edgeft.types import FloatModel, QuantModel

_LARGEST = torch.finfo(torch.float16).max


def halve_weights(model: FloatModel) -> QuantModel:
    """Return the float program whose parameters of two dimensions and more are fp16 numbers, kept as float32.

    Vectors (biases, the scales of norms) stay as they are: they weigh nothing, and a variance may not fit.

    Raises:
        ModelError: torch.export cannot capture the network.
        QuantizationError: A weight lies outside fp16's range of +-65,504.
    """
    program = float_program(model)
    with torch.no_grad():
        for name, weight in program.program.named_parameters():
            if weight.dim() < 2:
                continue
            largest = float(weight.abs().max())
            if largest > _LARGEST:
                raise QuantizationError(
                    f"weight {name!r} reaches {largest:.4g}; fp16 ends at {_LARGEST:,.0f}",
                    'train with weight decay, or use quantize.scheme = "int8-weights"',
                )
            weight.copy_(weight.half().float())
    return dataclasses.replace(program, scheme="float16")
