"""ONNX Runtime: .onnx files on the CPU, or on a GPU without CPU fallback."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from .base import Array, BaseAdapter, Lane, Spec, count, positive, tensor

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# What opening a session may raise; they have no common base of their own.
_REFUSALS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
# Operators that multiply and accumulate, as they are named in the optimized graph.
MAC_OPS = {
    "Conv", "FusedConv", "NhwcFusedConv", "NhwcConv", "ConvTranspose",
    "Gemm", "FusedGemm", "MatMul", "FusedMatMul",
    "QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
}  # fmt: skip
# Their input is float and is quantized at run time, inside the kernel.
DYNAMIC_OPS = {"DynamicQuantizeMatMul", "MatMulNBits"}
_PRECISION = {
    "uint8": "int8",
    "int8": "int8",
    "float": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}


def signature(path: str) -> dict[str, list[dict[str, Any]]]:
    """Return the `inputs` and `outputs` that a file says it has. Raises RuntimeError if it is no model."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4
    try:
        session = ort.InferenceSession(path, settings, providers=[PROVIDERS["cpu"]])
    except _REFUSALS as error:
        raise RuntimeError(str(error)) from error
    found = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    return {
        kind: [tensor(t.name, t.shape, _dtype(path, t)) for t in tensors] for kind, tensors in found.items()
    }


def _dtype(path: str, found: Any) -> str:
    if found.type not in _DTYPES:
        raise RuntimeError(f"{path}: {found.name} has type {found.type}; allowed are {sorted(_DTYPES)}")
    return _DTYPES[found.type]


class _Binding(Lane):
    """An I/O binding; a session runs several at a time."""

    def __init__(
        self, session: ort.InferenceSession, inputs: Sequence[Spec], outputs: Sequence[Spec]
    ) -> None:
        self._session, self._inputs, self._outputs = session, inputs, outputs
        self._binding = session.io_binding()
        self.natives: Sequence[Array] = ()
        """What was placed last."""

    def place(self, natives: Sequence[Array]) -> None:
        self.natives = natives  # the binding shares their memory without holding on to it
        self._binding.clear_binding_inputs()
        for spec, native in zip(self._inputs, natives, strict=True):
            self._binding.bind_cpu_input(spec["name"], native)
        for spec in self._outputs:
            self._binding.bind_output(spec["name"])

    def invoke(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def fetch(self) -> list[Array]:
        outputs: list[Array] = self._binding.copy_outputs_to_cpu()
        return outputs


class Adapter(BaseAdapter):
    """A file in an `InferenceSession`; `options` are session configuration entries."""

    def _open(self) -> Sequence[Lane]:
        self._session = self._create(ort.SessionOptions())
        source, sink = self._session.get_inputs(), self._session.get_outputs()
        for kind, found, specs in (("input", source, self.inputs), ("output", sink, self.outputs)):
            if [t.name for t in found] != [s["name"] for s in specs]:
                raise RuntimeError(
                    f"{self.path}: {kind}s are {[t.name for t in found]}, not {[s['name'] for s in specs]}"
                )
            for one, spec in zip(found, specs, strict=True):
                self._check_io(kind, spec, one.shape, _dtype(self.path, one))
        bindings = [_Binding(self._session, self.inputs, self.outputs) for _ in range(self.streams)]
        self._first = bindings[0]
        return bindings

    def _create(self, settings: ort.SessionOptions) -> ort.InferenceSession:
        """Return a session on exactly the provider asked for."""
        provider = PROVIDERS.get(self.device)
        if provider is None:
            raise RuntimeError(
                f"ONNX Runtime: unknown device {self.device!r}; allowed are {sorted(PROVIDERS)}"
            )
        if provider not in ort.get_available_providers():
            raise RuntimeError(
                f"ONNX Runtime: {provider} asked for, this build has {ort.get_available_providers()}"
            )
        # Streams share one pool, and each calling thread works too: `threads` for every stream together.
        settings.intra_op_num_threads = self.streams * (self.threads - 1) + 1
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        if self.device != "cpu":  # else nodes that the GPU lacks would run on the CPU without a word
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        for key, value in self.options.items():
            settings.add_session_config_entry(key, value)
        try:
            session = ort.InferenceSession(self.path, settings, providers=[provider])
        except _REFUSALS as error:
            raise RuntimeError(str(error)) from error
        if session.get_providers()[0] != provider:
            raise RuntimeError(f"ONNX Runtime: {provider} asked for, got {session.get_providers()}")
        return session

    def describe(self) -> dict[str, Any]:
        """Return the report; precisions are those of the kernels that one profiled run really called."""
        nodes = self._profile()
        used = sorted({node["provider"] for node in nodes})
        if used != [PROVIDERS[self.device]]:
            raise RuntimeError(f"ONNX Runtime: {PROVIDERS[self.device]} asked for, nodes ran on {used}")
        macs = [n for n in nodes if n["op_name"] in MAC_OPS | DYNAMIC_OPS]
        others = [n for n in nodes if n["op_name"] not in MAC_OPS | DYNAMIC_OPS]
        return {
            "runtime": "onnxruntime",
            "version": ort.__version__,
            "device": used[0],
            "mac_precision": count([_precision(node) for node in macs]),
            "partitions": 1,
            "details": {
                "threads": self._session.get_session_options().intra_op_num_threads,
                "options": {
                    k: self._session.get_session_options().get_session_config_entry(k) for k in self.options
                },
                "mac_ops": count([node["op_name"] for node in macs]),
                "other_ops": count([node["op_name"] for node in others]),
                "float_other_ops": sum(_precision(node) == "float32" for node in others),
            },
        }

    def _profile(self) -> list[dict[str, Any]]:
        """Run once under the profiler, in a session of its own, and return each executed node's arguments."""
        # Zeros are no input for every model (a division by them fails): take what ran last, if anything did.
        natives = self._first.natives or [
            np.zeros([positive(d) or 1 for d in spec["shape"]], spec["dtype"]) for spec in self.inputs
        ]
        feed = {spec["name"]: native for spec, native in zip(self.inputs, natives, strict=True)}
        settings = ort.SessionOptions()
        with tempfile.TemporaryDirectory() as folder:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            session = self._create(settings)
            try:
                session.run(None, feed)
            except _REFUSALS as error:
                raise RuntimeError(str(error)) from error
            events = json.loads(Path(session.end_profiling()).read_text())
        return [e["args"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def _precision(node: dict[str, Any]) -> str:
    """Return the precision of a node by the type of its first input."""
    if node["op_name"] in DYNAMIC_OPS:
        return "int8-dynamic"
    types = [next(iter(entry)) for entry in node["input_type_shape"]]
    return _PRECISION.get(types[0], types[0]) if types else "none"
