"""Everything that is found out about one target, on its exported files and in its own runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeft import measure
from edgeft.measure import Variant, classification, gallery
from edgeft.measure.user_metric import UserMetric
from edgeft.recipe import Measure
from edgeft.target import TargetProfile
from edgeft.types import (
    ExportedArtifact,
    FloatArray,
    InputArray,
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
    inputs: InputArray,
    samples: Samples,
    reference: FloatArray,
    lsb: float,
    config: Measure,
    classes: Sequence[str],
    user_metrics: Sequence[UserMetric] = (),
    with_gallery: bool = False,
    progress: Progress = silent,
) -> Measured:
    """Run both files of a target over the test split, then time them in turns.

    Args:
        profile: The target.
        artifact: The compressed file.
        baseline: The float file of the unpruned network.
        inputs: The test split as model inputs.
        samples: The test split, for labels and identities.
        reference: Logits (N, K) of the program that `artifact` was exported from.
        lsb: One step of those logits.
        config: Rounds and stop rule of the timing.
        classes: Names of the classes.
        user_metrics: The recipe's own metrics.
        with_gallery: Whether to show the hardest and the most confused samples.
        progress: Told how far it is.

    Raises:
        MeasurementError: A worker died, or a runtime refused a file.
        MissingDependencyError: The runtime is not installed.
    """
    progress(f"{profile.id}: predicting {len(inputs)} test samples")
    logits = _predict(artifact, profile, inputs)
    float_logits = _predict(baseline, profile, inputs)
    settings: list[dict[str, str]] = [{}, *profile.runtime.float_options]
    # Integer files run under the profile's own options, which their numbers are checked with.
    head_settings = [{}] if artifact.scheme in ("int8", "int8-dynamic") else settings
    floats, heads = _time(
        [
            [_variant("float", baseline, profile, options) for options in settings],
            [_variant(_head_label(artifact), artifact, profile, options) for options in head_settings],
        ],
        inputs[:_CHUNK],
        config,
        progress,
    )
    # A speed-up counts against the fastest float that this runtime offers, whatever its default is.
    head = heads[0]
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
        metrics=classification.metrics(logits, samples.labels, classes=classes),
        baseline_metrics=classification.metrics(float_logits, samples.labels, classes=classes),
        user_metrics=_own(user_metrics, samples, logits),
        baseline_user_metrics=_own(user_metrics, samples, float_logits),
        gallery=gallery.collect(logits, samples.labels, samples, classes=classes) if with_gallery else None,
    )
    return Measured(result=result, logits=logits)


def _head_label(artifact: ExportedArtifact) -> str:
    return "final" if artifact.scheme == "float32" else artifact.scheme


def _variant(
    label: str, artifact: ExportedArtifact, profile: TargetProfile, options: dict[str, str]
) -> Variant:
    name = " ".join([label, *options.values()])
    return Variant(label=name, artifact=artifact, profile=profile, options=options)


def _time(
    groups: Sequence[Sequence[Variant]], inputs: InputArray, config: Measure, progress: Progress
) -> list[list[LatencyResult]]:
    """Time all variants in turns and return those of each group, the fastest first."""
    timed = iter(
        measure.latencies(
            [variant for group in groups for variant in group],
            inputs,
            rounds=config.rounds,
            min_runs=config.min_runs,
            min_seconds=config.min_seconds,
            progress=progress,
        )
    )
    return [sorted((next(timed) for _ in group), key=lambda latency: latency.p50_ms) for group in groups]


def _predict(artifact: ExportedArtifact, profile: TargetProfile, inputs: InputArray) -> FloatArray:
    chunks = [inputs[start : start + _CHUNK] for start in range(0, len(inputs), _CHUNK)]
    return np.concatenate([measure.predict(artifact, profile, chunk)[0] for chunk in chunks])


def _own(metrics: Sequence[UserMetric], samples: Samples, logits: FloatArray) -> dict[str, float]:
    shares = classification.probabilities(logits)
    return {name: value for metric in metrics for name, value in metric(samples.labels, shares).items()}


def _thinned(latency: LatencyResult) -> LatencyResult:
    """Keep at most `_KEPT_RUNS` of each process's runs, evenly spread over its time."""
    kept = []
    for runs in latency.samples_ms:
        step = max(1, -(-len(runs) // _KEPT_RUNS))
        kept.append(tuple(round(run, 6) for run in runs[::step]))
    return dataclasses.replace(latency, samples_ms=tuple(kept))
