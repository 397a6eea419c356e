"""Accuracy-aware quantization: the cheapest of ptq, qat and mixed precision that holds an accuracy drop.

Decisions are made on the validation split. Every candidate is judged as the Q/DQ program that would be exported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch.fx import GraphModule

from edgeft import quantization
from edgeft.errors import BudgetError
from edgeft.quantization import Sensitivity
from edgeft.types import EpochRecord, Progress, QuantModel, silent

Method = Literal["ptq", "qat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One program that was tried.

    `float_layers` went back to float in it, besides those that the recipe names; `seconds` includes training.
    """

    method: Method
    float_layers: tuple[str, ...]
    val_accuracy: float
    drop: float
    holds: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The program that holds, the attempt that made it, and what was tried and measured on the way."""

    program: QuantModel
    chosen: Attempt
    attempts: tuple[Attempt, ...]
    sensitivities: tuple[Sensitivity, ...] = ()
    curve: tuple[EpochRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What the search can do; the stage gives it data and settings.

    `convert` turns a fake-quant graph, calibrated or trained, into its program; `count_right` says how many validation
    samples a program answers right; `train` trains a graph in place; `rank` measures the sensitivities of a
    graph's layers.
    """

    convert: Callable[[GraphModule, Method], QuantModel]
    count_right: Callable[[QuantModel], int]
    train: Callable[[GraphModule], tuple[EpochRecord, ...]]
    rank: Callable[[GraphModule], tuple[Sensitivity, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The largest accuracy drop, and what it is counted against."""

    drop: float
    float_right: int
    """Validation samples that the float network answers right."""
    samples: int
    """Validation samples."""


def exceeds(drop: float, limit: float) -> bool:
    """Return whether an accuracy drop is above a limit; equal is not, whatever the last bit of a float says."""
    return drop > limit + 1e-9


class Search:
    """Looks for the cheapest program whose accuracy drop stays within a limit.

    Args:
        means: What it can do.
        limit: What it has to hold.
        may_mix: Whether layers may go back to float.
        progress: Told what is tried.
    """

    def __init__(self, means: Means, limit: Limit, *, may_mix: bool, progress: Progress = silent) -> None:
        self._means, self._limit, self._may_mix, self._progress = means, limit, may_mix, progress
        self._attempts: list[Attempt] = []
        self._held: tuple[QuantModel, Attempt] | None = None

    def run(self, graph: GraphModule) -> Found:
        """Return the first of ptq, qat and mixed precision that holds.

        Args:
            graph: Calibrated fake-quant graph; it is not changed.

        Raises:
            BudgetError: Nothing holds; the message says how close it came.
        """
        if self._try("ptq", graph):
            return self._found()
        started = time.monotonic()
        trained = quantization.copy_graph(graph)
        curve = self._means.train(trained)
        if self._try("qat", trained, started=started):
            return self._found(curve=curve)
        if not self._may_mix:
            raise self._missed("a target that takes integer ops only rules out float layers")
        ptq, qat = self._attempts
        method, base = (qat.method, trained) if qat.val_accuracy >= ptq.val_accuracy else (ptq.method, graph)
        ranking = self._means.rank(base)
        # Of equally sensitive layers the one with fewer multiply-accumulates costs less in float.
        order = [s.layer for s in sorted(ranking, key=lambda s: (-s.kl, s.mac_share))]
        needed = self._find_fewest(method, base, order)
        if needed is None:
            raise self._missed(f"up to {len(order) - 1} of {len(order)} layers were tried in float")
        self._give_back(method, base, needed)
        return self._found(curve=curve, sensitivities=ranking)

    def _find_fewest(
        self, method: Method, graph: GraphModule, order: Sequence[str]
    ) -> tuple[str, ...] | None:
        """Return the shortest head of `order` that holds in float: doubled until it does, then halved in between."""
        most = len(order) - 1  # all of them would be no quantization
        fails, count = 0, min(1, most)
        while count == 0 or not self._try(method, graph, order[:count]):
            if count == most:
                return None
            fails, count = count, min(2 * count, most)
        while count - fails > 1:
            middle = (fails + count) // 2
            if self._try(method, graph, order[:middle]):
                count = middle
            else:
                fails = middle
        return tuple(order[:count])

    def _give_back(self, method: Method, graph: GraphModule, needed: tuple[str, ...]) -> None:
        """Take every layer to int8 again that need not be float, the least sensitive first.

        The very least sensitive is needed: the others without it were tried, and did not hold.
        """
        for layer in reversed(needed[:-1]):
            fewer = tuple(name for name in needed if name != layer)
            if self._try(method, graph, fewer):
                needed = fewer

    def _try(
        self, method: Method, graph: GraphModule, layers: Sequence[str] = (), *, started: float | None = None
    ) -> bool:
        started = time.monotonic() if started is None else started
        self._progress(f"trying {method}" + (f" with {len(layers)} layers in float" if layers else ""))
        candidate = quantization.restore_float(graph, layers) if layers else graph
        program = self._means.convert(candidate, method)
        right = self._means.count_right(program)
        drop = (self._limit.float_right - right) / self._limit.samples
        attempt = Attempt(
            method=method,
            float_layers=tuple(layers),
            val_accuracy=right / self._limit.samples,
            drop=drop,
            holds=not exceeds(drop, self._limit.drop),
            seconds=time.monotonic() - started,
        )
        self._attempts.append(attempt)
        if attempt.holds:
            self._held = (program, attempt)
        return attempt.holds

    def _found(
        self, *, curve: tuple[EpochRecord, ...] = (), sensitivities: tuple[Sensitivity, ...] = ()
    ) -> Found:
        if self._held is None:
            raise self._missed("nothing was tried")
        program, chosen = self._held
        return Found(
            program=program,
            chosen=chosen,
            attempts=tuple(self._attempts),
            sensitivities=sensitivities,
            curve=curve,
        )

    def _missed(self, extent: str) -> BudgetError:
        limit = self._limit
        closest = min(self._attempts, key=lambda attempt: (attempt.drop, len(attempt.float_layers)))
        layers = f" with {len(closest.float_layers)} layers in float" if closest.float_layers else ""
        return BudgetError(
            f"quantize.max_accuracy_drop = {limit.drop}: nothing holds it ({extent}); closest is {closest.method}"
            f"{layers}, which loses {closest.drop:.4f} ({limit.float_right / limit.samples:.4f} -> "
            f"{closest.val_accuracy:.4f} on {limit.samples} validation samples, of which one is "
            f"{1 / limit.samples:.4f})",
            "train longer (quantize.epochs), try another calibration recipe, or allow a larger drop",
        )
