"""Tiny .tflite files to test with: one fully connected layer, 8 numbers to 4."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

INPUTS, OUTPUTS = 8, 4
WEIGHT = (np.arange(INPUTS * OUTPUTS) % 13 - 6).astype(np.int8).reshape(OUTPUTS, INPUTS)
SCALE = 0.5


def write_tflite(
    path: Path, kind: Literal["int8", "float32", "int8 to float32"] = "int8", width: int = OUTPUTS
) -> Path:
    """Write a file of integers, of floats, or of integers with a DEQUANTIZE at the end."""
    types = schema.TensorType
    dtype = types.FLOAT32 if kind == "float32" else types.INT8
    weight = np.resize(WEIGHT, (width, INPUTS))
    stored = weight.astype(np.float32) if kind == "float32" else weight
    scales = {"input": SCALE, "weight": 0.25, "bias": SCALE * 0.25, "logits": 4.0}
    tensors, buffers = [], [schema.BufferT()]
    for name, shape, of, values in (
        ("input", (1, INPUTS), dtype, None),
        ("weight", (width, INPUTS), dtype, stored),
        (
            "bias",
            (width,),
            types.FLOAT32 if kind == "float32" else types.INT32,
            np.arange(width, dtype="<i4"),
        ),
        ("logits", (1, width), dtype, None),
        ("real", (1, width), types.FLOAT32, None),
    ):
        tensor = schema.TensorT(name=name, shape=np.array(shape, np.int32), type=of, buffer=0)
        if values is not None:
            tensor.buffer = len(buffers)
            values = values.astype(np.float32) if of == types.FLOAT32 else values
            buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        if of != types.FLOAT32:
            tensor.quantization = schema.QuantizationParametersT(
                scale=np.array([scales[name]], np.float32), zeroPoint=np.array([0], np.int64)
            )
        tensors.append(tensor)
    kinds = schema.BuiltinOperator
    operators = [
        schema.OperatorT(
            opcodeIndex=0,
            inputs=np.array([0, 1, 2], np.int32),
            outputs=np.array([3], np.int32),
            builtinOptionsType=schema.BuiltinOptions.FullyConnectedOptions,
            builtinOptions=schema.FullyConnectedOptionsT(),
        )
    ]
    codes, last = [kinds.FULLY_CONNECTED], 3
    if kind == "int8 to float32":
        operators.append(
            schema.OperatorT(opcodeIndex=1, inputs=np.array([3], np.int32), outputs=np.array([4], np.int32))
        )
        codes, last = [*codes, kinds.DEQUANTIZE], 4
    graph = schema.SubGraphT(
        tensors=tensors[: last + 1],
        inputs=np.array([0], np.int32),
        outputs=np.array([last], np.int32),
        operators=operators,
    )
    model = schema.ModelT(
        version=3,
        operatorCodes=[
            schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=4 if code == 9 else 2)
            for code in codes
        ],
        subgraphs=[graph],
        buffers=buffers,
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path
