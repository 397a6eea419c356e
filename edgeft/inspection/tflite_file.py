"""TensorFlow Lite: flatbuffers of tensorflow/lite/schema/schema.fbs."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import extras
from edgeft.inspection.files import damaged
from edgeft.inspection.records import Graph, Node, Tensor, Value

# What the generated accessors raise for offsets that lead nowhere.
_BROKEN = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError, RecursionError)


def parse(path: Path) -> Graph:
    """Read a .tflite file. Raises `ModelError`, `MissingDependencyError`."""
    schema = extras.load("ai_edge_litert.schema_py_generated", "reading a .tflite file")
    try:
        content = path.read_bytes()
        if content[4:8] != b"TFL3":
            raise damaged(path, "it does not carry the mark TFL3")
        model = schema.Model.GetRootAs(content, 0)
        return _graph(path, model, schema)
    except (*_BROKEN, OSError) as error:
        raise damaged(path, repr(error)) from error


def _graph(path: Path, model: Any, schema: Any) -> Graph:
    kinds = _names(schema.BuiltinOperator)
    dtypes = {number: name.lower() for number, name in _names(schema.TensorType).items()}
    codes = [_kind(model.OperatorCodes(i), kinds) for i in range(model.OperatorCodesLength())]
    # To the last byte, or the end of the file could be missing.
    sizes = [_size(model.Buffers(i)) for i in range(model.BuffersLength())]
    values: dict[str, Value] = {}
    nodes: list[Node] = []
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            values[f"{number}:{index}"] = Value(
                dtype=dtypes.get(tensor.Type(), "?"), stored_bytes=sizes[tensor.Buffer()]
            )
        for index in range(graph.OperatorsLength()):
            op = graph.Operators(index)
            kind = codes[op.OpcodeIndex()]
            nodes.append(
                Node(
                    kind=kind,
                    name=f"{kind}_{index}",
                    inputs=[f"{number}:{i}" if i >= 0 else "" for i in _ints(op, "Inputs")],
                    outputs=[f"{number}:{i}" for i in _ints(op, "Outputs")],
                )
            )
    if not nodes:
        raise damaged(path, "it holds no operations")
    main = model.Subgraphs(0)
    metadata = _metadata(model)
    return Graph(
        format="tflite",
        version=f"schema {model.Version()}",
        producer=_text(model.Description()),
        files=(path,),
        nodes=nodes,
        values=values,
        inputs=tuple(_tensor(main.Tensors(i), dtypes) for i in _ints(main, "Inputs")),
        outputs=tuple(_tensor(main.Tensors(i), dtypes) for i in _ints(main, "Outputs")),
        metadata=metadata,
    )


def _names(enumeration: Any) -> dict[int, str]:
    return {number: name for name, number in vars(enumeration).items() if isinstance(number, int)}


def _kind(code: Any, kinds: dict[int, str]) -> str:
    # Files from before 2020 know the first field only, which ends at 127.
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = kinds.get(number, f"BUILTIN_{number}")
    return f"CUSTOM {_text(code.CustomCode())}" if name == "CUSTOM" else name


def _size(buffer: Any) -> int:
    data = buffer.DataAsNumpy()
    return int(data.nbytes) if isinstance(data, np.ndarray) else int(buffer.Size())


def _ints(table: Any, name: str) -> list[int]:
    values = getattr(table, f"{name}AsNumpy")()
    return values.tolist() if isinstance(values, np.ndarray) else []


def _tensor(tensor: Any, dtypes: dict[int, str]) -> Tensor:
    signature = _ints(tensor, "ShapeSignature") or _ints(tensor, "Shape")
    quantization = tensor.Quantization()
    scale, zero_point = 0.0, 0
    if quantization is not None and quantization.ScaleLength() == 1:
        scale, zero_point = float(quantization.Scale(0)), int(quantization.ZeroPoint(0))
    return Tensor(
        name=_text(tensor.Name()),
        shape=tuple("?" if size < 0 else size for size in signature),
        dtype=dtypes.get(tensor.Type(), "?"),
        scale=scale,
        zero_point=zero_point,
    )


def _metadata(model: Any) -> dict[str, str]:
    found = {}
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        data = model.Buffers(entry.Buffer()).DataAsNumpy()
        content = data.tobytes() if isinstance(data, np.ndarray) else b""
        try:
            text = content.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            text = ""
        readable = text.isprintable() or text.lstrip().startswith(("{", "["))
        found[_text(entry.Name())] = text if readable else f"{len(content):,} bytes"
    return found


def _text(value: bytes | None) -> str:
    return value.decode(errors="replace") if value else ""
