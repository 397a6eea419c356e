"""The gate for one package: score it on labelled data and judge it against a baseline file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeft import gating
from edgeft.benchmarking import labelled, scoring
from edgeft.benchmarking.labelled import Columns
from edgeft.gating import Baseline, Candidate, Limits
from edgeft.package import Package
from edgeft.recipe import Gate
from edgeft.types import Progress, Verdict, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A package's verdict, with what it takes to move the baseline on to this package."""

    verdict: Verdict
    candidate: Candidate
    baseline: Baseline | None


def gate_package(
    package: Package,
    data: Path,
    baseline: Path,
    *,
    margin: float | None = None,
    columns: Columns | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> Judgement:
    """Judge a package by its answers on labelled data, its size, its coverage and its parity.

    Of the data, those samples are scored that the baseline was made with; all, where there is no baseline yet. The
    baseline's other targets are left out of the verdict. Latency is not judged: two files that are not timed side by
    side do not compare (`edgeft compare`).

    Args:
        package: What `edgeft.package.read` returned.
        data: As `edgeft.benchmarking.labelled.read` takes it.
        baseline: A baseline file; where there is none, the outcome is "no baseline".
        margin: Largest acceptable accuracy drop, 0..1; by default that of the baseline's recipe, else 0.01.
        columns: Names of a table's columns.
        workers: Processes at a time.
        progress: Told how far it is, in samples.

    Raises:
        ConfigError: The baseline is damaged, or was made with other samples, labels, classes or preprocessing.
        DataError: As `edgeft.benchmarking.labelled.read` and `select`, or a sample cannot be decoded.
        MeasurementError: As `edgeft.benchmarking.scoring.score`.
        MissingDependencyError: The runtime is not installed.
    """
    known = gating.find_baseline(baseline)
    samples = labelled.read(package, data, columns=columns)
    if known is not None and known.samples.count < len(samples):
        samples = labelled.select(samples, " ".join(known.samples.ids).split(), str(data))
    accuracy, report = scoring.score(package, samples, workers=workers, progress=progress)
    limits = known.release.limits if known else {}
    candidate = gating.from_package(
        package.manifest,
        package.artifact,
        package.preprocessing,
        package.labels,
        accuracy,
        report,
        gate=Gate.model_validate({key: limits[key] for key in limits if key in Gate.model_fields}),
        host=package.manifest["host"],
    )
    verdict = gating.compare_releases(
        candidate, known, Limits.of(candidate.gate, margin=margin), where=str(baseline), allow_missing=True
    )
    return Judgement(verdict=verdict, candidate=candidate, baseline=known)
