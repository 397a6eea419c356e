"""ONNX Runtime: .onnx files on the CPU, or on a GPU without CPU fallback."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from .base import BaseAdapter, count

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
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
}


class Adapter(BaseAdapter):
    """A file in an `InferenceSession`; `options` are session configuration entries."""

    def _open(self) -> None:
        self._session = self._create(ort.SessionOptions())
        source, sink = self._session.get_inputs(), self._session.get_outputs()
        for kind, found, specs in (("input", source, self.inputs), ("output", sink, self.outputs)):
            if [t.name for t in found] != [s["name"] for s in specs]:
                raise RuntimeError(
                    f"{self.path}: {kind}s are {[t.name for t in found]}, not {[s['name'] for s in specs]}"
                )
            if found[0].type not in _DTYPES:
                raise RuntimeError(
                    f"{self.path}: {kind} has type {found[0].type}; allowed are {sorted(_DTYPES)}"
                )
            self._check_io(kind, specs[0], found[0].shape, _DTYPES[found[0].type])
        self._binding = self._session.io_binding()

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
        settings.intra_op_num_threads = self.threads
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

    def _place(self, native: npt.NDArray[Any]) -> None:
        self._binding.clear_binding_inputs()
        self._binding.bind_cpu_input(self.inputs[0]["name"], native)
        self._binding.bind_output(self.outputs[0]["name"])

    def invoke(self) -> None:
        """Run once on the prepared input."""
        self._session.run_with_iobinding(self._binding)

    def _fetch(self) -> npt.NDArray[Any]:
        output: npt.NDArray[Any] = self._binding.copy_outputs_to_cpu()[0]
        return output

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
        shape = [1, *self.inputs[0]["shape"][1:]]
        settings = ort.SessionOptions()
        with tempfile.TemporaryDirectory() as folder:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            session = self._create(settings)
            session.run(None, {self.inputs[0]["name"]: np.zeros(shape, self.inputs[0]["dtype"])})
            events = json.loads(Path(session.end_profiling()).read_text())
        return [e["args"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def _precision(node: dict[str, Any]) -> str:
    """Return the precision of a node by the type of its first input."""
    if node["op_name"] in DYNAMIC_OPS:
        return "int8-dynamic"
    types = [next(iter(entry)) for entry in node["input_type_shape"]]
    return _PRECISION.get(types[0], types[0]) if types else "none"
