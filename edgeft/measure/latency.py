"""Latency and throughput from fresh worker processes that take turns, and ratios with an interval."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft.errors import MeasurementError
from edgeft.measure.session import Session
from edgeft.measure.statistics import bootstrap_ratio
from edgeft.measure.transports import connect
from edgeft.target import TargetProfile
from edgeft.types import (
    ExportedArtifact,
    InputArray,
    LatencyResult,
    Progress,
    RatioResult,
    RuntimeReport,
    ThroughputResult,
    silent,
)

_SENT_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One thing to time: a file on a target, under the profile's options and further ones.

    Args:
        label: Name in the results, unique among those timed together.
        artifact: The file.
        profile: Runtime, device and threads.
        options: Runtime options over the profile's.
        inputs: What it is fed, one array (N, ...) per input of the file; where empty, what all are fed.
    """

    label: str
    artifact: ExportedArtifact
    profile: TargetProfile
    options: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[npt.NDArray[Any], ...] = ()


def write_inputs(
    samples: Sequence[npt.NDArray[Any]], folder: Path, name: str = "inputs", *, for_board: bool = False
) -> Path:
    """Write what a `Session` times on: one array per input of a file, in order. Returns the file's path.

    Args:
        samples: The arrays (N, ...).
        folder: Where to.
        name: Of the file, without its suffix.
        for_board: Whether it is sent to a board, which gets the first 32 MiB.
    """
    if for_board:
        sample_bytes = sum(array[:1].nbytes for array in samples)
        samples = [array[: max(1, _SENT_BYTES // sample_bytes)] for array in samples]
    if len(samples) == 1:
        np.save(folder / f"{name}.npy", samples[0])
        return folder / f"{name}.npy"
    np.savez(folder / f"{name}.npz", *samples)
    return folder / f"{name}.npz"


def latencies(
    variants: Sequence[Variant],
    inputs: InputArray | None = None,
    *,
    rounds: int,
    min_runs: int,
    min_seconds: float,
    warm_up_seconds: float | None = None,
    progress: Progress = silent,
) -> list[LatencyResult]:
    """Time variants in turns: A B C, then C B A, and so on, so that a drift of the machine meets all alike.

    Args:
        variants: What to time.
        inputs: Real model inputs, fed one at a time and in turn, to variants that bring none of their own. A board
            is sent the first 32 MiB of them.
        rounds: Fresh processes per variant.
        min_runs: A process takes at least this many steady runs and
        min_seconds: at least this long over them, after its first run and a warm-up.
        warm_up_seconds: Length of the warm-up; a tenth of `min_seconds` by default.
        progress: Told before every process.

    Returns:
        One result per variant, in the order given; process i of one pairs with process i of another.

    Raises:
        MeasurementError: No inputs, equal labels, or a worker failed.
        MissingDependencyError: A runtime is not installed.
    """
    timed: list[list[dict[str, Any]]] = [[] for _ in variants]
    reports: dict[int, RuntimeReport] = {}
    rule: dict[str, Any] = {
        "min_runs": min_runs,
        "min_seconds": min_seconds,
        "warm_up_seconds": warm_up_seconds,
    }
    with _written(variants, inputs) as files:
        for i, variant in _in_turns(variants, rounds, "timing", progress):
            with Session(variant.artifact, variant.profile, options=variant.options) as session:
                timed[i].append({**session.time(files[i], **rule), "load_ms": session.load_ms})
                if i not in reports:  # after the timing: describing may load the file once more
                    reports[i] = session.describe()
    return [_result(variant, timed[i], reports[i]) for i, variant in enumerate(variants)]


def throughputs(
    variants: Sequence[Variant],
    *,
    streams: int,
    rounds: int,
    min_runs: int,
    min_seconds: float,
    warm_up_seconds: float | None = None,
    progress: Progress = silent,
) -> list[ThroughputResult]:
    """Run variants in turns as `latencies` does, each with several inferences at a time.

    Args:
        variants: What to run, with their inputs.
        streams: Inferences at a time, each with the threads of the variant's profile.
        rounds: Fresh processes per variant.
        min_runs: Least number of steady runs of a process, over all streams, and
        min_seconds: least time over them.
        warm_up_seconds: Length of the warm-up; a tenth of `min_seconds` by default.
        progress: Told before every process.

    Raises:
        MeasurementError: No inputs, equal labels, or a worker failed.
        MissingDependencyError: A runtime is not installed.
    """
    taken: list[list[dict[str, Any]]] = [[] for _ in variants]
    rule: dict[str, Any] = {
        "min_runs": min_runs,
        "min_seconds": min_seconds,
        "warm_up_seconds": warm_up_seconds,
    }
    with _written(variants, None) as files:
        for i, variant in _in_turns(variants, rounds, f"{streams} streams of", progress):
            session = Session(variant.artifact, variant.profile, options=variant.options, streams=streams)
            with session:
                taken[i].append(session.throughput(files[i], **rule))
    return [
        ThroughputResult(
            label=variant.label,
            evidence=variant.profile.evidence,
            threads=variant.profile.runtime.threads,
            streams=streams,
            runs=tuple(t["runs"] for t in taken[i]),
            seconds=tuple(t["seconds"] for t in taken[i]),
            samples_ms=tuple(tuple(ms for lane in t["samples_ms"] for ms in lane) for t in taken[i]),
            peak_rss_bytes=max(t["peak_rss_bytes"] for t in taken[i]),
        )
        for i, variant in enumerate(variants)
    ]


@contextmanager
def _written(variants: Sequence[Variant], inputs: InputArray | None) -> Iterator[list[Path]]:
    """Write every variant's inputs into files that live as long as the block, as do connections; equal ones once."""
    labels = [variant.label for variant in variants]
    fed = [variant.inputs or (() if inputs is None else (inputs,)) for variant in variants]
    if len(set(labels)) != len(labels) or not all(arrays and len(arrays[0]) for arrays in fed):
        raise MeasurementError(
            f"timing needs inputs ({[len(a[0]) if a else 0 for a in fed]} given) and labels that differ: {labels}"
        )
    hosts = {variant.profile.runtime.host for variant in variants}
    with tempfile.TemporaryDirectory(prefix="edgeft-timing-") as folder, ExitStack() as stack:
        for host in sorted(hosts):
            stack.enter_context(connect(host))  # what is copied for one process serves all
        files: dict[int, Path] = {}
        for arrays in fed:
            key = id(arrays[0])
            if key not in files:
                # A variant that runs here beside one on a board is fed what that one gets.
                files[key] = write_inputs(
                    arrays, Path(folder), f"inputs-{len(files)}", for_board=hosts != {""}
                )
        yield [files[id(arrays[0])] for arrays in fed]


def _in_turns(
    variants: Sequence[Variant], rounds: int, what: str, progress: Progress
) -> Iterator[tuple[int, Variant]]:
    order = list(range(len(variants)))
    for turn in range(rounds):
        for place, i in enumerate(order if turn % 2 == 0 else reversed(order)):
            done, total = turn * len(order) + place, rounds * len(order)
            progress(f"{what} {variants[i].label}", done=done, total=total)
            yield i, variants[i]


def _result(variant: Variant, timed: Sequence[dict[str, Any]], report: RuntimeReport) -> LatencyResult:
    return LatencyResult(
        label=variant.label,
        evidence=variant.profile.evidence,
        threads=variant.profile.runtime.threads,
        samples_ms=tuple(tuple(t["samples_ms"]) for t in timed),
        load_ms=tuple(t["load_ms"] for t in timed),
        first_ms=tuple(t["first_ms"] for t in timed),
        peak_rss_bytes=max(t["peak_rss_bytes"] for t in timed),
        runtime=report,
    )


def ratio(head: LatencyResult, base: LatencyResult, seed: int = 0) -> RatioResult:
    """Return the latency of `head` over that of `base` with a 95 % interval over process pairs.

    Each process counts by its median; `measure.statistics.bootstrap_ratio` says how they are put together.

    Raises:
        MeasurementError: The two have not the same number of processes, at least 2, or their evidence differs
            (a clock and a simulator's estimate have no ratio).
    """
    pairs = len(head.samples_ms)
    if pairs != len(base.samples_ms) or pairs < 2:
        raise MeasurementError(
            f"{head.label} has {pairs} processes, {base.label} has {len(base.samples_ms)}; "
            "equal numbers of at least 2 are needed",
            "time both in one call of measure.latencies",
        )
    if head.evidence != base.evidence:
        raise MeasurementError(
            f"{head.label} is {head.evidence}, {base.label} is {base.evidence}: no ratio of these"
        )
    medians = [np.array([np.median(process) for process in result.samples_ms]) for result in (head, base)]
    value, low, high = bootstrap_ratio(*medians, seed=seed)
    return RatioResult(base=base.label, head=head.label, ratio=value, low=low, high=high, pairs=pairs)
