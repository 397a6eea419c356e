"""Keep float layers float where a converter or a runtime quantizes whatever stands between two quantizers."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import torch
from torch.fx import GraphModule, Node

from edgeft.exporters.onnx_rewrite import MAC_OPS, OnnxGraph

_aten = torch.ops.aten
_LAYERS = {
    *(_aten.conv1d.default, _aten.conv1d.padding, _aten.conv2d.default, _aten.conv2d.padding),
    *(_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.linear.default),
}
_ONNX_CLAMPS = ("Clip", "Relu")


def shield_onnx_layers(graph: OnnxGraph) -> None:
    """Negate both factors of every float layer between two quantizers: (-x)(-w) is x w to the last bit.

    ONNX Runtime gives a Conv or Gemm with float weights, a dequantized input and a quantized output int8 weights of
    its own making when it loads the file. It does not look through a negation.
    """
    readers = graph.users()
    for node in graph.nodes:
        if node.op_type not in MAC_OPS or not graph.is_constant(node.input[1]):
            continue
        source, users = graph.producer(node.input[0]), readers[node.output[0]]
        if len(users) == 1 and users[0].op_type in _ONNX_CLAMPS:
            users = readers[users[0].output[0]]
        if source is None or source.op_type != "DequantizeLinear":
            continue
        if any(user.op_type == "QuantizeLinear" for user in users):
            weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = graph.value(node.input[1]).astype(
                np.float32
            )
            negated = f"{node.output[0]}_negated_input"
            graph.insert_before(
                node, onnx.helper.make_node("Neg", [node.input[0]], [negated], name=f"{node.name}_negate")
            )
            node.input[0] = negated
            node.input[1] = graph.add_constant(f"{node.output[0]}_negated_weight", -weight)


def shield_float_layers(program: GraphModule) -> GraphModule:
    """Return a program of the same function in which no float layer stands right between two quantizers.

    TensorFlow Lite's converter gives such a layer int8 weights of its own making. It folds a factor, a negation or
    a power into the weights and then does the same; it stops at a ReLU. For values that are not negative that
    is no change; others are taken apart, x = relu(x) - relu(-x), which is exact as well. The program itself is
    returned where it has no such layer.
    """
    names = {node.name for node in program.graph.nodes if _is_exposed(node)}
    if not names:
        return program
    program = copy.deepcopy(program)
    for node in [node for node in program.graph.nodes if node.name in names]:
        with program.graph.inserting_before(node):
            node.update_arg(0, _unchanged(program, node.all_input_nodes[0]))
    program.recompile()
    return program


def _unchanged(program: GraphModule, source: Node) -> Node:
    """Add ops that hand on the dequantized values of `source` as they are."""

    def call(op: object, *arguments: Node) -> Node:
        node: Node = program.graph.call_function(op, arguments)  # type: ignore[arg-type]
        node.meta["val"] = source.meta.get("val")
        return node

    positive = call(_aten.relu.default, source)
    if source.args[2] == source.args[3]:  # zero point at the lower end of the integers: nothing below 0
        return positive
    negative = call(_aten.relu.default, call(_aten.neg.default, source))
    return call(_aten.sub.Tensor, positive, negative)


def _is_exposed(node: Node) -> bool:
    """Return whether a layer has float weights, reads a dequantized value, and its result is quantized."""
    if node.target not in _LAYERS:
        return False
    source, weight = node.all_input_nodes[:2]
    users = list(node.users)
    if len(users) == 1:  # what the converter fuses: a clamp
        users += users[0].users
    return (
        _is_op(source, "dequantize_per_tensor")
        and weight.op == "get_attr"
        and any(_is_op(user, "quantize_per_tensor") for user in users)
    )


def _is_op(node: Node, name: str) -> bool:
    # By name: these ops exist only once torchao is imported.
    return str(node.target).startswith(f"quantized_decomposed.{name}")
