"""Statistics of paired accuracy and of latency ratios.

Shares of right answers are compared on the same samples, so only the discordant ones (one model right, the
other wrong) carry information. The *drop* is (only_base_right - only_head_right) / n: above 0, head is worse.
Intervals are Tango's score intervals: Wald's and the bootstrap's collapse to a point without discordant pairs
and then pass anything. What a gate decides with them is in `edgeft.measure.noninferiority`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import special

Counts = npt.NDArray[np.int64]


def normal_quantile(p: float) -> float:
    """Return the value that a standard normal variable does not exceed with probability `p`."""
    return float(special.ndtri(p))


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided Wilson score interval of the share k/n (Wilson 1927)."""
    return score_interval(k / n, n, confidence)


def score_interval(share: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a share at a sample size that need not be whole.

    For figures that vary like a share of n samples without being one: n is then the effective sample size,
    share (1 - share) / variance (Korn & Graubard 1998).
    """
    z = normal_quantile((1.0 + confidence) / 2.0)
    center = (share + z * z / (2.0 * n)) / (1.0 + z * z / n)
    half = z / (1.0 + z * z / n) * math.sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def auc_interval(area: float, positive: int, negative: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of an area under the ROC curve from its two sample sizes.

    Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2,
    Statistics in Medicine 25:559-573 (2006), method 5. It does not collapse where the classes are separated.
    """
    from scipy import optimize  # takes long to import, and nothing else here needs it

    z = normal_quantile((1.0 + confidence) / 2.0)
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
    z = normal_quantile((1.0 + confidence) / 2.0)
    # Exchanging the models changes the sign of the drop.
    low = -tango_bound(only_head_right, only_base_right, n, z)
    return low, tango_bound(only_base_right, only_head_right, n, z)


def tango_bound(only_base_right: int, only_head_right: int, n: int, z: float) -> float:
    """Return the drop above the observed one at which Tango's statistic is -z: the upper score bound."""
    low, high = (only_base_right - only_head_right) / n, 1.0
    while high - low > 1e-10:
        middle = (low + high) / 2.0
        if float(tango_score(only_base_right, only_head_right, n, middle)) > -z:
            low = middle
        else:
            high = middle
    return high


def mcnemar_exact(only_base_right: int, only_head_right: int) -> float:
    """Return the exact two-sided McNemar p-value of "both models are right equally often"."""
    discordant = only_base_right + only_head_right
    # Symmetric: twice the smaller tail, which overlaps the other where both are equal.
    return min(1.0, 2.0 * float(special.bdtr(min(only_base_right, only_head_right), discordant, 0.5)))


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
