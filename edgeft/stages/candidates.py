"""What a network would cost on a target, found out on its exported file before anything is trained.

Latency, file size and memory of an integer file depend on the shapes and the scheme, not on the values of the weights.
So a candidate is calibrated on a few samples, goes through the real exporter, and is timed on the real runtime, in
turns with the unpruned network. For a device that is not here, its compiler estimates the latency of both.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeft import calibration, compilers, measure, quantization, target
from edgeft.errors import DataError
from edgeft.pruning.search import Cost
from edgeft.recipe import Measure, Quantize
from edgeft.stages.deploying import export
from edgeft.target import TargetProfile
from edgeft.types import (
    ExportedArtifact,
    FloatModel,
    InputArray,
    Progress,
    QuantModel,
    silent,
)

UNPRUNED = "unpruned"
INPUTS = 8
"""Real inputs that candidates are calibrated on and timed with."""
_TRIES, _WIDE = 3, 0.1
"""A timing whose interval is wider than this share of the ratio was disturbed and is taken again: one wrong ratio would
send the whole search astray. Of as many tries the one with the narrowest interval counts."""


def quick_program(
    model: FloatModel, quantize: Quantize, profile: TargetProfile, inputs: torch.Tensor
) -> QuantModel:
    """Return the program of an untrained network at a scheme, with the ops that the final one will have.

    Args:
        model: The float network.
        quantize: Scheme and layers that stay float; the method does not matter here.
        profile: Whose numerics count.
        inputs: A few real inputs (N, ...) to calibrate on.

    Raises:
        ModelError: torch.export cannot capture the network.
        QuantizationError: A range or a weight is not finite.
    """
    numerics = profile.precision.numerics
    match quantize.scheme:
        case "none":
            return quantization.float_program(model)
        case "fp16":
            return quantization.halve_weights(model)
        case "int8-weights" | "int8-dynamic":
            dynamic = quantize.scheme == "int8-dynamic"
            return quantization.quantize_weights(model, numerics=numerics, dynamic=dynamic)
    source = dataclasses.replace(model, module=copy.deepcopy(model.module).eval())
    graph = quantization.prepare(source, numerics=numerics)
    quantization.calibrate(graph, [inputs], calibration.load("minmax"))
    in_float = quantization.matching_layers(quantize.float_layers, list(quantization.quantized_layers(graph)))
    if in_float:
        graph = quantization.restore_float(graph, in_float)
    return quantization.convert(graph, source, inputs[:1])


class Trials:
    """Exports networks for one target and tells what they cost, relative to the unpruned one.

    Args:
        unpruned: The network that everything is compared with; exported at once.
        kind: What is asked for: ``latency``, ``size`` or ``ram``. Only a latency needs the clock, or the target's
            compiler.
        profile: The target.
        quantize: The scheme of the files.
        inputs: A few real inputs (N, ...), to calibrate on and to time with.
        timing: Rounds and stop rule of the clock.
        folder: Where files are written; that of the unpruned network stays, the candidates' do not.
        embedded: Whether the files normalise by themselves and take raw pixels.
        progress: Told what is timed.

    Raises:
        ConfigError: The target cannot tell what is asked for.
        ExportError: The unpruned network cannot be exported or compiled.
        MissingDependencyError: A package of the target is not installed.
    """

    def __init__(
        self,
        unpruned: FloatModel,
        kind: str,
        profile: TargetProfile,
        quantize: Quantize,
        inputs: torch.Tensor,
        timing: Measure,
        folder: Path,
        *,
        embedded: bool = False,
        progress: Progress = silent,
    ) -> None:
        target.require_budget(profile, kind)
        self._model, self._kind, self._profile, self._quantize = unpruned, kind, profile, quantize
        self._embedded = embedded
        if embedded:
            inputs = quantization.raw_inputs(unpruned, inputs)
        self._inputs, self._timing, self._folder, self._progress = inputs, timing, folder, progress
        self.exports = 0
        """Files written so far, that of the unpruned network included."""
        self.unpruned = self._export(unpruned.module, UNPRUNED)

    def cost(self, module: nn.Module) -> Cost:
        """Return what a network costs, with its figures.

        Raises:
            ExportError: It cannot be exported or compiled.
            MeasurementError: A worker died or the runtime refused the file.
        """
        artifact = self._export(module, "candidate")
        try:
            if self._kind == "latency" and self._profile.clocked:
                return self._timed(artifact)
            return self._counted(artifact)
        finally:
            for file in artifact.files:
                file.unlink(missing_ok=True)

    def _timed(self, artifact: ExportedArtifact) -> Cost:
        variants = [
            measure.Variant(label=label, artifact=each, profile=self._profile)
            for label, each in ((UNPRUNED, self.unpruned), ("candidate", artifact))
        ]
        inputs: InputArray = np.asarray(self._inputs.numpy())
        tries = []
        for _ in range(_TRIES):
            base, head = measure.latencies(
                variants,
                inputs,
                rounds=self._timing.rounds,
                min_runs=self._timing.min_runs,
                min_seconds=self._timing.min_seconds,
                progress=lambda message, **_: self._progress(f"export {self.exports}, {message}"),
            )
            tries.append((measure.ratio(head, base), head, base))
            if tries[-1][0].high - tries[-1][0].low <= _WIDE * tries[-1][0].ratio:
                break
        ratio, head, base = min(tries, key=lambda tried: (tried[0].high - tried[0].low) / tried[0].ratio)
        figures: Mapping[str, Any] = {
            "latency_ms": head.p50_ms,
            "unpruned_ms": base.p50_ms,
            "size_bytes": artifact.size_bytes,
        }
        return Cost(value=ratio.ratio, low=ratio.low, high=ratio.high, figures=figures)

    def _counted(self, artifact: ExportedArtifact) -> Cost:
        amount, unpruned = self._amount(artifact), self._unpruned_amount
        figures: dict[str, Any] = {"size_bytes": artifact.size_bytes}
        if self._kind == "latency":
            figures |= {"latency_ms": amount, "unpruned_ms": unpruned}
        else:
            figures[f"{self._kind}_bytes"] = amount
        return Cost(value=amount / unpruned, figures=figures)

    @cached_property
    def _unpruned_amount(self) -> float:
        return self._amount(self.unpruned)

    def _amount(self, artifact: ExportedArtifact) -> float:
        """Return what a file takes of what is asked for, in bytes, or in ms by the target's compiler."""
        if self._kind != "size":
            self._progress(f"export {self.exports}, {self._kind} of {artifact.path.stem}")
        return amount(self._kind, artifact, self._profile)

    def _export(self, module: nn.Module, name: str) -> ExportedArtifact:
        self.exports += 1
        model = dataclasses.replace(self._model, module=module)
        if self._embedded:
            model = quantization.embed_normalization(model)
        program = quick_program(model, self._quantize, self._profile, self._inputs)
        return export(program, self._profile, self._folder, name=name)


def amount(kind: str, artifact: ExportedArtifact, profile: TargetProfile) -> float:
    """Return what a file takes on a target: bytes of size or RAM, or ms of latency by the target's compiler.

    Args:
        kind: ``size``, ``ram`` or ``latency``.
        artifact: The file.
        profile: The target.

    Raises:
        ExportError: It cannot be compiled.
        MeasurementError: The runtime refused it.
    """
    if kind == "size":
        return artifact.size_bytes
    if profile.compiler is not None:
        with tempfile.TemporaryDirectory(prefix="edgeft-candidate-") as folder:
            estimate = compilers.compile_for(profile, artifact.path, Path(folder))
        return estimate.ms if kind == "latency" else estimate.sram_bytes
    if profile.runtime.name == "tflm":
        with measure.Session(artifact, profile) as session:
            return int(session.describe().details["arena_bytes"])
    return measure.memory.activation_bytes(artifact.path)


def few_inputs(batches: Any) -> torch.Tensor:
    """Return the first `INPUTS` inputs (N, ...) of batches of (x, y), or all where there are fewer.

    Raises:
        DataError: There is no batch.
    """
    taken: list[torch.Tensor] = []
    for inputs, _ in batches:
        taken.append(inputs)
        if sum(map(len, taken)) >= INPUTS:
            break
    if not taken:
        raise DataError(
            "candidates are tried with inputs of the validation batches, and these are empty",
            "give it at least one batch of (inputs, labels)",
        )
    return torch.cat(taken)[:INPUTS]
