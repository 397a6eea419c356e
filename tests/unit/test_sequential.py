"""Error rates of sequential comparisons under noise that real machines have, and the schedule of looks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import signal, stats

from edgeft.errors import MeasurementError
from edgeft.measure import sequential as sq
from edgeft.measure.statistics import wilson_interval

LIMIT = 1.05


def process(ms: float) -> sq.Process:
    return sq.Process(p50_ms=ms, p95_ms=1.2 * ms)


def rounds(noise: np.ndarray, ratio: float, seconds: float = 2.0):
    """Yield rounds ABBA, BAAB, ABBA ... from the log noise of processes in order of time (4 N,)."""
    for i, (first, second, third, fourth) in enumerate(np.exp(noise.reshape(-1, 4))):
        base, head = ((first, fourth), (second, third)) if i % 2 == 0 else ((second, third), (first, fourth))
        yield sq.Round(
            base=(process(base[0]), process(base[1])),
            head=(process(ratio * head[0]), process(ratio * head[1])),
            seconds=seconds,
        )


def quiet(rng, n):
    return 0.03 * rng.standard_normal(n)


def heavy_tails(rng, n):
    return 0.02 * rng.standard_t(2, n)


def two_layouts(rng, n):
    """A process has one of two memory layouts for life; one is 8 % slower."""
    return 0.08 * (rng.random(n) < 0.4) + 0.005 * rng.standard_normal(n)


def busy_neighbour(rng, n):
    """For a while, about every other process shares its core."""
    start, length = rng.integers(0, n), rng.integers(n // 4, n)
    busy = (np.arange(n) >= start) & (np.arange(n) < start + length)
    return 0.6 * busy * (rng.random(n) < 0.5) + 0.02 * rng.standard_normal(n)


def wandering(rng, n):
    """The machine's speed wanders slowly, by 10 %: neighbours are alike."""
    speed = signal.lfilter([math.sqrt(1 - 0.9**2)], [1.0, -0.9], 0.1 * rng.standard_normal(n))
    return speed + 0.01 * rng.standard_normal(n)


MACHINES = [quiet, heavy_tails, two_layouts, busy_neighbour, wandering]


def outcomes(machine, ratio: float, comparisons: int, pairs: int = 60) -> dict[str, int]:
    rng = np.random.default_rng(7)
    counts = dict.fromkeys(("pass", "fail", "inconclusive"), 0)
    for _ in range(comparisons):
        measured = rounds(machine(rng, 2 * pairs), ratio)
        counts[sq.decide(measured, limit=LIMIT, time_limit_seconds=pairs).outcome] += 1
    return counts


@pytest.mark.parametrize("machine", MACHINES)
def test_at_the_limit_either_error_is_as_rare_as_promised(machine):
    counts = outcomes(machine, LIMIT, 120, pairs=22)
    for outcome in ("pass", "fail"):
        assert wilson_interval(counts[outcome], 120)[0] < 0.025, counts


@pytest.mark.parametrize("machine", MACHINES)
def test_the_same_file_is_not_failed_and_a_slower_one_not_passed(machine):
    assert outcomes(machine, 1.0, 40, pairs=22)["fail"] <= 1
    assert outcomes(machine, 1.1, 40, pairs=22)["pass"] <= 1


def test_a_clear_answer_comes_at_the_first_look():
    rng = np.random.default_rng(0)
    for ratio, outcome in ((1.0, "pass"), (1.2, "fail"), (0.5, "pass")):
        found = sq.decide(rounds(quiet(rng, 400), ratio), limit=LIMIT, time_limit_seconds=200)
        assert (found.outcome, found.pairs, found.looks, found.seconds) == (outcome, 12, 1, 12.0)
        assert found.p50.low < ratio < found.p50.high
        assert found.p95.value == pytest.approx(found.p50.value)  # 1.2 times in either process
        assert 0.9 < found.noise.value < 1.1


def test_an_unclear_answer_takes_more_pairs_and_stays_open_when_the_time_is_up():
    rng = np.random.default_rng(1)
    found = sq.decide(rounds(quiet(rng, 120), LIMIT), limit=LIMIT, time_limit_seconds=60)
    assert (found.outcome, found.pairs) == ("inconclusive", 60)
    assert found.p50.low < LIMIT < found.p50.high


def test_drift_of_the_machine_is_no_difference_of_the_files():
    drift = np.linspace(0.0, 0.5, 200) + quiet(np.random.default_rng(2), 200) / 10
    found = sq.decide(rounds(drift, 1.0), limit=LIMIT, time_limit_seconds=100)
    assert found.outcome == "pass"
    assert found.noise.value > 1.002  # but base's own drift shows


def test_the_error_budget_is_spent_once():
    shares = np.linspace(0.0, 1.0, 11)
    spent = [sq.spending(t) for t in shares]
    assert spent == sorted(spent) and spent[0] == 0.0 and spent[-1] == pytest.approx(sq.ERROR_BUDGET)
    assert sq.spending(3.0) == pytest.approx(sq.ERROR_BUDGET)
    # At the time's end all of it has been used: the only look of a slow machine is an ordinary 95 % interval.
    noise = quiet(np.random.default_rng(3), 24)
    found = sq.decide(rounds(noise, 1.05, seconds=10.0), limit=1.05, time_limit_seconds=60.0)
    assert found.confidence == pytest.approx(0.95)


def test_looks_come_ever_later_and_at_whole_rounds():
    looks = list(itertools.islice(sq.look_schedule(), 9))
    assert looks == [12, 16, 22, 30, 40, 54, 72, 96, 128]


def test_the_interval_is_that_of_a_trimmed_mean():
    logs = np.log([1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.08, 1.09, 3.0, 0.2])
    found = sq.ratio_interval(logs, 0.05)
    assert found.value == pytest.approx(stats.gmean([1.03, 1.04, 1.05, 1.06, 1.07, 1.08]))
    assert 1.0 < found.low < 1.05 < found.high < 1.13  # two pairs of ten are far off, and do no harm
    # Tukey & McLaughlin's interval is what the bootstrap replaces: much the same where noise is normal.
    logs = 0.03 * np.random.default_rng(4).standard_normal(60)
    kept = np.sort(logs)[12:48]
    error = np.clip(np.sort(logs), kept[0], kept[-1]).std(ddof=1) / (0.6 * np.sqrt(60))
    found = sq.ratio_interval(logs, 0.05)
    half = error * stats.t.isf(0.025, 35)
    assert np.log([found.low, found.high]) == pytest.approx(
        [kept.mean() - half, kept.mean() + half], abs=0.002
    )


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("pairs", "error"), [(8, 0.05), (12, 0.01)])
def test_one_interval_misses_as_rarely_as_it_says(machine, pairs, error):
    rng = np.random.default_rng(11)
    missed = 0
    for _ in range(250):
        found = sq.ratio_interval(
            sq.log_ratios(list(rounds(machine(rng, 4 * (pairs // 2)), 1.1)), "p50_ms"), error
        )
        missed += not found.low <= 1.1 <= found.high
    assert wilson_interval(missed, 250)[0] < error, missed


def test_pairs_that_agree_to_the_last_digit_leave_the_extremes():
    logs = np.array([0.07] * 10 + [0.1, -0.2])
    found = sq.ratio_interval(logs, 0.05)
    assert (found.value, found.low, found.high) == pytest.approx([math.exp(x) for x in (0.07, -0.2, 0.1)])
    alike = sq.ratio_interval(np.full(12, 0.1), 0.05)
    assert (alike.value, alike.low, alike.high) == pytest.approx((math.exp(0.1),) * 3)


def test_too_few_pairs_are_refused_not_guessed():
    with pytest.raises(MeasurementError, match="4 process pairs were measured; at least 8"):
        sq.decide(rounds(np.zeros(8), 1.0), limit=LIMIT, time_limit_seconds=60)
    with pytest.raises(MeasurementError, match="0 process pairs"):
        sq.decide([], limit=LIMIT, time_limit_seconds=60)
