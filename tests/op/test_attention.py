"""Attention layers through all three runtimes: which products are int8, and how near the files are to the program."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeft import calibration, exporters, extras, quantization, target
from edgeft.preprocessing import ImagePreprocessing
from edgeft.types import FloatModel, QuantModel

RUNTIMES = ("cpu-onnxruntime", "cpu-openvino", "cpu-litert")
SAMPLES = 16


class Encoder(nn.Module):
    """One post-norm block over the rows of an image, masked where a row's first pixel is negative."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, 6)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, 0]
        keep = x[:, None, None, :, 0] > -0.5
        mask = torch.where(keep, 0.0, torch.finfo(x.dtype).min)
        query, key, value = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        weights = (query @ key.transpose(-1, -2) * 0.5 + mask).softmax(-1)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        x = self.first(x + self.out(attended))
        x = self.second(x + self.narrow(nn.functional.gelu(self.wide(x))))
        logits: torch.Tensor = self.head(x.mean(1))
        return logits


@dataclasses.dataclass
class Deployed:
    program: QuantModel
    floats: np.ndarray[Any, Any]
    expected: np.ndarray[Any, Any]
    logits: dict[str, np.ndarray[Any, Any]]
    coverage: dict[str, Any]

    def steps(self, where: str) -> np.ndarray[Any, Any]:
        """Return how many steps of the output a runtime is away from the program."""
        assert self.program.output is not None
        return np.abs(self.logits[where] - self.expected) / self.program.output.scale


def deploy(network: nn.Module, *, size: int, channels: int) -> Deployed:
    x = torch.rand(SAMPLES, channels, size, size) * 2 - 1
    picture = ImagePreprocessing(
        size=size, resize=size, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels
    )
    with torch.inference_mode():
        floats = network.eval()(x).numpy()
    labels = tuple(f"class {index}" for index in range(floats.shape[1]))
    model = FloatModel(module=network, preprocessing=picture, labels=labels)
    graph = quantization.prepare(model)
    quantization.calibrate(graph, [x], calibration.load("minmax"))
    program = quantization.convert(graph, model, x)
    with torch.inference_mode():
        expected = program.program(x).numpy()
    logits, coverage = {}, {}
    for runtime in RUNTIMES:
        profile = target.load(runtime)
        with tempfile.TemporaryDirectory() as folder:
            artifact = exporters.export(program, profile, Path(folder))
            adapter = importlib.import_module(f"edgeft.runtimes.{profile.runtime.name}").Adapter(
                str(artifact.path),
                device=profile.runtime.device,
                threads=1,
                options=profile.runtime.options,
                inputs=[dataclasses.asdict(spec) for spec in artifact.inputs],
                outputs=[dataclasses.asdict(spec) for spec in artifact.outputs],
            )
            logits[runtime], coverage[runtime] = adapter.run([x.numpy()])[0], artifact.coverage
    return Deployed(program=program, floats=floats, expected=expected, logits=logits, coverage=coverage)


@functools.cache
def encoder() -> Deployed:
    torch.manual_seed(0)
    return deploy(Encoder(16, 2), size=16, channels=1)


@functools.cache
def vision_transformer() -> Deployed:
    torch.manual_seed(0)
    timm = extras.load("timm", "the test of a ViT")
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10, depth=3)
    nn.init.normal_(network.head.weight, std=0.3)
    return deploy(network, size=64, channels=3)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_products_of_activations_are_int8_where_the_runtime_has_the_kernel(runtime: str) -> None:
    coverage = encoder().coverage[runtime]
    assert encoder().program.float_ops == ()
    assert coverage.mac_ops == 7 + 2
    if runtime == "cpu-litert":  # its product of two int8 tensors has no float result for the softmax
        assert coverage.int8_mac_ops == 7 + 1
        assert len(coverage.float_ops) == 1
        assert coverage.float_ops[0].startswith("BATCH_MATMUL")
    else:
        assert coverage.int8_mac_ops == 7 + 2
        assert coverage.float_ops == ()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_files_are_near_the_program(runtime: str) -> None:
    """Layer norm and softmax round otherwise in the last bit everywhere, which moves integers at ties."""
    steps = encoder().steps(runtime)
    assert steps.max() <= 3 + 1e-3
    assert steps.mean() <= 0.5


def test_the_program_means_the_float_network() -> None:
    deployed = encoder()
    assert deployed.program.output is not None
    steps = np.abs(deployed.expected - deployed.floats) / deployed.program.output.scale
    assert steps.mean() <= 4
    assert max(activation.scale for activation in deployed.program.activations) < 1, "a mask was observed"


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_vision_transformer_is_int8_and_near_its_program(runtime: str) -> None:
    """Three blocks of ViT-tiny on 17 tokens: 13 linear layers, the patches' convolution, and two products a block."""
    deployed = vision_transformer()
    coverage = deployed.coverage[runtime]
    assert coverage.mac_ops == 14 + 6
    assert coverage.int8_mac_ops == 14 + (3 if runtime == "cpu-litert" else 6)
    assert deployed.steps(runtime).mean() <= 2
    assert deployed.steps(runtime).max() <= 8
