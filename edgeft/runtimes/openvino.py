"""OpenVINO: IR (.xml) and .onnx files, on the CPU or on an Intel GPU or NPU, never on another device than asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openvino as ov

from .base import Array, BaseAdapter, Lane, MissingDeviceError, count, positive, tensor

# As the plugins of CPU and GPU name them; that of the NPU does not tell what it compiled.
MAC_LAYERS = {"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul", "Gemm"}
_PRECISION = {"i8": "int8", "u8": "int8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
# Layers that compute nothing of their own.
_SILENT = {"Input", "Output", "Const", "Reorder", "Reshape"}


def devices() -> dict[str, str]:
    """Return the devices that OpenVINO's plugins find here: name (``GPU.0`` where there are several) -> what it is."""
    core = ov.Core()
    return {name: str(core.get_property(name, "FULL_DEVICE_NAME")) for name in core.available_devices}


def signature(path: str) -> dict[str, list[dict[str, Any]]]:
    """Return the `inputs` and `outputs` that a file says it has. Raises RuntimeError if it is no model."""
    model = ov.Core().read_model(path)
    found = {"inputs": model.inputs, "outputs": model.outputs}
    return {
        kind: [tensor(_names(port)[0], _shape(port), _dtype(port)) for port in ports]
        for kind, ports in found.items()
    }


def _names(port: Any) -> list[str]:
    """Return the names of a tensor, or that of its node where it has none."""
    return sorted(port.get_names()) or [port.get_node().get_friendly_name()]


def _shape(port: Any) -> list[int | None]:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise RuntimeError(f"{_names(port)[0]} has a free number of dimensions; a fixed one is needed")
    return [d.get_length() if d.is_static else None for d in shape]


def _dtype(port: Any) -> Any:
    return port.get_element_type().to_dtype()


class _Request(Lane):
    """An infer request."""

    def __init__(self, request: ov.InferRequest, outputs: int) -> None:
        self._request, self._outputs = request, outputs

    def place(self, natives: Sequence[Array]) -> None:
        self._natives = natives  # the request reads their memory without holding on to it
        for index, native in enumerate(natives):
            self._request.set_input_tensor(index, ov.Tensor(native, shared_memory=True))

    def invoke(self) -> None:
        self._request.infer(share_outputs=True)

    def invoke_ms(self) -> float:
        # After every run the Python wrapper wraps the outputs into a dictionary. The request's own clock, which
        # benchmark_app reads too, covers the inference and not that.
        self._request.infer(share_outputs=True)
        elapsed_ms: float = self._request.latency
        return elapsed_ms

    def fetch(self) -> list[Array]:
        return [self._request.get_output_tensor(index).data for index in range(self._outputs)]


class Adapter(BaseAdapter):
    """A compiled model with a fixed batch; `options` are properties of `compile_model`."""

    def _open(self) -> Sequence[Lane]:
        core = ov.Core()
        self._require_device(core)
        model = core.read_model(self.path)
        for kind, found, specs in (
            ("input", model.inputs, self.inputs),
            ("output", model.outputs, self.outputs),
        ):
            names = [_names(port) for port in found]
            if len(found) != len(specs) or any(s["name"] not in n for s, n in zip(specs, names, strict=True)):
                raise RuntimeError(
                    f"{self.path}: {kind}s are {names}, the artifact says {[s['name'] for s in specs]}"
                )
            for port, spec in zip(found, specs, strict=True):
                self._check_io(kind, spec, _shape(port), _dtype(port))
        if model.is_dynamic():
            # A device runs one size at a time, and OpenVINO starts and runs faster with static shapes.
            wanted = [[positive(d) or 1 for d in spec["shape"]] for spec in self.inputs]
            model.reshape(dict(enumerate(wanted)))
        settings = dict(self.options)
        if self._on_cpu:
            settings["INFERENCE_NUM_THREADS"] = str(self.threads * self.streams)
        if self.streams > 1:
            settings["NUM_STREAMS"] = str(self.streams)
        self._compiled = core.compile_model(model, self.device, settings)
        self._executed_on = list(self._compiled.get_property("EXECUTION_DEVICES"))
        if any(name.split(".")[0] != self.device.split(".")[0] for name in self._executed_on):
            raise RuntimeError(f"OpenVINO: device {self.device} asked for, got {self._executed_on}")
        requests = [self._compiled.create_infer_request() for _ in range(self.streams)]
        return [_Request(request, len(self.outputs)) for request in requests]

    @property
    def _on_cpu(self) -> bool:
        return self.device == "CPU"

    def _require_device(self, core: ov.Core) -> None:
        """Refuse what would choose a device by itself, and a device that no plugin finds."""
        found = core.available_devices
        kinds = {name.partition(".")[0] for name in found}
        if self.device in {*found, *kinds}:
            return
        if self.device.partition(":")[0] in ("AUTO", "MULTI", "HETERO", "BATCH"):
            raise RuntimeError(
                f"OpenVINO: {self.device} chooses devices by itself; name one of {', '.join(found)}"
            )
        raise MissingDeviceError(f"OpenVINO: no device {self.device!r} here, only {', '.join(found)}")

    def describe(self) -> dict[str, Any]:
        """Return the report; precisions are those of the compiled graph's own layers (none are known of an NPU's)."""
        keys = ("layerType", "runtimePrecision", "primitiveType")
        infos = [node.get_rt_info() for node in self._compiled.get_runtime_model().get_ordered_ops()]
        layers = [{key: info[key].astype(str) for key in keys} for info in infos if keys[0] in info]
        macs = [layer for layer in layers if layer["layerType"] in MAC_LAYERS]
        others = [layer for layer in layers if layer["layerType"] not in MAC_LAYERS | _SILENT]
        return {
            "runtime": "openvino",
            "version": ov.get_version(),
            "device": ",".join(map(self._device_name, self._executed_on)),
            "mac_precision": count([_precision(layer) for layer in macs]),
            "partitions": 1,
            "details": {
                **(
                    {"threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS"))}
                    if self._on_cpu
                    else {}
                ),
                "options": {key: _text(self._compiled.get_property(key)) for key in self.options},
                "inference_precision": _text(self._compiled.get_property("INFERENCE_PRECISION_HINT")),
                "primitives": count([m["primitiveType"] for m in macs]),
                "other_layers": count([layer["layerType"] for layer in others]),
                "float_other_ops": sum(
                    layer["runtimePrecision"] in ("f32", "bf16", "f16") for layer in others
                ),
            },
        }

    def _device_name(self, name: str) -> str:
        """Return a device's name, with the product's behind it where several kinds have the same."""
        return name if self._on_cpu else f"{name} ({ov.Core().get_property(name, 'FULL_DEVICE_NAME')})"


def _precision(layer: dict[str, str]) -> str:
    """Return the precision that a layer computes in.

    A linear layer with compressed weights is listed by the type of those; its kernel's name tells what it computes.
    """
    name = "f32" if layer["primitiveType"].endswith("_f32") else layer["runtimePrecision"]
    return _PRECISION.get(name, name)


def _text(value: Any) -> str:
    """Return a property's value as text: an element type by its name, an enumeration by its member."""
    return str(value.to_string() if isinstance(value, ov.Type) else getattr(value, "name", value))
