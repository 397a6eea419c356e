"""Convert torch.export programs to .tflite, in a process of its own.

litert-torch takes 5-7 s and half a gigabyte to import and sets process-wide flags, so it lives here: one JSON
request per line on stdin, one JSON reply per line on stdout. Run by `edgeft.exporters.tflite`, never by hand.
"""

from __future__ import annotations

import json
import os
import sys
import types
import warnings
from typing import Any

import torch
from torch import nn


class ChannelLast(nn.Module):
    """Feed a (N, C, H, W) network from (N, H, W, C): the converter then needs no transposes at all."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the network's output for x of shape (N, H, W, C)."""
        result: torch.Tensor = self.program(x.permute(0, 3, 1, 2))
        return result


def convert(request: dict[str, Any], litert_torch: Any, quant_config: Any) -> None:
    """Convert one saved program.

    Args:
        request: ``program`` (.pt2), ``output`` (.tflite), ``shape`` and ``dtype`` of one input batch,
            ``quantized`` and ``layout`` (nchw, nhwc or nk).
        litert_torch: The imported package.
        quant_config: Passed for quantized programs; without one the converter leaves every convolution in
            float, silently.
    """
    program: nn.Module = torch.export.load(request["program"]).module(check_guards=False)
    example = torch.ones(request["shape"], dtype=getattr(torch, request["dtype"]))
    if request["layout"] == "nhwc":
        program, example = ChannelLast(program), example.permute(0, 2, 3, 1).contiguous()
    extra = {"quant_config": quant_config} if request["quantized"] else {}
    litert_torch.convert(program, (example,), **extra).export(request["output"])


def main() -> None:
    """Serve requests until stdin closes."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the converter prints its progress; the protocol's stream stays clean
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    warnings.simplefilter("ignore")
    import litert_torch
    import torchao.quantization.pt2e  # noqa: F401  (registers the ops that saved Q/DQ programs are made of)
    from litert_torch.quantize.quant_config import QuantConfig

    # All that the converter asks of a quantizer is whether it was a dynamic one.
    stub = types.SimpleNamespace(global_config=types.SimpleNamespace(is_dynamic=False))
    config = QuantConfig(pt2e_quantizer=stub)
    for line in sys.stdin:
        convert(json.loads(line), litert_torch, config)
        replies.write(json.dumps({"done": True}) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
