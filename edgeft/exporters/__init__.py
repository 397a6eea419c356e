"""Exporters: a program in, a checked file out. One module per format, and no silent way from one to another."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

from edgeft.target import TargetProfile
from edgeft.types import ExportedArtifact, QuantModel

_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "tflite": ".tflite"}


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
        ExportError: The converter failed, or the file's numbers are not the program's.
        MissingDependencyError: The format's converter is not installed.
    """
    # Imported on demand: each exporter pulls in its own, heavy converter.
    exporter = importlib.import_module(f"edgeft.exporters.{profile.export.format}")
    path = folder / f"{name}{_SUFFIXES[profile.export.format]}"
    coverage, image, logits = exporter.write(model, profile, path)
    files = (path, path.with_suffix(".bin")) if profile.export.format == "openvino" else (path,)
    return ExportedArtifact(
        path=path,
        files=files,
        format=profile.export.format,
        scheme="int8" if model.layers else "float32",
        sha256={file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        size_bytes=sum(file.stat().st_size for file in files),
        coverage=coverage,
        inputs=(image,),
        outputs=(logits,),
    )


def warm_up(profile: TargetProfile) -> None:
    """Start a converter that takes seconds to import, where the format has one, and return at once."""
    if profile.export.format == "tflite":
        from edgeft.exporters import tflite

        tflite.converter()
