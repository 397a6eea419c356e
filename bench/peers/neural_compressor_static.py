"""Neural Compressor's static quantization of the PyTorch program, through its documented calls.

Its default settings; the Q/DQ program is written to ONNX by torch.onnx as it is (weights folded to int8), without any
help of edgeft's exporters. OpenVINO reads the same file. Its own deployment is torch.compile, which leaves no file:
that is not timed here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchao.quantization.pt2e  # noqa: F401  (registers the ops of Q/DQ programs)
from neural_compressor.torch.quantization import convert, get_default_static_config, prepare
from protocol import Samples, serve
from torchao.quantization.pt2e.constant_fold import constant_fold
from torchao.quantization.pt2e.quantize_pt2e import _quant_node_constraint


def quantize(model: Path, samples: Samples, output: Path, variant: str) -> dict[str, Any]:
    program: Any = torch.export.load(model).module()
    program._exported, program.dynamic_shapes = True, None  # what its own `export` leaves on a graph
    config = get_default_static_config()
    prepared = prepare(program, config)
    with torch.no_grad():
        for sample in torch.from_numpy(samples).split(32):
            prepared(sample)
    quantized = convert(prepared)
    # The end of torchao's own conversion, which is left out above and cannot be asked for: weights become int8.
    constant_fold(quantized, _quant_node_constraint)
    example = torch.from_numpy(samples[:1])
    exported = torch.onnx.export(
        quantized, (example,), dynamo=True, input_names=["input"], output_names=["logits"], verbose=False
    )
    exported.save(output)
    return {"config": variant, "act_algo": config.act_algo, "act_sym": config.act_sym}


if __name__ == "__main__":
    serve(quantize, "neural_compressor_pt", "torch", "torchao")
