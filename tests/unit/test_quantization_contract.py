"""The numeric contract, by properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeft import schema
from edgeft.quantization import contract
from edgeft.target import Numerics

FINITE = st.floats(-1e4, 1e4, width=32)
SCALES = st.floats(2.0**-16, 2.0**4, width=32)
fast = settings(deadline=None, max_examples=60)


@fast
@given(FINITE, FINITE)
def test_zero_is_exact_and_the_range_is_covered(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero_point = contract.activation_qparams(torch.tensor([low]), torch.tensor([high]))
    assert scale.dtype == torch.float32
    assert scale.shape == zero_point.shape == (1,)
    assert -128 <= int(zero_point) <= 127
    assert float(scale) >= 2.0**-16
    ends = torch.tensor([low, 0.0, high])
    got = torch.fake_quantize_per_tensor_affine(ends, scale, zero_point, -128, 127)
    assert got[1] == 0
    # The zero point is rounded: each end may lose half a step.
    assert float((got - ends).abs().max()) <= 0.5001 * float(scale) + 1e-6 * max(abs(low), abs(high))


@pytest.mark.parametrize(("low", "high", "zero_point"), [(0.5, 2, -128), (-2, -0.5, 127), (0, 0, -128)])
def test_one_sided_ranges_start_at_zero(low: float, high: float, zero_point: int) -> None:
    scale, zero = contract.activation_qparams(torch.tensor(float(low)), torch.tensor(float(high)))
    assert int(zero) == zero_point
    assert float(scale) == max(np.float32(max(high, 0) - min(low, 0)) / np.float32(255), np.float32(2.0**-16))


@fast
@given(st.integers(1, 17), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(1e-6, 1e3))
def test_weights_are_on_their_grid_after_one_rounding(
    channels: int, inputs: int, seed: int, spread: float
) -> None:
    weight = np.random.default_rng(seed).normal(0, spread, (channels, inputs)).astype(np.float32)
    scales = contract.weight_scale(torch.from_numpy(weight)).numpy()
    once = contract.quantize_weight(weight, scales)
    assert once.dtype == np.int8
    assert np.abs(once.astype(int)).max() <= 127
    again = contract.dequantize_weight(once, scales)
    np.testing.assert_array_equal(contract.quantize_weight(again, scales), once)
    # Rounded to half a step, nothing clipped; and torch's own kernel agrees.
    assert (np.abs(again - weight) <= 0.5001 * scales[:, None]).all()
    kernel = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(weight),
        torch.from_numpy(scales),
        torch.zeros(channels, dtype=torch.int32),
        0,
        -127,
        127,
    )
    np.testing.assert_array_equal(kernel.numpy(), again)


@fast
@given(arrays.arrays(np.int8, st.integers(1, 300), elements=st.integers(-127, 127)), SCALES)
def test_every_int8_weight_survives_a_round_trip(integers: np.ndarray, scale: float) -> None:  # type: ignore[type-arg]
    scales = np.full(1, scale, np.float32)
    values = contract.dequantize_weight(integers[None], scales)
    np.testing.assert_array_equal(contract.quantize_weight(values, scales), integers[None])


@fast
@given(arrays.arrays(np.int32, 8, elements=st.integers(1 - 2**23, 2**23 - 1)), SCALES, SCALES)
def test_every_bias_below_23_bits_survives_a_round_trip(
    integers: np.ndarray,  # type: ignore[type-arg]
    input_scale: float,
    weight_scale: float,
) -> None:
    scales = np.full(8, weight_scale, np.float32)
    values = contract.dequantize_bias(integers, input_scale, scales)
    np.testing.assert_array_equal(contract.quantize_bias(values, input_scale, scales), integers)


@fast
@given(arrays.arrays(np.int32, 8, elements=st.integers(-(2**30), 2**30)), SCALES, SCALES)
def test_larger_biases_are_stable_after_the_first_rounding(
    integers: np.ndarray,  # type: ignore[type-arg]
    input_scale: float,
    weight_scale: float,
) -> None:
    scales = np.full(8, weight_scale, np.float32)
    values = contract.dequantize_bias(integers, input_scale, scales)
    stored = contract.quantize_bias(values, input_scale, scales)
    assert (
        np.abs(stored.astype(np.int64) - integers) <= np.abs(integers.astype(np.int64)) * 2.0**-22 + 1
    ).all()


@fast
@given(st.floats(-1e5, 1e5, width=32), SCALES)
def test_a_dead_channel_never_overflows_its_bias(bias: float, input_scale: float) -> None:
    scale = contract.weight_scale(
        torch.zeros(1, 4), bias=torch.tensor([bias]), input_scale=torch.tensor([input_scale])
    )
    integers = contract.quantize_bias(np.float32([bias]), input_scale, scale.numpy())
    assert abs(int(integers[0])) <= 2**30 + 2**7  # float32 rounds the quotient
    step = float(input_scale) * float(scale)
    assert abs(int(integers[0]) * step - bias) <= step + abs(bias) * 2.0**-22


@pytest.mark.parametrize(("weight_range", "limit"), [("full", 127), ("half", 63)])
@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_numerics_shape_the_weights(weight_range: str, limit: int, granularity: str) -> None:
    numerics = schema.validate(
        {"weight_range": weight_range, "granularity": granularity}, Numerics, "numerics"
    )
    weight = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    scales = contract.weight_scale(torch.from_numpy(weight), numerics=numerics).numpy()
    integers = contract.quantize_weight(weight, scales, numerics=numerics)
    largest = np.abs(integers.astype(int)).max(axis=1)
    if granularity == "per-tensor":
        assert len(set(scales)) == 1
        assert largest.max() == limit
    else:
        assert (largest == limit).all()
    # The bias decides the scale of all channels where there is one scale.
    bias = torch.tensor([0.0, 0.0, 2.0**20, 0.0, 0.0])
    scales = contract.weight_scale(
        torch.zeros(5, 7), bias=bias, input_scale=torch.tensor([1e-3]), numerics=numerics
    ).numpy()
    assert scales[2] == np.float32(2.0**20) / (np.float32(1e-3) * np.float32(2.0**30))
    assert (scales == scales[2]).all() == (granularity == "per-tensor")


def test_half_range_weights_cannot_saturate_sums_of_two_products() -> None:
    assert 2 * 255 * contract.HALF_WEIGHT_MAX <= 2**15 - 1 < 2 * 255 * (contract.HALF_WEIGHT_MAX + 2)


@fast
@given(FINITE, FINITE)
def test_symmetric_ranges_have_zero_point_0_and_lose_nothing(a: float, b: float) -> None:
    low, high = torch.tensor([min(a, b)]), torch.tensor([max(a, b)])
    scale, zero_point = contract.activation_qparams(low, high, symmetric=True)
    assert int(zero_point) == 0
    ends = torch.tensor([float(low), 0.0, float(high)])
    got = torch.fake_quantize_per_tensor_affine(ends, scale, zero_point, -128, 127)
    assert float((got - ends).abs().max()) <= 0.5001 * float(scale)
