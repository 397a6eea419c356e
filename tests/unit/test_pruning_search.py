"""The search for widths within a measured budget, against made-up clocks: curved, offset, noisy, coarse."""

from collections.abc import Callable

import numpy as np
import pytest

from edgeft.errors import BudgetError
from edgeft.pruning.search import MOST_CANDIDATES, Cost, Found, Search

FULL = 1000
LOWEST = 0.1


def run(
    latency: Callable[[float], float],
    *,
    budget: float,
    step: int = 1,
    lowest: float = LOWEST,
    noise: float = 0.0,
    seed: int = 0,
    full_cost: float = 1.0,
) -> Found:
    """Search a network of one group whose width is its MACs in thousandths, in multiples of `step`."""
    rng = np.random.default_rng(seed)
    tried = []

    def widths(share: float) -> tuple[int, ...]:
        return (max(round(lowest * FULL), int(share * FULL + 1e-9) // step * step),)

    def cost(chosen: tuple[int, ...]) -> Cost:
        assert chosen not in tried, "an export was wasted"
        tried.append(chosen)
        value = latency(chosen[0] / FULL) * (1 + noise * rng.standard_normal())
        return Cost(value=value, low=value - 0.01, high=value + 0.01, figures={"latency_ms": 2 * value})

    search = Search(widths, lambda w: w[0] / FULL, cost, budget=budget, lowest=lowest, full_cost=full_cost)
    found = search.run()
    assert [c.widths for c in found.tried] == tried
    assert len(tried) <= MOST_CANDIDATES
    return found


CLOCKS = {
    "in proportion": lambda share: share,
    "overhead": lambda share: 0.3 + 0.7 * share,
    "convex": lambda share: share**2,
    "concave": lambda share: share**0.5,
    "steps": lambda share: np.ceil(share * 50) / 50,
    "knee": lambda share: max(0.2, 1.6 * share - 0.6),
}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("budget", [0.4, 0.5, 0.8, 0.97])
def test_the_budget_is_met_and_used_within_few_exports(clock: str, budget: float):
    found = run(CLOCKS[clock], budget=budget)
    assert 0.95 * budget <= found.chosen.cost.value <= budget
    assert len(found.tried) <= 6


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_noisy_clock_is_no_harm(clock: str):
    for seed in range(20):
        chosen = run(CLOCKS[clock], budget=0.5, noise=0.02, seed=seed).chosen
        assert CLOCKS[clock](chosen.macs) == pytest.approx(0.5, rel=0.1)


def test_coarse_widths_give_the_widest_that_fits():
    found = run(CLOCKS["overhead"], budget=0.62, step=150)
    assert found.chosen.macs == 0.45  # 0.3 + 0.7 * 0.45 = 0.615
    assert len(found.tried) < MOST_CANDIDATES, "there are but seven widths"


def test_coarse_widths_do_not_stop_short_of_the_budget():
    # 0.25 costs 0.475 and 0.5 costs 0.65: nothing lies within 5 % below 0.6.
    found = run(CLOCKS["overhead"], budget=0.6, step=250)
    assert found.chosen.macs == 0.25
    assert {c.macs for c in found.tried} == {0.25, 0.5}


def test_a_budget_out_of_reach_names_the_best():
    with pytest.raises(BudgetError) as raised:
        run(CLOCKS["overhead"], budget=0.01)
    message = raised.value.message
    assert "prune.budget.latency = 0.01 cannot be met" in message
    assert (
        "0.370 [0.360, 0.380]" in message and "10.0% of its MACs" in message and "latency_ms 0.74" in message
    )
    assert "at least 0.380" in raised.value.hint, "the upper end: the next measurement is another one"


def test_the_named_best_can_be_set():
    def clock(budget: float) -> Search:
        return Search(
            lambda share: (int(share * FULL),),
            lambda w: w[0] / FULL,
            lambda w: Cost(value=0.31337 + 0.68663 * w[0] / FULL),
            budget=budget,
            lowest=LOWEST,
        )

    with pytest.raises(BudgetError) as raised:
        clock(0.2).run()
    assert clock(float(raised.value.hint.split("at least ")[1].split(",")[0])).run()


def test_a_budget_just_out_of_reach_is_told_from_one_just_within():
    assert run(CLOCKS["overhead"], budget=0.375).chosen.macs <= 0.108
    with pytest.raises(BudgetError):
        run(CLOCKS["overhead"], budget=0.365)


def test_a_rewritten_network_starts_from_its_own_cost():
    # Rewriting alone gave 0.6 of the original's latency.
    found = run(lambda share: 0.6 * (0.2 + 0.8 * share), budget=0.4, full_cost=0.6)
    assert 0.38 <= found.chosen.cost.value <= 0.4
    assert len(found.tried) <= 4


def test_progress_counts_candidates():
    told = []
    search = Search(
        lambda share: (int(share * FULL),),
        lambda w: w[0] / FULL,
        lambda w: Cost(value=w[0] / FULL),
        budget=0.5,
        lowest=LOWEST,
        progress=lambda message, *, done=0, total=0: told.append((message, done, total)),
    )
    search.run()
    assert told == [("candidate 1: 50% of the MACs", 0, MOST_CANDIDATES)]
