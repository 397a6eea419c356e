"""Statistics of paired accuracy and of latency ratios.

Shares of right answers are compared on the same samples, so only the discordant ones (one model right, the
other wrong) carry information. The *drop* is (only_base_right - only_head_right) / n: above 0, head is worse.
Intervals are Tango's score intervals: Wald's and the bootstrap's collapse to a point without discordant pairs
and then pass anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

Counts = npt.NDArray[np.int64]


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided Wilson score interval of the share k/n (Wilson 1927)."""
    interval = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def score_interval(share: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a share at a sample size that need not be whole.

    For figures that vary like a share of n samples without being one: n is then the effective sample size,
    share (1 - share) / variance (Korn & Graubard 1998).
    """
    z = float(stats.norm.isf((1.0 - confidence) / 2.0))
    center = (share + z * z / (2.0 * n)) / (1.0 + z * z / n)
    half = z / (1.0 + z * z / n) * math.sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def auc_interval(area: float, positive: int, negative: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of an area under the ROC curve from its two sample sizes.

    Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2,
    Statistics in Medicine 25:559-573 (2006), method 5. It does not collapse where the classes are separated.
    """
    z = float(stats.norm.isf((1.0 - confidence) / 2.0))
    others = (positive + negative) / 2.0 - 1.0

    def excess(a: float) -> float:
        spread = 1.0 + others * (1.0 - a) / (2.0 - a) + others * a / (1.0 + a)
        return (a - area) ** 2 - z * z * a * (1.0 - a) * spread / (positive * negative)

    # Both excess(0) and excess(1) are 0 where the area is that very bound: look from just beside it.
    hair = 1e-12
    low = float(optimize.brentq(excess, 0.0, area - hair)) if area > hair else 0.0
    high = float(optimize.brentq(excess, area + hair, 1.0)) if area < 1.0 - hair else 1.0
    return low, high


def tango_score(
    only_base_right: float | Counts, only_head_right: float | Counts, n: int, drop: float
) -> npt.NDArray[np.float64]:
    """Return the score statistic of "the true drop is `drop`": standard normal if it is, falling in `drop`.

    Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17:891-908 (1998); the variance is the maximum likelihood one under the
    hypothesis.

    Args:
        only_base_right: Samples that only the base got right; a number or an array.
        only_head_right: Samples that only the head got right; the same shape.
        n: All samples.
        drop: Hypothetical drop, -1..1.
    """
    b, c = np.asarray(only_base_right, dtype=np.float64), np.asarray(only_head_right, dtype=np.float64)
    # q = P(only head right) is most likely given P(only base right) = q + drop where a q^2 + m q + k = 0.
    a, m, k = 2.0 * n, (2.0 * n - b + c) * drop - b - c, -c * drop * (1.0 - drop)
    q = np.maximum((np.sqrt(np.maximum(m * m - 4.0 * a * k, 0.0)) - m) / (2.0 * a), max(0.0, -drop))
    distance = b - c - n * drop
    variance = n * (2.0 * q + drop * (1.0 - drop))
    # Without discordant pairs and at drop = 0 both vanish: that hypothesis fits perfectly.
    return np.where(distance == 0.0, 0.0, distance / np.sqrt(np.maximum(variance, 1e-300)))


def tango_interval(
    only_base_right: int, only_head_right: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return Tango's two-sided score interval of the drop.

    Each bound alone is one-sided at (1 + confidence) / 2: 0.90 gives the two one-sided 95 % bounds.
    """
    z = float(stats.norm.isf((1.0 - confidence) / 2.0))

    def upper(b: int, c: int) -> float:
        start = (b - c) / n + 1e-12
        if start >= 1.0 - 1e-9:
            return 1.0
        return float(
            optimize.brentq(lambda d: float(tango_score(b, c, n, d)) + z, start, 1.0 - 1e-12, xtol=1e-10)
        )

    # Exchanging the models changes the sign of the drop.
    return -upper(only_head_right, only_base_right), upper(only_base_right, only_head_right)


def drop_p_value(only_base_right: int, only_head_right: int, n: int, margin: float) -> float:
    """Return the one-sided p-value of "the drop is at most `margin`": small: it is certainly larger."""
    return float(stats.norm.sf(float(tango_score(only_base_right, only_head_right, n, margin))))


def mcnemar_exact(only_base_right: int, only_head_right: int) -> float:
    """Return the exact two-sided McNemar p-value of "both models are right equally often"."""
    discordant = only_base_right + only_head_right
    return float(stats.binomtest(only_base_right, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's step-down method (1979), in the order given."""
    order = np.argsort(p_values)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def non_inferiority_power(n: int, margin: float, discordant: float = 0.02, confidence: float = 0.95) -> float:
    """Return how often an equal model passes: its one-sided upper bound of the drop lies below `margin`.

    Exact: the pass region of the Tango test, summed over the distribution of n pairs of which each is
    discordant with probability `discordant`, either way alike.

    Args:
        n: Samples.
        margin: Largest acceptable drop, above 0.
        discordant: Expected share of discordant pairs, 0..1.
        confidence: Of the one-sided bound.
    """
    z = float(stats.norm.isf(1.0 - confidence))
    pairs = stats.binom(n, discordant)
    m = np.arange(int(pairs.ppf(1e-9)), int(pairs.isf(1e-9)) + 1)
    # Of m discordant pairs at most `most` may be the base's; bisect for all m at once.
    most, fails = np.full_like(m, -1), m + 1
    while (fails - most > 1).any():
        b = (most + fails) // 2
        passes = tango_score(b, m - b, n, margin) < -z
        most, fails = np.where(passes, b, most), np.where(passes, fails, b)
    return float((pairs.pmf(m) * stats.binom.cdf(most, m, 0.5)).sum())


def certifiable_margin(n: int, discordant: float = 0.02, power: float = 0.8) -> float:
    """Return the smallest margin at which an equal model passes with probability `power`.

    Solves non_inferiority_power(n, margin) = power; roughly (z_0.95 + z_power) * sqrt(discordant / n).
    """
    low, high = 0.0, 1.0 - 1e-9
    if non_inferiority_power(n, high, discordant) < power:
        return 1.0
    while high - low > 1e-5:  # power rises with the margin, in small steps: bisect, do not interpolate
        middle = (low + high) / 2.0
        low, high = (low, middle) if non_inferiority_power(n, middle, discordant) >= power else (middle, high)
    return high


def samples_needed(margin: float, discordant: float = 0.02, power: float = 0.8) -> int:
    """Return how many samples let an equal model pass `margin` with probability `power`.

    The power saws up and down by a little from one n to the next; this is where it crosses, to within 1 %.
    """
    low, high = 1, 2
    while non_inferiority_power(high, margin, discordant) < power:
        low, high = high, high * 2
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (
            (low, middle) if non_inferiority_power(middle, margin, discordant) >= power else (middle, high)
        )
    return math.ceil(high)


def bootstrap_ratio(
    head: npt.NDArray[np.float64],
    base: npt.NDArray[np.float64],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return median(head) / median(base) and its percentile bootstrap interval, resampling pairs.

    Args:
        head: One value per process, (P,).
        base: The same, (P,): entry i ran beside entry i of `head` and shares the machine's mood.
        confidence: Two-sided.
        resamples: Bootstrap resamples.
        seed: Of the resampling.
    """
    chosen = np.random.default_rng(seed).integers(0, len(head), size=(resamples, len(head)))
    ratios = np.median(head[chosen], axis=1) / np.median(base[chosen], axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(ratios, [tail, 1.0 - tail])
    return float(np.median(head) / np.median(base)), float(low), float(high)
