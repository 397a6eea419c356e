"""Rewrites of a float ONNX graph for the schemes that store weights small: fp16, int8-weights, int8-dynamic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgeft.errors import ExportError
from edgeft.exporters.onnx_rewrite import MAC_OPS, OnnxGraph, attribute
from edgeft.exporters.stored_weights import IntegerWeight, check_halves, check_integers, is_half
from edgeft.types import QuantCoverage, QuantModel


def store_halves(graph: OnnxGraph) -> None:
    """Store every float weight that is made of fp16 numbers as such, behind a Cast.

    Runtimes fold the Cast when they load the file: the speed is that of float32.
    """
    users = graph.users()
    for name in [t.name for t in graph.model.graph.initializer]:
        if name not in users or not is_half(graph.value(name)):
            continue
        stored = graph.add_constant(f"{name}_half", graph.value(name).astype(np.float16))
        cast = helper.make_node(
            "Cast", [stored], [f"{name}_float"], name=f"{name}_cast", to=TensorProto.FLOAT
        )
        graph.model.graph.node.insert(0, cast)
        for node in users[name]:
            for index, source in enumerate(node.input):
                if source == name:
                    node.input[index] = cast.output[0]


def compute_in_halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float model whose operators compute in fp16, with float32 inputs and outputs as before."""
    from onnxruntime.transformers import float16, onnx_model

    halved: onnx.ModelProto = float16.convert_float_to_float16(model, keep_io_types=True)
    # It puts the casts of inputs at the end of the list, which no reader but ONNX Runtime accepts.
    onnx_model.OnnxModel.graph_topological_sort(halved.graph, is_deterministic=True)
    return halved


def spell_out_dequantization(graph: OnnxGraph) -> None:
    """Turn int8 weight -> DequantizeLinear into Cast and Mul.

    ONNX Runtime folds these two when it loads the file. It keeps a DequantizeLinear for fusions with integer kernels,
    and without any it runs at every inference, in front of convolutions that have lost their blocked layout: six
    convolutions of 128 channels took 2.5 ms, 1.9 in float32, and 1.8 with Cast and Mul.
    """
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear" or not graph.is_constant(node.input[0]):
            continue
        integers, scales = graph.value(node.input[0]), np.asarray(graph.value(node.input[1]), np.float32)
        shape = [1] * integers.ndim
        shape[attribute(node, "axis", 1)] = -1
        scale = graph.add_constant(f"{node.output[0]}_scale", scales.reshape(shape))
        cast = helper.make_node(
            "Cast",
            [node.input[0]],
            [f"{node.output[0]}_cast"],
            name=f"{node.name}_cast",
            to=TensorProto.FLOAT,
        )
        scaled = helper.make_node(
            "Mul", [cast.output[0], scale], list(node.output), name=f"{node.name}_scale"
        )
        graph.insert_before(node, cast)
        graph.replace(node, scaled)


def multiply_integers(graph: OnnxGraph) -> None:
    """Turn DequantizeLinear -> MatMul or Gemm into DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul (-> Add).

    ONNX Runtime fuses these into its DynamicQuantizeMatMul. Readers of one value share its quantization.
    """
    for node in graph.nodes:
        dequantize = graph.producer(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        integers: Any = graph.value(dequantize.input[0])
        scales = np.asarray(graph.value(dequantize.input[1]), np.float32)
        if node.op_type == "Gemm" and attribute(node, "transB", 0):
            integers = integers.T
        _multiply(graph, node, np.ascontiguousarray(integers), scales)
    users = graph.users()
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and node.output[0] not in users:
            graph.remove(node)


def _multiply(graph: OnnxGraph, node: onnx.NodeProto, integers: npt.NDArray[np.int8], scales: Any) -> None:
    source, out = node.input[0], node.output[0]
    rounded = [f"{source}_{part}" for part in ("uint8", "step", "zero")]
    if graph.producer(rounded[0]) is None:
        graph.insert_before(
            node, helper.make_node("DynamicQuantizeLinear", [source], rounded, name=f"{source}_round")
        )
    weight = graph.add_constant(f"{out}_weight", integers)
    scale = graph.add_constant(f"{out}_weight_scale", scales)
    bias = node.input[2] if len(node.input) > 2 else ""
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("MatMulInteger", [rounded[0], weight, rounded[2]], f"{out}_sum", {}),
        ("Cast", [f"{out}_sum"], f"{out}_float", {"to": TensorProto.FLOAT}),
        ("Mul", [rounded[1], scale], f"{out}_scale", {}),
        ("Mul", [f"{out}_float", f"{out}_scale"], f"{out}_product" if bias else out, {}),
    ]
    if bias:
        steps.append(("Add", [f"{out}_product", bias], out, {}))
    for kind, inputs, result, settings in steps[:-1]:
        graph.insert_before(node, helper.make_node(kind, inputs, [result], name=f"{out}_{kind}", **settings))
    kind, inputs, result, settings = steps[-1]
    graph.replace(node, helper.make_node(kind, inputs, [result], name=f"{out}_{kind}", **settings))


def check(model: QuantModel, path: Path) -> QuantCoverage:
    """Read an ONNX file of one of these schemes back. Raises `ExportError` where a number is not the program's."""
    graph = OnnxGraph(onnx.load(path))
    found: list[IntegerWeight] = []
    float_ops: list[str] = []
    for node in graph.nodes:
        if node.op_type == "MatMulInteger":
            found.append(_read_product(graph, node))
        elif node.op_type in MAC_OPS:
            float_ops.append(node.name)
            weight = _read_weight(graph, node)
            if weight is not None:
                found.append(weight)
    if model.scheme == "float16":
        stored = [
            graph.value(t.name) for t in graph.model.graph.initializer if t.data_type == TensorProto.FLOAT16
        ]
        return check_halves(model, [np.asarray(s, np.float16) for s in stored], float_ops, file=path.name)
    return check_integers(model, found, float_ops, file=path.name)


def _read_weight(graph: OnnxGraph, node: onnx.NodeProto) -> IntegerWeight | None:
    """Return the weight of a float MAC op that comes from int8 numbers."""
    scaled = graph.producer(node.input[1])
    cast = graph.producer(scaled.input[0]) if scaled is not None and scaled.op_type == "Mul" else None
    if scaled is None or cast is None or cast.op_type != "Cast" or not graph.is_constant(cast.input[0]):
        return None
    integers: Any = graph.value(cast.input[0])
    transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
    return IntegerWeight(
        name=node.name,
        weight=integers.T if transposed else integers,
        scale=np.asarray(graph.value(scaled.input[1]), np.float32).reshape(-1),
    )


def _read_product(graph: OnnxGraph, node: onnx.NodeProto) -> IntegerWeight:
    """Return the weight of an integer product, and its scales from the two multiplications behind it."""
    users = graph.users()
    (cast,) = users[node.output[0]]
    (product,) = users[cast.output[0]]
    factors = graph.producer(product.input[1])
    if factors is None or factors.op_type != "Mul":
        raise ExportError(f"{node.name}: its result is not multiplied by two scales")
    return IntegerWeight(
        name=node.name,
        weight=np.asarray(graph.value(node.input[1]), np.int8).T,
        scale=np.asarray(graph.value(factors.input[1]), np.float32).reshape(-1),
    )
