"""Import torchao once and quietly, before anything here imports from it."""

from __future__ import annotations

from edgeft import extras

extras.load("torchao.quantization.pt2e", "quantization")
