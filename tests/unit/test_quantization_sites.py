"""Fake quantizers: who observes, when, and what is refused."""

from __future__ import annotations

import pytest
import torch

from edgeft.errors import QuantizationError
from edgeft.quantization.fake_quant import ActivationFakeQuant, WeightFakeQuant


def observe(site: ActivationFakeQuant, *values: float) -> None:
    site.observing, site.enabled = True, False
    site(torch.tensor(values))
    site.observing, site.enabled = False, True


def test_a_shared_range_is_the_union_of_its_producers() -> None:
    a, b, follower = ActivationFakeQuant(), ActivationFakeQuant(), ActivationFakeQuant()
    follower.observes = False
    for site in (a, b, follower):
        site.share_range((a, b, follower))
    observe(a, -1.0, 0.5)
    observe(b, -0.5, 3.0)
    observe(follower, -100.0, 100.0)
    assert {float(site.calculate_qparams()[0]) for site in (a, b, follower)} == {
        float(torch.tensor(4.0) / 255)
    }


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("momentum", [1.0, 0.1])
def test_a_range_that_is_not_finite_is_refused_for_good(bad: float, momentum: float) -> None:
    for values in ([bad, 1.0], [-1.0, 1.0]):
        site = ActivationFakeQuant()
        site.momentum = momentum
        observe(site, *values)
        observe(site, bad, 0.0)
        observe(site, -1.0, 1.0)
        with pytest.raises(QuantizationError, match="not finite"):
            site.freeze()


def test_nothing_observed_is_refused() -> None:
    with pytest.raises(QuantizationError, match="calibrate"):
        ActivationFakeQuant()(torch.zeros(3))


def test_momentum_follows_and_one_keeps_the_extremes() -> None:
    site = ActivationFakeQuant()
    observe(site, -1.0, 2.0)
    site.momentum = 0.5
    observe(site, -3.0, 0.0)
    assert (float(site.low), float(site.high)) == (-2.0, 1.0)
    site.momentum = 1.0
    observe(site, 0.0, 0.0)
    assert (float(site.low), float(site.high)) == (-2.0, 1.0)


def test_the_average_is_over_samples_and_logits_keep_their_extremes() -> None:
    batch = torch.tensor([[-1.0, 1.0], [-3.0, 5.0]])
    for keeps_extremes, expected in ((False, (-2.0, 3.0)), (True, (-3.0, 5.0))):
        site = ActivationFakeQuant()
        site.observing, site.momentum, site.keeps_extremes = True, 0.5, keeps_extremes
        site(batch)
        assert (float(site.low), float(site.high)) == expected


def test_a_frozen_site_stands_still() -> None:
    site = ActivationFakeQuant()
    observe(site, -1.0, 1.0)
    site.freeze()
    before = site.calculate_qparams()
    observe(site, -50.0, 50.0)
    assert all(torch.equal(a, b) for a, b in zip(before, site.calculate_qparams(), strict=True))


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"), [(0, 255 / 256, 1 / 256, -128), (-1, 127 / 128, 1 / 128, 0)]
)
def test_a_fixed_range_is_not_observed(low: float, high: float, scale: float, zero_point: int) -> None:
    site = ActivationFakeQuant()
    site.fix_range(low, high)
    observe(site, -9.0, 9.0)
    got_scale, got_zero = site.calculate_qparams()
    assert (float(got_scale), int(got_zero)) == (scale, zero_point)


def test_the_gradient_passes_inside_the_range_and_stops_outside() -> None:
    site = ActivationFakeQuant()
    observe(site, -1.0, 1.0)
    x = torch.tensor([-5.0, 0.3, 5.0], requires_grad=True)
    site(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


def test_a_weight_is_measured_afresh_until_it_is_frozen() -> None:
    quantizer = WeightFakeQuant()
    with pytest.raises(QuantizationError, match="before it was frozen"):
        quantizer.calculate_qparams()
    small, large = torch.full((2, 3), 0.01), torch.full((2, 3), 100.0)
    for weight in (small, large, small):
        torch.testing.assert_close(quantizer(weight), weight)
