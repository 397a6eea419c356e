"""Rewrites that turn torch.onnx's Q/DQ graph into the layout that x86 kernels of both runtimes are fast on.

Each keeps the real values: weights become one int8 initializer (with Quantize and Clip left in front, OpenVINO
runs every convolution in float), activations are stored as uint8 (int8 leaves ONNX Runtime's convolutions
unfused), biases become int32 initializers, and a clamp that the next quantizer performs anyway goes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edgeft.errors import ExportError
from edgeft.types import QuantModel

MAC_OPS = ("Conv", "Gemm", "MatMul", "ConvTranspose")


class OnnxGraph:
    """A model's graph with constant look-up; edits go straight into the protobuf."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._constants: dict[str, npt.NDArray[np.generic]] = {}
        for initializer in model.graph.initializer:
            self._constants[initializer.name] = numpy_helper.to_array(initializer)
        self._producers = {name: node for node in model.graph.node for name in node.output}

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes in topological order (a copy, safe to edit the graph under)."""
        return list(self.model.graph.node)

    def is_constant(self, name: str) -> bool:
        """Return whether `name` is an initializer."""
        return name in self._constants

    def value(self, name: str) -> npt.NDArray[np.generic]:
        """Return an initializer's array. Raises `ExportError` if `name` is none."""
        if name not in self._constants:
            raise ExportError(f"ONNX graph: {name!r} was expected to be a constant")
        return self._constants[name]

    def producer(self, name: str) -> onnx.NodeProto | None:
        """Return the node that computes `name`, or None for inputs and constants."""
        return self._producers.get(name)

    def users(self) -> dict[str, list[onnx.NodeProto]]:
        """Return the readers of every value."""
        readers = defaultdict(list)
        for node in self.model.graph.node:
            for name in node.input:
                readers[name].append(node)
        return readers

    def add_constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        """Add an initializer (once) and return its name."""
        if name not in self._constants:
            self._constants[name] = value
            self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def replace(self, node: onnx.NodeProto, replacement: onnx.NodeProto) -> None:
        """Put another node with the same outputs in a node's place."""
        nodes = self.model.graph.node
        index = list(nodes).index(node)
        nodes.remove(node)
        nodes.insert(index, replacement)
        self._producers |= dict.fromkeys(replacement.output, nodes[index])

    def insert_before(self, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
        """Put a new node in front of another one."""
        nodes = self.model.graph.node
        index = list(nodes).index(node)
        nodes.insert(index, new)
        self._producers |= dict.fromkeys(new.output, nodes[index])

    def remove(self, node: onnx.NodeProto) -> None:
        """Remove a node."""
        self.model.graph.node.remove(node)
        for name in node.output:
            self._producers.pop(name, None)


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node."""
    return next((a.i for a in node.attribute if a.name == name), default)


def fold_weights(graph: OnnxGraph) -> None:
    """Turn float weight -> QuantizeLinear -> Clip(-127, 127) into one int8 initializer."""
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and graph.is_constant(node.input[0]):
            weight, scale, zero = (graph.value(name) for name in node.input)
            axis = attribute(node, "axis", 1)
            shape = [-1 if i == axis else 1 for i in range(weight.ndim)] if scale.ndim else []
            # Multiplied by the reciprocal, as torch's kernels do: a quotient can round to the other side of a tie.
            inverse = (np.float32(1) / scale.astype(np.float32)).reshape(shape)
            integers = np.rint(weight.astype(np.float32) * inverse) + zero.astype(np.float32).reshape(shape)
            graph.remove(node)
            graph.add_constant(node.output[0], np.clip(integers, -128, 127).astype(np.int8))
        elif node.op_type == "Clip" and graph.is_constant(node.input[0]):
            values, low, high = (graph.value(name) for name in node.input)
            graph.remove(node)
            graph.add_constant(node.output[0], np.clip(values, low, high).astype(values.dtype))


def separate_zero_points(graph: OnnxGraph) -> None:
    """Give every weight its own initializer of zeros.

    torch.onnx lets all weights of equal channel counts share one. OpenVINO then keeps a Subtract in front of them
    where their ranks differ (a conv1d among conv2d), and runs all of these layers in bfloat16, silently.
    """
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and graph.is_constant(node.input[0]) and len(node.input) > 2:
            zeros = graph.value(node.input[2])
            node.input[2] = graph.add_constant(f"{node.output[0]}_zero", zeros)


def fold_transposes(graph: OnnxGraph) -> None:
    """Turn int8 weight -> DequantizeLinear -> Transpose, before a MatMul, into a transposed initializer."""
    for node in graph.nodes:
        dequantize = graph.producer(node.input[0]) if node.op_type == "Transpose" else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        name = dequantize.input[0]
        if not graph.is_constant(name) or graph.value(name).ndim != 2:
            continue
        stored = graph.add_constant(f"{name}_transposed", np.ascontiguousarray(graph.value(name).T))
        replacement = onnx.helper.make_node(
            "DequantizeLinear",
            [stored, *dequantize.input[1:]],
            list(node.output),
            name=f"{node.name}_dequantize",
            axis=1 - attribute(dequantize, "axis", 1),
        )
        graph.replace(node, replacement)
    # ONNX Runtime computes what nobody reads: a third of a MiniLM's time.
    read = {name for node in graph.nodes for name in node.input} | {
        out.name for out in graph.model.graph.output
    }
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and node.output[0] not in read:
            graph.remove(node)


def shift_activations(graph: OnnxGraph, *, unsigned: bool) -> None:
    """Store activations as uint8 with zero points 128 higher: the same real values.

    Constant operands of arithmetic too: ONNX Runtime adds and multiplies two tensors of one type only, else in float.
    """
    if not unsigned:
        return
    users = graph.users()
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if graph.is_constant(node.input[0]):
            values = graph.value(node.input[0])
            readers = {reader.op_type for reader in users[node.output[0]]}
            if values.dtype != np.int8 or not readers or not readers <= {"Add", "Mul", "Sub", "Concat"}:
                continue
            raised = (values.astype(np.int32) + 128).astype(np.uint8)
            node.input[0] = graph.add_constant(f"{node.input[0]}_uint8", raised)
        zero = graph.value(node.input[2])
        if zero.dtype == np.int8:
            shifted = (zero.astype(np.int32) + 128).astype(np.uint8)
            node.input[2] = graph.add_constant(f"{node.input[2]}_uint8", shifted)
        for name in ("output_dtype", "axis"):
            for item in [a for a in node.attribute if a.name == name]:
                node.attribute.remove(item)


def quantize_biases(graph: OnnxGraph, model: QuantModel) -> None:
    """Store every integer layer's bias as int32 with scale s_x * s_w behind a DequantizeLinear."""
    by_weight = {(len(layer.weight), layer.weight.tobytes()): layer for layer in model.layers}
    for node in graph.nodes:
        if node.op_type not in MAC_OPS or len(node.input) < 3 or not graph.is_constant(node.input[2]):
            continue
        data, weight = graph.producer(node.input[0]), graph.producer(node.input[1])
        if data is None or weight is None or {data.op_type, weight.op_type} != {"DequantizeLinear"}:
            continue
        integers = graph.value(weight.input[0])
        layer = by_weight.get((len(integers), integers.tobytes()))
        if layer is None or layer.bias is None:
            raise ExportError(f"{node.name}: its integer weights are not in the program")
        name = node.input[2]
        # Equal weights may stand in two layers with different biases: the integers come from this node's own.
        scale = np.float32(graph.value(data.input[1])) * np.asarray(graph.value(weight.input[1]), np.float32)
        index = list(graph.model.graph.node).index(node)
        values = np.rint(graph.value(name).astype(np.float64) / scale.astype(np.float64)).astype(np.int32)
        name = f"{name}_{index}"  # a layer that is called twice has one bias, at two input scales
        dequantize = onnx.helper.make_node(
            "DequantizeLinear",
            [
                graph.add_constant(f"{name}_int32", values),
                graph.add_constant(f"{name}_scale", scale.astype(np.float32)),
                graph.add_constant(f"{name}_zero", np.zeros(len(values), np.int32)),
            ],
            [f"{name}_dequantized"],
            name=f"{name}_dequantize",
            axis=0,
        )
        graph.model.graph.node.insert(index, dequantize)
        node.input[2] = dequantize.output[0]


def merge_scales(graph: OnnxGraph) -> None:
    """Store one scale and zero point where all channels of a weight or bias have the same."""
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear" or not graph.is_constant(node.input[0]):
            continue
        for index in (1, 2):
            values = graph.value(node.input[index])
            if values.ndim and (values == values[0]).all():
                node.input[index] = graph.add_constant(f"{node.output[0]}_common_{index}", values[0])
        if graph.value(node.input[1]).ndim == 0:
            for item in [a for a in node.attribute if a.name == "axis"]:
                node.attribute.remove(item)


def drop_clamps(graph: OnnxGraph) -> None:
    """Remove clamps whose bounds quantize to the ends of the next quantizer's integer range, or beyond.

    Only where every reader is such a quantizer; then no integer changes.
    """
    users = graph.users()
    for node in graph.nodes:
        if node.op_type == "Relu":
            low, high = 0.0, np.inf
        elif node.op_type == "Clip":
            bounds = [float(graph.value(n)) if n else None for n in [*node.input[1:], "", ""][:2]]
            low = -np.inf if bounds[0] is None else bounds[0]
            high = np.inf if bounds[1] is None else bounds[1]
        else:
            continue
        readers = users[node.output[0]]
        if readers and all(_clips_as_tight(graph, reader, low, high) for reader in readers):
            for reader in readers:
                reader.input[0] = node.input[0]
            graph.remove(node)


def _clips_as_tight(graph: OnnxGraph, quantize: onnx.NodeProto, low: float, high: float) -> bool:
    if quantize.op_type != "QuantizeLinear":
        return False
    scale = np.float32(graph.value(quantize.input[1]))
    zero: Any = graph.value(quantize.input[2])
    limits = np.iinfo(zero.dtype)
    below = np.rint(np.float32(low) / scale) + int(zero) <= limits.min
    above = np.rint(np.float32(high) / scale) + int(zero) >= limits.max
    return bool(below and above)


def pool_means(graph: OnnxGraph) -> None:
    """Turn means of whole channels into global average pools, for which ONNX Runtime has an integer kernel."""
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in graph.model.graph.value_info}
    for node in graph.nodes:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or not attribute(node, "keepdims", 1):
            continue
        axes = {int(axis) % 4 for axis in graph.value(node.input[1]).reshape(-1)}
        if axes == {2, 3} and ranks.get(node.input[0]) == 4:
            graph.replace(
                node,
                onnx.helper.make_node(
                    "GlobalAveragePool", [node.input[0]], list(node.output), name=node.name
                ),
            )


def finish(graph: OnnxGraph) -> None:
    """Drop unused initializers and everything that carries build paths or the exporter's notes; number the names."""
    model = graph.model
    used = {name for node in model.graph.node for name in node.input}
    for initializer in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(initializer)
    del model.graph.value_info[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    model.graph.name = "edgeft"
    model.producer_name, model.producer_version = "edgeft", ""
    for index, node in enumerate(model.graph.node):
        node.doc_string = ""
        del node.metadata_props[:]
        node.name = f"{node.op_type}_{index}"
    for item in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        item.doc_string = ""
        del item.metadata_props[:]
