"""Exporters: a program in, a checked file out. One module per format, and no silent way from one to another."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

from edgeft.errors import ConfigError, ExportError
from edgeft.exporters.activation_memory import activation_bytes
from edgeft.target import TargetProfile
from edgeft.types import ArtifactScheme, ExportedArtifact, Format, QuantModel

__all__ = ["activation_bytes", "export", "require_scheme", "warm_up"]

_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "tflite": ".tflite"}
_STATIC: tuple[ArtifactScheme, ...] = ("float32", "float16", "int8", "int8-weights")
_SCHEMES: dict[Format, tuple[ArtifactScheme, ...]] = {
    "onnx": (*_STATIC, "int8-dynamic"),
    "openvino": _STATIC,
    "tflite": _STATIC,
}


def require_scheme(profile: TargetProfile, scheme: ArtifactScheme) -> None:
    """Raise `ConfigError` if the files of a target cannot hold a scheme, or its device cannot run it."""
    if scheme not in _SCHEMES[profile.export.format]:
        raise ConfigError(
            f"target {profile.id}: {profile.export.format} files of {profile.runtime.name} cannot hold "
            f"scheme {scheme!r}",
            'use quantize.scheme = "int8" or "int8-weights", or targets of onnxruntime',
        )
    if scheme == "int8-dynamic" and (profile.export.batch != 1 or not profile.export.static_shapes):
        raise ConfigError(
            f"target {profile.id}: scheme {scheme!r} finds one range for the whole batch, and so needs batches of 1",
            "set [export] batch = 1 and static_shapes = true in the target's profile",
        )
    if profile.precision.full_integer and scheme != "int8":
        raise ConfigError(
            f"target {profile.id} runs integers only; scheme {scheme!r} computes in float",
            'use quantize.scheme = "int8"',
        )


def export(
    model: QuantModel, profile: TargetProfile, folder: Path, *, name: str = "model"
) -> ExportedArtifact:
    """Write `model` for `profile`'s runtime into `folder` and check the file against the program.

    Args:
        model: A Q/DQ program, or a float program (no integer layers).
        profile: Names the format, layout and integer types.
        folder: Existing folder for the file or files.
        name: File name without suffix.

    Raises:
        ConfigError: The target's files cannot hold the program's scheme.
        ExportError: The converter failed, the file's numbers are not the program's, or it computes in float on a
            target that runs integers only.
        MissingDependencyError: The format's converter is not installed.
    """
    require_scheme(profile, model.scheme)
    # Imported on demand: each exporter pulls in its own, heavy converter.
    exporter = importlib.import_module(f"edgeft.exporters.{profile.export.format}")
    importlib.import_module("edgeft.exporters.check").check_numerics(model, profile)
    path = folder / f"{name}{_SUFFIXES[profile.export.format]}"
    coverage, image, logits = exporter.write(model, profile, path)
    in_float = (*coverage.float_ops, *coverage.float_islands)
    if profile.precision.full_integer and in_float:
        raise ExportError(
            f"target {profile.id} runs integers only; {path.name} computes in float: {', '.join(in_float)}",
            "replace these ops in the network (targets/operators.md lists what has integer kernels), or choose another "
            "target",
        )
    files = (path, path.with_suffix(".bin")) if profile.export.format == "openvino" else (path,)
    return ExportedArtifact(
        path=path,
        files=files,
        format=profile.export.format,
        scheme=model.scheme,
        sha256={file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        size_bytes=sum(file.stat().st_size for file in files),
        coverage=coverage,
        inputs=(image,),
        outputs=(logits,),
        deviations=model.deviations,
    )


def warm_up(profile: TargetProfile) -> None:
    """Start a converter that takes seconds to import, where the format has one, and return at once."""
    if profile.export.format == "tflite":
        from edgeft.exporters import tflite

        tflite.converter()
