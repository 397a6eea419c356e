"""Decide whether head is slower than base from interleaved processes, looking several times, with one error rate.

The unit is the *process pair*: a fresh process of base and one of head, neighbours in time. Runs within a process
share its memory layout and the machine's mood of that second; treated as independent they promise a precision
that the next process does not keep.

**One look.** Each pair gives one log ratio. Some are far off, because one of the two processes lost its core to
another program, so the ratio is the 20 % trimmed mean; its interval is the symmetric bootstrap-t over pairs, with the
winsorized deviation (Hall, JRSS B 50:35, 1988; Wilcox, Introduction to Robust Estimation and Hypothesis Testing, 4.4).
With a dozen pairs it misses no more often than it says; a bootstrap-t of the plain mean misses up to twice as often
where tails are heavy, and a percentile bootstrap of the ratio of medians or a signed-rank interval are five times wider
where one pair in five is far off (``bench/compare_error_rates.py simulate``).

**Several looks.** The error budget of 5 % is spent over the time limit by the Pocock-like function of Lan & DeMets
(Biometrika 70:659, 1983), on calendar time (Lan & DeMets, Statistics in Medicine 8:1191, 1989) because the number
of pairs that will fit is not known beforehand. Each look's interval has the confidence that this look may spend,
so that by the union bound *all* of them hold together with 95 %, whatever the dependence between looks: repeated
confidence intervals (Jennison & Turnbull, JRSS B 51:305, 1989). The last one is valid however the comparison ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeft.errors import MeasurementError
from edgeft.types import Estimate

ERROR_BUDGET = 0.05
"""Two-sided, over all looks: a wrong "fail" and a wrong "pass" have half of it each."""
FIRST_LOOK = 12
"""Process pairs."""
FEWEST_PAIRS = 8
"""That all of them lie on the wrong side by chance has a probability of 1/256."""
_RESAMPLES = 5000
_TIED = 1e-12
"""A deviation of log ratios below this is rounding."""

Outcome = Literal["pass", "fail", "inconclusive"]
Logs = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What counts of one fresh process: median and 95th percentile of its steady runs."""

    p50_ms: float
    p95_ms: float

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Process:
        """Summarize the runs of one process."""
        p50, p95 = np.percentile(samples_ms, (50, 95))
        return cls(p50_ms=float(p50), p95_ms=float(p95))


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Four fresh processes in the order base, head, head, base or the reverse: two pairs.

    `base[i]` and `head[i]` are neighbours in time; `seconds` have passed since the round before, or the beginning.
    """

    base: tuple[Process, Process]
    head: tuple[Process, Process]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How a comparison ended. Ratios are head / base; above 1, head is slower.

    `noise` is the ratio of base to itself: the later over the earlier of the two base processes of each round,
    with a 95 % interval.
    """

    outcome: Outcome
    p50: Estimate
    p95: Estimate
    noise: Estimate
    pairs: int
    looks: int
    confidence: float
    """Of the two intervals shown, by themselves; together with those of earlier looks they have 95 %."""
    seconds: float


def decide(rounds: Iterable[Round], *, limit: float, time_limit_seconds: float) -> Decision:
    """Take rounds until the interval of the p50 ratio lies on one side of `limit`, or no more come.

    Args:
        rounds: Measured when asked for; they end when the time is up, whatever was measured.
        limit: The largest acceptable ratio of head to base, above 0.
        time_limit_seconds: When the rounds end; says how much of the error budget a look may spend.

    Returns:
        ``fail`` if the whole interval is above the limit, ``pass`` if it is below, else ``inconclusive``.

    Raises:
        MeasurementError: Fewer than `FEWEST_PAIRS` pairs came.
    """
    taken: list[Round] = []
    schedule, spent, looks = look_schedule(), 0.0, 0
    next_look, own, elapsed = next(schedule), 0.0, 0.0
    for measured in rounds:
        taken.append(measured)
        elapsed += measured.seconds
        if 2 * len(taken) < next_look:
            own = 0.0
            continue
        next_look, looks = next(schedule), looks + 1
        allowed = max(spent, spending(elapsed / time_limit_seconds))
        own, spent = allowed - spent, allowed
        if _outcome(_p50(taken, own), limit) != "inconclusive":
            return _decision(taken, limit, own, looks)
    if 2 * len(taken) < FEWEST_PAIRS:
        raise MeasurementError(
            f"{2 * len(taken)} process pairs were measured; at least {FEWEST_PAIRS} are needed"
        )
    # The last look has all that is left; if nothing came since the one before, it is that one with more to spend.
    return _decision(taken, limit, own + ERROR_BUDGET - spent, looks if own else looks + 1)


def look_schedule() -> Iterator[int]:
    """Yield the numbers of pairs at which to look: from `FIRST_LOOK` on, each by a third more, without end."""
    pairs = FIRST_LOOK
    while True:
        yield pairs
        pairs = 2 * math.ceil(pairs * 4 / 6)


def spending(share_of_time: float) -> float:
    """Return how much of the error budget may be spent by then: alpha ln(1 + (e - 1) t), Lan & DeMets 1983."""
    return ERROR_BUDGET * math.log1p((math.e - 1.0) * min(max(share_of_time, 0.0), 1.0))


def ratio_interval(logs: Logs, error: float) -> Estimate:
    """Return the ratio that log ratios of independent pairs (N,) tell, and its interval.

    The interval is not wider than the extremes of the pairs, between which the median is but for 2^(1 - N).

    Args:
        logs: At least one.
        error: Two-sided probability that the interval misses the true ratio, 0..1.
    """
    ordered = np.sort(logs)
    (mean,), (deviation,) = _trimmed(ordered[None])
    means, deviations = _trimmed(ordered[_resampled_ranks(len(logs))])
    # Where all but the trimmed are alike, as on a coarse clock, nothing tells how far off the mean may be.
    t = np.full(_RESAMPLES, np.inf)
    np.divide(np.abs(means - mean), deviations, out=t, where=deviations > _TIED)
    quantile = np.sort(t)[min(math.ceil((1.0 - error) * (_RESAMPLES + 1)), _RESAMPLES) - 1]
    half = quantile * deviation if deviation > _TIED else math.inf
    low, value, high = np.exp([max(mean - half, ordered[0]), mean, min(mean + half, ordered[-1])])
    return Estimate(value=float(value), low=float(low), high=float(high))


def _trimmed(ordered: Logs) -> tuple[Logs, Logs]:
    """Return the 20 % trimmed means and winsorized standard deviations of rows (R, N) in ascending order."""
    cut = ordered.shape[1] // 5
    kept = ordered[:, cut : ordered.shape[1] - cut]
    return kept.mean(axis=1), np.clip(ordered, kept[:, :1], kept[:, -1:]).std(axis=1)


@lru_cache(maxsize=8)
def _resampled_ranks(n: int) -> npt.NDArray[np.intp]:
    """Return which of n ordered values each resample has, in order: (resamples, n), the same every time."""
    return np.sort(np.random.default_rng(n).integers(n, size=(_RESAMPLES, n), dtype=np.intp), axis=1)


def _p50(taken: Sequence[Round], error: float) -> Estimate:
    return ratio_interval(log_ratios(taken, "p50_ms"), error)


def _outcome(ratio: Estimate, limit: float) -> Outcome:
    return "fail" if ratio.low > limit else "pass" if ratio.high < limit else "inconclusive"


def _decision(taken: Sequence[Round], limit: float, error: float, looks: int) -> Decision:
    """Return what the last look, whose intervals miss with probability `error`, found."""
    p50 = _p50(taken, error)
    return Decision(
        outcome=_outcome(p50, limit),
        p50=p50,
        p95=ratio_interval(log_ratios(taken, "p95_ms"), error),
        noise=ratio_interval(_drifts(taken), 0.05),
        pairs=2 * len(taken),
        looks=looks,
        confidence=1.0 - error,
        seconds=sum(measured.seconds for measured in taken),
    )


def log_ratios(rounds: Sequence[Round], statistic: Literal["p50_ms", "p95_ms"]) -> Logs:
    """Return the log of head over base of every process pair, (2 N,)."""
    ratios = [
        getattr(head, statistic) / getattr(base, statistic)
        for measured in rounds
        for base, head in zip(measured.base, measured.head, strict=True)
    ]
    return np.log(ratios)


def _drifts(rounds: Sequence[Round]) -> Logs:
    return np.log(
        [later.p50_ms / earlier.p50_ms for earlier, later in (measured.base for measured in rounds)]
    )
