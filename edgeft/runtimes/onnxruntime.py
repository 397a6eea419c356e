"""ONNX Runtime: .onnx files on the CPU, or on an NVIDIA GPU without CPU fallback."""

from __future__ import annotations

import ctypes
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from .base import Array, BaseAdapter, Lane, MissingDeviceError, Spec, count, positive, tensor

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}
# Replays one recorded run, which leaves nothing to tell about single nodes.
_CUDA_GRAPH = "enable_cuda_graph"
_FALLBACK_REFUSED = "fallback to CPU EP has been explicitly disabled"
_NAMED = 10
"""Nodes that an error names at most."""

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


def devices() -> dict[str, str]:
    """Return the devices that this build drives and this machine has: name -> what it is."""
    found = {"cpu": ""}
    if CUDA in ort.get_available_providers():  # says what was built, not what is here
        name = cuda_device_name(0)
        found |= {"cuda": name} if name else {}
    return found


def cuda_device_name(index: int) -> str:
    """Return the name of an NVIDIA GPU as its driver has it; empty where there is no driver or no such GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), index)
        or driver.cuDeviceGetName(name, len(name), device)
    )
    return "" if failed else name.value.decode()


def signature(path: str) -> dict[str, list[dict[str, Any]]]:
    """Return the `inputs` and `outputs` that a file says it has. Raises RuntimeError if it is no model."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4
    try:
        session = ort.InferenceSession(path, settings, providers=[CPU], enable_fallback=0)
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


class _DeviceBinding(Lane):
    """An I/O binding whose tensors stay in the device's memory; copying to and fro is no part of a run.

    They are overwritten in place, because a CUDA graph replays the addresses that it was captured with.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Sequence[Spec],
        outputs: Sequence[Spec],
        device: tuple[str, int],
    ) -> None:
        self._session, self._binding = session, session.io_binding()
        self._values = [_device_value(spec, device) for spec in inputs]
        for spec, value in zip(inputs, self._values, strict=True):
            self._binding.bind_ortvalue_input(spec["name"], value)
        for spec in outputs:
            if all(map(positive, spec["shape"])):
                self._binding.bind_ortvalue_output(spec["name"], _device_value(spec, device))
            else:  # its size is known after the run
                self._binding.bind_output(spec["name"], *device)
        self.natives: Sequence[Array] = ()
        """What was placed last."""

    def place(self, natives: Sequence[Array]) -> None:
        self.natives = natives
        for value, native in zip(self._values, natives, strict=True):
            value.update_inplace(native)

    def invoke(self) -> None:
        # Returns after the device is done, unless disable_synchronize_execution_providers is set.
        self._session.run_with_iobinding(self._binding)

    def fetch(self) -> list[Array]:
        outputs: list[Array] = self._binding.copy_outputs_to_cpu()
        return outputs


def _device_value(spec: Spec, device: tuple[str, int]) -> ort.OrtValue:
    """Return a tensor in the memory of a device, (kind, number), for an input or output."""
    shape = [positive(size) or 1 for size in spec["shape"]]
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(spec["dtype"]), *device)


class Adapter(BaseAdapter):
    """A file in an `InferenceSession`.

    `options` with a dot in their name are session configuration entries, others belong to the device's provider.
    """

    provider = ""
    """Of the device; known once the file is open."""

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
        lanes = self._lanes()
        self._first = lanes[0]
        return lanes

    def _lanes(self) -> Sequence[_Binding | _DeviceBinding]:
        if self.device != "cuda":
            return [_Binding(self._session, self.inputs, self.outputs) for _ in range(self.streams)]
        if self.streams > 1 and self.options.get(_CUDA_GRAPH) == "1":
            raise RuntimeError(
                f"ONNX Runtime: {self.streams} streams asked for; a session with {_CUDA_GRAPH} = 1 runs one at a time"
            )
        device = self.device, self._number
        return [_DeviceBinding(self._session, self.inputs, self.outputs, device) for _ in range(self.streams)]

    @property
    def _number(self) -> int:
        """Which of several GPUs."""
        return int(self.options.get("device_id", "0"))

    def _create(self, settings: ort.SessionOptions, *, without: Sequence[str] = ()) -> ort.InferenceSession:
        """Return a session on exactly the provider asked for, without some of the options."""
        # Streams share one pool, and each calling thread works too: `threads` for every stream together.
        settings.intra_op_num_threads = self.streams * (self.threads - 1) + 1
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        options = {key: value for key, value in self.options.items() if key not in without}
        for key, value in options.items():
            if "." in key:
                settings.add_session_config_entry(key, value)
        attached = self._attach(settings, {k: v for k, v in options.items() if "." not in k})
        if self.provider != CPU:  # else nodes that the device lacks would run on the CPU without a word
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = ort.InferenceSession(self.path, settings, enable_fallback=0, **attached)
        except _REFUSALS as error:
            if _FALLBACK_REFUSED in str(error):
                raise RuntimeError(self._left_to_the_cpu(options)) from error
            raise RuntimeError(str(error)) from error
        if session.get_providers()[0] != self.provider:  # its libraries do not load, or there is no device
            raise MissingDeviceError(
                f"ONNX Runtime: {self.provider} asked for, got {session.get_providers()}"
            )
        return session

    def _attach(self, settings: ort.SessionOptions, options: Mapping[str, str]) -> dict[str, Any]:
        """Choose the device's provider with its options; return further arguments of the session."""
        if self.device not in PROVIDERS:
            raise RuntimeError(
                f"ONNX Runtime: unknown device {self.device!r}; allowed are {sorted(PROVIDERS)}"
            )
        self.provider = PROVIDERS[self.device]
        if self.provider not in ort.get_available_providers():
            raise MissingDeviceError(
                f"ONNX Runtime: {self.provider} asked for, this build has {ort.get_available_providers()}"
            )
        if self.provider == CPU and options:
            raise RuntimeError(
                f"ONNX Runtime: the CPU has no options of its own; got {sorted(options)}, allowed are session "
                "configuration entries (session.intra_op.allow_spinning)"
            )
        if self.provider == CUDA:
            if not cuda_device_name(self._number):
                raise MissingDeviceError(
                    f"ONNX Runtime: {CUDA} asked for, no NVIDIA driver or GPU {self._number} here"
                )
            ort.preload_dlls()  # CUDA and cuDNN from the nvidia-* wheels, where the system has none
        return {"providers": [(self.provider, dict(options))]}

    def _left_to_the_cpu(self, options: Mapping[str, str]) -> str:
        """Return which nodes the device does not take, by opening the file once more, with the CPU's help."""
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        attached = self._attach(settings, {k: v for k, v in options.items() if "." not in k})
        refused = f"ONNX Runtime: {self.provider} leaves nodes to the CPU, which is refused"
        try:
            session = ort.InferenceSession(self.path, settings, enable_fallback=0, **attached)
            parts = session.get_provider_graph_assignment_info()
        except (*_REFUSALS, AttributeError):  # before ONNX Runtime 1.24 it could not tell
            return refused
        if session.get_providers()[0] != self.provider:
            raise MissingDeviceError(
                f"ONNX Runtime: {self.provider} asked for, its libraries do not load (CUDA, cuDNN): got "
                f"{session.get_providers()}"
            )
        nodes = [(part.ep_name, node) for part in parts for node in part.get_nodes()]
        left = [f"{node.name} ({node.op_type})" for name, node in nodes if name == CPU]
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        return f"{refused}: {len(left)} of {len(nodes)}: {', '.join(left[:_NAMED])}{more}"

    def describe(self) -> dict[str, Any]:
        """Return the report; precisions are those of the kernels that one profiled run really called."""
        nodes = self._profile()
        used = sorted({node["provider"] for node in nodes})
        if used != [self.provider]:
            raise RuntimeError(f"ONNX Runtime: {self.provider} asked for, nodes ran on {used}")
        macs = [n for n in nodes if n["op_name"] in MAC_OPS | DYNAMIC_OPS]
        others = [n for n in nodes if n["op_name"] not in MAC_OPS | DYNAMIC_OPS]
        gpu = self.device == "cuda"
        return {
            "runtime": "onnxruntime",
            "version": ort.__version__,
            "device": f"{self.provider} on {cuda_device_name(self._number)}" if gpu else self.provider,
            "mac_precision": count([_precision(node) for node in macs]),
            "partitions": 1,
            "details": {
                "threads": self._session.get_session_options().intra_op_num_threads,
                "options": self._used_options(),
                "mac_ops": count([node["op_name"] for node in macs]),
                "other_ops": count([node["op_name"] for node in others]),
                "float_other_ops": sum(_precision(node) == "float32" for node in others),
                **({"input_output": "in the GPU's memory; copies are not timed"} if gpu else {}),
            },
        }

    def _used_options(self) -> dict[str, Any]:
        """Return the options as the session has them."""
        settings, given = self._session.get_session_options(), self._session.get_provider_options()
        return {
            key: settings.get_session_config_entry(key) if "." in key else given[self.provider].get(key)
            for key in self.options
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
            session = self._create(settings, without=(_CUDA_GRAPH,))
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
