"""Time packages and model files, several of them in turns, and make the record of it."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from edgeft import __version__, measure, target
from edgeft.benchmarking import labelled, scoring
from edgeft.benchmarking.subjects import Subject, subject
from edgeft.errors import ConfigError
from edgeft.measure import Variant
from edgeft.target import TargetProfile
from edgeft.types import (
    AccuracyResult,
    ExportedArtifact,
    InputArray,
    LatencyResult,
    Progress,
    Samples,
    ThroughputResult,
    silent,
)

SCHEMA: Final = "edgeft-bench"
VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """How much is timed: fresh processes, and the least steady runs *and* seconds of each.

    The warm-up before them takes a tenth of the seconds unless it is given.
    """

    processes: int = 5
    min_runs: int = 50
    min_seconds: float = 1.0
    warm_up_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was found out about one subject."""

    subject: Subject
    latency: LatencyResult
    throughput: ThroughputResult | None = None
    accuracy: AccuracyResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What was found out about several subjects that took turns, and where.

    `host` is the fingerprint of the machine that they ran on, `warnings` what a reader of the figures should know.
    """

    results: tuple[Measured, ...]
    rule: StopRule
    host: Mapping[str, Any]
    warnings: tuple[str, ...]


def benchmark(
    model: str | Path | ExportedArtifact,
    profile: TargetProfile | str | None = None,
    inputs: InputArray | Path | Literal["random"] | None = None,
    *,
    rounds: int = 6,
    min_runs: int = 30,
    min_seconds: float = 0.3,
    progress: Progress = silent,
) -> LatencyResult:
    """Time a package, a model file or an artifact that was just exported, in fresh processes.

    Args:
        model: A package, an .onnx, .xml or .tflite file, or what `edgeft.export` returned.
        profile: For an exported artifact: its target profile, or the name or path of one.
        inputs: For an exported artifact: real model inputs (N, ...), of which each run takes the next one. For the
            others: a folder of samples, or ``random``; by default a package's golden vectors.
        rounds: Fresh processes.
        min_runs: Least number of steady runs of each.
        min_seconds: Least steady time of each.
        progress: Told how far it is.

    Raises:
        ConfigError: Profile or inputs are missing, or do not belong to what is timed.
        MeasurementError: A worker died or the runtime refused the file.
        EdgeftError: Whatever `edgeft.benchmarking.subject` raises.
    """
    if isinstance(model, ExportedArtifact):
        if profile is None or not isinstance(inputs, np.ndarray):
            raise ConfigError("benchmark: an exported artifact needs its target and an array of inputs")
        profile = target.load(profile) if isinstance(profile, str) else profile
        variant = Variant(label=profile.id, artifact=model, profile=profile, inputs=(inputs,))
    elif profile is not None or isinstance(inputs, np.ndarray):
        raise ConfigError(
            f"benchmark: {model}: a target and an array of inputs go with an exported artifact only",
            'packages have both; files take inputs="random" or a folder of .npy files',
        )
    else:
        variant = _variants([subject(model, inputs=inputs)])[0]
    (result,) = measure.latencies(
        [variant], rounds=rounds, min_runs=min_runs, min_seconds=min_seconds, progress=progress
    )
    return result


def benchmark_all(
    subjects: Sequence[Subject],
    rule: StopRule,
    *,
    streams: int = 1,
    data: Path | None = None,
    progress: Progress = silent,
) -> Bench:
    """Time subjects in turns; with several streams their throughput too, with data the packages' accuracy.

    Args:
        subjects: What `subject` returned, all on one host.
        rule: How much is timed of each.
        streams: Inferences at a time for the throughput; none is taken with one.
        data: Labelled samples for packages, as `labelled.read` takes them.
        progress: Told how far it is.

    Raises:
        ConfigError: `data` for a file without a package, or subjects on several hosts.
        MeasurementError: A worker died; a `RefusedError` if the runtime does not take a file or an option.
        MissingDependencyError: A runtime is not installed, or the host cannot be reached.
        DataError: `data` cannot be read.
    """
    hosts = {one.profile.runtime.host for one in subjects}
    if len(hosts) != 1:
        raise ConfigError(
            f"subjects on one host are needed; got {', '.join(sorted(host or 'this machine' for host in hosts))}",
            "give --host, which holds for all of them",
        )
    if data is not None and (foreign := [one.name for one in subjects if one.package is None]):
        raise ConfigError(
            f"{foreign[0]}: accuracy needs labels and preprocessing, which only packages have",
            "leave --data out for this file",
        )
    # Read before anything is timed, for that takes minutes.
    scored = [labelled.read(one.package, data) if one.package and data else None for one in subjects]
    (host,) = hosts
    variants, settings = _variants(subjects), dataclasses.asdict(rule)
    settings["rounds"] = settings.pop("processes")
    throughputs: Sequence[ThroughputResult | None] = [None] * len(subjects)
    with measure.connect(host):  # one connection for all that follows
        before = measure.host_state(host)
        latencies = measure.latencies(variants, **settings, progress=progress)
        if streams > 1:
            throughputs = measure.throughputs(variants, streams=streams, **settings, progress=progress)
        threads = streams * max(one.profile.runtime.threads for one in subjects)
        disturbed = measure.host_warnings(before, measure.host_state(host), threads=threads)
        accuracies = [
            _accuracy_of(one, samples, progress) for one, samples in zip(subjects, scored, strict=True)
        ]
        fingerprint = measure.host_fingerprint(host)
    results = tuple(
        Measured(subject=one, latency=latency, throughput=throughput, accuracy=accuracy)
        for one, latency, throughput, accuracy in zip(
            subjects, latencies, throughputs, accuracies, strict=True
        )
    )
    warnings = (*disturbed, *result_warnings(results, fingerprint["flags"]))
    return Bench(results=results, rule=rule, host=fingerprint, warnings=warnings)


def _accuracy_of(one: Subject, samples: Samples | None, progress: Progress) -> AccuracyResult | None:
    """Score a package where and how it was timed, which need not be what its manifest says."""
    if one.package is None or samples is None:
        return None
    package = dataclasses.replace(one.package, profile=one.profile)
    accuracy, _ = scoring.score(package, samples, progress=progress)
    return accuracy


def _variants(subjects: Sequence[Subject]) -> list[Variant]:
    variants, seen = [], Counter[str]()
    for one in subjects:
        seen[one.name] += 1
        label = one.name if seen[one.name] == 1 else f"{one.name} ({seen[one.name]})"
        variants.append(Variant(label=label, artifact=one.artifact, profile=one.profile, inputs=one.inputs))
    return variants


def result_warnings(results: Sequence[Measured], flags: Sequence[str]) -> list[str]:
    """Return what a reader of the figures should know: int8 on a CPU without the instructions, random inputs.

    Args:
        results: The results.
        flags: Those of the CPU that they were taken on.
    """
    found = []
    computed = {kind for one in results for kind in one.latency.runtime.mac_precision}
    if computed & {"int8", "int8-dynamic"} and (text := measure.int8_warning(flags)):
        found.append(text)
    if random := [one.subject.name for one in results if one.subject.inputs_origin.startswith("random")]:
        found.append(f"fed with random numbers, not samples: {', '.join(random)}")
    return found


def record(bench: Bench) -> dict[str, Any]:
    """Return the JSON-ready record, schema ``edgeft-bench``, with all raw samples."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "edgeft": __version__,
        "host": dict(bench.host),
        "rule": dataclasses.asdict(bench.rule),
        "warnings": list(bench.warnings),
        "results": [_result(one) for one in bench.results],
    }


def _result(measured: Measured) -> dict[str, Any]:
    subject, runtime = measured.subject, measured.subject.profile.runtime
    artifact = subject.artifact
    return {
        "name": subject.name,
        "target": subject.target,
        "format": artifact.format,
        "scheme": artifact.scheme,
        "files": [
            {"name": file.name, "sha256": artifact.sha256[file.name], "size_bytes": file.stat().st_size}
            for file in artifact.files
        ],
        "size_bytes": artifact.size_bytes,
        "evidence": measured.latency.evidence,
        "device": runtime.device,
        "threads": runtime.threads,
        "batch": subject.batch,
        "options": dict(runtime.options),
        "inputs": [
            {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype} for spec in artifact.inputs
        ],
        "inputs_origin": subject.inputs_origin,
        "samples": len(subject.inputs[0]),
        "runtime": dataclasses.asdict(measured.latency.runtime),
        "latency": _latency(measured.latency),
        "throughput": _throughput(measured.throughput, subject.batch) if measured.throughput else None,
        "accuracy": _accuracy(measured.accuracy) if measured.accuracy else None,
    }


def _latency(result: LatencyResult) -> dict[str, Any]:
    return {
        **_statistics(result.samples_ms),
        "load_ms": list(result.load_ms),
        "first_ms": list(result.first_ms),
        "peak_rss_bytes": result.peak_rss_bytes,
        "samples_ms": [list(process) for process in result.samples_ms],
    }


def _throughput(result: ThroughputResult, batch: int) -> dict[str, Any]:
    per_second = float(np.median(result.per_second))
    return {
        "streams": result.streams,
        "threads": result.threads,
        "inferences_per_second": per_second,
        "samples_per_second": per_second * batch,
        "inferences_per_second_of_processes": list(result.per_second),
        "seconds": list(result.seconds),
        **_statistics(result.samples_ms),
        "peak_rss_bytes": result.peak_rss_bytes,
        "samples_ms": [list(process) for process in result.samples_ms],
    }


def _statistics(samples_ms: Sequence[Sequence[float]]) -> dict[str, Any]:
    pooled = np.concatenate([np.asarray(process) for process in samples_ms])
    percentiles = {f"p{q}_ms": float(np.percentile(pooled, q)) for q in (50, 90, 99)}
    return {
        **percentiles,
        "mean_ms": float(pooled.mean()),
        "min_ms": float(pooled.min()),
        "runs": len(pooled),
        "processes": len(samples_ms),
    }


def _accuracy(result: AccuracyResult) -> dict[str, Any]:
    return {
        "value": result.accuracy,
        "low": result.low,
        "high": result.high,
        "samples": len(result.ids),
        "predictions": result.predictions.tolist(),
        "labels": result.labels.tolist(),
        "ids": list(result.ids),
    }
