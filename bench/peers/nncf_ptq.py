"""NNCF's post-training quantization of the OpenVINO model, as its own MobileNetV2 example does it.

Variants: ``performance`` is the default preset (symmetric activations), ``mixed`` the one that its documentation
offers for more accuracy (asymmetric activations). Everything else is its default, fast bias correction included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nncf
import openvino
from protocol import Samples, serve


def quantize(model: Path, samples: Samples, output: Path, variant: str) -> dict[str, Any]:
    source = openvino.Core().read_model(model)
    dataset = nncf.Dataset([samples[index : index + 1] for index in range(len(samples))])
    quantized = nncf.quantize(
        source,
        dataset,
        preset=nncf.QuantizationPreset(variant),
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(samples),
    )
    openvino.save_model(quantized, output)  # with half-precision storage of what stays in float: its default
    return {"preset": variant, "target_device": "CPU", "subset_size": len(samples)}


if __name__ == "__main__":
    serve(quantize, "nncf", "openvino")
