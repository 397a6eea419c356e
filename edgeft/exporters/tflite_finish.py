"""The last pass over a .tflite file: names and types of its input and output, metadata, no word of its making."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import flatbuffers
import numpy as np
import numpy.typing as npt

from edgeft import extras
from edgeft.exporters import tflite_metadata
from edgeft.preprocessing import ImagePreprocessing
from edgeft.types import QuantModel

INPUT: Final = "input"
OUTPUT: Final = "logits"


def finish(path: Path, model: QuantModel, *, dtype: str) -> None:
    """Rewrite a .tflite file of one input and one output.

    Tensors and signature get the names ``input`` and ``logits``. A border of an int8 file gets the type that is asked
    for, by a QUANTIZE or DEQUANTIZE of its own; a float border stays as it is, unless it takes pixels. Labels and
    preprocessing go in twice, as edgeft's own JSON and as TensorFlow Lite's metadata.

    Args:
        path: The file.
        model: Whose labels and preprocessing it is.
        dtype: int8, uint8 or float32. An input of pixels is uint8 in any case.
    """
    schema = extras.load("ai_edge_litert.schema_py_generated", "writing a .tflite file")
    stored = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = stored.subgraphs[0]
    picture = model.preprocessing
    pixels = isinstance(picture, ImagePreprocessing) and picture.embedded
    if pixels and graph.tensors[graph.inputs[0]].type == schema.TensorType.FLOAT32:
        graph.inputs = _cast_pixels(schema, stored, int(graph.inputs[0]))
    else:
        wanted = "uint8" if pixels else dtype
        graph.inputs = _border(schema, stored, int(graph.inputs[0]), INPUT, wanted)
    graph.outputs = _border(schema, stored, int(graph.outputs[0]), OUTPUT, dtype)
    for signature in stored.signatureDefs or ():
        for entry, name, (index,) in (
            (signature.inputs[0], INPUT, graph.inputs),
            (signature.outputs[0], OUTPUT, graph.outputs),
        ):
            entry.name, entry.tensorIndex = name, int(index)
    own = {"edgeft.labels": model.labels, "edgeft.preprocess": model.preprocessing.to_dict()}
    entries = {name: json.dumps(value).encode() for name, value in own.items()}
    _store(schema, stored, entries | {tflite_metadata.NAME: tflite_metadata.describe(model.preprocessing)})
    builder = flatbuffers.Builder(path.stat().st_size + 4096)
    builder.Finish(stored.Pack(builder), b"TFL3")
    content = bytes(builder.Output())
    path.write_bytes(content + tflite_metadata.associated_files(model.labels, len(content)))


def _border(schema: Any, model: Any, index: int, name: str, dtype: str) -> npt.NDArray[np.int32]:
    """Name an input or output; put a tensor of another type before or behind an int8 one. Returns its index, (1,)."""
    graph = model.subgraphs[0]
    inner = graph.tensors[index]
    if inner.type != schema.TensorType.INT8 or dtype == "int8":
        inner.name = name
        return np.array([index], np.int32)
    quantization, is_input = None, name == INPUT
    if dtype != "float32":  # uint8: the same real values, 128 integers higher
        quantization = schema.QuantizationParametersT()
        quantization.scale = np.array(inner.quantization.scale, np.float32)
        quantization.zeroPoint = np.array(inner.quantization.zeroPoint, np.int64) + 128
    kind = "Quantize" if is_input or quantization else "Dequantize"
    inner.name = f"{name}_int8"
    return _add_border(schema, model, index, (name, dtype, quantization), kind, is_input=is_input)


def _cast_pixels(schema: Any, model: Any, index: int) -> npt.NDArray[np.int32]:
    """Put an input of uint8 pixels before a float one. Returns its index, (1,)."""
    model.subgraphs[0].tensors[index].name = f"{INPUT}_float"
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = np.array([1], np.float32), np.array([0], np.int64)
    return _add_border(schema, model, index, (INPUT, "uint8", quantization), "Cast", is_input=True)


def _add_border(
    schema: Any, model: Any, index: int, outside: tuple[str, str, Any], kind: str, *, is_input: bool
) -> npt.NDArray[np.int32]:
    """Add a tensor of a name, type and quantization, and the op between it and tensor `index`.

    Returns:
        The index of the new tensor, (1,).
    """
    graph = model.subgraphs[0]
    inner, outer = graph.tensors[index], schema.TensorT()
    outer.name, dtype, outer.quantization = outside
    outer.type = getattr(schema.TensorType, dtype.upper())
    outer.shape, outer.shapeSignature, outer.hasRank = inner.shape, inner.shapeSignature, inner.hasRank
    outer.buffer = 0  # the empty one
    graph.tensors.append(outer)
    new = len(graph.tensors) - 1
    op = schema.OperatorT()
    op.opcodeIndex = _operator(schema, model, kind.upper())
    op.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind}Options")
    op.builtinOptions = getattr(schema, f"{kind}OptionsT")()
    ends = (new, index) if is_input else (index, new)
    op.inputs, op.outputs = (np.array([end], np.int32) for end in ends)
    graph.operators.insert(0 if is_input else len(graph.operators), op)
    return np.array([new], np.int32)


def _operator(schema: Any, model: Any, name: str) -> int:
    """Return the index of an operator among those that a model uses; it is added where it is missing."""
    code = getattr(schema.BuiltinOperator, name)
    for index, known in enumerate(model.operatorCodes):
        if known.builtinCode == code:
            return index
    new = schema.OperatorCodeT()
    # Old readers look at the first of the two numbers only.
    new.deprecatedBuiltinCode, new.builtinCode, new.version = code, code, 2
    model.operatorCodes.append(new)
    return len(model.operatorCodes) - 1


def _store(schema: Any, model: Any, entries: Mapping[str, bytes]) -> None:
    """Store named buffers in the model's table of metadata (schema: tensorflow/lite/schema/schema.fbs)."""
    model.metadata = model.metadata or []
    for name, value in sorted(entries.items()):
        buffer, item = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(value, np.uint8)
        item.name, item.buffer = name, len(model.buffers)
        model.buffers.append(buffer)
        model.metadata.append(item)
