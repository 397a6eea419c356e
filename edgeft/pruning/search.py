"""Find the widths that meet a budget which only a measurement can tell: latency, size, memory.

What a network costs falls with its multiply-accumulates, but not in proportion: kernels have overheads, depthwise
layers wait for memory. So candidates at several shares of the MACs are tried, each next one where the straight line
between its neighbours meets the budget (regula falsi, which a noisy clock does not throw off as it would a secant
through two close points), until one lies just below the budget. What trying means is passed in as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeft.errors import BudgetError
from edgeft.pruning.allocation import settable
from edgeft.types import Progress, silent

Widths = tuple[int, ...]

MOST_CANDIDATES = 11
"""With the unpruned network that is 12 exports."""

TOLERANCE = 0.05
"""A candidate that uses the budget up to this share of it ends the search."""

_END_SHARE = 0.1
"""Least distance of the next try from the ends of the bracket, as a share of it: with a curved cost, plain regula
falsi creeps up on the budget from one side."""
_LEAST_SLOPE = 0.5
"""Least slope (of relative cost over share of MACs) that is believed outside of what was tried: noise between two
near points would otherwise throw the next try to the far end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a candidate costs relative to the unpruned network, with its 95 % interval where it was measured.

    `figures` are whatever else was found out about it (latency in ms, size in bytes), for the report.
    """

    value: float
    low: float | None = None
    high: float | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Widths that were tried, the share of MACs that they leave (0..1), and what they cost."""

    widths: Widths
    macs: float
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The chosen candidate and all that were tried, in order; `lowest` is the least share of MACs that was possible."""

    chosen: Candidate
    tried: tuple[Candidate, ...]
    lowest: float


class Search:
    """A search for the widest network within a budget.

    Args:
        widths: Returns the widths for a share of MACs, of which they leave at most that share.
        macs: Returns the share of MACs that widths leave, 0..1.
        cost: Tries widths. Called at most `most` times, and never twice with the same.
        budget: Allowed cost relative to the unpruned network.
        lowest: The least share of MACs that `widths` takes.
        full_cost: Cost of the uncut network: 1, unless it is not the one that all are compared with.
        what: What the cost is, for messages: ``latency``.
        most: Number of candidates after which the best one is taken.
        tolerance: A candidate that uses this much less than the budget, or less, is good enough.
        progress: Told which candidate is tried.
    """

    def __init__(
        self,
        widths: Callable[[float], Widths],
        macs: Callable[[Widths], float],
        cost: Callable[[Widths], Cost],
        *,
        budget: float,
        lowest: float,
        full_cost: float = 1.0,
        what: str = "latency",
        most: int = MOST_CANDIDATES,
        tolerance: float = TOLERANCE,
        progress: Progress = silent,
    ) -> None:
        self._widths, self._macs, self._cost = widths, macs, cost
        self._budget, self._lowest, self._full_cost = budget, lowest, full_cost
        self._what, self._most, self._tolerance = what, most, tolerance
        self._progress = progress
        self._tried: list[Candidate] = []

    def run(self) -> Found:
        """Return the widest candidate within the budget, and all that were tried.

        Raises:
            BudgetError: The narrowest network costs more; the message names the best that was reached.
        """
        share: float | None = self._first_share()
        while share is not None and len(self._tried) < self._most:
            widths = self._untried(share)
            if widths is None:
                break
            self._try(widths)
            if self._good_enough(self._tried[-1]):
                break
            share = self._next_share()
        within = [c for c in self._tried if c.cost.value <= self._budget]
        if not within:
            raise self._out_of_reach()
        # Of those within the budget the one that keeps most; a noisy clock may have misjudged a wider one.
        chosen = max(within, key=lambda c: c.macs)
        return Found(chosen=chosen, tried=tuple(self._tried), lowest=self._lowest)

    def _first_share(self) -> float:
        """Return the share of MACs at which cost would meet the budget if it were in proportion to them."""
        return float(np.clip(self._budget / self._full_cost, self._lowest, 1.0))

    def _try(self, widths: Widths) -> None:
        macs, number = self._macs(widths), len(self._tried) + 1
        self._progress(f"candidate {number}: {macs:.0%} of the MACs", done=number - 1, total=self._most)
        self._tried.append(Candidate(widths=widths, macs=macs, cost=self._cost(widths)))

    def _good_enough(self, candidate: Candidate) -> bool:
        return self._budget * (1 - self._tolerance) <= candidate.cost.value <= self._budget

    def _next_share(self) -> float | None:
        """Return where the budget is met by the candidates so far; None if nothing is left between them."""
        aim = self._budget * (1 - self._tolerance / 2)
        below, above = self._bracket()
        if below is None:
            if above[0] <= self._lowest:
                return None
            return max(self._lowest, above[0] - (above[1] - aim) / self._slope())
        (left, low_cost), (right, high_cost) = below, above
        if right <= left:
            return None
        place = (aim - low_cost) / (high_cost - low_cost) if high_cost > low_cost else 0.5
        return left + float(np.clip(place, _END_SHARE, 1 - _END_SHARE)) * (right - left)

    def _bracket(self) -> tuple[tuple[float, float] | None, tuple[float, float]]:
        """Return (share, cost) of the widest candidate within the budget and the narrowest wider one above it."""
        points = [(c.macs, c.cost.value) for c in self._tried]
        below = max((p for p in points if p[1] <= self._budget), default=None)
        wider = [p for p in points if p[1] > self._budget and (below is None or p[0] > below[0])]
        return below, min(wider, default=(1.0, self._full_cost))

    def _slope(self) -> float:
        """Return the slope of cost over share of MACs at the narrow end of what was tried."""
        points = sorted([(c.macs, c.cost.value) for c in self._tried] + [(1.0, self._full_cost)])
        (left, low), (right, high) = points[:2]
        return max((high - low) / (right - left), _LEAST_SLOPE * self._full_cost) if right > left else 1.0

    def _untried(self, share: float) -> Widths | None:
        """Return the widths nearest to `share` that were not tried yet; None where the bracket holds no more.

        Widths come in steps, in small networks in large ones: many shares have the same.
        """
        seen = {candidate.widths for candidate in self._tried}
        below, above = self._bracket()
        left, right = self._lowest if below is None else below[0], above[0]
        for near in sorted([share, *np.linspace(left, right, 65)], key=lambda s: abs(s - share)):
            widths = self._widths(float(near))
            if widths not in seen and (below is None or self._macs(widths) > below[0]):
                return widths
        return None

    def _out_of_reach(self) -> BudgetError:
        best = min(self._tried, key=lambda c: c.cost.value)
        interval = "" if best.cost.low is None else f" [{best.cost.low:.3f}, {best.cost.high:.3f}]"
        figures = ", ".join(f"{key} {value:.4g}" for key, value in best.cost.figures.items())
        # What the next measurement will hold, too.
        reliable = best.cost.value if best.cost.high is None else best.cost.high
        return BudgetError(
            f"prune.budget.{self._what} = {self._budget:g} cannot be met: the best of {len(self._tried)} candidates, "
            f"down to {self._tried_down_to():.1%} of the MACs (the limits allow {self._lowest:.1%}), has "
            f"{best.cost.value:.3f}{interval} of the unpruned network's {self._what} at {best.macs:.1%} of its MACs"
            + (f" ({figures})" if figures else ""),
            f"set prune.budget.{self._what} to at least {settable(reliable)}, or start from a smaller network",
        )

    def _tried_down_to(self) -> float:
        return min(candidate.macs for candidate in self._tried)
