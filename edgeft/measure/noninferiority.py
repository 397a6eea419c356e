"""Is head worse than base by more than a margin? Exact at any number of samples, and how many it takes.

A *pass* says that the drop is certainly below the margin, a *fail* that it is certainly above. Both are read off
Tango's score statistic, whose normal approximation is not good enough for that where few pairs are discordant: with
its usual critical value a model worse by exactly the margin passes in up to 6.1 % of all cases and fails in up to
8.9 %, for 5 % each. So the statistic is only used to *order* the outcomes, and its critical value is raised until the
error is at most the nominal one for every share of discordant pairs: an exact unconditional test (Hsueh, Liu & Chen,
Unconditional exact tests for equivalence or noninferiority for paired binary endpoints, Biometrics 57:478, 2001).

With few samples a margin is less than one of them, and "above the margin" then differs little from "not equal": at
5 % it would fail a model that is exactly as good more often than anybody wants to see. A fail must therefore be a drop
at all by McNemar's exact one-sided test at 1 %, which holds at any number of samples.

With fewer samples than the same predictions on all of them need to pass, nothing passes (`too_few`).

Several comparisons (targets, references): all must pass, so passing needs no correction; failing is corrected by
Holm's method, both of its tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from edgeft.measure.statistics import Counts, normal_quantile, score_interval, tango_bound, tango_score

SIGNIFICANCE: Final = 0.05
"""One-sided, of "the drop is at least the margin" (to pass) and of "it is at most the margin" (to fail)."""
EQUALITY_SIGNIFICANCE: Final = 0.01
"""One-sided, of "there is no drop": what a fail needs besides."""
POWER: Final = 0.8
DISCORDANT: Final = 0.02
"""Share of pairs in which one model is right and the other wrong, as long as nothing is known of it."""

Side = Literal["pass", "fail"]
Doubles = npt.NDArray[np.float64]

# With more discordant pairs, and more than a few that are not, the normal approximation is within 0.0003 of the nominal
# error (computed).
_ENOUGH_DISCORDANT = 2500
_FEW = 40
_Z_STEP = 1e-3


def decide(only_base_right: Counts, only_head_right: Counts, n: int, margin: float) -> npt.NDArray[np.int8]:
    """Judge comparisons on the same n samples: 1 pass, -1 fail, 0 inconclusive; the same shape as the counts.

    Args:
        only_base_right: Samples that only the base got right, (..., K): the last axis are the comparisons that a
            gate makes at once.
        only_head_right: Samples that only the head got right, (..., K).
        n: Samples.
        margin: Largest acceptable drop, 0..1.
    """
    scores = tango_score(only_base_right, only_head_right, n, margin)
    passes = (scores < -critical_value("pass", n, margin)) & (not too_few(n, margin))
    fails = _certainly_above(scores, n, margin) & _certainly_a_drop(only_base_right, only_head_right)
    return passes.astype(np.int8) - fails.astype(np.int8)


def too_few(n: int, margin: float) -> bool:
    """Say whether n samples cannot certify the margin even if no prediction differs: then nothing ever passes.

    A head that happens to gain many samples and lose none could, but a gate that is too small for an equal model
    would pass by luck alone.
    """
    none = np.zeros(1, dtype=np.int64)
    return not float(tango_score(none, none, n, margin)[0]) < -critical_value("pass", n, margin)


def bounds(
    only_base_right: Counts, only_head_right: Counts, n: int, margin: float
) -> tuple[list[float], list[float]]:
    """Return the lower and upper bounds of the drops that `decide` holds against the margin.

    Both are one-sided 95 % score bounds, exact at the margin; the lower ones are adjusted over the comparisons.

    Args:
        only_base_right: As for `decide`, (K,).
        only_head_right: (K,).
        n: Samples.
        margin: The margin.
    """
    counts = list(zip(only_base_right.tolist(), only_head_right.tolist(), strict=True))
    scores = tango_score(only_base_right, only_head_right, n, margin)
    rank = np.argsort(np.argsort(-scores, kind="stable"))
    above = critical_value("pass", n, margin)
    high = [tango_bound(b, c, n, above) for b, c in counts]
    # Exchanging the models changes the sign of the drop.
    low = [
        -tango_bound(c, b, n, _needed(score, SIGNIFICANCE / (len(counts) - place), n, margin))
        for (b, c), score, place in zip(counts, scores.tolist(), rank.tolist(), strict=True)
    ]
    return low, high


@lru_cache(maxsize=256)
def critical_value(side: Side, n: int, margin: float, significance: float = SIGNIFICANCE) -> float:
    """Return how far Tango's statistic must be from 0 so that a drop of exactly `margin` errs as seldom as said.

    Not below the normal quantile, and raised from there until, for every share of discordant pairs, at most
    `significance` of all outcomes lie beyond.

    Args:
        side: "pass": outcomes with a statistic below minus the value; "fail": above the value.
        n: Samples.
        margin: The true drop, 0..1.
        significance: 0..0.5.
    """
    shares = _discordance_grid(n, margin)
    low = normal_quantile(1.0 - significance)
    too_often = _Table(n, shares, margin).probability(side, margin, low) > significance
    if not too_often.any():
        return low
    # Every error falls as the value rises, so only these can still be too large.
    table = _Table(n, shares[too_often], margin)
    high = low + 0.1
    while (table.probability(side, margin, high) > significance).any():
        low, high = high, high + 2.0 * (high - low)
    while high - low > _Z_STEP:
        middle = (low + high) / 2.0
        errs = (table.probability(side, margin, middle) > significance).any()
        low, high = (middle, high) if errs else (low, middle)
    return high


def pass_power(n: int, margin: float, discordant: float = DISCORDANT) -> float:
    """Return how often an equal model passes. Exact.

    Args:
        n: Samples.
        margin: Largest acceptable drop, 0..1.
        discordant: Share of discordant pairs, either way alike, 0..1.
    """
    if too_few(n, margin):
        return 0.0
    return _power("pass", n, margin, discordant, critical_value("pass", n, margin))


def fail_power(n: int, margin: float, discordant: float = DISCORDANT, comparisons: int = 1) -> float:
    """Return how often a model worse by twice the margin fails. Exact.

    Args:
        n: Samples.
        margin: Largest acceptable drop, 0..1.
        discordant: Share of pairs that are discordant either way alike; what was lost comes on top.
        comparisons: That the gate makes at once; the worst case is that this one alone is worse.
    """
    z = critical_value("fail", n, margin, SIGNIFICANCE / comparisons)
    return _power("fail", n, margin, discordant, z, comparisons)


def certifiable_margin(n: int, discordant: float = DISCORDANT, power: float = POWER) -> float:
    """Return the smallest margin at which an equal model passes with probability `power`.

    Roughly (z_0.95 + z_power) * sqrt(discordant / n); 1 if there is none below.

    Args:
        n: Samples.
        discordant: Expected share of discordant pairs, 0..1.
        power: 0..1.
    """
    normal = normal_quantile(1.0 - SIGNIFICANCE)
    low, high = 0.0, 1.0 - 1e-9
    if _power("pass", n, high, discordant, normal) < power:
        return 1.0
    while high - low > 1e-5:  # power rises with the margin, in small steps: bisect, do not interpolate
        middle = (low + high) / 2.0
        enough = _power("pass", n, middle, discordant, normal) >= power
        low, high = (low, middle) if enough else (middle, high)
    margin = high
    while margin < 1.0 and pass_power(n, margin, discordant) < power:  # now by the exact test
        margin *= 1.01
    return min(margin, 1.0)


@lru_cache(maxsize=64)
def samples_needed(
    margin: float, discordant: float = DISCORDANT, power: float = POWER, comparisons: int = 1
) -> int:
    """Return about how many samples a gate needs that decides: the advice that people get.

    With so many, all comparisons together pass with probability `power` if the models are equal, however the
    comparisons hang together (union bound), and the gate fails with probability `power` if the model is worse by
    twice the margin in any one of them.

    Args:
        margin: Largest acceptable drop, 0..1.
        discordant: Expected share of pairs that are discordant without any drop, 0..1.
        power: 0..1.
        comparisons: Targets times references.
    """
    each = 1.0 - (1.0 - power) / comparisons
    level = SIGNIFICANCE / comparisons

    def fewest(passing: float, failing: float) -> int:
        def decides(n: int) -> bool:
            enough = _power("pass", n, margin, discordant, passing) >= each
            return enough and _power("fail", n, margin, discordant, failing, comparisons) >= power

        low, high = 1, 2
        while not decides(high):
            low, high = high, high * 2
        while high - low > max(1, high // 200):
            middle = (low + high) // 2
            low, high = (low, middle) if decides(middle) else (middle, high)
        return high

    about = fewest(normal_quantile(1.0 - SIGNIFICANCE), normal_quantile(1.0 - level))
    # The exact critical values hardly differ between this number and the one that they lead to.
    passing, failing = critical_value("pass", about, margin), critical_value("fail", about, margin, level)
    needed = _rounded_up(fewest(passing, failing))
    # Power saws up and down from one n to the next: what is advised is tried.
    while pass_power(needed, margin, discordant) < each or (
        fail_power(needed, margin, discordant, comparisons) < power
    ):
        needed = _rounded_up(math.ceil(needed * 1.03))
    return needed


def _rounded_up(count: int) -> int:
    """Round up to two significant digits, from 1,000 on."""
    unit = 10 ** max(len(str(count)) - 2, 0) if count >= 1000 else 1
    return -(-count // unit) * unit


def expected_discordance(only_base_right: int, only_head_right: int, n: int) -> float:
    """Return the share of discordant pairs to reckon with after having seen some: its one-sided 80 % upper bound."""
    return score_interval((only_base_right + only_head_right) / n, n, confidence=0.6)[1]


class _Table:
    """The joint distribution of discordant pairs for several shares of them, ready to sum regions over.

    For each share the numbers m of discordant pairs that occur (all but 1e-9 of the probability), with their
    probabilities. Of m discordant pairs the base's are binomial: nothing else is needed.
    """

    def __init__(self, n: int, discordant: Doubles, drop: float) -> None:
        self._n = n
        spread = 6.0 * np.sqrt(n * discordant * (1.0 - discordant)) + 10.0
        first = np.maximum(np.floor(n * discordant - spread), 0).astype(np.int64)
        counts = np.minimum(np.ceil(n * discordant + spread), n).astype(np.int64) - first + 1
        self._row = np.repeat(np.arange(len(discordant)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        m, d = within + first[self._row], discordant[self._row]
        self._m, self._which = np.unique(m, return_inverse=True)
        choose = special.gammaln(n + 1) - special.gammaln(m + 1) - special.gammaln(n - m + 1)
        self._weight = np.exp(choose + special.xlogy(m, d) + special.xlog1py(n - m, -d))
        # Of no discordant pairs at all (d = 0) any share may be the base's.
        self._base = np.clip((d + drop) / (2.0 * np.maximum(d, 1e-300)), 0.0, 1.0)

    def probability(self, side: Side, margin: float, z: float, equality: float = 1.0) -> Doubles:
        """Return the probability of passing or failing at critical value `z`, one per share of discordant pairs.

        Args:
            side: What happens.
            margin: That the statistic is taken at.
            z: Critical value.
            equality: Significance of McNemar's one-sided test that a fail must pass too; 1 for none.
        """
        m = self._m
        if side == "pass":
            most = _largest(m, lambda b: tango_score(b, m - b, self._n, margin) < -z)
        else:
            most = _largest(
                m,
                lambda b: (
                    (tango_score(b, m - b, self._n, margin) <= z) | (_mcnemar_one_sided(b, m - b) >= equality)
                ),
            )
        of_row, trials = most[self._which], m[self._which]
        # bdtr takes no -1: none of the outcomes.
        up_to = np.where(of_row < 0, 0.0, special.bdtr(np.maximum(of_row, 0.0), trials, self._base))
        beyond = up_to if side == "pass" else 1.0 - up_to
        return np.asarray(np.bincount(self._row, beyond * self._weight), dtype=np.float64)


def _largest(m: Counts, holds: Callable[[Counts], npt.NDArray[np.bool_]]) -> Doubles:
    """Return, for each m, the largest b in 0..m for which a condition holds that ceases to as b grows; -1 if none."""
    low, high = np.full_like(m, -1), m + 1
    while (high - low > 1).any():
        middle = (low + high) // 2
        below = holds(middle)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low.astype(np.float64)


def _discordance_grid(n: int, margin: float) -> Doubles:
    """Return the shares of discordant pairs to look at for the largest error, from the margin up.

    The error is a smooth curve of the share where many pairs are of each kind. Where few are discordant, or few are
    not, or where head is right alone on few (just above the margin), it oscillates on the scale of one pair: points
    are dense there.
    """
    roots = [0.0]
    while roots[-1] ** 2 < n / 2:
        roots.append(roots[-1] + max(0.1, 0.04 * roots[-1]))
    pairs = np.square(roots)
    few = pairs[pairs <= _ENOUGH_DISCORDANT]
    almost_all = n - pairs[pairs <= (n if n <= _ENOUGH_DISCORDANT else _FEW)]
    head_rarely = margin * n + 2.0 * pairs[pairs <= _FEW]
    shares = np.concatenate([few, almost_all, head_rarely]) / n
    return np.unique(np.maximum(shares[shares <= 1.0], margin))


def _power(side: Side, n: int, margin: float, discordant: float, z: float, comparisons: int = 1) -> float:
    """Return how often an equal model passes, or one worse by twice the margin fails, at critical value `z`."""
    drop = 0.0 if side == "pass" else min(2.0 * margin, 1.0)
    equality = 1.0 if side == "pass" else EQUALITY_SIGNIFICANCE / comparisons
    table = _Table(n, np.array([min(discordant + drop, 1.0)]), drop)
    return float(table.probability(side, margin, z, equality)[0])


def _needed(score: float, significance: float, n: int, margin: float) -> float:
    """Return the critical value of a fail; the exact one only where it matters, for it takes longer."""
    normal = normal_quantile(1.0 - significance)
    return critical_value("fail", n, margin, significance) if score > normal else normal


def _certainly_above(scores: Doubles, n: int, margin: float) -> npt.NDArray[np.bool_]:
    """Say which drops are above the margin, by Holm's step-down method over the last axis."""
    comparisons = scores.shape[-1]
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=-1)
    rejected = np.empty(ranked.shape, dtype=np.bool_)
    so_far = np.ones(ranked.shape[:-1], dtype=np.bool_)
    for place in range(comparisons):
        worst = float(ranked[..., place].max(initial=-np.inf))
        so_far = so_far & (
            ranked[..., place] > _needed(worst, SIGNIFICANCE / (comparisons - place), n, margin)
        )
        rejected[..., place] = so_far
    above = np.empty_like(rejected)
    np.put_along_axis(above, order, rejected, axis=-1)
    return above


def _certainly_a_drop(only_base_right: Counts, only_head_right: Counts) -> npt.NDArray[np.bool_]:
    """Say which comparisons are no equality, by McNemar's one-sided test and Holm's method over the last axis."""
    p_values = _mcnemar_one_sided(only_base_right, only_head_right)
    comparisons = p_values.shape[-1]
    order = np.argsort(p_values, axis=-1, kind="stable")
    adjusted = np.take_along_axis(p_values, order, axis=-1) * np.arange(comparisons, 0, -1)
    rejected = np.maximum.accumulate(adjusted, axis=-1) < EQUALITY_SIGNIFICANCE
    drop = np.empty_like(rejected)
    np.put_along_axis(drop, order, rejected, axis=-1)
    return drop


def _mcnemar_one_sided(only_base_right: Counts, only_head_right: Counts) -> Doubles:
    """Return the exact p-values of "head is not worse": P(at least so many of the discordant pairs are the base's)."""
    trials = only_base_right + only_head_right
    # bdtrc(k, ...) is P(X > k); k = -1 is not defined, and means certainty.
    above: Doubles = special.bdtrc(np.maximum(only_base_right - 1, 0).astype(np.float64), trials, 0.5)
    return np.where(only_base_right > 0, above, 1.0)
