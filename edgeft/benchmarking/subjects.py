"""What is timed or compared: a package, or a model file that edgeft did not make, with what it is fed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy.typing as npt

from edgeft import package as packages
from edgeft.benchmarking import inputs as sources
from edgeft.benchmarking import signatures
from edgeft.errors import ConfigError, MeasurementError, MissingDependencyError, ModelError
from edgeft.measure.session import Session
from edgeft.package import Package
from edgeft.preprocessing import ArrayPreprocessing, Preprocessing
from edgeft.target import Export, Runtime, TargetProfile
from edgeft.types import ExportedArtifact, Format, QuantCoverage, TensorSpec

Array = npt.NDArray[Any]

# Suffix of a model file -> its format, and module, device and options of the runtime that opens it.
_FORMATS: Final[Mapping[str, tuple[Format, Runtime]]] = {
    ".onnx": ("onnx", Runtime(name="onnxruntime", requires=["onnxruntime"])),
    ".xml": (
        "openvino",
        Runtime(
            name="openvino", requires=["openvino"], device="CPU", options={"PERFORMANCE_HINT": "LATENCY"}
        ),
    ),
    ".tflite": ("tflite", Runtime(name="litert", requires=["ai_edge_litert"])),
}
_PACKAGE_SUFFIXES: Final = (".zip",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Something to time: a file, where it runs, and what it is fed.

    `inputs` has one array per input of the file. `batch` is how many samples one inference takes, and `target` the
    package's target, or empty.
    """

    name: str
    artifact: ExportedArtifact
    profile: TargetProfile
    inputs: tuple[Array, ...]
    inputs_origin: str
    """``golden vectors``, ``folder X (n images)`` or ``random (...)``."""
    target: str
    batch: int = 1
    package: Package | None = None
    """None for a file that edgeft did not make."""


def subject(
    value: str | Path,
    *,
    threads: int | None = None,
    device: str | None = None,
    options: Mapping[str, str] | None = None,
    host: str = "",
    inputs: Literal["random"] | Path | None = None,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    profile: TargetProfile | None = None,
) -> Subject:
    """Return what stands at a path, ready to be timed.

    Args:
        value: A package (folder or archive), or an .onnx, .xml or .tflite file.
        threads: Per inference, instead of the package's (1 for other files).
        device: The runtime's own name of one, instead of the package's.
        options: Runtime options over the package's.
        host: Where it runs, as a profile's `runtime.host`; here if empty.
        inputs: A folder or file of samples, or ``random``. By default a package's golden vectors; a file without a
            package has no default.
        batch: Samples per inference; the file's first dimension must be free, or this.
        shapes: Input name -> whole shape, for free dimensions of a file without a package.
        profile: Target of a file without a package: its runtime and device, instead of the plain CPU.

    Raises:
        ConfigError: There is nothing at the path, or inputs, batch, shapes or target are missing or do not fit.
        ModelError: The file is no model, is damaged, or has no inputs.
        DataError: The samples cannot be read, or are not what the model takes.
        PackageError: The folder or archive is no package.
        VerificationError: The package is damaged.
        MissingDependencyError: The runtime is not installed.
    """
    path = Path(value)
    packaged = is_package(path)
    changes = {"threads": threads, "device": device, "host": host or None}
    given = {key: value for key, value in changes.items() if value is not None}
    if packaged:
        if shapes:
            raise ConfigError(f"{path}: --shape is for files without a package; this one has fixed shapes")
        return _of_package(packages.read(path), str(value), given, options or {}, inputs, batch)
    return _of_file(path, str(value), profile, given, options or {}, inputs, batch, shapes or {})


def is_package(path: Path) -> bool:
    """Return whether a path is that of a package, a folder or an archive. Raises `ConfigError` if nothing is there."""
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file or folder", "give a package, or an .onnx, .xml or .tflite file"
        )
    return path.is_dir() or path.suffix.lower() in _PACKAGE_SUFFIXES


def foreign_artifact(path: Path, profile: TargetProfile) -> ExportedArtifact:
    """Return a file that edgeft did not make as an artifact for a target; its inputs and outputs are not known yet.

    Raises:
        ConfigError: The file is not of the target's format.
        ModelError: It is empty, of an unknown kind, or a file beside it is missing.
    """
    artifact, _ = _described(path, profile)
    return artifact


def with_signature(artifact: ExportedArtifact, profile: TargetProfile) -> ExportedArtifact:
    """Return a file with the inputs and outputs that its runtime reads from it.

    Raises:
        ConfigError: A dimension is free.
        ModelError: The runtime cannot read the file, or it has no inputs.
        MissingDependencyError: The runtime is not installed.
    """
    signature = _signature(artifact, profile)
    sizes = signatures.resolve(signature["inputs"], file=artifact.path.name, batch=1, shapes={})
    return replace(
        artifact,
        inputs=signatures.specs(signature["inputs"], sizes),
        outputs=signatures.output_specs(signature["outputs"]),
    )


def _of_package(
    package: Package,
    name: str,
    changes: Mapping[str, Any],
    options: Mapping[str, str],
    inputs: Literal["random"] | Path | None,
    batch: int,
) -> Subject:
    preprocessing = package.preprocessing
    samples: Array
    if inputs is None:
        samples, origin = package.golden_inputs, "golden vectors"
    elif inputs == "random":
        samples, origin = _random_samples(preprocessing), sources.RANDOM
    else:
        samples, origin = sources.encoded_samples(inputs, preprocessing)
    artifact = package.artifact
    if batch > 1:
        artifact = replace(
            artifact,
            inputs=tuple(_batched(spec, batch) for spec in artifact.inputs),
            outputs=tuple(_batched(spec, batch) for spec in artifact.outputs),
        )
    return Subject(
        name=name,
        artifact=artifact,
        profile=_changed(package.profile, changes, options),
        inputs=(samples,),
        inputs_origin=origin,
        target=package.profile.id,
        batch=batch,
        package=package,
    )


def _random_samples(preprocessing: Preprocessing | ArrayPreprocessing) -> Array:
    (samples,) = sources.random_samples([(preprocessing.input_shape, preprocessing.input_dtype)])
    return samples


def _batched(spec: TensorSpec, batch: int) -> TensorSpec:
    return replace(spec, shape=(batch, *spec.shape[1:]))


def _of_file(
    path: Path,
    name: str,
    wanted: TargetProfile | None,
    changes: Mapping[str, Any],
    options: Mapping[str, str],
    inputs: Literal["random"] | Path | None,
    batch: int,
    shapes: Mapping[str, Sequence[int]],
) -> Subject:
    artifact, profile = _described(path, wanted)
    profile = _changed(profile, changes, options)
    signature = _signature(artifact, profile)
    takes = signature["inputs"]
    if inputs is None:
        raise ConfigError(
            f"{path}: a file without a package needs inputs: {signatures.shown(takes)}",
            "--inputs FOLDER with .npy or .npz arrays, or --random for numbers without meaning (the result says so)",
        )
    stored: list[Array] | None = None
    origin = sources.RANDOM
    if inputs != "random":
        stored, origin = sources.stored_arrays(inputs, [one["name"] for one in takes])
    sizes = signatures.resolve(takes, file=path.name, batch=batch, shapes=shapes, samples=stored)
    specs = signatures.specs(takes, sizes)
    if stored is None:
        tensors = [(spec.shape, spec.dtype) for spec in specs]
        fed = sources.random_samples(tensors, quantized=[spec.scale > 0 for spec in specs])
    else:
        fed = [signatures.feeds(a, spec, file=path.name) for a, spec in zip(stored, specs, strict=True)]
        fed = _equally_many(fed, specs, path.name)
    return Subject(
        name=name,
        artifact=replace(artifact, inputs=specs, outputs=signatures.output_specs(signature["outputs"])),
        profile=profile,
        inputs=tuple(fed),
        inputs_origin=origin,
        target=wanted.id if wanted else "",
        batch=batch,
    )


def _equally_many(fed: list[Array], specs: Sequence[TensorSpec], file: str) -> list[Array]:
    counts = {spec.name: len(array) for spec, array in zip(specs, fed, strict=True)}
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"{file}: not as many samples for every input: {', '.join(f'{k} {n}' for k, n in counts.items())}",
            "store one array per input and sample",
        )
    return [array[: sources.MAX_SAMPLES] for array in fed]


def _described(path: Path, wanted: TargetProfile | None) -> tuple[ExportedArtifact, TargetProfile]:
    """Return a model file, and the profile that is wanted or that of its runtime; inputs and outputs are not known."""
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ModelError(
            f"{path}: unknown kind of file {suffix!r}; allowed are {', '.join(_FORMATS)} and packages",
            "export the model to one of these formats",
        )
    model_format, runtime = _FORMATS[suffix]
    if wanted is not None and wanted.export.format != model_format:
        raise ConfigError(
            f"{path}: target {wanted.id} takes {wanted.export.format} files, not {model_format}",
            "choose a target of this format (`edgeft targets`), or export the model for that one",
        )
    files = [path]
    if suffix == ".xml":
        files.append(path.with_suffix(".bin"))
    elif suffix == ".onnx":
        files += _external_data(path)
    if not path.stat().st_size:
        raise ModelError(f"{path}: the file is empty", "copy or export the model again")
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(
            f"{path}: {missing[0]} is missing", "the file with the weights belongs beside the model file"
        )
    artifact = ExportedArtifact(
        path=path,
        files=tuple(files),
        format=model_format,
        scheme="unknown",
        sha256={file.name: _sha256(file) for file in files},
        size_bytes=sum(file.stat().st_size for file in files),
        coverage=QuantCoverage(mac_ops=0, int8_mac_ops=0),
        inputs=(),
        outputs=(),
    )
    if wanted is not None:
        return artifact, wanted
    profile = {
        "schema": 1,
        "id": runtime.name,
        "title": f"{runtime.name} and a file that edgeft did not make",
        "kind": "cpu",
        "evidence": "measured",
        "runtime": runtime,
        "export": Export(format=model_format),
    }
    return artifact, TargetProfile.model_validate(profile)


def _external_data(path: Path) -> list[Path]:
    """Return the files beside an .onnx that hold its large tensors; none for what is not an ONNX model at all."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import external_data_helper

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return []  # the runtime says what is wrong with it
    outside = [t for t in model.graph.initializer if external_data_helper.uses_external_data(t)]
    names = {entry.value for t in outside for entry in t.external_data if entry.key == "location"}
    return [path.parent / name for name in sorted(names)]


def _changed(profile: TargetProfile, changes: Mapping[str, Any], options: Mapping[str, str]) -> TargetProfile:
    runtime = profile.runtime
    update = {**changes, "options": {**runtime.options, **options}}
    return profile.model_copy(update={"runtime": runtime.model_copy(update=update)})


def _signature(artifact: ExportedArtifact, profile: TargetProfile) -> dict[str, list[dict[str, Any]]]:
    """Ask a worker what the file says of itself: a file that crashes the runtime ends the worker and nothing else."""
    try:
        with Session(artifact, profile, open_file=False) as session:
            signature = session.signature()
    except MissingDependencyError:
        raise
    except MeasurementError as error:
        said = error.message.partition(" failed to signature: ")[2] or error.message
        raise ModelError(
            f"{artifact.path}: not a model that {profile.runtime.name} can read: {said}",
            "it may be damaged or truncated, or need what the runtime does not have",
        ) from error
    if not signature["inputs"]:
        raise ModelError(f"{artifact.path}: the model has no inputs", "there is nothing to feed it with")
    return signature


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
