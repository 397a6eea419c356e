"""Qualcomm's Hexagon HTP through ONNX Runtime's QNN provider: .onnx files, without CPU fallback.

On x86 the package brings the vendor's simulator of the HTP: its answers are the device's, its time means nothing. On a
Snapdragon the same code drives the device.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
import onnxruntime_qnn as qnn

from .base import Lane, MissingDeviceError, count
from .onnxruntime import Adapter as OnnxAdapter
from .onnxruntime import signature

__all__ = ["Adapter", "devices", "signature"]

PROVIDER = "QNNExecutionProvider"
# The provider ignores names that it does not know: what is accepted here is what it documents for the HTP.
OPTIONS = {
    "htp_arch",
    "soc_model",
    "vtcm_mb",
    "enable_htp_fp16_precision",
    "htp_graph_finalization_optimization_mode",
    "htp_performance_mode",
}
MAC_OPS = {"Conv1d", "Conv2d", "Conv3d", "DepthWiseConv2d", "FullyConnected", "MatMul", "TransposeConv2d"}
# QnnTypes.h: Qnn_DataType_t
_PRECISION = {
    0x0216: "float16",
    0x0232: "float32",
    0x0308: "int8",
    0x0316: "int16",
    0x0408: "int8",
    0x0416: "int16",
}


def devices() -> dict[str, str]:
    """Return the devices that the package drives here: name -> what it is."""
    return {"htp": _kind()} if _plugin_devices() else {}


def _plugin_devices() -> list[Any]:
    """Return what the provider offers to run on, having registered it with ONNX Runtime."""
    found = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    if not found:
        ort.register_execution_provider_library(PROVIDER, qnn.get_library_path())
        found = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    return found


def _kind() -> str:
    kinds = {device.device.type.name for device in _plugin_devices()}
    return "HTP" if "NPU" in kinds else f"HTP simulator on {platform.machine()}"


class Adapter(OnnxAdapter):
    """A file in a session of the QNN provider; `options` are settings of the provider (`OPTIONS`)."""

    def _open(self) -> Sequence[Lane]:
        if self.streams > 1:
            raise RuntimeError(f"QNN: {self.streams} streams asked for; the HTP runs one at a time")
        with tempfile.TemporaryDirectory() as folder:
            self._folder = folder
            lanes = super()._open()
            written = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
        self._graphs = [each["graph"] for each in written if "graph" in each]
        return lanes

    def _attach(self, settings: ort.SessionOptions, options: Mapping[str, str]) -> dict[str, Any]:
        if self.device != "htp":
            raise RuntimeError(f"QNN: unknown device {self.device!r}; allowed is 'htp'")
        if unknown := sorted(set(options) - OPTIONS):
            raise RuntimeError(f"QNN: unknown options {unknown}; allowed are {sorted(OPTIONS)}")
        found = _plugin_devices()
        if not found:
            raise MissingDeviceError("QNN: the provider offers no device here")
        self.provider = PROVIDER
        settings.add_provider_for_devices(
            found,
            {
                **options,
                "backend_path": qnn.get_qnn_htp_path(),
                # Quantizing the input and dequantizing the output are nodes too: not for the CPU either.
                "offload_graph_io_quantization": "0",
                # What the provider made of the file, to read back.
                "dump_json_qnn_graph": "1",
                "json_qnn_graph_dir": self._folder,
            },
        )
        return {}

    def describe(self) -> dict[str, Any]:
        """Return the report; ops and precisions are those of the graphs that the provider gave to the HTP."""
        ops = list(self._ops())
        return {
            "runtime": "onnxruntime-qnn",
            "version": f"{qnn.__version__} (onnxruntime {ort.__version__})",
            "device": _kind(),
            "mac_precision": count([precision for kind, precision in ops if kind in MAC_OPS]),
            "partitions": len(self._graphs),
            "details": {
                "options": dict(self.options),
                "ops": count([kind for kind, _ in ops]),
                "float_other_ops": sum(
                    precision.startswith("float")
                    for kind, precision in ops
                    if kind not in (*MAC_OPS, "Quantize")
                ),
            },
        }

    def _ops(self) -> Iterator[tuple[str, str]]:
        """Yield the kind of every op, and the precision of its first input."""
        for graph in self._graphs:
            for node in graph["nodes"].values():
                number = graph["tensors"][node["input_names"][0]]["data_type"]
                yield node["type"], _PRECISION.get(number, f"{number:#06x}")
