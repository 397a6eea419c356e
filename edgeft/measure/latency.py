"""Latency from fresh worker processes that take turns, and its ratio with an interval."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.errors import MeasurementError
from edgeft.measure.session import Session
from edgeft.measure.statistics import bootstrap_ratio
from edgeft.target import TargetProfile
from edgeft.types import (
    ExportedArtifact,
    InputArray,
    LatencyResult,
    Progress,
    RatioResult,
    RuntimeReport,
    silent,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One thing to time: a file on a target, under the profile's options and further ones.

    Args:
        label: Name in the results, unique among those timed together.
        artifact: The file.
        profile: Runtime, device and threads.
        options: Runtime options over the profile's.
    """

    label: str
    artifact: ExportedArtifact
    profile: TargetProfile
    options: Mapping[str, str] = field(default_factory=dict)


def latencies(
    variants: Sequence[Variant],
    inputs: InputArray,
    *,
    rounds: int,
    min_runs: int,
    min_seconds: float,
    progress: Progress = silent,
) -> list[LatencyResult]:
    """Time variants in turns: A B C, then C B A, and so on, so that a drift of the machine meets all alike.

    Args:
        variants: What to time.
        inputs: Real model inputs, fed one at a time and in turn.
        rounds: Fresh processes per variant.
        min_runs: A process takes at least this many steady runs and
        min_seconds: at least this long over them, after its first run and a warm-up.
        progress: Told before every process.

    Returns:
        One result per variant, in the order given; process i of one pairs with process i of another.

    Raises:
        MeasurementError: No inputs, equal labels, or a worker failed.
        MissingDependencyError: A runtime is not installed.
    """
    labels = [variant.label for variant in variants]
    if len(set(labels)) != len(labels) or not len(inputs):
        raise MeasurementError(f"timing needs inputs ({len(inputs)} given) and labels that differ: {labels}")
    timed: list[list[dict[str, Any]]] = [[] for _ in variants]
    reports: dict[int, RuntimeReport] = {}
    order = list(range(len(variants)))
    with tempfile.TemporaryDirectory(prefix="edgeft-timing-") as folder:
        source = Path(folder) / "inputs.npy"
        np.save(source, inputs)
        for turn in range(rounds):
            for place, i in enumerate(order if turn % 2 == 0 else reversed(order)):
                done, total = turn * len(order) + place, rounds * len(order)
                progress(f"timing {labels[i]}", done=done, total=total)
                with Session(
                    variants[i].artifact, variants[i].profile, options=variants[i].options
                ) as session:
                    taken = session.time(source, min_runs=min_runs, min_seconds=min_seconds)
                    timed[i].append({**taken, "load_ms": session.load_ms})
                    if i not in reports:  # after the timing: describing may load the file once more
                        reports[i] = session.describe()
    return [_result(variant, timed[i], reports[i]) for i, variant in enumerate(variants)]


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
