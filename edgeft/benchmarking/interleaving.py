"""Time two files in turns: rounds of four fresh processes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeft.benchmarking.subjects import Subject
from edgeft.measure.latency import write_inputs
from edgeft.measure.sequential import FEWEST_PAIRS, Process, Round
from edgeft.measure.session import Session
from edgeft.types import Progress, RuntimeReport, silent

# On a busy machine the median of a process varied by 8 % when taken over 0.08 s, by 6 % over 0.15 s and by 4 % over
# 0.3 s, and a start costs 0.3 to 1 s: shorter timing wastes the start, longer timing leaves too few processes.
RUN_SECONDS = 0.4
_WARM_UP_SECONDS = 0.05
_FEWEST_RUNS = 5

Pair = tuple[Process, Process]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two files, and what was measured of it; `samples_ms` has one tuple per process."""

    subject: Subject
    runtime: RuntimeReport
    samples_ms: tuple[tuple[float, ...], ...]

    @property
    def p50_ms(self) -> float:
        """Median over processes of their medians."""
        return float(np.median([Process.of(samples).p50_ms for samples in self.samples_ms]))

    @property
    def p95_ms(self) -> float:
        """Median over processes of their 95th percentiles."""
        return float(np.median([Process.of(samples).p95_ms for samples in self.samples_ms]))


class Interleaving:
    """Times two files in rounds of four fresh processes, and keeps every run.

    Args:
        base: The one.
        head: The other.
        seed: Of the order of processes.
        started: When the clock of the rounds began, as `time.monotonic` counts; now by default.
        progress: Told how many pairs are done, and of the seconds that have passed and are allowed.
    """

    def __init__(
        self,
        base: Subject,
        head: Subject,
        *,
        seed: int = 0,
        started: float | None = None,
        progress: Progress = silent,
    ) -> None:
        self._base, self._head = _Timed(base), _Timed(head)
        self._started = time.monotonic() if started is None else started
        self._random, self._progress = np.random.default_rng(seed), progress

    def rounds(self, time_limit_seconds: float) -> Iterator[Round]:
        """Yield rounds until another one would not end in time, at least those that `FEWEST_PAIRS` needs."""
        longest, passed, taken = 0.0, 0.0, 0
        with tempfile.TemporaryDirectory(prefix="edgeft-compare-") as folder:
            for timed, name in ((self._base, "base"), (self._head, "head")):
                timed.store(Path(folder), name)
            while 2 * taken < FEWEST_PAIRS or passed + longest < time_limit_seconds:
                pairs = f"{2 * taken} process pairs"
                self._progress(pairs, done=round(passed), total=round(time_limit_seconds))
                base, head = self._round()
                before, passed = passed, time.monotonic() - self._started
                longest, taken = max(longest, passed - before), taken + 1
                yield Round(base=base, head=head, seconds=passed - before)

    def sides(self) -> tuple[Side, Side]:
        """Return what was measured of base and of head."""
        return self._base.side(), self._head.side()

    def _round(self) -> tuple[Pair, Pair]:
        base_first = bool(self._random.integers(2))
        outer, inner = (self._base, self._head) if base_first else (self._head, self._base)
        first, second, third, fourth = (timed.process() for timed in (outer, inner, inner, outer))
        outside, inside = (first, fourth), (second, third)
        return (outside, inside) if base_first else (inside, outside)


class _Timed:
    """A file, the inputs that its processes read, and what they have measured so far."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._inputs = Path()
        self._reports: list[RuntimeReport] = []
        self._samples_ms: list[tuple[float, ...]] = []

    def store(self, folder: Path, name: str) -> None:
        on_board = bool(self._subject.profile.runtime.host)
        self._inputs = write_inputs(self._subject.inputs, folder, name, for_board=on_board)

    def process(self) -> Process:
        with Session(self._subject.artifact, self._subject.profile) as session:
            taken = session.time(
                self._inputs,
                min_runs=_FEWEST_RUNS,
                min_seconds=RUN_SECONDS,
                warm_up_seconds=_WARM_UP_SECONDS,
            )
            if not self._reports:  # after the timing: describing may load the file once more
                self._reports.append(session.describe())
        self._samples_ms.append(tuple(taken["samples_ms"]))
        return Process.of(taken["samples_ms"])

    def side(self) -> Side:
        return Side(subject=self._subject, runtime=self._reports[0], samples_ms=tuple(self._samples_ms))
