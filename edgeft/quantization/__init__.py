"""Quantization: annotate, calibrate or train, convert to the Q/DQ program."""

# isort: off
from edgeft.quantization import _torchao  # noqa: F401  (first: it quiets the import of torchao)

# isort: on
from edgeft.quantization.capture import capture, float_program
from edgeft.quantization.prepare import QatPhases, calibrate, prepare
from edgeft.quantization.program import convert, load, save

__all__ = ["QatPhases", "calibrate", "capture", "convert", "float_program", "load", "prepare", "save"]
