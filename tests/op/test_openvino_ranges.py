"""The scale behind a range of OpenVINO's, which stores two ends instead of a step."""

from types import SimpleNamespace

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from edgeft.exporters.openvino import _KnownRanges
from edgeft.types import ActivationQuant

SIX = np.float32(6 / 255)
NEIGHBOUR = np.nextafter(SIX, np.float32(0))
NEXT = np.nextafter(NEIGHBOUR, np.float32(0))


def known(*scales: np.float32) -> _KnownRanges:
    activations = [ActivationQuant(name=str(s), scale=float(s), zero_point=-128) for s in scales]
    return _KnownRanges(SimpleNamespace(activations=activations))


def rounding(scale: np.float32) -> ov.Node:
    """Return a FakeQuantize of [0, 255 * scale] as the converter of ONNX files writes it."""
    low, high = (ops.constant(np.float32(end * float(scale))) for end in (0, 255))
    return ops.fake_quantize(ops.parameter([1, 4]), low, high, low, high, 256)


@pytest.mark.parametrize("scale", [SIX, NEIGHBOUR, NEXT])
def test_scales_one_bit_apart_are_told_apart(scale):
    assert known(SIX, NEIGHBOUR, NEXT).find(rounding(scale)) == (float(scale), -128)
    assert known(NEXT, NEIGHBOUR, SIX).find(rounding(scale)) == (float(scale), -128)


def test_a_range_of_nobody_is_not_taken_for_one():
    scale, zero_point = known(SIX).find(rounding(np.float32(SIX * 1.00001)))
    assert scale != float(SIX) and zero_point == -128
