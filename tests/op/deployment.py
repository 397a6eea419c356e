"""Small networks taken through annotation, calibration, conversion, export and the runtimes."""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import integer_reference
import numpy as np
import torch
from torch import nn

from edgeft import calibration, exporters, quantization, target
from edgeft.preprocessing import ImagePreprocessing
from edgeft.types import FloatModel, QuantModel

Array = np.ndarray[Any, np.dtype[np.float32]]
RUNTIMES = ("cpu-onnxruntime", "cpu-openvino", "cpu-litert")
EVERYWHERE = (*RUNTIMES, "mcu-tflm")
"""A microcontroller lacks kernels that the CPUs have: it takes part where its kernels are the matter."""
SIZE, SAMPLES = 8, 16


class Lambda(nn.Module):
    """A forward pass over named layers."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.compute = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute(self, x)


class Branches(nn.Module):
    """Several ops on one stem, side by side in the logits."""

    def __init__(self, branches: Mapping[str, nn.Module], stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = stem or nn.Identity()
        self.branches = nn.ModuleDict(branches)

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        stem = self.stem(x)
        return [branch(stem).flatten(1) for branch in self.branches.values()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.parts(x)
        while len(parts) > 1:  # the kernel of TensorFlow Lite Micro joins ten at most
            parts = [torch.cat(parts[i : i + 10], 1) for i in range(0, len(parts), 10)]
        return parts[0]


@dataclasses.dataclass
class Deployed:
    """A network in every form that it takes."""

    network: nn.Module
    program: QuantModel
    inputs: Array
    floats: Array
    expected: Array
    logits: dict[str, Array]
    artifacts: dict[str, Any]
    reports: dict[str, dict[str, Any]]
    refused: dict[str, str]
    columns: dict[str, slice]

    @property
    def step(self) -> float:
        assert self.program.output is not None
        return self.program.output.scale


def float_model(network: nn.Module, size: int = SIZE) -> FloatModel:
    with torch.inference_mode():
        classes = network.eval()(torch.zeros(2, 3, size, size)).shape[1]
    picture = ImagePreprocessing(size=size, resize=size, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    labels = tuple(f"class {index}" for index in range(classes))
    return FloatModel(module=network, preprocessing=picture, labels=labels)


def deploy_network(
    network: nn.Module,
    name: str = "",
    *,
    low: float = -1.0,
    high: float = 1.0,
    size: int = SIZE,
    runtimes: tuple[str, ...] = RUNTIMES,
) -> Deployed:
    """Quantize a network and run its files on inputs from a range; numpy integers follow at the usual size only."""
    x = torch.rand(SAMPLES, 3, size, size) * (high - low) + low
    model = float_model(network, size)
    graph = quantization.prepare(model)
    quantization.calibrate(graph, [x[:8], x[8:]], calibration.load("minmax"))
    program = quantization.convert(graph, model, x)
    with torch.inference_mode():
        floats, logits = network(x).numpy(), {"torch": program.program(x).numpy()}
        parts = network.parts(x) if isinstance(network, Branches) else [network(x)]
    names = list(network.branches) if isinstance(network, Branches) else [name]
    ends = np.cumsum([0, *(part.shape[1] for part in parts)])
    artifacts, reports, files, refused = {}, {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for runtime in runtimes:
            profile = target.load(runtime)
            settings = (profile.export.model_dump_json(), profile.precision.model_dump_json())
            if settings not in files:  # two runtimes may take the same file
                files[settings] = exporters.export(program, profile, Path(folder))
            artifacts[runtime] = artifact = files[settings]
            try:
                adapter = importlib.import_module(f"edgeft.runtimes.{profile.runtime.name}").Adapter(
                    str(artifact.path),
                    device=profile.runtime.device,
                    threads=1,
                    options=profile.runtime.options,
                    inputs=[dataclasses.asdict(spec) for spec in artifact.inputs],
                    outputs=[dataclasses.asdict(spec) for spec in artifact.outputs],
                )
                logits[runtime], reports[runtime] = adapter.run([x.numpy()])[0], adapter.describe()
            except RuntimeError as error:
                refused[runtime] = str(error)
    return Deployed(
        network=network,
        program=program,
        inputs=x.numpy(),
        floats=floats,
        expected=integer_reference.run(program.program, x.numpy()) if size == SIZE else logits["torch"],
        logits=logits,
        artifacts=artifacts,
        reports=reports,
        refused=refused,
        columns={n: slice(*ends[i : i + 2]) for i, n in enumerate(names)},
    )
