"""ONNX: https://onnx.ai/onnx/repo-docs/IR.html."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from edgeft.errors import ModelError
from edgeft.inspection.files import damaged
from edgeft.inspection.records import Graph, Node, Tensor, Value

_RENAMED = {"float": "float32", "double": "float64", "undefined": "?"}


def parse(path: Path) -> Graph:
    """Read an .onnx file. Raises `ModelError`."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise damaged(path, error) from error
    if not model.graph.node or not model.opset_import:
        raise damaged(path, "it holds no operations" if model.opset_import else "it names no operator set")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = _typed(model).graph
    constants = {tensor.name: tensor for tensor in _initializers(graph)}
    values = {info.name: Value(dtype=_dtype(info)) for info in _infos(graph)}
    values |= {name: _constant(tensor) for name, tensor in constants.items()}
    nodes = [_node(node, index) for index, node in enumerate(_nodes(graph))]
    opsets = ", ".join(f"{each.domain or 'ai.onnx'} {each.version}" for each in model.opset_import)
    return Graph(
        format="onnx",
        version=f"opset {opsets}; IR version {model.ir_version}",
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        files=(path, *_external(path, constants)),
        nodes=nodes,
        values=values,
        inputs=tuple(_tensor(info, graph, constants) for info in graph.input if info.name not in constants),
        outputs=tuple(_tensor(info, graph, constants) for info in graph.output),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the dtypes of everything that it computes, as far as they follow."""
    try:
        return onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return model  # ops of another domain, or above 2 GB: their dtypes are then shown as unknown


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes, those inside branches and loops too; a constant is a value, not an operation."""
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner)


def _initializers(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                tensor = TensorProto()
                tensor.CopyFrom(attribute.t)
                tensor.name = node.output[0]
                yield tensor
            if attribute.HasField("g"):
                yield from _initializers(attribute.g)


def _infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.value_info, *graph.input, *graph.output)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _infos(attribute.g)


def _node(node: onnx.NodeProto, index: int) -> Node:
    return Node(
        kind=node.op_type,
        name=node.name or f"{node.op_type}_{index}",
        inputs=tuple(node.input),
        outputs=tuple(node.output),
    )


def _name(number: int) -> str:
    name = str(TensorProto.DataType.Name(number)).lower()
    return _RENAMED.get(name, name)


def _dtype(info: onnx.ValueInfoProto) -> str:
    return _name(info.type.tensor_type.elem_type)


def _constant(tensor: TensorProto) -> Value:
    bits = {"int4": 4, "uint4": 4}.get(_name(tensor.data_type))
    bits = bits or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return Value(dtype=_name(tensor.data_type), stored_bytes=max(1, int(np.prod(tensor.dims)) * bits // 8))


def _external(path: Path, constants: Mapping[str, TensorProto]) -> list[Path]:
    """Return the files beside the model that hold its large constants, after checking that they are all there."""
    needed: dict[str, int] = {}
    for tensor in constants.values():
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
            name = entries.get("location", "")
            needed[name] = max(needed.get(name, 0), end)
    folder = path.parent.resolve()
    for name, size in needed.items():
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            raise ModelError(f"{path}: keeps constants in {name!r}, outside of its folder")
        if not file.is_file() or file.stat().st_size < size:
            raise ModelError(
                f"{path}: its constants are in {name}, which is missing or shorter than {size:,} bytes",
                "copy that file too",
            )
    return [path.parent / name for name in sorted(needed)]


def _tensor(
    info: onnx.ValueInfoProto, graph: onnx.GraphProto, constants: Mapping[str, TensorProto]
) -> Tensor:
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in info.type.tensor_type.shape.dim
    )
    scale, zero_point = _quantizer(info.name, graph, constants)
    return Tensor(name=info.name, shape=shape, dtype=_dtype(info), scale=scale, zero_point=zero_point)


def _quantizer(name: str, graph: onnx.GraphProto, constants: Mapping[str, TensorProto]) -> tuple[float, int]:
    """Return scale and zero point of the quantizer that reads an input, or that an output comes from."""
    for node in graph.node:
        reads = node.op_type == "QuantizeLinear" and node.input[0] == name
        writes = node.op_type == "DequantizeLinear" and node.output[0] == name
        if (reads or writes) and node.input[1] in constants:
            scale = numpy_helper.to_array(constants[node.input[1]])
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            if scale.size == 1:
                return float(scale), int(numpy_helper.to_array(zero)) if zero is not None else 0
    return 0.0, 0
