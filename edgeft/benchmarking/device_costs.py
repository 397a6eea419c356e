"""What a file costs on a device that no clock reaches from here: its memory, and its compiler's estimate of the time.

The record ``edgeft-cost`` version 1: ``schema version created edgeft results``. A result has ``name target
file sha256 size_bytes evidence memory estimate budgets accuracy``; ``memory``, ``estimate`` and ``budgets`` are the
records of `edgeft.types`, and tool, version and settings stand in every estimate.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgeft import __version__, compilers, measure
from edgeft import package as packages
from edgeft.benchmarking import labelled, scoring, subjects
from edgeft.errors import ConfigError
from edgeft.measure import memory as memories
from edgeft.target import TargetProfile
from edgeft.types import (
    AccuracyResult,
    BudgetResult,
    CompilerEstimate,
    ExportedArtifact,
    MemoryResult,
    Progress,
    silent,
)

SCHEMA: Final = "edgeft-cost"
VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCost:
    """What one file costs on its target's device; `estimate` where the target has a compiler."""

    name: str
    artifact: ExportedArtifact
    profile: TargetProfile
    memory: MemoryResult
    estimate: CompilerEstimate | None
    budgets: tuple[BudgetResult, ...]
    """Those of the profile."""
    accuracy: AccuracyResult | None = None

    @property
    def fits(self) -> bool:
        """Whether every budget is met."""
        return all(budget.met for budget in self.budgets)


def has_clock(value: str | Path, profile: TargetProfile | None = None) -> bool:
    """Return whether the time of a package or file can be measured.

    Args:
        value: A package, or a model file.
        profile: The target of a file without a package; by default a CPU.

    Raises:
        ConfigError: There is nothing at the path, or a target is given for a package, which has its own.
        EdgeftError: As `edgeft.package.read`.
    """
    path = Path(value)
    if not subjects.is_package(path):
        return profile is None or profile.clocked
    if profile is not None:
        raise ConfigError(
            f"{path}: a package has a target of its own; --target is for model files",
            "leave --target out, or give the model file",
        )
    return packages.read(path).profile.clocked


def device_cost(
    value: str | Path,
    profile: TargetProfile | None = None,
    *,
    data: Path | None = None,
    progress: Progress = silent,
) -> DeviceCost:
    """Compile a file for a target without a clock, or load it as its runtime does, and return what it costs there.

    Args:
        value: A package of such a target, or a .tflite file.
        profile: The target, for a file.
        data: Labelled samples for packages, as `labelled.read` takes them.
        progress: Told how far it is.

    Raises:
        ConfigError: Nothing is known of the target's costs, or the file is not of its format.
        ModelError: The file is no model, or is damaged.
        ExportError: The compiler failed, or leaves more operators to the CPU than the target allows.
        MissingDependencyError: The compiler or the runtime is not installed.
        EdgeftError: Whatever `edgeft.package.read`, `labelled.read` and `scoring.score` raise.
    """
    path, package = Path(value), None
    if subjects.is_package(path):
        package = packages.read(path)
        artifact, profile = package.artifact, package.profile
    elif profile is None:
        raise ConfigError(f"{path}: the cost of a file is that on a target", "name one with --target")
    else:
        artifact = subjects.foreign_artifact(path, profile)
    if data is not None and package is None:
        raise ConfigError(f"{path}: accuracy needs labels and preprocessing, which only packages have")
    samples = labelled.read(package, data) if package and data else None  # before work that takes longer
    progress(f"{profile.id}: {path.name}")
    estimate, memory = _cost(artifact, profile)
    scored = None
    if package is not None and samples is not None:
        scored, _ = scoring.score(package, samples, progress=progress)
    return DeviceCost(
        name=str(value),
        artifact=artifact,
        profile=profile,
        memory=memory,
        estimate=estimate,
        budgets=measure.check_budgets(profile, artifact, memory=memory, estimate=estimate),
        accuracy=scored,
    )


def _cost(artifact: ExportedArtifact, profile: TargetProfile) -> tuple[CompilerEstimate | None, MemoryResult]:
    if profile.compiler is not None:
        with tempfile.TemporaryDirectory(prefix="edgeft-compiled-") as folder:
            estimate = compilers.compile_for(profile, artifact.path, Path(folder))
        estimate = memories.name_layers(replace(estimate, file=None), artifact.path)
        return estimate, memories.estimated(artifact, estimate)
    if profile.evidence != "executed":
        raise ConfigError(
            f"target {profile.id} is {profile.evidence}: neither time nor memory of its device are known here",
            "`edgeft verify` and `edgeft predict` run its packages",
        )
    opened = artifact if artifact.inputs else subjects.with_signature(artifact, profile)
    with measure.Session(opened, profile) as session:
        return None, memories.executed(artifact, session.describe())


def record(costs: Sequence[DeviceCost]) -> dict[str, Any]:
    """Return the JSON-ready record, as the module describes it."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "edgeft": __version__,
        "results": [_result(cost) for cost in costs],
    }


def _result(cost: DeviceCost) -> Mapping[str, Any]:
    accuracy, artifact = cost.accuracy, cost.artifact
    return {
        "name": cost.name,
        "target": cost.profile.id,
        "evidence": cost.profile.evidence,
        "file": artifact.path.name,
        "sha256": artifact.sha256[artifact.path.name],
        "size_bytes": artifact.size_bytes,
        "memory": dataclasses.asdict(cost.memory),
        "estimate": dataclasses.asdict(cost.estimate) if cost.estimate else None,
        "budgets": [dataclasses.asdict(budget) for budget in cost.budgets],
        "accuracy": {
            "value": accuracy.accuracy,
            "low": accuracy.low,
            "high": accuracy.high,
            "samples": len(accuracy.ids),
        }
        if accuracy
        else None,
    }
