"""TensorFlow Lite Micro: .tflite files as a microcontroller runs them, with its reference kernels, on this CPU.

The answers and the memory are those of the device; the time means nothing. What a vendor's kernels (CMSIS-NN) ask for
in scratch buffers comes on top of the memory, and pointers here have 8 bytes: the persistent part is an upper bound.
"""

from __future__ import annotations

import faulthandler
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tflite_micro.python.tflite_micro import runtime as micro
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from .base import Array, BaseAdapter, Lane, count, tensor

MAC_OPS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV"}
ARENAS = (1 << 28, 1 << 30)
"""Bytes to load in, one after the other: the system hands out pages as they are touched, so a large one costs nothing.
One that is too small ends this version with a segmentation fault now and then."""
_ALIGNMENT = 16
_TOO_SMALL = re.compile(r"Requested: \d+, available \d+, missing: \d+")
_NO_KERNEL = re.compile(r"Didn't find op for builtin opcode '(\w+)'|Didn't find custom op for name '([^']*)'")
_ALLOCATED = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
# What the generated accessors raise for offsets that lead nowhere.
_BROKEN = (IndexError, ValueError, TypeError, AttributeError, OverflowError)


def devices() -> dict[str, str]:
    """Return the devices that the runtime drives here: name -> what it is."""
    return {"cpu": "reference kernels"}


def signature(path: str) -> dict[str, list[dict[str, Any]]]:
    """Return the `inputs` and `outputs` that a file says it has. Raises RuntimeError if it is no model."""
    graph = _read(path).subgraphs[0]
    interpreter, _ = _load(path)
    return {
        kind: [
            tensor(graph.tensors[index].name.decode(errors="replace"), *_details(details(place)))
            for place, index in enumerate(indices)
        ]
        for kind, indices, details in (
            ("inputs", graph.inputs, interpreter.get_input_details),
            ("outputs", graph.outputs, interpreter.get_output_details),
        )
    }


class _Interpreter(Lane):
    """An interpreter with an arena of its own."""

    def __init__(self, interpreter: micro.Interpreter, outputs: int) -> None:
        self.interpreter, self._outputs = interpreter, outputs

    def place(self, natives: Sequence[Array]) -> None:
        for index, native in enumerate(natives):
            self.interpreter.set_input(native, index)

    def invoke(self) -> None:
        self.interpreter.invoke()

    def fetch(self) -> list[Array]:
        return [self.interpreter.get_output(index) for index in range(self._outputs)]


class Adapter(BaseAdapter):
    """Interpreters of one thread; there are no options."""

    def _open(self) -> Sequence[Lane]:
        if self.device.lower() != "cpu" or self.options or self.threads != 1:
            raise RuntimeError(
                f"TensorFlow Lite Micro: device {self.device!r}, {self.threads} threads and options {self.options} "
                "asked for; it runs here on 'cpu' with 1 thread and has no options"
            )
        self._model = _read(self.path)
        graph = self._model.subgraphs[0]
        self._check_count("input", len(graph.inputs), self.inputs)
        self._check_count("output", len(graph.outputs), self.outputs)
        lanes = []
        for _ in range(self.streams):
            interpreter, self._allocated = _load(self.path)
            lanes.append(_Interpreter(interpreter, len(self.outputs)))
            for kind, specs, details in (
                ("input", self.inputs, interpreter.get_input_details),
                ("output", self.outputs, interpreter.get_output_details),
            ):
                for index, spec in enumerate(specs):
                    shape, dtype, scale, zero_point = _details(details(index))
                    self._check_io(kind, spec, shape, dtype)
                    self._check_quantization(kind, spec, (scale, zero_point))
        return lanes

    def describe(self) -> dict[str, Any]:
        """Return the report; `details` hold the smallest arena, and what the runtime's allocator recorded in it."""
        graph, kinds = self._model.subgraphs[0], _names(schema.BuiltinOperator)
        dtypes = _names(schema.TensorType)
        ops = []
        for op in graph.operators:
            code = self._model.operatorCodes[op.opcodeIndex]
            kind = kinds[micro.get_builtin_code_from_operator_code(code)]
            # A transposed convolution lists its output shape first, and the weights before the data.
            source = op.inputs[2 if kind == "TRANSPOSE_CONV" else 0] if len(op.inputs) else -1
            ops.append((kind, dtypes[graph.tensors[source].type].lower() if source >= 0 else "none"))
        return {
            "runtime": "tflite-micro",
            "version": metadata.version("tflite_micro"),
            "device": "cpu (reference kernels)",
            "mac_precision": count([dtype for kind, dtype in ops if kind in MAC_OPS]),
            "partitions": 1,
            "details": {
                "arena_bytes": smallest_arena(self.path, self._allocated["total"]),
                "planned_bytes": self._allocated["head"],
                "persistent_bytes": self._allocated["tail"],
                "ops": count([kind for kind, _ in ops]),
                "float_other_ops": sum(dtype == "float32" for kind, dtype in ops if kind not in MAC_OPS),
            },
        }


def _load(path: str) -> tuple[micro.Interpreter, dict[str, int]]:
    """Return an interpreter, and how its arena is divided: `total`, and of that `head` (planned) and `tail`."""
    for arena in ARENAS:
        try:
            with _overheard() as said:
                interpreter = micro.Interpreter.from_file(path, arena_size=arena)
                interpreter.print_allocations()
            return interpreter, {name: int(size) for name, size in _ALLOCATED.findall(said[0])}
        except (RuntimeError, ValueError) as error:
            if missing := _NO_KERNEL.search(said[0]):
                kernel = missing[1] or missing[2]
                raise RuntimeError(f"{path}: TensorFlow Lite Micro has no kernel of {kernel}") from error
            if not _TOO_SMALL.search(said[0]):
                heard = "; ".join(said[0].split("\n")).strip("; ")
                raise RuntimeError(f"{path}: {error}{f' ({heard})' if heard else ''}") from error
    raise RuntimeError(f"{path}: more than {ARENAS[-1]:,} bytes of tensors")


def smallest_arena(path: str, allocated: int) -> int:
    """Return the bytes of the smallest arena that a file loads in.

    What stays allocated is not all: while it loads, the runtime takes temporary memory between the two ends.

    Args:
        path: A file that loads.
        allocated: What its interpreter had allocated in the end: no arena can be smaller.
    """
    if _loads(path, allocated):
        return allocated
    step = _ALIGNMENT
    while not _loads(path, allocated + step):
        step *= 2
    low, high = step // 2, step
    while high - low > _ALIGNMENT:
        middle = (low + high) // 2 // _ALIGNMENT * _ALIGNMENT
        low, high = (low, middle) if _loads(path, allocated + middle) else (middle, high)
    return allocated + high


def _loads(path: str, arena: int) -> bool:
    """Tell whether a file loads in an arena; in a process of its own, which a small one may end."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    code = 1
    faulthandler.disable()  # a crash is an answer here
    try:
        with _overheard():
            micro.Interpreter.from_file(path, arena_size=arena)
        code = 0
    finally:
        os._exit(code)


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """Collect what the runtime writes to file descriptor 2, its only way to say what it allocated or lacks."""
    said = [""]
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said[0] = file.read().decode(errors="replace")


def _read(path: str) -> Any:
    """Return a file as a tree of objects (schema: tensorflow/lite/schema/schema.fbs)."""
    content = Path(path).read_bytes()
    if content[4:8] != b"TFL3":
        raise RuntimeError(f"{path}: not a .tflite file: it does not carry the mark TFL3")
    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        if not model.subgraphs or not model.subgraphs[0].operators:
            raise RuntimeError(f"{path}: it holds no operations")
    except _BROKEN as error:
        raise RuntimeError(f"{path}: the file is damaged: {error!r}") from error
    return model


def _names(enumeration: Any) -> dict[int, str]:
    return {number: name for name, number in vars(enumeration).items() if isinstance(number, int)}


def _details(found: dict[str, Any]) -> tuple[list[int], Any, float, int]:
    """Return shape, dtype, scale and zero point of an input or output; 0 and 0 where it is not quantized."""
    quantization = found["quantization_parameters"]
    scales, zero_points = quantization["scales"], quantization["zero_points"]
    scale = float(scales[0]) if len(scales) else 0.0
    zero_point = int(zero_points[0]) if len(zero_points) else 0
    return [int(size) for size in found["shape"]], np.dtype(found["dtype"]), scale, zero_point
