"""Exporters: a program in, a checked file out. One module per format, and no silent way from one to another."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

from edgeft.errors import ConfigError, ExportError
from edgeft.target import TargetProfile
from edgeft.types import ArtifactScheme, ExportedArtifact, Format, QuantCoverage, QuantModel

__all__ = ["export", "require_integers", "require_scheme", "warm_up"]

_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "tflite": ".tflite", "pt2": ".pt2"}
_STATIC: tuple[ArtifactScheme, ...] = ("float32", "float16", "int8", "int8-weights")
_RECIPE_SCHEMES: dict[str, ArtifactScheme] = {
    "int8": "int8",
    "fp16": "float16",
    "int8-weights": "int8-weights",
}
_SCHEMES: dict[Format, tuple[ArtifactScheme, ...]] = {
    "onnx": (*_STATIC, "int8-dynamic"),
    "openvino": _STATIC,
    "tflite": _STATIC,
    "pt2": ("float32", "float16"),
}


def require_scheme(profile: TargetProfile, scheme: ArtifactScheme) -> None:
    """Raise `ConfigError` if the files of a target cannot hold a scheme, or its device cannot run it."""
    _require_interface(profile)
    if scheme not in _SCHEMES[profile.export.format]:
        raise ConfigError(
            f"target {profile.id}: {profile.export.format} files of {profile.runtime.name} cannot hold "
            f"scheme {scheme!r}",
            'use quantize.scheme = "int8" or "int8-weights", or targets of onnxruntime',
        )
    useful = profile.precision.schemes
    if useful and scheme not in (*useful, "float32"):  # float32 is every target's baseline
        named = [recipe for recipe, file in _RECIPE_SCHEMES.items() if file in useful]
        raise ConfigError(
            f"target {profile.id}: {profile.runtime.name} on {profile.runtime.device!r} does not run scheme {scheme!r} "
            f"as it is meant; allowed are {', '.join(useful)} and float32",
            f"use quantize.scheme = {' or '.join(map(repr, named))} there, in a recipe of its own",
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


def _require_interface(profile: TargetProfile) -> None:
    """Raise `ConfigError` for an interface of the file that its format does not have here."""
    export, off = profile.export, ""
    if export.format == "tflite" and not export.static_shapes:
        off = "static_shapes = false"
    if export.format != "tflite" and export.io_dtype != "float32":
        off = f'io_dtype = "{export.io_dtype}"'
    if off:
        raise ConfigError(
            f"target {profile.id}: [export] {off} is not to be had in {export.format} files",
            "set static_shapes = true"
            if export.format == "tflite"
            else 'set io_dtype = "float32"; export.preprocess = "embedded" in the recipe takes raw uint8 pixels',
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
    require_integers(profile, path, coverage)
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


def require_integers(profile: TargetProfile, path: Path, coverage: QuantCoverage) -> None:
    """Raise `ExportError`, which names them, if a file computes in float where a target runs integers only."""
    in_float = (*coverage.float_ops, *coverage.float_islands)
    if profile.precision.full_integer and in_float:
        raise ExportError(
            f"target {profile.id} runs integers only; {path.name} computes in float: {', '.join(in_float)}",
            "replace these ops in the network (targets/operators.md lists what has integer kernels), or choose another "
            "target",
        )


def warm_up(profile: TargetProfile) -> None:
    """Start a converter that takes seconds to import, where the format has one, and return at once."""
    if profile.export.format == "tflite":
        from edgeft.exporters import tflite

        tflite.converter()
