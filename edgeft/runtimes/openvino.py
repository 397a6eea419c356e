"""OpenVINO: IR (.xml) and .onnx files."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import openvino as ov

from .base import BaseAdapter, count

MAC_LAYERS = {"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul"}
_PRECISION = {"i8": "int8", "u8": "int8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
# Layers that compute nothing of their own.
_SILENT = {"Input", "Output", "Const", "Reorder", "Reshape"}


class Adapter(BaseAdapter):
    """A compiled model with a fixed batch of 1; `options` are properties of `compile_model`."""

    def _open(self) -> None:
        core = ov.Core()
        model = core.read_model(self.path)
        for kind, found, specs in (
            ("input", model.inputs, self.inputs),
            ("output", model.outputs, self.outputs),
        ):
            if len(found) != 1 or specs[0]["name"] not in found[0].get_names():
                names = [sorted(port.get_names()) for port in found]
                raise RuntimeError(
                    f"{self.path}: {kind}s are {names}, the artifact says {specs[0]['name']!r}"
                )
            shape = [d.get_length() if d.is_static else None for d in found[0].get_partial_shape()]
            self._check_io(kind, specs[0], shape, found[0].get_element_type().to_dtype())
        if model.is_dynamic():
            # A device runs one sample at a time, and OpenVINO starts and runs faster with static shapes.
            model.reshape([1, *self.inputs[0]["shape"][1:]])
        settings = {**self.options, "INFERENCE_NUM_THREADS": str(self.threads)}
        self._compiled = core.compile_model(model, self.device, settings)
        self._executed_on = list(self._compiled.get_property("EXECUTION_DEVICES"))
        if any(name.split(".")[0] != self.device.split(".")[0] for name in self._executed_on):
            raise RuntimeError(f"OpenVINO: device {self.device} asked for, got {self._executed_on}")
        self._request = self._compiled.create_infer_request()

    def _place(self, native: npt.NDArray[Any]) -> None:
        self._request.set_input_tensor(ov.Tensor(native, shared_memory=True))

    def invoke(self) -> None:
        """Run once on the prepared input."""
        self._request.infer(share_outputs=True)

    def _fetch(self) -> npt.NDArray[Any]:
        output: npt.NDArray[Any] = self._request.get_output_tensor().data
        return output

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
