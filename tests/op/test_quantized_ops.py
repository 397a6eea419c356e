"""One op at a time through annotation, calibration, conversion, export and all runtimes, against integers.

Converters cost seconds, so ops share a network: every branch is flattened and concatenated to the logits, where
each can be looked at alone. The reference (`integer_reference`) is numpy on the program's integers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from deployment import EVERYWHERE, SIZE, Branches, Deployed, Lambda, deploy_network
from torch import nn

from edgeft.errors import EdgeftError


def convolution(*arguments: Any, **settings: Any) -> nn.Module:
    return nn.Conv2d(*arguments, **settings)


def normalized(*after: nn.Module) -> nn.Module:
    """A convolution with a batch norm that has seen something, and what follows it."""
    norm = nn.BatchNorm2d(8)
    for values, low, high in (
        (norm.weight, 0.5, 2), (norm.bias, -0.5, 0.5), (norm.running_mean, -0.3, 0.3), (norm.running_var, 0.2, 1),
    ):  # fmt: skip
        nn.init.uniform_(values, low, high)
    return nn.Sequential(nn.Conv2d(6, 8, 3, bias=False), norm, *after)


def equal_biases() -> nn.Module:
    layer = nn.Conv2d(6, 8, 3)
    nn.init.constant_(layer.bias, 0.25)
    return layer


def twice() -> nn.Module:
    return Lambda(lambda m, x: m.layer(m.layer(x)), layer=nn.Conv2d(6, 6, 3))


def mac_ops() -> nn.Module:
    """Six input channels, made without arithmetic: the stem is exact."""
    branches = {
        "plain": convolution(6, 8, 3),
        "stride": convolution(6, 8, 3, stride=2),
        "stride-by-axis": convolution(6, 8, (3, 1), stride=(1, 2)),
        "padding": convolution(6, 8, 3, padding=2),
        "same-padding": convolution(6, 8, 3, padding="same"),
        "dilation": convolution(6, 8, 3, dilation=2),
        "grouped": convolution(6, 8, 3, groups=2),
        "depthwise": convolution(6, 6, 3, groups=6, padding=1),
        "depthwise-twofold": convolution(6, 12, 3, groups=6, stride=2),
        "pointwise": convolution(6, 8, 1),
        "no-bias": convolution(6, 8, 3, bias=False),
        "equal-biases": equal_biases(),
        "to-1-channel": convolution(6, 1, 3),
        "1-to-3-channels": Lambda(lambda m, x: m.layer(x[:, :1]), layer=nn.Conv2d(1, 3, 3)),
        "3-to-17-channels": Lambda(lambda m, x: m.layer(x[:, :3]), layer=nn.Conv2d(3, 17, 3)),
        "17-to-8-channels": nn.Sequential(nn.Conv2d(6, 17, 1), nn.Conv2d(17, 8, 3)),
        "relu": nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU()),
        "bn": normalized(),
        "bn-relu": normalized(nn.ReLU(inplace=True)),
        "bn-relu6": normalized(nn.ReLU6()),
        "hardtanh": nn.Sequential(nn.Conv2d(6, 8, 3), nn.Hardtanh(-0.5, 0.25)),
        "conv1d": Lambda(
            lambda m, x: m.layer(x.flatten(2)), layer=nn.Conv1d(6, 8, 3, stride=2, padding=1)
        ),
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(6 * SIZE * SIZE, 10)),
        "linear-no-bias": nn.Sequential(nn.Flatten(), nn.Linear(6 * SIZE * SIZE, 10, bias=False)),
        "linear-on-tokens": Lambda(lambda m, x: m.layer(x.flatten(2)), layer=nn.Linear(SIZE * SIZE, 5)),
        "one-layer-twice": twice(),
    }  # fmt: skip
    return Branches(branches, Lambda(lambda _, x: torch.cat([x, x], 1)))


def joins() -> nn.Module:
    def two(forward: Callable[[Any, torch.Tensor], torch.Tensor]) -> nn.Module:
        return Lambda(forward, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(3, 8, 1))

    branches = {
        "add": two(lambda m, x: m.a(x) + m.b(x)),
        "add-relu": two(lambda m, x: torch.relu(m.a(x) + m.b(x))),
        "add-to-itself": Lambda(lambda m, x: (lambda y: y + y)(m.a(x)), a=nn.Conv2d(3, 8, 3)),
        "add-input": Lambda(lambda m, x: m.a(x) + x, a=nn.Conv2d(3, 3, 3, padding=1)),
        "max-pool": nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)),
        "max-pool-padded": nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, 2, 1)),
        "residual": two(lambda m, x: (lambda y: torch.relu(y + m.b(x)))(torch.relu(m.a(x)))),
        "average-pool": nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AvgPool2d(3)),
        "adaptive-average-to-2": nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(2)),
        "dropout": nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.5)),
    }
    return Branches(branches)


def averages() -> nn.Module:
    """Averages have a scale of their own, narrower than that of what they average."""
    branches = {
        "adaptive-average": nn.AdaptiveAvgPool2d(1),
        "mean": Lambda(lambda _, x: x.mean([2, 3])),
    }
    return Branches(branches, nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()))


def concat() -> nn.Module:
    net = Lambda(
        lambda m, x: torch.cat([m.small(x), m.large(x)], 1).flatten(1),
        small=nn.Conv2d(3, 4, 3),
        large=nn.Conv2d(3, 4, 3),
    )
    nn.init.uniform_(net.large.weight, -1.5, 1.5)
    return net


def single() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten())


def dead_channel() -> nn.Module:
    """All weights of channel 3 are zero, and its bias would overflow int32 at the scale that zeros suggest."""
    net = single()
    net[0].weight.data[3] = 0
    net[0].bias.data[3] = 50
    return net


def islands() -> nn.Module:
    branches = {
        "sigmoid": nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 8, 3)),
        "hardswish": nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 8, 3)),
    }
    return Branches(branches)


def attention() -> nn.Module:
    return Lambda(
        lambda m, x: (m.a(x).flatten(2) @ m.b(x).flatten(2).transpose(1, 2)).flatten(1),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 4, 1),
    )


def residual_sum() -> nn.Module:
    """An inverted residual block, whose addition OpenVINO fuses into the convolution before it."""
    layers = (nn.Conv2d(8, 16, 1), nn.ReLU6(), nn.Conv2d(16, 8, 1))
    block = Lambda(lambda m, x: x + m.expand(x), expand=nn.Sequential(*layers))
    last = nn.Conv2d(8, 8, 1, bias=False)
    nn.init.dirac_(last.weight)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), block, last, nn.Flatten())


def classifier() -> nn.Module:
    """A small residual network, whole: here integers may drift apart over its depth."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.b(self.a(x)) + x)

    head = Lambda(lambda m, x: m.layer(x.mean([2, 3])), layer=nn.Linear(8, 5))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.MaxPool2d(2), Block(), Block(), head)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mac-ops": mac_ops,
    "joins": joins,
    "averages": averages,
    "concat": concat,
    "negative-inputs": single,
    "positive-inputs": single,
    "dead-channel": dead_channel,
    "islands": islands,
    "attention": attention,
    "residual-sum": residual_sum,
    "classifier": classifier,
}
INPUT_RANGE = {"negative-inputs": (-2.0, -0.5), "positive-inputs": (0.5, 2.0)}
# Steps of the output by which a file may be off: more than one requantization may disagree in the deep ones.
TOLERANCE = {"islands": 2, "attention": 2, "classifier": 2}


@functools.cache
def attempt(name: str) -> Deployed | EdgeftError:
    try:
        return build(name)
    except EdgeftError as error:
        return error


def deploy(name: str) -> Deployed:
    """Return the deployed network; what failed once is not tried again for every test."""
    deployed = attempt(name)
    if isinstance(deployed, EdgeftError):
        raise deployed
    return deployed


def build(name: str) -> Deployed:
    torch.manual_seed(sorted(NETWORKS).index(name))
    network = NETWORKS[name]()
    low, high = INPUT_RANGE.get(name, (-1.0, 1.0))
    return deploy_network(network, name, low=low, high=high, runtimes=EVERYWHERE)


BRANCHES = {
    "mac-ops": (
        "plain", "stride", "stride-by-axis", "padding", "same-padding", "dilation", "grouped", "depthwise",
        "depthwise-twofold", "pointwise", "no-bias", "equal-biases", "to-1-channel", "1-to-3-channels",
        "3-to-17-channels", "17-to-8-channels", "relu", "bn", "bn-relu", "bn-relu6", "hardtanh", "conv1d", "linear",
        "linear-no-bias", "linear-on-tokens", "one-layer-twice",
    ),
    "joins": (
        "add", "add-relu", "add-to-itself", "add-input", "max-pool", "max-pool-padded", "residual",
        "average-pool", "adaptive-average-to-2", "dropout",
    ),
    "averages": ("adaptive-average", "mean"),
    "islands": ("sigmoid", "hardswish"),
}  # fmt: skip
CASES = [(name, branch) for name in NETWORKS for branch in BRANCHES.get(name, (name,))]


def test_the_cases_are_all_branches() -> None:
    for name, branches in BRANCHES.items():
        assert tuple(NETWORKS[name]().branches) == branches


@pytest.mark.parametrize("where", ["torch", *EVERYWHERE])
@pytest.mark.parametrize(("name", "branch"), CASES)
def test_integers_are_those_of_the_reference(name: str, branch: str, where: str) -> None:
    deployed = deploy(name)
    part = deployed.columns[branch]
    steps = np.abs(deployed.logits[where][:, part] - deployed.expected[:, part]) / deployed.step
    assert steps.max() <= TOLERANCE.get(name, 1) + 1e-3
    # A rounding tie may go either way; a systematic half step would show here.
    assert steps.mean() <= 0.2


@pytest.mark.parametrize(("name", "branch"), CASES)
def test_the_program_means_the_float_network(name: str, branch: str) -> None:
    """int8 costs a few steps of the output: a clipped range or an overflow costs tens of them."""
    deployed = deploy(name)
    part = deployed.columns[branch]
    steps = np.abs(deployed.expected[:, part] - deployed.floats[:, part]) / deployed.step
    assert steps.max() <= 6
    assert np.sqrt((steps**2).mean()) <= 1.5
    assert np.ptp(deployed.expected[:, part]) > 8 * deployed.step, "the branch says too little to be a test"


@pytest.mark.parametrize("runtime", EVERYWHERE)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_mac_op_is_int8_but_those_named(name: str, runtime: str) -> None:
    deployed = deploy(name)
    coverage = deployed.artifacts[runtime].coverage
    macs = [m for m in deployed.network.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)]
    # One layer is called twice; the gate of a hard-swish is one more, and so is each average over windows.
    calls = len(macs) + {"mac-ops": 1, "islands": 1, "joins": 2}.get(name, 0)
    assert len(deployed.program.layers) == calls
    if name == "attention":  # and a product of two activations
        assert coverage.mac_ops == calls + 1
    else:
        assert coverage.int8_mac_ops == calls
        assert deployed.program.float_ops == coverage.float_ops == ()


@pytest.mark.parametrize("runtime", EVERYWHERE)
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "attention"])
def test_the_runtime_executes_them_in_int8(name: str, runtime: str) -> None:
    precisions = deploy(name).reports[runtime]["mac_precision"]
    assert set(precisions) == {"int8"}


@pytest.mark.parametrize("runtime", EVERYWHERE)
def test_both_operands_of_an_addition_are_rounded_before_it(runtime: str) -> None:
    """A kernel that fuses convolution and addition leaves one rounding out: a quarter of the sums then differ."""
    deployed = deploy("residual-sum")
    differing = np.abs(deployed.logits[runtime] - deployed.expected) > deployed.step / 2
    # TensorFlow Lite Micro scales both operands and the sum in fixed point, with a rounding each.
    assert differing.mean() <= (0.005 if runtime == "mcu-tflm" else 0.002)


def test_averages_have_a_finer_step_than_what_they_average() -> None:
    deployed = deploy("averages")
    (layer,) = deployed.program.layers
    assert layer.output is not None
    assert deployed.step < layer.output.scale


def test_a_dead_channel_keeps_its_bias_inside_int32() -> None:
    (layer,) = deploy("dead-channel").program.layers
    assert layer.bias is not None
    assert not layer.weight[3].any()
    assert 2**29 < layer.bias[3] <= 2**30


def test_a_sigmoid_has_the_only_scale_that_kernels_take() -> None:
    fixed = [(a.scale, a.zero_point) for a in deploy("islands").program.activations]
    assert (1 / 256, -128) in fixed
