"""The numeric contract: how real values become int8, in one place (DESIGN: section 5).

Weights are symmetric per output channel in [-127, 127]; activations affine per tensor in [-128, 127]; biases
int32 at scale s_x * s_w. A target's `Numerics` may narrow that: one weight scale for all channels, weights in
[-63, 63], activations with zero point 0. Training, conversion and the exporters' checks all call these functions,
so that the fake-quant graph, the Q/DQ program and every file speak of the same numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from edgeft.target import Numerics

WEIGHT_MIN, WEIGHT_MAX = -127, 127
HALF_WEIGHT_MAX = 63
"""Two products of a weight in [-63, 63] and a uint8 sum to at most 32,130: 16 bits hold them (DESIGN: rule 11)."""
ACTIVATION_MIN, ACTIVATION_MAX = -128, 127
USUAL = Numerics()

# Below these a scale carries no information, and requantization multipliers leave the range of the kernels
# (XNNPACK: s_x * s_w / s_y must be in [2^-32, 256)).
_SMALLEST_ACTIVATION_SCALE = 2.0**-16
_SMALLEST_WEIGHT_SCALE = 2.0**-23

# An int32 accumulator has 31 bits; one is left for the products that are added to the bias.
_LARGEST_BIAS = 2.0**30


def weight_limit(numerics: Numerics) -> int:
    """Return the largest absolute integer that a weight may have."""
    return HALF_WEIGHT_MAX if numerics.weight_range == "half" else WEIGHT_MAX


def activation_qparams(
    low: torch.Tensor, high: torch.Tensor, *, symmetric: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale (float32) and zero point (int32) of an activation range; both of shape (1,).

    The range is widened to contain 0, which then has an exact representation (padding, ReLU).

    Args:
        low: Smallest real value, any shape with one element.
        high: Largest real value.
        symmetric: Whether the zero point is to be 0; the range then reaches as far down as up.
    """
    low = torch.clamp(low.reshape(1).float(), max=0.0)
    high = torch.clamp(high.reshape(1).float(), min=0.0)
    if symmetric:
        scale = torch.clamp(torch.maximum(-low, high) / ACTIVATION_MAX, min=_SMALLEST_ACTIVATION_SCALE)
        return scale, torch.zeros(1, dtype=torch.int32, device=scale.device)
    scale = torch.clamp((high - low) / (ACTIVATION_MAX - ACTIVATION_MIN), min=_SMALLEST_ACTIVATION_SCALE)
    zero_point = torch.clamp(ACTIVATION_MIN - torch.round(low / scale), ACTIVATION_MIN, ACTIVATION_MAX)
    return scale, zero_point.to(torch.int32)


def weight_scale(
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    input_scale: torch.Tensor | None = None,
    axis: int = 0,
    numerics: Numerics = USUAL,
    learned: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the float32 scale of every output channel, shape (weight.shape[axis],); per tensor they are all equal.

    With `bias` and `input_scale` the scale is also kept above |bias| / (input_scale * 2^30): a dead channel
    (all weights zero) with a large bias otherwise overflows its int32 bias without a sign of it. `learned` scales, of
    that shape, take the place of those that just hold the largest weights.
    """
    if learned is None:
        reduced = [d for d in range(weight.dim()) if d != axis]
        learned = weight.detach().abs().amax(dim=reduced).float() / weight_limit(numerics)
    scale = torch.clamp(learned, min=_SMALLEST_WEIGHT_SCALE)
    if bias is not None and input_scale is not None:
        scale = torch.maximum(scale, bias.detach().abs().float() / (input_scale.float() * _LARGEST_BIAS))
    if numerics.granularity == "per-tensor":
        scale = scale.amax().expand(scale.shape).clone()
    return scale


def bias_scale(input_scale: float, scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return s_x * s_w in float32, shape (O,): the value that the files store."""
    return (np.float32(input_scale) * scales).astype(np.float32)


def quantize_bias(
    bias: npt.NDArray[np.float32], input_scale: float, scales: npt.NDArray[np.float32]
) -> npt.NDArray[np.int32]:
    """Return the int32 biases, shape (O,), rounded half to even."""
    integers = np.rint(bias.astype(np.float64) / bias_scale(input_scale, scales).astype(np.float64))
    return integers.astype(np.int32)


def dequantize_bias(
    integers: npt.NDArray[np.int32], input_scale: float, scales: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the float32 values of int32 biases, computed as a DequantizeLinear kernel does."""
    return integers.astype(np.float32) * bias_scale(input_scale, scales)


def quantize_weight(
    weight: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], *, numerics: Numerics = USUAL
) -> npt.NDArray[np.int8]:
    """Return int8 weights in the range of `numerics`; `weight` has its output channels first, `scales` is (O,).

    Multiplies by the reciprocal as torch's quantize kernels do: a division can differ in the last bit, which
    moves values that lie half-way between two integers.
    """
    inverse = (np.float32(1.0) / scales).astype(np.float32).reshape(-1, *([1] * (weight.ndim - 1)))
    limit = weight_limit(numerics)
    integers: npt.NDArray[np.int8] = np.clip(np.rint(weight * inverse), -limit, limit).astype(np.int8)
    return integers


def dequantize_weight(
    integers: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the float32 values of int8 weights; output channels first, `scales` is (O,)."""
    shaped = scales.reshape(-1, *([1] * (integers.ndim - 1)))
    return (integers.astype(np.float32) * shaped).astype(np.float32)
