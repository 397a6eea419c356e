"""Memory of a .tflite file's activations, read from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeft import extras


def activation_bytes(path: Path) -> int:
    """Return how many bytes of activations are alive at once, at most, in the order of the file's operations.

    A tensor is alive from the operation that writes it to the last one that reads it; the file's inputs from the
    start, its outputs to the end. It is what an arena needs at least; the planner's alignment and the kernels'
    scratch buffers come on top.

    Args:
        path: A .tflite file of one graph.

    Raises:
        MissingDependencyError: ai-edge-litert is not installed.
    """
    schema = extras.load("ai_edge_litert.schema_py_generated", "the memory of a .tflite file")
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    constants = {index for index, tensor in enumerate(graph.tensors) if _has_data(model, tensor)}
    born = dict.fromkeys(map(int, graph.inputs), 0)
    dies: dict[int, int] = {}
    for step, op in enumerate(graph.operators):
        for index in map(int, op.outputs):
            born[index] = step
            dies.setdefault(index, step)
        for index in map(int, op.inputs):
            dies[index] = step
    dies |= dict.fromkeys(map(int, graph.outputs), len(graph.operators))
    alive = np.zeros(len(graph.operators) + 1, np.int64)
    for index, start in born.items():
        if index not in constants:
            alive[start : dies.get(index, start) + 1] += _bytes(graph.tensors[index], schema)
    return int(alive.max())


def _has_data(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _bytes(tensor: Any, schema: Any) -> int:
    types = schema.TensorType
    width = {types.INT8: 1, types.UINT8: 1, types.BOOL: 1, types.INT16: 2, types.FLOAT16: 2, types.INT64: 8}
    shape = [int(size) for size in tensor.shape] if tensor.shape is not None else []
    return int(np.prod(shape, dtype=np.int64)) * width.get(tensor.type, 4)
