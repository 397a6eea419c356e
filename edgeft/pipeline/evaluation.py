"""Everything that is found out about one target, on its exported files and in its own runtime."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from edgeft import measure
from edgeft.measure import Variant
from edgeft.recipe import Measure
from edgeft.target import TargetProfile
from edgeft.types import (
    ExportedArtifact,
    FloatArray,
    LatencyResult,
    Progress,
    Samples,
    TargetResult,
    silent,
)

_CHUNK = 1024
"""Inputs handed to one worker: bounds the temporary files of large test sets."""
_KEPT_RUNS = 500
"""Raw runs kept per process: a microsecond model makes tens of thousands of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A target's result, and the logits (N, K) of its compressed file over the test split."""

    result: TargetResult
    logits: FloatArray


def measure_target(
    profile: TargetProfile,
    *,
    artifact: ExportedArtifact,
    baseline: ExportedArtifact,
    inputs: FloatArray,
    samples: Samples,
    reference: FloatArray,
    lsb: float,
    config: Measure,
    progress: Progress = silent,
) -> Measured:
    """Run both files of a target over the test split, then time them in turns.

    Args:
        profile: The target.
        artifact: The compressed file.
        baseline: The float file of the unpruned network.
        inputs: The test split as model inputs, (N, C, H, W) float32.
        samples: The test split, for labels and identities.
        reference: Logits (N, K) of the program that `artifact` was exported from.
        lsb: One step of those logits.
        config: Rounds and stop rule of the timing.
        progress: Told how far it is.

    Raises:
        MeasurementError: A worker died, or a runtime refused a file.
        MissingDependencyError: The runtime is not installed.
    """
    progress(f"{profile.id}: predicting {len(inputs)} test samples")
    logits = _predict(artifact, profile, inputs)
    float_logits = _predict(baseline, profile, inputs)
    settings: list[dict[str, str]] = [{}, *profile.runtime.float_options]
    variants = [
        Variant(
            label="float " + " ".join(options.values()), artifact=baseline, profile=profile, options=options
        )
        if options
        else Variant(label="float", artifact=baseline, profile=profile)
        for options in settings
    ]
    variants.append(Variant(label=artifact.scheme, artifact=artifact, profile=profile))
    *floats, head = measure.latencies(
        variants,
        inputs[:_CHUNK],
        rounds=config.rounds,
        min_runs=config.min_runs,
        min_seconds=config.min_seconds,
        progress=progress,
    )
    # A speed-up counts against the fastest float that this runtime offers, whatever its default is.
    floats.sort(key=lambda latency: latency.p50_ms)
    ratios = [measure.ratio(head, latency) for latency in floats]
    result = TargetResult(
        target=profile.id,
        artifact=artifact,
        baseline=baseline,
        accuracy=measure.accuracy(logits, samples.labels, samples.ids),
        baseline_accuracy=measure.accuracy(float_logits, samples.labels, samples.ids),
        parity=measure.parity(logits, reference, lsb),
        latency=_thinned(head),
        baseline_latency=_thinned(floats[0]),
        other_float=tuple(_thinned(latency) for latency in floats[1:]),
        ratio=ratios[0],
        other_ratios=tuple(ratios[1:]),
    )
    return Measured(result=result, logits=logits)


def _predict(artifact: ExportedArtifact, profile: TargetProfile, inputs: FloatArray) -> FloatArray:
    chunks = [inputs[start : start + _CHUNK] for start in range(0, len(inputs), _CHUNK)]
    return np.concatenate([measure.predict(artifact, profile, chunk)[0] for chunk in chunks])


def _thinned(latency: LatencyResult) -> LatencyResult:
    """Keep at most `_KEPT_RUNS` of each process's runs, evenly spread over its time."""
    kept = []
    for runs in latency.samples_ms:
        step = max(1, -(-len(runs) // _KEPT_RUNS))
        kept.append(tuple(round(run, 6) for run in runs[::step]))
    return dataclasses.replace(latency, samples_ms=tuple(kept))
