"""ONNX Runtime's own `quantize_static`, with the settings that its documentation gives for x86.

Variants: ``u8s8`` as its docstring says for CPUs with VNNI (7-bit weights without), ``s8s8`` as the user guide's
first choice. QDQ format, after `quant_pre_process`, min-max ranges (its default), one scale per output channel: its
guide recommends that where accuracy matters, and every other tool here does the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from protocol import Samples, serve


class Reader(CalibrationDataReader):
    """Feeds one sample at a time."""

    def __init__(self, name: str, samples: Samples) -> None:
        self._feeds: Iterator[dict[str, Samples]] = ({name: samples[i : i + 1]} for i in range(len(samples)))

    def get_next(self) -> dict[str, Samples] | None:
        """Return the next feed, or None at the end."""
        return next(self._feeds, None)


def quantize(model: Path, samples: Samples, output: Path, variant: str) -> dict[str, Any]:
    settings = {
        "quant_format": QuantFormat.QDQ,
        "per_channel": True,
        "reduce_range": variant == "u8s8" and "vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"),
        "activation_type": QuantType.QUInt8 if variant == "u8s8" else QuantType.QInt8,
        "weight_type": QuantType.QInt8,
    }
    name = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()[0].name
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(model, prepared)
        quantize_static(prepared, output, Reader(name, samples), **settings)
    return {"quant_pre_process": True, **{key: str(value) for key, value in settings.items()}}


if __name__ == "__main__":
    serve(quantize, "onnxruntime", "onnx")
