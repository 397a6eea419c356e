"""Weights of a float .tflite stored small: fp16 or int8 buffers, each behind a DEQUANTIZE op.

An explicit DEQUANTIZE keeps the computation in float32, which XNNPACK prepares once when it takes the graph over. Float
activations with int8 weights straight in an op would make LiteRT quantize the activations at run time (its "hybrid"
kernels): other numbers than the program's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import extras
from edgeft.errors import ExportError
from edgeft.exporters.stored_weights import IntegerWeight, is_half
from edgeft.types import FloatArray, QuantLayer, QuantModel


def store_weights(model: QuantModel, path: Path) -> None:
    """Rewrite a float .tflite in place so that it holds the weights of `model` as its scheme says.

    Raises:
        ExportError: A weight of the program is not in the file.
    """
    file = _Flatbuffer(path)
    stored = 0
    for tensor in list(file.graph.tensors):
        values = file.constant(tensor)
        if values is None:
            continue
        if model.scheme == "float16" and is_half(values):
            file.store(tensor, values.astype(np.float16))
        elif model.scheme == "int8-weights":
            found = _find(model.layers, values)
            if found is not None:
                layer, axis = found
                integers = _arranged(layer.weight, axis).reshape(values.shape)
                file.store(tensor, integers, scale=layer.weight_scale, axis=values.ndim - 1 if axis else 0)
                stored += 1
    missing = len({layer.weight.tobytes() for layer in model.layers}) - stored
    if missing > 0:
        raise ExportError(
            f"{path.name}: the converter changed the weights of {missing} layers",
            "please report it with the model and the versions of the packages",
        )
    file.save()


def merge_scales(path: Path) -> None:
    """Store one scale, in place, where all channels of a weight or bias have the same."""
    file = _Flatbuffer(path)
    for tensor in file.graph.tensors:
        stored = tensor.quantization
        scales = None if stored is None or stored.scale is None else np.asarray(stored.scale)
        if scales is not None and len(scales) > 1 and (scales == scales[0]).all():
            stored.scale, stored.zeroPoint, stored.quantizedDimension = scales[:1], np.zeros(1, np.int64), 0
    file.save()


def read_weight(values: Any, scales: FloatArray, axis: int, name: str) -> IntegerWeight:
    """Return a stored int8 weight in PyTorch's order, from its layout in the file.

    Args:
        values: (O, ..., I), or (..., O) where the scales belong to the last axis.
        scales: (O,).
        axis: That of the scales.
        name: The op's name.
    """
    values = np.swapaxes(values, 0, -1) if axis else values
    return IntegerWeight(name=name, weight=np.moveaxis(values, -1, 1), scale=scales)


def _find(layers: tuple[QuantLayer, ...], values: npt.NDArray[Any]) -> tuple[QuantLayer, int] | None:
    """Return the layer whose weight a constant is, and whether its output channels are the last axis there."""
    for layer in layers:
        if layer.weight.size != values.size:
            continue
        shaped = layer.weight_scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
        real = layer.weight.astype(np.float32) * shaped
        for axis in (0, 1):
            if np.array_equal(_arranged(real, axis).reshape(-1), values.reshape(-1)):
                return layer, axis
    return None


def _arranged(weight: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    """Return a weight (O, I, ...) as (O, ..., I), or with `axis` 1 as (I, ..., O)."""
    moved = np.moveaxis(weight, 1, -1)
    return np.swapaxes(moved, 0, -1) if axis else moved


class _Flatbuffer:
    """A .tflite as a tree of objects (schema: tensorflow/lite/schema/schema.fbs)."""

    def __init__(self, path: Path) -> None:
        self.schema = extras.load("ai_edge_litert.schema_py_generated", "weights of a .tflite file")
        self.path = path
        self.model = self.schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        if len(self.model.subgraphs) != 1:
            raise ExportError(f"{path.name} has {len(self.model.subgraphs)} subgraphs; one is supported")
        self.graph = self.model.subgraphs[0]
        self._dequantize: int | None = None

    def constant(self, tensor: Any) -> npt.NDArray[np.float32] | None:
        """Return the values of a constant float32 tensor of two dimensions or more."""
        data = self.model.buffers[tensor.buffer].data
        if tensor.type != self.schema.TensorType.FLOAT32 or data is None or len(tensor.shape) < 2:
            return None
        return np.frombuffer(bytes(bytearray(data)), np.float32).reshape(tensor.shape)

    def store(
        self, tensor: Any, values: npt.NDArray[Any], *, scale: FloatArray | None = None, axis: int = 0
    ) -> None:
        """Store `values` in a constant's place, with an op that turns them into it."""
        buffer, small, op = self.schema.BufferT(), self.schema.TensorT(), self.schema.OperatorT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        small.name = bytes(tensor.name) + b"_stored"
        small.shape, small.buffer = tensor.shape, len(self.model.buffers)
        small.type = self.schema.TensorType.FLOAT16 if scale is None else self.schema.TensorType.INT8
        if scale is not None:
            small.quantization = self.schema.QuantizationParametersT()
            small.quantization.scale = scale
            small.quantization.zeroPoint = np.zeros(len(scale), np.int64)
            small.quantization.quantizedDimension = axis
        self.model.buffers.append(buffer)
        self.graph.tensors.append(small)
        op.opcodeIndex = self._operator_code()
        op.inputs = [len(self.graph.tensors) - 1]
        op.outputs = [next(i for i, t in enumerate(self.graph.tensors) if t is tensor)]
        op.builtinOptionsType = self.schema.BuiltinOptions.DequantizeOptions
        op.builtinOptions = self.schema.DequantizeOptionsT()
        self.graph.operators.insert(0, op)
        tensor.buffer = 0  # the schema's empty buffer: computed, not stored

    def save(self) -> None:
        """Write the file, without the buffers that nothing refers to any more."""
        import flatbuffers

        kept = {0} | {t.buffer for t in self.graph.tensors} | {m.buffer for m in self.model.metadata or []}
        for index, buffer in enumerate(self.model.buffers):
            if index not in kept:
                buffer.data = None
        builder = flatbuffers.Builder(self.path.stat().st_size)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        self.path.write_bytes(bytes(builder.Output()))

    def _operator_code(self) -> int:
        """Return the index of DEQUANTIZE among the file's operators; it is entered once."""
        if self._dequantize is not None:
            return self._dequantize
        code = self.schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = self.schema.BuiltinOperator.DEQUANTIZE
        code.version = 3  # per channel; fp16 came with the same version
        self.model.operatorCodes.append(code)
        self._dequantize = len(self.model.operatorCodes) - 1
        return self._dequantize
