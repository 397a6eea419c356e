"""Neural Compressor's static quantization for ONNX Runtime: the package onnx-neural-compressor, its ONNX branch.

QDQ format, which ONNX Runtime is fast with, and one scale per output channel; the rest are its defaults: uint8
activations, int8 weights, min-max ranges. Its last release is of 2024 and wants NumPy 1: an environment of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import config
from onnx_neural_compressor.quantization import quantize as quantize_file
from onnxruntime.quantization import QuantFormat
from protocol import Samples, serve


class Reader(data_reader.CalibrationDataReader):
    """Feeds one sample at a time, as often as it is rewound."""

    def __init__(self, name: str, samples: Samples) -> None:
        self._name, self._samples, self._next = name, samples, 0

    def get_next(self) -> dict[str, Samples] | None:
        """Return the next feed, or None at the end."""
        self._next += 1
        feed = self._samples[self._next - 1 : self._next]
        return {self._name: feed} if len(feed) else None

    def rewind(self) -> None:
        """Start again."""
        self._next = 0


def quantize(model: Path, samples: Samples, output: Path, variant: str) -> dict[str, Any]:
    name = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    settings = config.StaticQuantConfig(
        calibration_data_reader=Reader(name, samples),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        calibration_sampling_size=len(samples),
    )
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / output.name
        quantize_file(str(model), str(written), settings)
        onnx.save(onnx.load(written), output)  # it puts the weights into a second file: back into one
    return {"variant": variant, "quant_format": "QDQ", "per_channel": True, "calibrate_method": "MinMax"}


if __name__ == "__main__":
    serve(quantize, "onnx-neural-compressor", "onnxruntime", "onnx", "numpy")
