"""Fused groups: which quantizers go, which stay, and that the function is still the program's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeft import calibration, quantization
from edgeft.errors import QuantizationError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization.operators import aten
from edgeft.types import FloatModel, QuantModel


class Gated(nn.Module):
    """A layer with a self-gated activation, a residual addition and a head."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.activation = activation
        self.project = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.activation(self.stem(x))
        return self.head(features + self.project(features)).mean([2, 3])


def program(activation: nn.Module) -> QuantModel:
    torch.manual_seed(0)
    picture = ImagePreprocessing(size=8, resize=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = FloatModel(module=Gated(activation).eval(), preprocessing=picture, labels=("a", "b", "c", "d"))
    x = torch.randn(8, 3, 8, 8)
    graph = quantization.prepare(model)
    quantization.calibrate(graph, [x], calibration.load("minmax"))
    return quantization.convert(graph, model, x)


def targets(model: QuantModel) -> list[object]:
    return [node.target for node in model.program.graph.nodes]


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.Hardswish()], ids=["silu", "hardswish"])
def test_a_whole_group_loses_its_two_quantizers_and_keeps_its_function(activation: nn.Module) -> None:
    shared = program(activation)
    fused = quantization.fuse(shared, ["conv-activation", "activation-mul"])
    # Between layer and activation, and between gate and product.
    assert len(fused.deviations) == 2
    assert {a.name for a in shared.activations} - {a.name for a in fused.activations} == set(fused.deviations)
    x = torch.randn(8, 3, 8, 8)
    with torch.inference_mode():
        steps = (fused.program(x) - shared.program(x)).abs() / shared.output.scale  # type: ignore[union-attr]
    assert 0 < float(steps.max()) <= 8


def test_hard_swish_is_one_op_again_where_its_gate_is_not_rounded() -> None:
    shared = program(nn.Hardswish())
    assert aten.hardswish.default not in targets(shared)
    fused = quantization.fuse(shared, ["activation-mul"])
    assert targets(fused).count(aten.hardswish.default) == 1
    assert len(fused.layers) == len(shared.layers) - 1, "the gate's convolution is gone"


def test_each_group_leaves_out_its_own_quantizer() -> None:
    shared = program(nn.SiLU())
    left_out = {
        group: quantization.fuse(shared, [group]).deviations
        for group in ("conv-activation", "activation-mul", "conv-add")
    }
    assert [len(names) for names in left_out.values()] == [1, 1, 1]
    assert len({name for names in left_out.values() for name in names}) == 3


def test_layers_and_scales_that_stay_are_the_programs() -> None:
    shared = program(nn.SiLU())
    fused = quantization.fuse(shared, ["conv-activation", "activation-mul", "conv-add"])
    for before, after in zip(shared.layers, fused.layers, strict=True):
        assert (before.weight == after.weight).all()
        assert (before.bias == after.bias).all()
        assert before.input == after.input
    assert set(fused.activations) < set(shared.activations)


def test_without_such_a_group_the_program_itself_comes_back() -> None:
    shared = program(nn.ReLU())
    assert quantization.fuse(shared, ["conv-activation", "activation-mul"]) is shared
    assert quantization.fuse(shared, []) is shared


def test_a_fused_program_is_not_fused_again() -> None:
    fused = quantization.fuse(program(nn.SiLU()), ["activation-mul"])
    with pytest.raises(QuantizationError, match="fused for a target already"):
        quantization.fuse(fused, ["conv-add"])
