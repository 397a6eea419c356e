"""LiteRT (TensorFlow Lite): .tflite files on the CPU, through the XNNPACK delegate where it takes them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from .base import Array, BaseAdapter, Lane, count, positive, tensor

try:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    DISTRIBUTION = "ai-edge-litert"
except ModuleNotFoundError:  # old boards: the same interpreter under its former name
    from tflite_runtime.interpreter import Interpreter, OpResolverType

    DISTRIBUTION = "tflite-runtime"

MAC_OPS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV", "CONV_3D"}
_PRECISION = {"int8": "int8", "uint8": "int8", "int16": "int16", "float32": "float32", "float16": "float16"}
_RESOLVERS = {
    "auto": OpResolverType.AUTO,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}


def devices() -> dict[str, str]:
    """Return the devices that the runtime drives here: name -> what it is."""
    return {"cpu": ""}


def signature(path: str) -> dict[str, list[dict[str, Any]]]:
    """Return the `inputs` and `outputs` that a file says it has. Raises RuntimeError if it is no model."""
    try:
        interpreter = Interpreter(model_path=path, experimental_op_resolver_type=_RESOLVERS["builtin"])
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    found = {"inputs": interpreter.get_input_details(), "outputs": interpreter.get_output_details()}
    return {
        # In the signature of a shape, unlike in the shape, a free dimension is told from one of size 1.
        kind: [tensor(t["name"], t["shape_signature"], t["dtype"], *t["quantization"]) for t in tensors]
        for kind, tensors in found.items()
    }


class _Interpreter(Lane):
    """An interpreter, which runs one inference at a time."""

    def __init__(self, interpreter: Interpreter) -> None:
        self.interpreter = interpreter
        self._sources = [details["index"] for details in interpreter.get_input_details()]
        self._sinks = [details["index"] for details in interpreter.get_output_details()]

    def place(self, natives: Sequence[Array]) -> None:
        for index, native in zip(self._sources, natives, strict=True):
            self.interpreter.set_tensor(index, native)

    def invoke(self) -> None:
        self.interpreter.invoke()

    def fetch(self) -> list[Array]:
        return [self.interpreter.get_tensor(index) for index in self._sinks]


class Adapter(BaseAdapter):
    """Interpreters; the one option is `kernels`: ``auto`` (XNNPACK), ``builtin`` or ``reference``."""

    def _open(self) -> Sequence[Lane]:
        if self.device.lower() != "cpu":
            raise RuntimeError(f"LiteRT: device {self.device!r} asked for; this adapter runs on 'cpu' only")
        kernels = self.options.get("kernels", "auto")
        if set(self.options) - {"kernels"} or kernels not in _RESOLVERS:
            raise RuntimeError(
                f"LiteRT: options {self.options}; the one allowed is kernels = {sorted(_RESOLVERS)}"
            )
        lanes = [_Interpreter(self._load(_RESOLVERS[kernels])) for _ in range(self.streams)]
        self._interpreter = lanes[0].interpreter
        return lanes

    def _load(self, resolver: OpResolverType) -> Interpreter:
        interpreter = Interpreter(
            model_path=self.path, num_threads=self.threads, experimental_op_resolver_type=resolver
        )
        for kind, found, specs in (
            ("input", interpreter.get_input_details(), self.inputs),
            ("output", interpreter.get_output_details(), self.outputs),
        ):
            self._check_count(kind, len(found), specs)
            for one, spec in zip(found, specs, strict=True):
                self._check_io(kind, spec, one["shape_signature"], one["dtype"])
                self._check_quantization(kind, spec, one["quantization"])
        for one, spec in zip(interpreter.get_input_details(), self.inputs, strict=True):
            wanted = [positive(d) or 1 for d in spec["shape"]]
            if list(one["shape"]) != wanted:
                interpreter.resize_tensor_input(one["index"], wanted, strict=True)
        interpreter.allocate_tensors()
        return interpreter

    def describe(self) -> dict[str, Any]:
        """Return the report; an op's precision is that of its input and weights, in or out of a delegate."""
        # Public API has no list of ops; these two are what TensorFlow's own analyzer and debugger use.
        ops = self._interpreter._get_ops_details()
        dtypes = {t["index"]: np.dtype(t["dtype"]).name for t in self._interpreter.get_tensor_details()}
        delegates = [op for op in ops if op["op_name"] == "DELEGATE"]
        own = [op for op in ops if op["op_name"] != "DELEGATE"]
        outside = _outside(own, delegates)
        macs = [op for op in own if op["op_name"] in MAC_OPS]
        others = [op for op in own if op["op_name"] not in MAC_OPS]
        return {
            "runtime": "litert" if DISTRIBUTION == "ai-edge-litert" else "tflite-runtime",
            "version": metadata.version(DISTRIBUTION),
            "device": "cpu (XNNPACK)" if delegates else "cpu",
            "mac_precision": count([_precision(op, dtypes) for op in macs]),
            "partitions": len(delegates),
            "details": {
                "threads": self.threads,
                "options": dict(self.options),
                "ops": count([op["op_name"] for op in own]),
                "outside_delegate": [op["op_name"] for op in outside],
                "float_other_ops": sum(_precision(op, dtypes) == "float32" for op in others),
            },
        }


def _precision(op: dict[str, Any], dtypes: dict[int, str]) -> str:
    """Return the precision of an op; float activations with integer weights are quantized at run time."""
    # A transposed convolution lists its output shape first, and the weights before the data.
    inputs = list(op["inputs"][2:0:-1] if op["op_name"] == "TRANSPOSE_CONV" else op["inputs"][:2])
    used = [_PRECISION.get(dtypes.get(int(i), ""), "none") for i in inputs]
    if used == ["float32", "int8"] and op["op_name"] in MAC_OPS:
        return "int8-dynamic"
    return used[0] if used else "none"


def _outside(own: Sequence[dict[str, Any]], delegates: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the ops that no delegate took over.

    The interpreter lists the file's ops and then the delegate nodes that replaced some of them. A node
    replaced those ops that lead to its outputs, walking back until its inputs.
    """
    producer = {int(out): i for i, op in enumerate(own) for out in op["outputs"]}
    taken: set[int] = set()
    for delegate in delegates:
        edge = {int(i) for i in delegate["inputs"]}
        pending = [int(i) for i in delegate["outputs"]]
        while pending:
            tensor = pending.pop()
            index = producer.get(tensor)
            if tensor in edge or index is None or index in taken:
                continue
            taken.add(index)
            pending += [int(i) for i in own[index]["inputs"]]
    return [op for i, op in enumerate(own) if i not in taken]
