"""Quantization: annotate, calibrate or train, convert to the Q/DQ program."""

# isort: off
from edgeft.quantization import _torchao  # noqa: F401  (first: it quiets the import of torchao)

# isort: on
from edgeft.quantization.bias_correction import correct_biases
from edgeft.quantization.calibrating import calibrate, calibration_rewrites
from edgeft.quantization.capture import capture, float_program
from edgeft.quantization.fusing import fuse
from edgeft.quantization.half import halve_weights
from edgeft.quantization.mixed import copy_graph, matching_layers, quantized_layers, restore_float
from edgeft.quantization.normalization import embed_normalization, raw_inputs
from edgeft.quantization.phases import QatPhases
from edgeft.quantization.prepare import prepare
from edgeft.quantization.program import convert, load, save
from edgeft.quantization.ranges import apply_ranges, diff_ranges, range_table, read_ranges, write_ranges
from edgeft.quantization.sensitivity import Sensitivity, sensitivities
from edgeft.quantization.weight_only import quantize_weights

__all__ = [
    "QatPhases",
    "Sensitivity",
    "apply_ranges",
    "calibrate",
    "calibration_rewrites",
    "capture",
    "convert",
    "copy_graph",
    "correct_biases",
    "diff_ranges",
    "embed_normalization",
    "float_program",
    "fuse",
    "halve_weights",
    "load",
    "matching_layers",
    "prepare",
    "quantize_weights",
    "quantized_layers",
    "range_table",
    "raw_inputs",
    "read_ranges",
    "restore_float",
    "save",
    "sensitivities",
    "write_ranges",
]
