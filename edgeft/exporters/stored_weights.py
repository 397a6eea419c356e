"""What files of weight-only schemes hold, compared with the program: fp16 numbers, or int8 numbers and scales."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import GraphModule, Node

from edgeft.errors import ExportError
from edgeft.types import FloatArray, QuantCoverage, QuantModel

_DEFECT = (
    "the converter changed the numbers; please report it with the model and the versions of the packages"
)
_aten = torch.ops.aten
_LAYERS = {
    *(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.linear.default),
    *(
        _aten.conv1d.padding,
        _aten.conv2d.padding,
        _aten.conv_transpose1d.default,
        _aten.conv_transpose2d.input,
    ),
}
_FACTORS = {_aten.layer_norm.default, _aten.mul.Tensor, _aten.mul.Scalar, _aten.add.Tensor, _aten.div.Tensor}
# By name: the op exists only once torchao is imported.
_DEQUANTIZE = "quantized_decomposed.dequantize_per_channel.default"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerWeight:
    """The int8 weight of one layer in a file: (O, ...) in PyTorch's order, and its scales, (O,) or (1,)."""

    name: str
    weight: npt.NDArray[np.int8]
    scale: FloatArray


def halves(model: QuantModel) -> list[npt.NDArray[np.float16]]:
    """Return the weights of the program's MAC layers, which an fp16 file stores in half precision.

    Tables are stored so too, but converters keep only those of their rows that constant indices read.
    """
    nodes = [n for n in model.program.graph.nodes if _is_layer(n)]
    names = dict.fromkeys(str(n.args[1].target) for n in nodes)
    return [model.program.get_parameter(name).detach().numpy().astype(np.float16) for name in names]


def is_half(values: npt.NDArray[Any]) -> bool:
    """Return whether an array is a weight that fp16 holds without a further rounding."""
    if values.dtype != np.float32 or values.ndim < 2:
        return False
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))


def check_halves(
    model: QuantModel, found: Sequence[npt.NDArray[np.float16]], float_ops: Sequence[str], *, file: str
) -> QuantCoverage:
    """Require that a file holds every large parameter of the program in half precision, number for number.

    Layouts differ between formats: weights are compared as sorted numbers.

    Raises:
        ExportError: A parameter is missing, or differs.
    """
    missing = Counter(_sorted_bytes(weight) for weight in halves(model))
    missing -= Counter(_sorted_bytes(weight) for weight in found)
    if missing:
        raise ExportError(
            f"{file}: {missing.total()} of {len(halves(model))} weights of the program are not there in half precision",
            _DEFECT,
        )
    return QuantCoverage(mac_ops=len(float_ops), int8_mac_ops=0, float_ops=tuple(float_ops))


def check_integers(
    model: QuantModel, found: Sequence[IntegerWeight], float_ops: Sequence[str], *, file: str
) -> QuantCoverage:
    """Require that a file's int8 weights and scales are the program's.

    Args:
        model: The program.
        found: Layers with integer weights in the file.
        float_ops: Names of the MAC ops in the file that compute in float; the others count as int8.
        file: Name for messages.

    Raises:
        ExportError: A layer is missing, doubled, or has other integers or scales.
    """
    rest = list(found)
    for layer in model.layers:
        # Formats add dimensions of 1: a convolution over one axis is stored as one over two.
        same = [
            f
            for f in rest
            if len(f.weight) == len(layer.weight)
            and np.array_equal(f.weight.reshape(-1), layer.weight.reshape(-1))
        ]
        if not same:
            raise ExportError(f"{file}: no layer holds the integer weights of {layer.name!r}", _DEFECT)
        match = next(
            (
                f
                for f in same
                if np.array_equal(np.broadcast_to(f.scale, layer.weight_scale.shape), layer.weight_scale)
            ),
            None,
        )
        if match is None:
            raise ExportError(f"{file}: layer {layer.name!r}: weight scales differ", _DEFECT)
        rest = [f for f in rest if f is not match]
    if rest:
        raise ExportError(
            f"{file}: {rest[0].name!r} holds integer weights that are not in the program", _DEFECT
        )
    names = {f.name for f in found}
    dynamic = len(names - set(float_ops))
    return QuantCoverage(mac_ops=len(float_ops) + dynamic, int8_mac_ops=dynamic, float_ops=tuple(float_ops))


def keep_factors_apart(program: GraphModule) -> GraphModule:
    """Return a copy of a program in which no factor or term stands right in front of a linear layer.

    TensorFlow Lite's converter multiplies the scale of a layer norm into the weights of the linear layers behind it,
    which then are other numbers, and need other scales. It stops at a maximum; with the lowest float, that is no
    change.
    """
    graph = copy.deepcopy(program)
    for node in list(graph.graph.nodes):
        if node.target is not _aten.linear.default:
            continue
        source = maker = node.args[0]
        while maker.target is _aten.dropout.default:
            maker = maker.args[0]
        if maker.target not in _FACTORS:
            continue
        with graph.graph.inserting_before(node):
            apart = graph.graph.call_function(_aten.clamp.default, (source, torch.finfo(torch.float32).min))
        apart.meta["val"] = source.meta.get("val")
        node.update_arg(0, apart)
    graph.recompile()
    return graph


def with_float_weights(program: GraphModule) -> GraphModule:
    """Return a copy of an int8-weights program with float parameters of the same values."""
    graph = copy.deepcopy(program)
    for node in graph.graph.nodes:
        if str(node.target) != _DEQUANTIZE:
            continue
        with torch.no_grad():
            values = node.target(*(graph.get_buffer(str(a.target)) for a in node.args[:3]), *node.args[3:])
        name = f"{node.args[0].target}_values"
        graph.register_parameter(name, torch.nn.Parameter(values, requires_grad=False))
        with graph.graph.inserting_before(node):
            weight = graph.graph.get_attr(name)
        node.replace_all_uses_with(weight)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def without_rounding(program: GraphModule) -> GraphModule:
    """Return a program whose layers read activations as they are: the file's own ops will round them."""
    if not any(_is_rounding(node) for node in program.graph.nodes):
        return program
    graph = copy.deepcopy(program)
    for node in graph.graph.nodes:
        if _is_rounding(node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _is_layer(node: Node) -> bool:
    return node.target in _LAYERS and isinstance(node.args[1], Node) and node.args[1].op == "get_attr"


def _is_rounding(node: Node) -> bool:
    return str(node.target) == "edgeft.dynamic_fake_quant.default"


def _sorted_bytes(values: npt.NDArray[np.float16]) -> bytes:
    return np.sort(values.reshape(-1).view(np.uint16)).tobytes()
