"""The files of a target: exported, or taken over from a target before it that takes the very same ones."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from edgeft import exporters, stages, target
from edgeft.pipeline.inputs import RunInputs
from edgeft.target import Precision, TargetProfile
from edgeft.types import ExportedArtifact


def files(
    run: RunInputs, profile: TargetProfile, folder: Path, *, changed: bool
) -> tuple[ExportedArtifact, ExportedArtifact]:
    """Write the compressed file of a target and its float baseline into `folder`.

    A microcontroller, its NPUs and LiteRT take one and the same file, and conversion is what an export takes its time
    for.

    Args:
        run: The run, with the export stages of earlier targets finished.
        profile: The target.
        folder: Existing folder.
        changed: Whether anything was pruned or quantized; else the final file and the baseline are one.

    Raises:
        ExportError: As `stages.export`.
        MissingDependencyError: As `stages.export`.
    """
    twin = _twin(run, profile)
    if twin is not None:
        target.require_packages(profile)
        artifact, baseline = (
            _copied(run.artifact(twin, which), folder) for which in ("artifact", "baseline")
        )
        exporters.require_integers(profile, artifact.path, artifact.coverage)
        return artifact, baseline
    artifact = stages.export(run.program(profile), profile, folder, name="model")
    if not changed:
        return artifact, artifact
    return artifact, stages.export(run.float_program, target.float_runtime(profile), folder, name="float")


def _twin(run: RunInputs, profile: TargetProfile) -> TargetProfile | None:
    """Return the first target before this one whose files are the same by all that an exporter reads."""
    for other in run.profiles:
        if other.id == profile.id:
            return None
        if other.export == profile.export and _numbers(other) == _numbers(profile):
            return other
    return None


def _numbers(profile: TargetProfile) -> Precision:
    # A file is the same whether or not its device could run float operations, too.
    return profile.precision.model_copy(update={"full_integer": False})


def _copied(artifact: ExportedArtifact, folder: Path) -> ExportedArtifact:
    for file in artifact.files:
        shutil.copyfile(file, folder / file.name)
    there = tuple(folder / file.name for file in artifact.files)
    return dataclasses.replace(artifact, path=folder / artifact.path.name, files=there)
