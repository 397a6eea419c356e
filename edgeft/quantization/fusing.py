"""Leave out the quantizers inside the groups that a target's kernels compute without rounding.

Weights, biases and all other scales stay those of the program that the targets share; what is left out is listed, and
parity says what it costs (DESIGN: section 5).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeft.errors import QuantizationError
from edgeft.quantization.modes import allow_modes
from edgeft.quantization.operators import (
    ACTIVATIONS,
    ADDS,
    CLAMPS,
    CONVOLUTIONS,
    FIXED_RANGES,
    INTEGER_MACS,
    aten,
)
from edgeft.quantization.program import DEQUANTIZE, QUANTIZE, read_back
from edgeft.target import FusedGroup
from edgeft.types import QuantModel

_CURVES = (ACTIVATIONS | set(FIXED_RANGES) | {aten.hardswish.default}) - {aten.softmax.int}


def fuse(model: QuantModel, groups: Collection[FusedGroup]) -> QuantModel:
    """Return a copy of a Q/DQ program without the quantizers inside a target's fused groups.

    ``conv-activation``: between a convolution (or linear layer) and the activation that reads it.
    ``activation-mul``: between an activation and the product of it with its own input (SiLU, hard-swish). A hard-swish
    also becomes one op again.
    ``conv-add``: between a convolution and the addition that reads it.

    Args:
        model: The program that targets share.
        groups: From the target's profile.

    Returns:
        The program with `deviations` naming what was left out; `model` itself where that is nothing.

    Raises:
        QuantizationError: `model` leaves something out already.
    """
    if model.deviations:
        raise QuantizationError(
            "the program is fused for a target already", "fuse the program that quantization returned"
        )
    program = copy.deepcopy(model.program)
    if "activation-mul" in groups:
        _restore_hard_swish(program)
    for site in [site for site in _sites(program) if any(_INSIDE[group](site) for group in groups)]:
        for dequantize in list(site.users):
            source: Any = site.args[0]
            dequantize.replace_all_uses_with(source)
            program.graph.erase_node(dequantize)
        program.graph.erase_node(site)
    program.recompile()
    allow_modes(program)
    program.eval()
    fused = read_back(program, model)
    known = {activation.name for activation in fused.activations}
    left_out = tuple(activation.name for activation in model.activations if activation.name not in known)
    return dataclasses.replace(fused, deviations=left_out) if left_out else model


def _sites(program: GraphModule) -> list[Node]:
    """Return the activation quantizers whose every reader dequantizes."""
    return [
        node
        for node in program.graph.nodes
        if node.target is QUANTIZE and node.users and all(user.target is DEQUANTIZE for user in node.users)
    ]


def _readers(site: Node) -> Iterator[Node]:
    for dequantize in site.users:
        yield from dequantize.users


def _ends_layer(site: Node) -> bool:
    """Return whether a layer's own result is quantized here, not a clamped one."""
    return isinstance(site.args[0], Node) and site.args[0].target in INTEGER_MACS


def _before_activation(site: Node) -> bool:
    readers = list(_readers(site))
    curves = [reader for reader in readers if reader.target in _CURVES]
    gated = [reader for reader in readers if reader.target is aten.mul.Tensor and _gates_itself(reader)]
    return _ends_layer(site) and bool(curves) and len(curves) + len(gated) == len(readers)


def _before_gating(site: Node) -> bool:
    curve: Any = site.args[0]
    readers = list(_readers(site))
    return curve.target in _CURVES and bool(readers) and all(_gates_itself(reader) for reader in readers)


def _before_addition(site: Node) -> bool:
    readers = list(_readers(site))
    return _ends_layer(site) and len(readers) == 1 and readers[0].target in ADDS


_INSIDE = {
    "conv-activation": _before_activation,
    "activation-mul": _before_gating,
    "conv-add": _before_addition,
}


def _value(argument: Any) -> Any:
    """Return what is quantized behind a dequantized argument, or the argument."""
    if isinstance(argument, Node) and argument.target is DEQUANTIZE:
        return argument.args[0].args[0]  # type: ignore[union-attr]
    return argument


def _gates_itself(product: Node) -> bool:
    """Return whether a product is x * activation(x)."""
    if product.target is not aten.mul.Tensor:
        return False
    left, right = (_value(argument) for argument in product.args[:2])
    return any(
        isinstance(gate, Node) and gate.target in _CURVES and _value(gate.args[0]) is x
        for gate, x in ((left, right), (right, left))
    )


def _restore_hard_swish(program: GraphModule) -> None:
    """Turn x * clamp(x / 6 + 1/2, 0, 1) into one op again; the gate's quantizer goes with it."""
    for product in [n for n in program.graph.nodes if n.target is aten.mul.Tensor]:
        x, gate = product.args[:2]
        layer = _gate_layer(program, gate)
        if layer is None or _value(layer.args[0]) is not _value(x):
            continue
        with program.graph.inserting_before(product):
            whole: Node = program.graph.call_function(aten.hardswish.default, (x,))
        whole.meta = dict(product.meta)
        product.replace_all_uses_with(whole)
        program.graph.erase_node(product)
    program.graph.eliminate_dead_code()


def _gate_layer(program: GraphModule, gate: Any) -> Node | None:
    """Return the one-tap convolution that `rewrites.lower` makes of a hard-sigmoid, or None."""
    clamp = _value(gate)
    layer = clamp.args[0] if isinstance(clamp, Node) and clamp.target in CLAMPS else None
    if not isinstance(layer, Node) or layer.target not in CONVOLUTIONS:
        return None
    source: Any = layer.args[1]
    while isinstance(source, Node) and source.op != "get_attr":
        source = source.args[0]
    weight, bias = (_tensor(program, node) for node in (source, layer.args[2]))
    # The bias lies on its integer grid, so that it is one half but for a rounding.
    is_gate = torch.allclose(weight, torch.tensor(1 / 6)) and torch.allclose(
        bias, torch.tensor(0.5), rtol=1e-2
    )
    return layer if is_gate and weight[0].numel() == 1 else None


def _tensor(program: GraphModule, node: Any) -> torch.Tensor:
    owner, _, name = str(node.target).rpartition(".") if isinstance(node, Node) else ("", "", "")
    value = getattr(program.get_submodule(owner), name, None)
    return value.detach() if isinstance(value, torch.Tensor) else torch.zeros(1)
