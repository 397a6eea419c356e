"""Error rates, not only values: intervals cover, tests err as rarely as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edgeft.measure import statistics as st


def pairs(rng, n, discordant, drop, size):
    """Draw (only base right, only head right) counts with the given true drop."""
    worse, better = (discordant + drop) / 2, (discordant - drop) / 2
    drawn = rng.multinomial(n, [worse, better, 1 - discordant], size=size)
    return drawn[:, 0], drawn[:, 1]


def closed_form_roots(b: int, c: int, n: int) -> np.ndarray:
    """Solve the quartic of Yang, Sun and Hardin, Statistics in Medicine 32:1336 (2013)."""
    g, d, s = stats.norm.isf(0.025) ** 2, b - c, b + c
    return np.roots(
        [
            n**2 * (n / g + 1) ** 2,
            -n * d * (n / g + 1) * (4 * n / g + 1),
            2 * n * d**2 * (3 * n / g + 2) / g - n**2 * (s / g + 1),
            n * d * (2 * s / g + 1) - d**3 * (4 * n / g + 1) / g,
            d**2 * (d**2 / g - s) / g,
        ]
    )


@pytest.mark.parametrize(("b", "c", "n"), [(1, 7, 21), (12, 2, 50), (40, 20, 160), (0, 3, 431), (9, 9, 300)])
def test_tango_agrees_with_the_closed_form(b, c, n):
    roots = closed_form_roots(b, c, n).real
    for bound in st.tango_interval(b, c, n):
        assert np.abs(roots - bound).min() < 1e-6


def test_tango_reproduces_a_published_interval():
    # Fagerland, Lydersen, Laake, Statistics in Medicine 33:2850 (2014): airway reactivity before and after.
    assert st.tango_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_tango_bounds_solve_the_score_equation_and_mirror():
    for b, c, n in [(12, 2, 50), (0, 3, 431), (5, 5, 100), (1, 0, 3), (40, 1, 60)]:
        low, high = st.tango_interval(b, c, n)
        assert low < (b - c) / n < high
        assert float(st.tango_score(b, c, n, high)) == pytest.approx(-1.959964, abs=1e-4)
        assert float(st.tango_score(b, c, n, low)) == pytest.approx(1.959964, abs=1e-4)
        mirrored = st.tango_interval(c, b, n)
        assert mirrored == pytest.approx((-high, -low))


def test_without_discordant_pairs_the_interval_keeps_its_width():
    z = stats.norm.isf(0.025)
    low, high = st.tango_interval(0, 0, 100)
    assert (low, high) == pytest.approx((-(z**2) / (100 + z**2), z**2 / (100 + z**2)), abs=1e-6)
    assert st.tango_interval(7, 0, 7)[1] == 1.0
    assert st.tango_interval(0, 7, 7)[0] == -1.0


@pytest.mark.parametrize(("n", "discordant", "drop"), [(60, 0.1, 0.03), (431, 0.03, 0.0), (431, 0.05, 0.02)])
def test_the_interval_covers(n, discordant, drop):
    b, c = pairs(np.random.default_rng(1), n, discordant, drop, 600)
    counts, times = np.unique(np.stack([b, c]), axis=1, return_counts=True)
    covered = 0
    for (only_base, only_head), repeated in zip(counts.T, times, strict=True):
        low, high = st.tango_interval(int(only_base), int(only_head), n)
        covered += repeated * (low <= drop <= high)
    assert covered / 600 >= 0.93


def test_wilson_interval_matches_the_textbook():
    assert st.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe (1998)
    assert st.wilson_interval(0, 20)[0] == 0.0
    assert st.wilson_interval(20, 20)[1] == 1.0


def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs():
    assert st.mcnemar_exact(0, 0) == st.mcnemar_exact(4, 4) == 1.0
    for b, c in [(1, 0), (7, 2), (30, 41)]:
        assert st.mcnemar_exact(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue)
    assert st.mcnemar_exact(10, 0) == pytest.approx(2 / 2**10)
    assert st.mcnemar_exact(3, 9) == st.mcnemar_exact(9, 3)


@pytest.mark.parametrize(("processes", "shared"), [(6, 0.02), (6, 0.1), (10, 0.1)])
def test_the_bootstrap_interval_of_a_ratio_covers(processes, shared):
    rng = np.random.default_rng(5)
    missed_low = missed_high = 0
    for seed in range(400):
        mood = rng.normal(0, shared, processes)  # a slow minute meets both
        base = 2.0 * np.exp(mood + rng.normal(0, 0.02, processes))
        head = 1.0 * np.exp(mood + rng.normal(0, 0.02, processes))
        _, low, high = st.bootstrap_ratio(head, base, resamples=2000, seed=seed)
        missed_low += low > 0.5
        missed_high += high < 0.5
    assert (missed_low + missed_high) / 400 <= 0.10
    assert max(missed_low, missed_high) / 400 <= 0.06


def test_the_bootstrap_is_seeded():
    head, base = np.array([1.0, 1.1, 1.2]), np.array([2.0, 2.1, 1.9])
    assert st.bootstrap_ratio(head, base, seed=3) == st.bootstrap_ratio(head, base, seed=3)
    assert st.bootstrap_ratio(head, base)[0] == pytest.approx(0.55)
