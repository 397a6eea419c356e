"""Make packages of model files that edgeft did not make."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from edgeft import __version__, compilers, extras, measure, package
from edgeft.benchmarking import subjects
from edgeft.errors import ConfigError, DataError
from edgeft.measure.session import Session
from edgeft.package import foreign
from edgeft.target import TargetProfile
from edgeft.types import ExportedArtifact, FloatArray, InputArray, Progress, TensorSpec, silent

_GOLDEN: Final = 8
_TAKEN: Final = ("float32", "int32", "int8", "uint8")


def pack_file(
    file: Path,
    profile: TargetProfile,
    output: Path,
    *,
    inputs: Literal["random"] | Path = "random",
    labels: Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Make a package of a model file made elsewhere, and one archive of that.

    Its golden vectors are what the target's runtime answers here; with a compiler, the compiled file is in it too.

    Args:
        file: A model file of the target's format with one input and one output.
        profile: The target.
        output: The archive.
        inputs: Samples for the golden vectors, as `benchmarking.subject` takes them for files.
        labels: A text file with the name of one output per line; "class 0" and so on without it.
        progress: Told how far it is.

    Returns:
        `output`.

    Raises:
        ConfigError: The file is not of the target's format, or has other inputs and outputs than packages can have.
        ModelError: The file is no model, or is damaged.
        DataError: The samples or labels cannot be read, or do not fit.
        ExportError: The target's compiler refuses the file.
        MissingDependencyError: The target's runtime or compiler is not installed.
        MeasurementError: The runtime refused the file.
        VerificationError: The package does not reproduce its golden vectors.
        WorkspaceError: The archive cannot be written.
    """
    progress(f"{profile.id}: {file.name}")
    subject = subjects.subject(file, inputs=inputs, profile=profile)
    artifact = _packable(subject.artifact)
    golden = _real_values(subject.inputs[0][:_GOLDEN], artifact.inputs[0])
    with tempfile.TemporaryDirectory(prefix="edgeft-pack-") as scratch:
        estimate, memory = None, None
        if profile.compiler is not None:
            estimate = compilers.compile_for(profile, file, Path(scratch))
            memory = measure.memory.estimated(artifact, measure.memory.name_layers(estimate, file))
        with Session(artifact, profile) as session:
            outputs, report = session.predict(golden), session.describe()
        if memory is None and profile.evidence == "executed":
            memory = measure.memory.executed(artifact, report)
        written = foreign.write_foreign(
            Path(scratch) / file.stem,
            artifact=artifact,
            profile=profile,
            labels=_labels(labels, outputs.shape[1]),
            golden_inputs=golden,
            golden_outputs=outputs,
            inputs_origin=subject.inputs_origin,
            lsb=_lsb(outputs, artifact.outputs[0]),
            report=report,
            memory=memory,
            estimate=estimate,
            budgets=measure.check_budgets(profile, artifact, memory=memory, estimate=estimate),
            versions={"edgeft": __version__, **extras.versions(*profile.runtime.requires)},
            host=measure.host_fingerprint(profile.runtime.host),
        )
        package.verify(written).require()
        return package.pack(written, output)


def _packable(artifact: ExportedArtifact) -> ExportedArtifact:
    """Return a file's artifact with tensors that are fed and read as the file has them, a sample at a time."""
    for kind, specs in (("input", artifact.inputs), ("output", artifact.outputs)):
        if len(specs) != 1 or specs[0].dtype not in _TAKEN or len(specs[0].shape) < 2:
            found = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in specs)
            raise ConfigError(
                f"{artifact.path.name}: {kind}s {found}; packages have one {kind} with a batch dimension, of "
                f"{', '.join(_TAKEN)}",
                "`edgeft bench` takes such files as well",
            )
    (takes,), (gives,) = artifact.inputs, artifact.outputs
    if takes.shape[0] != 1 or len(gives.shape) != 2:
        raise ConfigError(
            f"{artifact.path.name}: input {takes.shape}, output {gives.shape}; packages take one sample at a time and "
            "give one row of scores",
            "export the model with a batch of 1 and one flat output",
        )
    return replace(
        artifact,
        inputs=(replace(takes, layout="nk"),),
        outputs=(replace(gives, layout="nk", shape=(1, *gives.shape[1:])),),
    )


def _real_values(tensors: npt.NDArray[Any], spec: TensorSpec) -> InputArray:
    """Return samples (N, ...) of what a tensor stands for, out of whole tensors (N, 1, ...) as a file is fed."""
    samples = tensors.reshape(len(tensors), *spec.shape[1:])
    if samples.dtype.kind in "iu" and not spec.scale:
        return samples.astype(np.int32)
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    return (samples.astype(np.float32) - np.float32(spec.zero_point)) * np.float32(spec.scale)


def _lsb(outputs: FloatArray, spec: TensorSpec) -> float:
    """Return one step of the outputs: the file's own, or what an 8-bit one would be."""
    return spec.scale or max(float(outputs.max() - outputs.min()) / 255, 1e-12)


def _labels(path: Path | None, count: int) -> list[str]:
    if path is None:
        return [f"class {index}" for index in range(count)]
    try:
        found = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})", "labels are UTF-8, one per line") from error
    if len(found) != count:
        raise DataError(f"{path}: {len(found)} labels, the model has {count} outputs", "give one line each")
    return found
