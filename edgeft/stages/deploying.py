"""The stage that writes exported files, and what their numbers are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgeft import exporters, quantization, target
from edgeft.target import TargetProfile
from edgeft.types import (
    ExportedArtifact,
    FloatArray,
    FloatModel,
    InputArray,
    QuantModel,
)


def export(
    model: QuantModel | FloatModel, profile: TargetProfile | str, folder: Path | str, *, name: str = "model"
) -> ExportedArtifact:
    """Write a program (or a float model) for a target into `folder`, read the file back and check it.

    Args:
        model: What `quantize` returned, or a float model for a float file.
        profile: A target profile, or the name or path of one.
        folder: Made if it does not exist.
        name: File name without suffix.

    Raises:
        ExportError: The converter failed, or the file's numbers are not the program's.
        MissingDependencyError: A package of the target is not installed.
    """
    profile = target.load(profile) if isinstance(profile, str) else profile
    target.require_packages(profile)
    program = quantization.float_program(model) if isinstance(model, FloatModel) else model
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if program.scheme == "int8":
        program = quantization.fuse(program, profile.precision.fused)
    return exporters.export(program, profile, folder, name=name)


def predict_program(program: torch.nn.Module, inputs: InputArray, *, batch_size: int = 32) -> FloatArray:
    """Return the logits (N, K) of a graph in evaluation mode for inputs (N, ...)."""
    batches = np.array_split(inputs, -(-len(inputs) // batch_size))
    with torch.inference_mode():
        return np.concatenate([program(torch.from_numpy(batch)).numpy() for batch in batches])
