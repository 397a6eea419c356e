"""Products of two activations (attention), and the float islands around them, in program and file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgeft.errors import ExportError

# By name: the op exists only once torchao is imported.
_DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"
_MATMUL = torch.ops.aten.matmul.default
# No runtime has integer kernels of these that agree with the program.
_ISLANDS = {torch.ops.aten.layer_norm.default: "layer norm", torch.ops.aten.softmax.int: "softmax"}

Range = tuple[float, int]
"""Scale, and zero point in int8 numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProduct:
    """A matrix product of two int8 activations as it stands in a file."""

    name: str
    left: Range
    right: Range


def check_products(program: GraphModule, products: Sequence[FileProduct], *, file: str) -> None:
    """Require that every integer product of a file multiplies what one of the program's does.

    Those that a converter left in float are named in the coverage.

    Raises:
        ExportError: A product's scales or zero points are not the program's.
    """
    known = Counter(_program_products(program))
    for product in products:
        key = _key(product.left, product.right)
        if not known[key]:
            raise ExportError(
                f"{file}: {product.name!r} multiplies activations with scales and zero points {key}; "
                "no product of the program does",
                "the converter changed the numbers; please report the model and the versions of the packages",
            )
        known[key] -= 1


def float_islands(program: GraphModule) -> tuple[str, ...]:
    """Return the layer norms and softmaxes of a program, which compute in float between integer ops, by name."""
    return tuple(
        f"{node.name} ({_ISLANDS[node.target]})" for node in program.graph.nodes if node.target in _ISLANDS
    )


def _program_products(program: GraphModule) -> list[tuple[Range, Range]]:
    found = []
    for node in program.graph.nodes:
        if node.target is _MATMUL and all(
            isinstance(a, Node) and str(a.target) == _DEQUANTIZE for a in node.args
        ):
            left, right = ((a.args[1], a.args[2]) for a in node.args)
            found.append(_key(left, right))
    return found


def _key(left: Any, right: Any) -> tuple[Range, Range]:
    """Return the two ranges in an order of their own: converters swap operands."""
    first, second = sorted((float(np.float32(scale)), int(zero_point)) for scale, zero_point in (left, right))
    return first, second
