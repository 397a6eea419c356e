"""OpenVINO: IR (.xml) and .onnx files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openvino as ov

from .base import Array, BaseAdapter, Lane, count, positive, tensor

MAC_LAYERS = {"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul"}
_PRECISION = {"i8": "int8", "u8": "int8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
# Layers that compute nothing of their own.
_SILENT = {"Input", "Output", "Const", "Reorder", "Reshape"}


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
        settings = {**self.options, "INFERENCE_NUM_THREADS": str(self.threads * self.streams)}
        if self.streams > 1:
            settings["NUM_STREAMS"] = str(self.streams)
        self._compiled = core.compile_model(model, self.device, settings)
        self._executed_on = list(self._compiled.get_property("EXECUTION_DEVICES"))
        if any(name.split(".")[0] != self.device.split(".")[0] for name in self._executed_on):
            raise RuntimeError(f"OpenVINO: device {self.device} asked for, got {self._executed_on}")
        requests = [self._compiled.create_infer_request() for _ in range(self.streams)]
        return [_Request(request, len(self.outputs)) for request in requests]

    def describe(self) -> dict[str, Any]:
        """Return the report; precisions are those of the compiled graph's own layers."""
        layers = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            layers.append(
                {key: info[key].astype(str) for key in ("layerType", "runtimePrecision", "primitiveType")}
            )
        macs = [layer for layer in layers if layer["layerType"] in MAC_LAYERS]
        others = [layer for layer in layers if layer["layerType"] not in MAC_LAYERS | _SILENT]
        return {
            "runtime": "openvino",
            "version": ov.get_version(),
            "device": ",".join(self._executed_on),
            "mac_precision": count([_precision(layer) for layer in macs]),
            "partitions": 1,
            "details": {
                "threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
                "options": {key: _text(self._compiled.get_property(key)) for key in self.options},
                "inference_precision": _text(self._compiled.get_property("INFERENCE_PRECISION_HINT")),
                "primitives": count([m["primitiveType"] for m in macs]),
                "other_layers": count([layer["layerType"] for layer in others]),
                "float_other_ops": sum(
                    layer["runtimePrecision"] in ("f32", "bf16", "f16") for layer in others
                ),
            },
        }


def _precision(layer: dict[str, str]) -> str:
    """Return the precision that a layer computes in.

    A linear layer with compressed weights is listed by the type of those; its kernel's name tells what it computes.
    """
    name = "f32" if layer["primitiveType"].endswith("_f32") else layer["runtimePrecision"]
    return _PRECISION.get(name, name)


def _text(value: Any) -> str:
    """Return a property's value as text: an element type by its name, an enumeration by its member."""
    return str(value.to_string() if isinstance(value, ov.Type) else getattr(value, "name", value))
