"""What is judged: a release as the gate sees it, from the report of a run or from one package."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeft import documents
from edgeft.errors import ConfigError
from edgeft.gating import checks
from edgeft.gating import report_parts as parts
from edgeft.gating.baseline import (
    Coverage,
    Estimate,
    Latency,
    Parity,
    Release,
    TargetRelease,
    known_limits,
)
from edgeft.gating.samples import SampleSet, encode
from edgeft.preprocessing import ArrayPreprocessing, Preprocessing
from edgeft.recipe import Gate
from edgeft.types import AccuracyResult, BudgetResult, ExportedArtifact, IntArray, RuntimeReport

REPORT_SCHEMA: Final = "edgeft-report"
REPORT_VERSION: Final = 1
_ESTIMATE: Final = {"cycles", "ms", "source"}
_HINT: Final = "a run writes report.json when it is finished: edgeft run RECIPE"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A release that is to be judged, the samples that it was scored on, and the limits of its recipe."""

    samples: SampleSet
    release: Release
    gate: Gate
    own_outcome: str = ""
    """What the run itself said of it."""
    budgets: Mapping[str, tuple[BudgetResult, ...]] = dataclasses.field(default_factory=dict)
    """By target: those that its profile sets."""


def read_document(path: Path) -> dict[str, Any]:
    """Read the report of a run as it is. Raises `ConfigError` unless it is one, whole, and of this version."""
    return documents.read(path, schema=REPORT_SCHEMA, version=REPORT_VERSION, hint=_HINT)


def read_report(path: Path) -> Candidate:
    """Read what the gate needs of a run's report, with the commit of the folder's repository if there is one.

    Raises:
        ConfigError: It is missing, truncated, of another version, damaged, or has no samples.
    """
    document = read_document(path)
    return from_report(document, where=str(path), commit=commit_of(path.resolve().parent))


def from_report(document: Mapping[str, Any], *, where: str = "report", commit: str = "") -> Candidate:
    """Take what the gate needs from a report document.

    Args:
        document: ``edgeft-report`` version 1.
        where: What it was read from, for messages.
        commit: That the run was made from, if known.

    Raises:
        ConfigError: It is incomplete or damaged, or has no targets or no samples.
    """
    report = documents.validated(parts.Report, dict(document), where, _HINT)
    limits, preprocessing = report.recipe.gate or {}, report.data.preprocessing
    if preprocessing and preprocessing.get("kind") == "table":
        documents.validated(parts.Table, preprocessing, f"{where}: data.preprocessing", _HINT)
    labels = _indices(report.samples.labels, len(report.data.classes), f"{where}: samples.labels")
    _require_scored(where, len(report.samples.ids), len(labels), len(report.targets))
    samples, order = SampleSet.of(report.samples.ids, labels, report.data.classes, preprocessing)
    names = [target.target for target in report.targets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{where}: targets holds {', '.join(twice)} more than once", _HINT)
    release = Release(
        name=report.name,
        created=report.created,
        edgeft=report.versions.get("edgeft", ""),
        commit=commit,
        accepted="",
        recipe_hash=report.recipe_hash,
        data_fingerprint=report.data.fingerprint,
        trained=report.recipe.trains,
        macs=report.about_model.macs.after,
        limits=limits,
        host=report.host,
        versions=report.versions,
        targets={target.target: _target(target, labels, order, report, where) for target in report.targets},
    )
    return Candidate(
        samples=samples,
        release=release,
        gate=known_limits(limits, f"{where}: recipe.gate", _HINT),
        own_outcome=report.verdict.outcome,
        budgets={target.target: _budgets(target.budgets) for target in report.targets},
    )


def from_package(
    manifest: Mapping[str, Any],
    artifact: ExportedArtifact,
    preprocessing: Preprocessing | ArrayPreprocessing,
    labels: Sequence[str],
    accuracy: AccuracyResult,
    executed: RuntimeReport,
    *,
    gate: Gate | None = None,
    host: Mapping[str, Any] | None = None,
) -> Candidate:
    """Make a release of one package that was scored on labelled data.

    Args:
        manifest: The package's.
        artifact: Its file.
        preprocessing: Its own.
        labels: Names of its classes.
        accuracy: Its predictions on the data.
        executed: What the runtime that predicted says of itself.
        gate: Limits; the defaults without.
        host: Fingerprint of the host that its latency was measured on, as far as known.

    Raises:
        ConfigError: There are no samples.
    """
    target, metrics = manifest["target"]["id"], manifest["metrics"]
    _require_scored(target, len(accuracy.ids), len(accuracy.labels), 1)
    samples, order = SampleSet.of(accuracy.ids, accuracy.labels, labels, preprocessing.to_dict())
    parity, latency, memory = (metrics.get(key) for key in ("parity", "latency", "memory"))
    estimate, runtime = metrics.get("estimate"), manifest["runtime"]
    packed_with = f"{runtime['name']} {runtime['version']}"
    # A packed file from elsewhere has no layers that are in float on purpose.
    in_file, ran = checks.int8_shares(artifact, executed, manifest.get("float_layers", ()))
    release = Release(
        name=target,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgeft=manifest["versions"].get("edgeft", ""),
        commit="",
        accepted="",
        recipe_hash=manifest["recipe_hash"],
        data_fingerprint=manifest["data_fingerprint"],
        trained=True,
        macs=None,
        limits={} if gate is None else gate.model_dump(mode="json", exclude_none=True),
        host=dict(host or {}),
        versions=dict(manifest["versions"]),
        targets={
            target: TargetRelease(
                scheme=artifact.scheme,
                files=dict(artifact.sha256),
                size_bytes=artifact.size_bytes,
                float_size_bytes=0,
                coverage=Coverage(file=in_file, executed=ran) if artifact.scheme == "int8" else None,
                parity=Parity(**{key: parity[key] for key in Parity.model_fields}),
                arena_bytes=memory["ram_bytes"] if memory else None,
                flash_bytes=memory["flash_bytes"] if memory else None,
                runtime="" if latency else packed_with,
                latency=latency
                and Latency(
                    p50_ms=latency["p50_ms"],
                    p90_ms=latency["p90_ms"],
                    threads=runtime["threads"],
                    evidence=manifest["evidence"],
                    runtime=packed_with,
                ),
                estimate=estimate and Estimate(**{key: estimate[key] for key in _ESTIMATE}),
                accuracy=accuracy.accuracy,
                predictions=encode(accuracy.predictions[order], len(labels)),
            )
        },
    )
    budgets = [parts.Budget.model_validate(each) for each in metrics.get("budgets") or ()]
    return Candidate(
        samples=samples, release=release, gate=gate or Gate(), budgets={target: _budgets(budgets)}
    )


def commit_of(folder: Path) -> str:
    """Return the commit that a folder's repository is at, marked where its files differ; empty without git."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _target(
    target: parts.Target, labels: IntArray, order: Any, report: parts.Report, where: str
) -> TargetRelease:
    place = f"{where}: target {target.target}"
    classes = len(report.data.classes)
    predictions = _indices(target.accuracy.predictions, classes, f"{place}: predictions")
    if len(predictions) != len(labels):
        raise ConfigError(
            f"{place}: {len(predictions)} predictions for {len(labels)} samples",
            "the report is damaged: run the recipe again",
        )
    latency, estimate, memory, executed = target.latency, target.estimate, target.memory, target.executed
    return TargetRelease(
        scheme=target.artifact.scheme,
        files={file.name: file.sha256 for file in target.artifact.files},
        size_bytes=target.artifact.size_bytes,
        float_size_bytes=target.baseline.size_bytes,
        arena_bytes=memory.ram_bytes if memory else None,
        flash_bytes=memory.flash_bytes if memory else None,
        coverage=_coverage(target, report.verdict.checks, place),
        parity=Parity(
            samples=target.parity.samples,
            flips=target.parity.flips,
            confident_flips=target.parity.confident_flips,
        ),
        runtime=f"{executed.runtime} {executed.version}" if executed and latency is None else "",
        latency=None
        if latency is None
        else Latency(
            p50_ms=latency.p50_ms,
            p90_ms=latency.p90_ms,
            threads=latency.threads,
            evidence=latency.evidence,
            runtime=f"{latency.runtime.runtime} {latency.runtime.version}",
        ),
        host=latency.runtime.details.host if latency else None,
        estimate=None
        if estimate is None
        else Estimate(cycles=estimate.cycles, ms=estimate.ms, source=estimate.source),
        accuracy=float((predictions == labels).mean()),
        predictions=encode(predictions[order], classes),
    )


def _budgets(found: Sequence[parts.Budget]) -> tuple[BudgetResult, ...]:
    return tuple(
        BudgetResult(
            name=each.name,
            value=each.value,
            limit=each.limit,
            unit=each.unit,
            met=each.met,
            culprit=each.culprit,
        )
        for each in found
    )


def _coverage(target: parts.Target, checks: Sequence[parts.Check], place: str) -> Coverage | None:
    """Return what the run's own verdict says, for it knows which layers are in float on purpose."""
    if target.artifact.scheme != "int8":
        return None
    for check in checks:
        if (check.name, check.target) == ("coverage", target.target):
            shares = {key: check.values[key] for key in Coverage.model_fields if key in check.values}
            return documents.validated(Coverage, shares, f"{place}: coverage check", _HINT)
    ratio = target.artifact.coverage.ratio
    return Coverage(file=ratio, executed=ratio)


def _require_scored(where: str, ids: int, labels: int, targets: int) -> None:
    if not targets:
        raise ConfigError(f"{where}: there is no target in it to judge", _HINT)
    if not ids:
        raise ConfigError(
            f"{where}: zero test samples: no accuracy can be compared",
            "give the test split at least one sample",
        )
    if ids != labels:
        raise ConfigError(f"{where}: {ids} sample ids and {labels} labels", "run the recipe again")


def _indices(values: Sequence[int], classes: int, where: str) -> IntArray:
    # Of Python's own integers, which have no end: numpy's raise an OverflowError of theirs.
    if values and not 0 <= min(values) <= max(values) < classes:
        raise ConfigError(
            f"{where}: class indices from {min(values)} to {max(values)}; there are {classes} classes",
            "the report is damaged: run the recipe again",
        )
    return np.asarray(values, dtype=np.int64)
