"""Turn the records of a run into the report document, ``edgeft-report`` version 1.

Top-level keys: ``schema version name created recipe recipe_hash data model samples stages finetune prune quantize
targets verdict host versions notes``. The test samples' identities and labels are stored once, in ``samples``; every
accuracy then holds its predictions in that order, which is all that a later paired comparison needs. Times are in ms,
sizes in bytes, accuracies and shares in 0..1. A number that is not finite is stored as null: JSON has none. So is what
a target does not have: latencies and their ratio where no clock tells one (evidence executed, estimated, simulated).

The version counts changes that a reader must know of. Keys that came later within version 1, and that a reader
takes for null where they are absent: ``finetune``, ``prune``, ``quantize`` (one record per quantize stage), and of a
target ``metrics baseline_metrics user_metrics baseline_user_metrics gallery`` (`types.ClassificationMetrics` and
`types.Gallery`, field by field), ``executed`` (`types.RuntimeReport`), ``estimate`` (`types.CompilerEstimate`, its file
by name), ``memory`` (`types.MemoryResult`) and ``budgets`` (`types.BudgetResult`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

import numpy as np

from edgeft.errors import VerificationError
from edgeft.measure import statistics
from edgeft.reporting import pruning
from edgeft.target import TargetProfile
from edgeft.types import (
    AccuracyResult,
    CompilerEstimate,
    ExportedArtifact,
    LatencyResult,
    StepRecord,
    TargetResult,
    Verdict,
)

SCHEMA = "edgeft-report"
VERSION = 1

Document = dict[str, Any]

# What is kept of a quantize stage's results besides its method.
_QUANTIZE_RESULTS = (
    "val_accuracy_float",
    "val_accuracy",
    "val_samples",
    "float_layers",
    "attempts",
    "sensitivity",
    "own_engine",
)
_QUANTIZE_LISTS = ("float_layers", "attempts", "sensitivity")


def build(
    *,
    name: str,
    recipe: Mapping[str, Any],
    recipe_hash: str,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    stages: Sequence[StepRecord],
    targets: Sequence[TargetResult],
    profiles: Mapping[str, TargetProfile],
    verdict: Verdict,
    host: Mapping[str, Any],
    versions: Mapping[str, str],
    notes: Sequence[str],
) -> Document:
    """Return the report of one run, ready for JSON.

    Args:
        name: The run's name.
        recipe: The effective recipe, every default written out.
        recipe_hash: Its hash.
        data: About the data set: ``classes`` (names), ``counts`` (split -> samples), ``skipped`` (files left
            out), ``fingerprint``, and whatever else should be kept.
        model: About the network: ``source``, ``macs`` and ``params`` (each ``before`` and ``after`` pruning),
            ``float_accuracy`` (split -> 0..1), and whatever else should be kept.
        stages: What every stage did, in order. That of ``finetune`` also becomes a section of its own: its config's
            ``method``, its results' ``epochs`` (`types.EpochRecord`) and ``feature_seconds``, where there are any.
            So do those whose names start with ``quantize``.
        targets: What was measured, one per target.
        profiles: Target id -> profile, for every result.
        verdict: The gate's decision.
        host: Fingerprint of the host.
        versions: Package name -> version.
        notes: Warnings and remarks for the reader.

    Raises:
        VerificationError: The targets were not evaluated on the same samples, so that no pairing exists.
    """
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": plain(recipe),
        "recipe_hash": recipe_hash,
        "data": plain(data),
        "model": plain(model),
        "samples": _samples(targets),
        "stages": [plain(stage) for stage in stages],
        "finetune": _finetune(stages),
        "prune": plain(pruning.record(stages)),
        "quantize": [plain(_quantize(stage)) for stage in stages if stage.name.startswith("quantize")],
        "targets": [_target(result, profiles[result.target]) for result in targets],
        "verdict": plain(verdict),
        "host": plain(host),
        "versions": plain(versions),
        "notes": list(notes),
    }


def plain(value: Any) -> Any:
    """Turn records, mappings, sequences, arrays and paths into what JSON knows; NaN and infinity become null.

    Raises:
        TypeError: A value of any other kind, which would otherwise be stored as something unreadable.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    match value:
        case None | bool() | str() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case PurePath():
            return str(value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case Sequence() | set() | frozenset():
            return [plain(item) for item in (value if isinstance(value, Sequence) else sorted(value))]
    raise TypeError(f"report: cannot store a {type(value).__name__} ({value!r})")


def _samples(targets: Sequence[TargetResult]) -> Document:
    """Return identities and labels of the test samples, the same for every accuracy of every target."""
    results = [accuracy for target in targets for accuracy in (target.accuracy, target.baseline_accuracy)]
    if not results:
        return {"ids": [], "labels": []}
    first = results[0]
    for target in targets:
        for accuracy in (target.accuracy, target.baseline_accuracy):
            if accuracy.ids != first.ids or not np.array_equal(accuracy.labels, first.labels):
                raise VerificationError(
                    f"target {target.target}: evaluated on other samples or labels than {targets[0].target}",
                    "evaluate every file on the same test split, in the same order",
                )
    return {"ids": list(first.ids), "labels": first.labels.tolist()}


def _finetune(stages: Sequence[StepRecord]) -> Document | None:
    """Return how the float network came about: method, curve, and where its time went."""
    record = next((stage for stage in stages if stage.name == "finetune"), None)
    if record is None:
        return None
    return {
        "method": record.config.get("method"),
        "seconds": record.seconds,
        "feature_seconds": record.results.get("feature_seconds"),
        "epochs": plain(record.results.get("epochs", [])),
    }


def _quantize(stage: StepRecord) -> Document:
    """Return the report's record of one quantize stage: what was asked for, what was tried, what came out."""
    results, config = stage.results, stage.config
    return {
        "stage": stage.name,
        "scheme": config.get("scheme"),
        "asked": config.get("method"),
        "method": results.get("method", config.get("method")),
        "engine": config.get("engine"),
        "calibration": config.get("calibration"),
        "max_accuracy_drop": config.get("max_accuracy_drop"),
        "seconds": stage.seconds,
        **{key: results.get(key, [] if key in _QUANTIZE_LISTS else None) for key in _QUANTIZE_RESULTS},
    }


def _target(result: TargetResult, profile: TargetProfile) -> Document:
    runtime = profile.runtime
    return {
        "target": result.target,
        "title": profile.title,
        "kind": profile.kind,
        "evidence": result.evidence,
        "runtime": {
            "name": runtime.name,
            "device": runtime.device,
            "threads": runtime.threads,
            "options": dict(runtime.options),
        },
        "artifact": _artifact(result.artifact),
        "baseline": _artifact(result.baseline),
        "accuracy": _accuracy(result.accuracy),
        "baseline_accuracy": _accuracy(result.baseline_accuracy),
        "drop": _drop(result.baseline_accuracy, result.accuracy),
        "parity": plain(result.parity),
        "executed": plain(result.runtime),
        "latency": _latency(result.latency),
        "baseline_latency": _latency(result.baseline_latency),
        "other_float": [_latency(other) for other in result.other_float],
        "ratio": plain(result.ratio),
        "other_ratios": plain(result.other_ratios),
        "estimate": _estimate(result.estimate),
        "memory": plain(result.memory),
        "budgets": plain(result.budgets),
        "metrics": plain(result.metrics),
        "baseline_metrics": plain(result.baseline_metrics),
        "user_metrics": plain(result.user_metrics),
        "baseline_user_metrics": plain(result.baseline_user_metrics),
        "gallery": plain(result.gallery),
    }


def _artifact(artifact: ExportedArtifact) -> Document:
    """Describe a file; the folder that it was made in says nothing to a reader elsewhere and is left out."""
    return {
        "path": artifact.path.name,
        "files": [{"name": path.name, "sha256": artifact.sha256[path.name]} for path in artifact.files],
        "format": artifact.format,
        "scheme": artifact.scheme,
        "size_bytes": artifact.size_bytes,
        "coverage": {**plain(artifact.coverage), "ratio": artifact.coverage.ratio},
        "inputs": plain(artifact.inputs),
        "outputs": plain(artifact.outputs),
        "deviations": list(artifact.deviations),
    }


def _accuracy(result: AccuracyResult) -> Document:
    return {
        "value": float(result.accuracy),
        "low": float(result.low),
        "high": float(result.high),
        "samples": len(result.ids),
        "predictions": result.predictions.tolist(),
    }


def _drop(base: AccuracyResult, head: AccuracyResult) -> Document:
    """Return the paired accuracy drop from `base` to `head`, positive where `head` is worse."""
    was_right, is_right = base.predictions == base.labels, head.predictions == head.labels
    lost, gained = int((was_right & ~is_right).sum()), int((is_right & ~was_right).sum())
    samples = len(base.ids)
    low, high = statistics.tango_interval(lost, gained, samples)
    return {"value": (lost - gained) / samples, "low": low, "high": high, "lost": lost, "gained": gained}


def _latency(result: LatencyResult | None) -> Document | None:
    if result is None:
        return None
    runs = np.concatenate([np.asarray(samples) for samples in result.samples_ms])
    return {
        "label": result.label,
        "evidence": result.evidence,
        "threads": result.threads,
        "processes": len(result.samples_ms),
        "runs": len(runs),
        **{f"p{q}_ms": result.percentile(q) for q in (10, 50, 90, 99)},
        "mean_ms": float(runs.mean()),
        "min_ms": float(runs.min()),
        "peak_rss_bytes": result.peak_rss_bytes,
        "runtime": plain(result.runtime),
        # A clock tick is longer than a nanosecond, so six digits after the point keep all there is.
        "samples_ms": [[round(float(ms), 6) for ms in samples] for samples in result.samples_ms],
        "load_ms": plain(result.load_ms),
        "first_ms": plain(result.first_ms),
    }


def _estimate(estimate: CompilerEstimate | None) -> Document | None:
    if estimate is None:
        return None
    name = estimate.file.name if estimate.file is not None else ""
    return {**plain(estimate), "file": name, "source": estimate.source}
