"""Layers taken back to float, through conversion, export and all three runtimes."""

import dataclasses
import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeft import calibration, exporters, quantization, target
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization.mixed import quantized_layers
from edgeft.types import FloatModel, QuantModel

RUNTIMES = ("cpu-onnxruntime", "cpu-openvino", "cpu-litert")
SIZE, SAMPLES = 8, 16
LAYERS = ("stem", "expand", "depthwise", "project", "head")


class Net(nn.Module):
    """An inverted residual block between a stem and a head: values of both signs, a sum, a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand = nn.Conv2d(8, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.depthwise(nn.functional.relu6(self.expand(x)))
        y = x + self.project(y)
        return self.head(nn.functional.max_pool2d(y, 2).mean([2, 3]))


@functools.cache
def prepared() -> tuple[FloatModel, torch.fx.GraphModule, torch.Tensor]:
    torch.manual_seed(0)
    picture = ImagePreprocessing(size=SIZE, resize=SIZE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = FloatModel(module=Net().eval(), preprocessing=picture, labels=tuple("abcde"))
    x = torch.rand(SAMPLES, 3, SIZE, SIZE) * 2 - 1
    graph = quantization.prepare(model)
    quantization.calibrate(graph, [x], calibration.load("minmax"))
    return model, graph, x


@functools.cache
def program(layers: tuple[str, ...]) -> QuantModel:
    model, graph, x = prepared()
    return quantization.convert(quantization.restore_float(graph, layers), model, x)


CASES = [
    ("stem",),
    pytest.param(("depthwise",), marks=pytest.mark.slow),
    pytest.param(("head",), marks=pytest.mark.slow),
    ("expand", "depthwise"),
]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("layers", CASES, ids="+".join)
def test_every_runtime_computes_the_program(layers: tuple[str, ...], runtime: str, tmp_path: Path) -> None:
    _, _, x = prepared()
    quantized = program(layers)
    profile = target.load(runtime)
    artifact = exporters.export(quantized, profile, tmp_path)
    assert (artifact.coverage.int8_mac_ops, artifact.coverage.mac_ops) == (5 - len(layers), 5)
    assert len(artifact.coverage.float_ops) == len(layers)
    adapter: Any = importlib.import_module(f"edgeft.runtimes.{profile.runtime.name}").Adapter(
        str(artifact.path),
        device=profile.runtime.device,
        threads=1,
        options=profile.runtime.options,
        inputs=[dataclasses.asdict(spec) for spec in artifact.inputs],
        outputs=[dataclasses.asdict(spec) for spec in artifact.outputs],
    )
    logits = adapter.run([x.numpy()])[0]
    with torch.inference_mode():
        expected = quantized.program(x).numpy()
    step = program(()).output
    assert step is not None
    off = np.abs(logits - expected) / step.scale
    # One requantization may go the other way at a tie; float logits are finer than a step.
    assert off.max() <= (1 if quantized.output is not None else 0.6) + 1e-3
    assert off.mean() <= 0.2
    assert adapter.describe()["mac_precision"]["int8"] == 5 - len(layers)


@pytest.mark.parametrize("layers", CASES, ids="+".join)
def test_the_program_names_its_float_layers(layers: tuple[str, ...]) -> None:
    quantized = program(layers)
    assert quantized.float_ops == layers
    assert [layer.name for layer in quantized.layers] == [name for name in LAYERS if name not in layers]
    assert (quantized.output is None) == ("head" in layers)


def test_quantizers_go_with_the_layers_that_they_served() -> None:
    everything = len(program(()).activations)
    assert len(program(("stem",)).activations) == everything - 1, "the input's"
    assert len(program(("depthwise",)).activations) == everything, "its neighbours read and write integers"
    assert len(program(("expand", "depthwise")).activations) == everything - 1, "the one between them"
    # With no convolution left in int8, the sum and the pools behind them are float as well.
    left = {(each.scale, each.zero_point) for each in program(LAYERS[:-1]).activations}
    assert len(left) == 2, "the head's input and output"


def test_what_is_left_of_the_integers_is_unchanged() -> None:
    whole = {layer.name: layer for layer in program(()).layers}
    for layer in program(("depthwise",)).layers:
        assert np.array_equal(layer.weight, whole[layer.name].weight)
        assert layer.input == dataclasses.replace(whole[layer.name].input, name=layer.input.name)


def test_all_layers_but_one_in_float_are_close_to_the_float_network() -> None:
    model, _, x = prepared()
    with torch.inference_mode():
        floats = model.module(x).numpy()
        errors = [np.abs(program(layers).program(x).numpy() - floats).mean() for layers in ((), LAYERS[:-1])]
    assert errors[1] < errors[0]


def test_the_graph_that_was_given_is_not_changed() -> None:
    _, graph, x = prepared()
    with torch.inference_mode():
        before = graph(x)
        quantization.restore_float(graph, ["stem", "pro*"])
        assert torch.equal(graph(x), before)
    assert tuple(quantized_layers(graph)) == LAYERS
