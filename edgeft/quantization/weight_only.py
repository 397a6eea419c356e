"""Integer weights without calibration: activations in float, or quantized when the layer runs.

The program holds int8 weights with their scales behind a dequantize op. `int8-weights` computes in float from
there. `int8-dynamic` also rounds the input of every linear layer to uint8, in a range that is found anew for each
sample as ONNX Runtime's DynamicQuantizeLinear finds it; the products of integers are then exact in both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgeft.errors import QuantizationError
from edgeft.quantization import contract
from edgeft.quantization.capture import capture, module_path
from edgeft.quantization.modes import allow_modes
from edgeft.target import Numerics
from edgeft.types import ArtifactScheme, FloatModel, QuantLayer, QuantModel, example_inputs

aten = torch.ops.aten

LINEARS = {aten.linear.default}
# Their weights have the output channels first.
WEIGHTED = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default} | LINEARS
_FLOAT_MACS = {
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.matmul.default,
    aten.bmm.default,
    aten.mm.default,
    aten.addmm.default,
    aten.einsum.default,
    aten.scaled_dot_product_attention.default,
}
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_channel.default


@torch.library.custom_op("edgeft::dynamic_fake_quant", mutates_args=())
def dynamic_fake_quant(x: torch.Tensor) -> torch.Tensor:
    """Round every sample of `x`, shape (N, ...), to 256 steps over its own range, widened to contain 0.

    Scale, zero point and rounding follow the ONNX operator DynamicQuantizeLinear (uint8, asymmetric).
    """
    flat = x.flatten(1)
    low = flat.amin(1, keepdim=True).clamp(max=0.0)
    high = flat.amax(1, keepdim=True).clamp(min=0.0)
    scale = torch.where(high == low, 1.0, (high - low) / 255)
    zero_point = torch.round(torch.clamp(-low / scale, 0, 255))
    integers = torch.clamp(torch.round(flat / scale) + zero_point, 0, 255)
    return ((integers - zero_point) * scale).reshape(x.shape)


@dynamic_fake_quant.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def quantize_weights(
    model: FloatModel, *, numerics: Numerics | None = None, dynamic: bool = False
) -> QuantModel:
    """Return the program of `model` with int8 weights; the module is not changed.

    Args:
        model: Trained float network.
        numerics: Range and granularity of the integers; the usual ones by default.
        dynamic: Quantize the inputs of linear layers as they come (`int8-dynamic`), and those layers alone; else
            the weights of convolutions and linear layers, and no activation (`int8-weights`).

    Raises:
        ModelError: torch.export cannot capture the network.
        QuantizationError: There is no layer to quantize.
    """
    graph = capture(model.module, example_inputs(model.preprocessing))
    kinds = LINEARS if dynamic else WEIGHTED
    nodes = [n for n in graph.graph.nodes if n.target in kinds and _is_parameter(n.args[1])]
    if dynamic:
        nodes = [n for n in nodes if _keeps_batch(graph, n)]
    scheme: ArtifactScheme = "int8-dynamic" if dynamic else "int8-weights"
    if not nodes:
        raise QuantizationError(
            f'quantize.scheme = "{scheme}": the network has no {"linear layer" if dynamic else "layer"} to quantize',
            'use quantize.scheme = "int8"',
        )
    stored: dict[str, Node] = {}
    for node in nodes:
        name = str(node.args[1].target)
        if name not in stored:
            stored[name] = _store(graph, node, numerics or Numerics())
        node.update_arg(1, stored[name])
        if dynamic:
            _quantize_input(graph, node)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    allow_modes(graph)
    graph.eval()
    return read_back(graph, model, scheme)


def read_back(program: GraphModule, source: FloatModel | QuantModel, scheme: ArtifactScheme) -> QuantModel:
    """Read the integer weights of a program into a `QuantModel`."""
    nodes = [n for n in program.graph.nodes if n.target in WEIGHTED | _FLOAT_MACS]
    integer = [n for n in nodes if n.target in WEIGHTED and n.args[1].target is _DEQUANTIZE]
    computes_in_integers = integer if scheme == "int8-dynamic" else []
    return QuantModel(
        program=program,
        layers=tuple(_read_layer(program, node) for node in integer),
        activations=(),
        float_ops=tuple(module_path(n) for n in nodes if n not in computes_in_integers),
        output=None,
        preprocessing=source.preprocessing,
        labels=source.labels,
        history=source.history,
        scheme=scheme,
    )


def _store(graph: GraphModule, layer: Node, numerics: Numerics) -> Node:
    """Put a layer's weight into the graph as integers; return the node that dequantizes them."""
    weight = graph.get_parameter(str(layer.args[1].target)).detach()  # type: ignore[union-attr]
    scales = contract.weight_scale(weight, numerics=numerics)
    integers = torch.from_numpy(contract.quantize_weight(weight.numpy(), scales.numpy(), numerics=numerics))
    limit = contract.weight_limit(numerics)
    parts = {"int8": integers, "scale": scales, "zero": torch.zeros(len(scales), dtype=torch.int32)}
    with graph.graph.inserting_before(layer):
        read = []
        for part, value in parts.items():
            graph.register_buffer(f"{layer.name}_{part}", value)
            read.append(graph.graph.get_attr(f"{layer.name}_{part}"))
            read[-1].meta["val"] = value
        node: Node = graph.graph.call_function(_DEQUANTIZE, (*read, 0, -limit, limit, torch.int8))
    node.meta["val"] = weight
    return node


def _quantize_input(graph: GraphModule, layer: Node) -> None:
    """Round a layer's input, once for all layers that read it."""
    source: Any = layer.args[0]
    rounded = next((u for u in source.users if u.target is DYNAMIC), None)
    if rounded is None:
        with graph.graph.inserting_after(source):
            rounded = graph.graph.call_function(DYNAMIC, (source,))
        rounded.meta["val"] = source.meta.get("val")
    layer.update_arg(0, rounded)


DYNAMIC = torch.ops.edgeft.dynamic_fake_quant.default


def _keeps_batch(graph: GraphModule, layer: Node) -> bool:
    """Return whether a layer's input has one row per sample: only then is a range per sample what a device finds."""
    inputs = next(n for n in graph.graph.nodes if n.op == "placeholder")
    value: Any = layer.args[0].meta.get("val")  # type: ignore[union-attr]
    return value is not None and bool(value.shape[0] == inputs.meta["val"].shape[0])


def _is_parameter(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "get_attr"


def _read_layer(program: GraphModule, node: Node) -> QuantLayer:
    dequantize: Any = node.args[1]
    integers, scales = (program.get_buffer(str(source.target)).numpy() for source in dequantize.args[:2])
    return QuantLayer(
        name=module_path(node),
        op=str(node.target).split(".")[1],
        weight=integers.astype(np.int8),
        weight_scale=scales.astype(np.float32),
        bias=None,
        input=None,
        output=None,
    )
