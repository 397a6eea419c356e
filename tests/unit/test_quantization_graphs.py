"""From module to Q/DQ program: what is annotated, what is refused, and that nothing changes on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeft import calibration, quantization
from edgeft.errors import ModelError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization.annotator import FusedGroupAnnotator
from edgeft.quantization.capture import capture
from edgeft.quantization.prepare import activation_sites
from edgeft.types import ActivationQuant, FloatModel, QuantModel

SIZE = 8


class Net(nn.Module):
    """A forward pass over named layers."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.compute = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute(self, x)


def model(module: nn.Module, channels: int = 3) -> FloatModel:
    picture = ImagePreprocessing(
        size=SIZE, resize=SIZE, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels
    )
    return FloatModel(module=module.eval(), preprocessing=picture, labels=("a", "b", "c"))


def images(count: int = 4, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def quantized(module: nn.Module, channels: int = 3) -> QuantModel:
    source = model(module, channels)
    graph = quantization.prepare(source)
    quantization.calibrate(graph, [images(channels=channels)], calibration.load("minmax"))
    return quantization.convert(graph, source, images(channels=channels))


def small(channels: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(54, 3),
    )  # fmt: skip


def numbers(site: ActivationQuant | None) -> tuple[float, int] | None:
    return None if site is None else (site.scale, site.zero_point)


def annotated(module: nn.Module) -> list[str]:
    graph = FusedGroupAnnotator().annotate(capture(module, images(1)))
    names = {n: str(n.target).split(".")[1] for n in graph.graph.nodes if n.op == "call_function"}
    return [op for node, op in names.items() if "quantization_annotation" in node.meta]


def conv(out: int = 4) -> nn.Module:
    return nn.Conv2d(3, out, 3, padding=1)


# --- the annotator ---


def test_groups_end_behind_the_clamp() -> None:
    graph = FusedGroupAnnotator().annotate(
        capture(nn.Sequential(conv(), nn.ReLU6(), nn.Flatten()), images(1))
    )
    outputs = {
        str(n.target).split(".")[1]: n.meta["quantization_annotation"].output_qspec
        for n in graph.graph.nodes
        if "quantization_annotation" in n.meta
    }
    assert outputs["conv2d"] is None
    assert next(spec for op, spec in outputs.items() if op in ("hardtanh", "relu6")) is not None


def test_a_clamp_behind_a_value_that_others_read_is_a_group_of_its_own() -> None:
    net = Net(lambda m, x: (lambda y: (torch.relu(y) + y).flatten(1))(m.a(x)), a=conv())
    assert annotated(net) == ["conv2d", "relu", "add", "flatten"]


def test_adds_of_scalars_and_indices_are_left_alone() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        index = torch.arange(y.shape[1]) + 0
        return (y[:, index] + 1.5).flatten(1)

    names = annotated(Net(forward, a=conv()))
    assert "add" not in names
    assert "conv2d" in names
    assert quantized(Net(forward, a=conv())).layers


@pytest.mark.parametrize("op", [torch.cos, torch.erf])
def test_other_ops_stay_float(op: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert annotated(Net(lambda m, x: op(m.a(x)).mean([2, 3]), a=conv())) == ["conv2d", "mean"]


def test_moved_values_share_their_producers_range() -> None:
    net = Net(
        lambda m, x: m.b(nn.functional.max_pool2d(m.a(x), 2)).mean([2, 3]), a=conv(), b=nn.Conv2d(4, 3, 1)
    )
    first, second = quantized(net).layers
    assert first.output is not None
    assert (first.output.scale, first.output.zero_point) == (second.input.scale, second.input.zero_point)


def test_concat_takes_the_union_and_does_not_observe_twice() -> None:
    net = Net(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)).mean([2, 3]),
        a=conv(),
        b=conv(),
        c=nn.Conv2d(8, 3, 1),
    )
    nn.init.uniform_(net.b.weight, -3, 3)
    by_name = {layer.name: layer for layer in quantized(net).layers}
    scales = {by_name["c"].input.scale, by_name["a"].output.scale, by_name["b"].output.scale}  # type: ignore[union-attr]
    assert len(scales) == 1


# --- capture ---


def test_a_branch_on_values_is_refused_with_a_hint() -> None:
    net = Net(lambda m, x: m.a(x).mean([2, 3]) if x.sum() > 0 else x.mean([2, 3]), a=conv())
    with pytest.raises(ModelError, match=r"torch\.export cannot capture") as caught:
        quantization.prepare(model(net))
    assert caught.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.bias", "1.running_var"])
def test_values_that_are_not_finite_are_refused_by_name(name: str, value: float) -> None:
    net = small()
    tensor = dict([*net.named_parameters(), *net.named_buffers()])[name]
    tensor.data[0] = value
    with pytest.raises(ModelError, match=name):
        quantization.prepare(model(net))


def test_a_batch_norm_without_a_convolution_before_it_becomes_one() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), nn.Flatten())
    layers = quantized(net).layers
    assert [(layer.name, layer.weight.shape) for layer in layers] == [
        ("0", (3, 1, 1, 1)),
        ("1", (3, 3, 3, 3)),
    ]


def test_two_batch_norms_behind_one_layer_are_refused() -> None:
    net = Net(
        lambda m, x: (m.n(m.a(x)) + m.o(m.a(x))).mean([2, 3]),
        a=nn.Conv2d(3, 3, 1), n=nn.BatchNorm2d(3), o=nn.BatchNorm2d(3),
    )  # fmt: skip
    nn.init.constant_(net.n.weight, 3)
    with pytest.raises(ModelError, match="changed its outputs"):
        quantization.prepare(model(net))


def test_a_batch_size_in_a_reshape_is_refused() -> None:
    with pytest.raises(ModelError, match="batch"):
        quantization.prepare(model(Net(lambda m, x: m.a(x.reshape(2, 3, 8, 8)).flatten(1), a=conv())))


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_padding_by_name_becomes_numbers(kernel: int) -> None:
    net = Net(lambda m, x: m.a(x).mean([2, 3]), a=nn.Conv2d(3, 3, kernel, padding="same"))
    assert len(quantized(net).layers) == 1


def test_an_even_kernel_that_pads_one_side_more_is_float_by_name() -> None:
    net = Net(lambda m, x: m.a(x).mean([2, 3]), a=nn.Conv2d(3, 3, 2, padding="same"))
    program = quantized(net)
    assert not program.layers
    assert program.float_ops == ("a",)


def test_the_callers_module_is_not_touched() -> None:
    net = small().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    source = FloatModel(module=net, preprocessing=model(small()).preprocessing, labels=("a", "b", "c"))
    graph = quantization.prepare(source)
    quantization.calibrate(graph, [images()], calibration.load("minmax"))
    quantization.convert(graph, source, images())
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# --- phases and conversion ---


def test_phases_switch_dropout_and_observers() -> None:
    source = model(small())
    graph = quantization.prepare(source)
    quantization.calibrate(graph, [images()], calibration.load("minmax"))
    phases = quantization.QatPhases(graph, observe_epochs=1)
    ranges = lambda: torch.cat([site.high for site in activation_sites(graph) if site.observes])  # noqa: E731

    phases.enter_training(0)
    torch.manual_seed(0)
    first, second = graph(images()), graph(images())
    assert not torch.equal(first, second), "dropout is off in training"
    moved = ranges()
    graph(images() * 3)
    assert not torch.equal(moved, ranges())

    phases.enter_evaluation()
    moved = ranges()
    assert torch.equal(graph(images() * 9), graph(images() * 9)), "dropout is on in evaluation"
    assert torch.equal(moved, ranges()), "validation data moved the ranges"

    phases.enter_training(1)
    graph(images() * 9)
    assert torch.equal(moved, ranges()), "observers run after observe_epochs"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_conversion_is_exact_after_training_steps(channels: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    source = model(small(channels).to(memory_format=layout), channels)
    graph = quantization.prepare(source)
    x = images(8, channels).to(memory_format=layout)
    quantization.calibrate(graph, [x], calibration.load("minmax"))
    phases = quantization.QatPhases(graph, observe_epochs=1)
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1)
    for _ in range(3):
        phases.enter_training(0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(graph(x), torch.arange(8) % 3).backward()
        optimizer.step()
    phases.enter_evaluation()
    program = quantization.convert(graph, source, x)  # compares bit for bit itself
    for layer in program.layers:
        assert layer.weight.dtype == np.int8
        assert np.abs(layer.weight.astype(int)).max() == 127
        assert layer.bias is not None
        assert layer.bias.dtype == np.int32


def test_a_layer_that_is_called_twice_has_a_bias_on_each_grid() -> None:
    net = Net(lambda m, x: m.a(m.a(x)).mean([2, 3]), a=nn.Conv2d(3, 3, 3))
    first, second = (layer.bias for layer in quantized(net).layers)
    assert first is not None
    assert second is not None
    assert not np.array_equal(first, second)


def test_a_program_is_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    program = quantized(small())
    quantization.save(program, tmp_path)
    loaded = quantization.load(tmp_path, program)
    assert (loaded.labels, loaded.preprocessing) == (program.labels, program.preprocessing)
    # torch.export names the nodes anew: what counts are the numbers.
    assert numbers(loaded.output) == numbers(program.output)
    assert [numbers(a) for a in loaded.activations] == [numbers(a) for a in program.activations]
    for ours, theirs in zip(program.layers, loaded.layers, strict=True):
        assert (ours.name, ours.op) == (theirs.name, theirs.op)
        assert (numbers(ours.input), numbers(ours.output)) == (numbers(theirs.input), numbers(theirs.output))
        for field in ("weight", "weight_scale", "bias"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    with torch.inference_mode():
        for count in (1, 3):
            assert torch.equal(program.program(images(count)), loaded.program(images(count)))
