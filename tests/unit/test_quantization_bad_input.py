"""Networks that cannot be quantized as they are: one message that names the place and the cure."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeft import calibration, quantization
from edgeft.errors import ModelError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization.capture import capture
from edgeft.types import FloatModel

SIZE = 8


class Branching(nn.Module):
    """Looks at a value to decide what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if y.mean() > 0:  # the line
            y = 2 * y
        return y.flatten(1)


class Counting(nn.Module):
    """Turns a value into a Python number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, : self.width(x)]

    def width(self, x: torch.Tensor) -> int:
        return range(int(x.abs().max()))[0]  # the line


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def model(module: nn.Module) -> FloatModel:
    picture = ImagePreprocessing(size=SIZE, resize=SIZE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    return FloatModel(module=module.eval(), preprocessing=picture, labels=("a", "b"))


@pytest.mark.parametrize("network", [Branching, Counting])
def test_what_cannot_be_captured_is_named_with_its_line(network):
    with pytest.raises(ModelError) as caught:
        capture(network(), images())
    source = Path(__file__).read_text().splitlines()
    lines = [number for number, line in enumerate(source, 1) if line.endswith("  # the line")]
    number = lines[[Branching, Counting].index(network)]
    assert f"cannot capture {network.__name__}: " in caught.value.message
    assert f"{__file__}:{number}: " in caught.value.message
    assert "torch.where" in caught.value.hint
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_named(value):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    network[2].weight.data[1, 3] = value
    with pytest.raises(ModelError, match=r"weight '2\.weight' holds NaN or infinite values"):
        quantization.prepare(model(network))


def test_a_dead_channel_costs_nothing():
    """All weights zero: its scale carries no information, and its bias has to fit into 32 bits all the same."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    network[0].weight.data[1] = 0.0
    network[0].bias.data[1] = 3.0
    source = model(network)
    graph = quantization.prepare(source)
    quantization.calibrate(graph, [images()], calibration.load("minmax"))
    program = quantization.convert(graph, source, images())
    first = program.layers[0]
    assert not first.weight[1].any()
    assert first.bias is not None
    assert 0 < first.bias[1] <= 2**30
    assert np.isclose(first.bias[1] * first.input.scale * first.weight_scale[1], 3.0, rtol=1e-3)
