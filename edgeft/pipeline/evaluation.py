"""Everything that is found out about one target, on its exported files and in its own runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeft import measure, target
from edgeft.measure import Variant, classification, gallery
from edgeft.measure.user_metric import UserMetric
from edgeft.recipe import Measure
from edgeft.target import TargetProfile
from edgeft.types import (
    CompilerEstimate,
    ExportedArtifact,
    FloatArray,
    InputArray,
    LatencyResult,
    MemoryResult,
    Progress,
    QuantLayer,
    RuntimeReport,
    Samples,
    TargetResult,
    silent,
)

_TIMED_INPUTS = 1024
"""Of the test split, that latency is taken on: bounds the temporary files."""
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
    estimate: CompilerEstimate | None = None,
    layers: Sequence[QuantLayer] = (),
    progress: Progress = silent,
) -> Measured:
    """Run both files of a target over the test split, then time them in turns where a clock tells something.

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
        estimate: What the profile's compiler says of the compressed file, where it has one.
        layers: Integer layers of the program, to tell whose memory is whose.
        progress: Told how far it is.

    Raises:
        MeasurementError: A worker died, or a runtime refused a file.
        MissingDependencyError: The runtime is not installed.
    """
    logits, report = _predict(artifact, profile, inputs, progress)
    float_logits, _ = _predict(baseline, target.float_runtime(profile), inputs, progress)
    result = TargetResult(
        target=profile.id,
        evidence=profile.evidence,
        artifact=artifact,
        baseline=baseline,
        accuracy=measure.accuracy(logits, samples.labels, samples.ids),
        baseline_accuracy=measure.accuracy(float_logits, samples.labels, samples.ids),
        parity=measure.parity(logits, reference, lsb),
        runtime=report,
        estimate=estimate,
        memory=_memory(profile, artifact, report, estimate, layers),
        metrics=classification.metrics(logits, samples.labels, classes=classes),
        baseline_metrics=classification.metrics(float_logits, samples.labels, classes=classes),
        user_metrics=_own(user_metrics, samples, logits),
        baseline_user_metrics=_own(user_metrics, samples, float_logits),
        gallery=gallery.collect(logits, samples.labels, samples, classes=classes) if with_gallery else None,
    )
    if profile.clocked:
        result = _timed(result, profile, inputs[:_TIMED_INPUTS], config, progress)
    budgets = measure.check_budgets(
        profile,
        artifact,
        memory=result.memory,
        latency=result.latency,
        estimate=estimate,
        slowest=_slowest(profile, artifact, layers, inputs),
    )
    return Measured(result=dataclasses.replace(result, budgets=budgets), logits=logits)


def _timed(
    result: TargetResult, profile: TargetProfile, inputs: InputArray, config: Measure, progress: Progress
) -> TargetResult:
    """Return a result with what the clock says of both files, timed in turns."""
    settings: list[dict[str, str]] = [{}, *profile.runtime.float_options]
    # Integer files run under the profile's own options, which their numbers are checked with.
    head_settings = [{}] if result.artifact.scheme in ("int8", "int8-dynamic") else settings
    floats, heads = _time(
        [
            [_variant("float", result.baseline, profile, options) for options in settings],
            [
                _variant(_head_label(result.artifact), result.artifact, profile, options)
                for options in head_settings
            ],
        ],
        inputs,
        config,
        progress,
    )
    # A speed-up counts against the fastest float that this runtime offers, whatever its default is.
    head = heads[0]
    ratios = [measure.ratio(head, latency) for latency in floats]
    return dataclasses.replace(
        result,
        runtime=head.runtime,
        latency=_thinned(head),
        baseline_latency=_thinned(floats[0]),
        other_float=tuple(_thinned(latency) for latency in floats[1:]),
        ratio=ratios[0],
        other_ratios=tuple(ratios[1:]),
    )


def _memory(
    profile: TargetProfile,
    artifact: ExportedArtifact,
    report: RuntimeReport,
    estimate: CompilerEstimate | None,
    layers: Sequence[QuantLayer],
) -> MemoryResult | None:
    if estimate is not None:
        return measure.memory.estimated(artifact, estimate, layers)
    return measure.memory.executed(artifact, report, layers) if profile.runtime.name == "tflm" else None


def _slowest(
    profile: TargetProfile, artifact: ExportedArtifact, layers: Sequence[QuantLayer], inputs: InputArray
) -> str:
    """Return the operation that costs most of a latency that has a budget: by a profiler, else by arithmetic."""
    if profile.latency.budget_ms is None or not profile.clocked:
        return ""
    runtime = profile.runtime
    profiled = runtime.name == "openvino" or (runtime.name == "onnxruntime" and runtime.device == "cpu")
    if profiled and not runtime.host:
        taken: Mapping[str, float] = measure.operation_times(artifact, profile, inputs)
        name = max(taken, key=lambda each: taken[each])
        return f"{name} ({taken[name] / sum(taken.values()):.0%} of the time in the profiler)"
    if artifact.format == "tflite":
        most = max(measure.memory.operators(artifact.path, layers), key=lambda each: each.macs)
        return f"{most.title} ({most.macs:,} multiply-accumulates)"
    return ""


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


def _predict(
    artifact: ExportedArtifact, profile: TargetProfile, inputs: InputArray, progress: Progress
) -> tuple[FloatArray, RuntimeReport]:
    def read(chunk: range) -> InputArray:
        return inputs[chunk.start : chunk.stop]

    return measure.predict_on_all_cores(artifact, profile, read, len(inputs), progress=progress)


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
