"""ai-edge-quantizer's static int8 recipe (`static_wi8_ai8`) on the float LiteRT file, as its examples do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe
from protocol import Samples, serve


def quantize(model: Path, samples: Samples, output: Path, variant: str) -> dict[str, Any]:
    interpreter = Interpreter(str(model))
    (signature, tensors), *_ = interpreter.get_signature_list().items()
    name = tensors["inputs"][0]
    shape = interpreter.get_signature_runner(signature).get_input_details()[name]["shape"]
    # The file takes (1, H, W, C), the samples are (N, C, H, W).
    ordered = samples.transpose(0, 2, 3, 1) if shape[-1] == samples.shape[1] else samples
    tool = quantizer.Quantizer(str(model))
    tool.load_quantization_recipe(getattr(recipe, variant)())
    feeds = [{name: ordered[index : index + 1].copy()} for index in range(len(ordered))]
    ranges = tool.calibrate({signature: feeds})
    tool.quantize(ranges).export_model(str(output), overwrite=True)
    return {"recipe": variant}


if __name__ == "__main__":
    serve(quantize, "ai-edge-quantizer", "ai-edge-litert")
