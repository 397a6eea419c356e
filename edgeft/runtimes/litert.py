"""LiteRT (TensorFlow Lite): .tflite files on the CPU, through the XNNPACK delegate where it takes them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import BaseAdapter, Spec, count

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


class Adapter(BaseAdapter):
    """An interpreter; the one option is `kernels`: ``auto`` (XNNPACK), ``builtin`` or ``reference``."""

    def _open(self) -> None:
        if self.device.lower() != "cpu":
            raise RuntimeError(f"LiteRT: device {self.device!r} asked for; this adapter runs on 'cpu' only")
        kernels = self.options.get("kernels", "auto")
        if set(self.options) - {"kernels"} or kernels not in _RESOLVERS:
            raise RuntimeError(
                f"LiteRT: options {self.options}; the one allowed is kernels = {sorted(_RESOLVERS)}"
            )
        self._interpreter = Interpreter(
            model_path=self.path, num_threads=self.threads, experimental_op_resolver_type=_RESOLVERS[kernels]
        )
        self._interpreter.allocate_tensors()
        source, sink = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        for kind, found, specs in (("input", source, self.inputs), ("output", sink, self.outputs)):
            if len(found) != 1:
                raise RuntimeError(f"{self.path}: {len(found)} {kind}s; one is supported")
            self._check_io(kind, specs[0], found[0]["shape"], found[0]["dtype"])
            self._check_quantization(kind, specs[0], found[0]["quantization"])
        self._source, self._sink = source[0]["index"], sink[0]["index"]

    def _check_quantization(self, kind: str, spec: Spec, found: tuple[float, int]) -> None:
        """Raise RuntimeError if the file itself carries another scale or zero point than the request."""
        if np.dtype(spec["dtype"]).kind == "f":
            return
        if np.float32(found[0]) != np.float32(spec["scale"]) or found[1] != spec["zero_point"]:
            wanted = (spec["scale"], spec["zero_point"])
            raise RuntimeError(
                f"{self.path}: {kind} scale and zero point are {found}, the artifact says {wanted}"
            )

    def _place(self, native: npt.NDArray[Any]) -> None:
        self._interpreter.set_tensor(self._source, native)

    def invoke(self) -> None:
        """Run once on the prepared input."""
        self._interpreter.invoke()

    def _fetch(self) -> npt.NDArray[Any]:
        output: npt.NDArray[Any] = self._interpreter.get_tensor(self._sink)
        return output

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
