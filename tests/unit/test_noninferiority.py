"""What the gate decides accuracy with: how often it is wrong, and whether its advice is enough."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from edgeft.measure import noninferiority as ni
from edgeft.measure.statistics import tango_score

GATES = 2000


def draw(n, discordant, drop, targets=1, seed=0):
    """Draw counts of `GATES` gates: the first target has the drop, among its discordant pairs."""
    rng = np.random.default_rng(seed)
    counts = []
    for target in range(targets):
        lost = drop if target == 0 else 0.0
        d = max(discordant, lost)
        counts.append(rng.multinomial(n, [(d + lost) / 2, (d - lost) / 2, 1 - d], size=GATES)[:, :2])
    b, c = np.stack(counts, axis=-1).swapaxes(0, 1)
    return b, c


def share(decisions, *, passed):
    return (decisions == 1).all(axis=1).mean() if passed else (decisions == -1).any(axis=1).mean()


def exact_error(side, n, margin, discordant, z):
    """Sum the probability of an error over all outcomes, by brute force."""
    b, c = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    possible = b + c <= n
    b, c = b[possible], c[possible]
    shares = [(discordant + margin) / 2, (discordant - margin) / 2, 1 - discordant]
    probability = stats.multinomial.pmf(np.stack([b, c, n - b - c], axis=-1), n, shares)
    score = tango_score(b, c, n, margin)
    return probability[score < -z if side == "pass" else score > z].sum()


@pytest.mark.parametrize("side", ["pass", "fail"])
@pytest.mark.parametrize(("n", "margin"), [(20, 0.01), (60, 0.05), (120, 0.02)])
def test_the_critical_value_is_exact_whatever_the_discordance(side, n, margin):
    z = ni.critical_value(side, n, margin)
    shares = np.linspace(margin, 1.0, 150)
    errors = [exact_error(side, n, margin, share, z) for share in shares]
    assert 0.025 < max(errors) <= 0.0503
    asymptotic = [exact_error(side, n, margin, share, 1.6449) for share in shares]
    assert max(asymptotic) > 0.05  # which is why the normal quantile is not enough
    assert z > 1.6449


@pytest.mark.parametrize("n", [20, 100, 431, 3000])
@pytest.mark.parametrize("discordant", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("targets", [1, 9])
def test_errors_are_as_rare_as_promised(n, discordant, targets):
    slack = 1 + 3 / np.sqrt(GATES * 0.05)
    worse = ni.decide(*draw(n, discordant, 0.01, targets), n, 0.01)
    assert share(worse, passed=True) <= 0.05 * slack
    assert share(worse, passed=False) <= 0.05 * slack
    equal = ni.decide(*draw(n, discordant, 0.0, targets), n, 0.01)
    assert share(equal, passed=False) <= 0.01 + 3 * np.sqrt(0.01 / GATES)


@pytest.mark.parametrize(
    ("margin", "discordant", "targets"), [(0.01, 0.02, 3), (0.02, 0.0, 9), (0.03, 0.1, 1)]
)
def test_the_advised_number_of_samples_decides(margin, discordant, targets):
    n = ni.samples_needed(margin, discordant, comparisons=targets)
    equal = ni.decide(*draw(n, discordant, 0.0, targets), n, margin)
    worse = ni.decide(*draw(n, discordant + 2 * margin, 2 * margin, targets), n, margin)
    assert share(equal, passed=True) >= 0.78
    assert share(worse, passed=False) >= 0.78


def test_the_advice_keeps_its_promise_by_the_exact_power():
    for margin, discordant, comparisons in itertools.product([0.02, 0.05], [0.0, 0.02], [1, 5]):
        n = ni.samples_needed(margin, discordant, comparisons=comparisons)
        assert ni.pass_power(n, margin, discordant) >= 1 - 0.2 / comparisons
        assert ni.fail_power(n, margin, discordant, comparisons) >= 0.8


def test_too_few_samples_are_never_a_pass():
    nothing = np.zeros((1, 1), dtype=np.int64)
    assert ni.too_few(250, 0.01) and not ni.too_few(400, 0.01)
    assert ni.decide(nothing, nothing, 250, 0.01)[0, 0] == 0
    assert ni.decide(nothing, nothing, 400, 0.01)[0, 0] == 1
    for n in (20, 100, 250):
        b, c = np.meshgrid(np.arange(n // 2), np.arange(n // 2))
        assert not (ni.decide(b[..., None], c[..., None], n, 0.01) == 1).any()


def test_bounds_say_what_is_decided():
    rng = np.random.default_rng(3)
    for n, margin in [(100, 0.02), (200, 0.02), (1000, 0.01)]:
        for _ in range(15):
            b, c = rng.integers(0, n // 15, 4), rng.integers(0, n // 30, 4)
            lows, highs = ni.bounds(b, c, n, margin)
            for decision, low, high in zip(ni.decide(b, c, n, margin), lows, highs, strict=True):
                assert low <= high
                assert (decision == 1) == (high < margin and not ni.too_few(n, margin))
                assert decision != -1 or low > margin


def test_a_fail_is_a_drop_by_mcnemar_too():
    # 2 of 20 lost, none won: 9 points above the margin, but one in four equal models does that to two pairs.
    assert ni.decide(np.array([2]), np.array([0]), 20, 0.001)[0] == 0
    assert ni.decide(np.array([12]), np.array([0]), 20, 0.001)[0] == -1


def test_failing_is_adjusted_step_by_step_and_passing_is_not():
    b, c = np.array([24, 2, 2, 2, 2, 2, 2, 2, 2, 2]), np.array([4, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    assert ni.decide(b[:1], c[:1], 1000, 0.01)[0] == -1
    assert ni.decide(b, c, 1000, 0.01).tolist() == [0] + [1] * 9
    # Beside a much worse one the same counts are the second of two: Holm spares them half of the adjustment.
    pair = np.array([300, 25]), np.array([4, 4])
    assert ni.decide(*pair, 1000, 0.01).tolist() == [-1, -1]


def test_power_is_that_of_simulation():
    for n, margin, discordant in [(431, 0.01, 0.02), (431, 0.03, 0.05), (50, 0.1, 0.02)]:
        equal = ni.decide(*draw(n, discordant, 0.0), n, margin)
        assert ni.pass_power(n, margin, discordant) == pytest.approx(share(equal, passed=True), abs=0.035)
        worse = ni.decide(*draw(n, discordant + 2 * margin, 2 * margin), n, margin)
        assert ni.fail_power(n, margin, discordant) == pytest.approx(share(worse, passed=False), abs=0.035)


def test_the_figures_of_the_design():
    # 431 samples, 2 % discordant: an equal model passes a 1-point margin less than 40 % of the time.
    assert ni.pass_power(431, 0.01) == pytest.approx(0.38, abs=0.02)
    # More than 2,000 samples make it nearly always pass, and let a model two points worse fail in four of five cases.
    assert ni.pass_power(2200, 0.01) == pytest.approx(0.94, abs=0.01)
    assert 2200 <= ni.samples_needed(0.01) <= 2600


@pytest.mark.parametrize("n", [20, 100, 431, 5000])
def test_the_certifiable_margin_has_the_power_and_a_smaller_one_has_not(n):
    margin = ni.certifiable_margin(n)
    assert ni.pass_power(n, margin) >= 0.8
    assert ni.pass_power(n, margin * 0.96) < 0.8


def test_more_discordance_targets_and_power_need_more_samples():
    plain = ni.samples_needed(0.02)
    assert plain < ni.samples_needed(0.02, 0.05)
    assert plain < ni.samples_needed(0.02, comparisons=5)
    assert plain < ni.samples_needed(0.02, power=0.9)
    assert ni.samples_needed(0.05) < plain


def test_expected_discordance_is_careful():
    assert ni.expected_discordance(0, 0, 20) > 0.02
    assert 0.02 < ni.expected_discordance(5, 4, 431) < 0.03
    assert ni.expected_discordance(100, 100, 10_000) == pytest.approx(0.02, abs=0.002)
