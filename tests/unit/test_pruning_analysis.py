"""What pruning says of a network before it cuts: groups, limits, budgets and refusals."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeft import pruning
from edgeft.errors import BudgetError, ModelError

EXAMPLE = torch.zeros(1, 3, 16, 16)


class Shortcut(nn.Module):
    """The parameter-free shortcut of CIFAR ResNets: every other pixel, zeros beside the channels."""

    def __init__(self, inputs: int = 16, outputs: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, inputs, 3, padding=1)
        self.first = nn.Conv2d(inputs, 32, 3, padding=1, stride=2)
        self.second = nn.Conv2d(32, outputs, 3, padding=1)
        self.sides = (outputs - inputs) // 2
        self.head = nn.Linear(outputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.sides, self.sides))
        x = (self.second(self.first(x).relu()) + shortcut).relu()
        return self.head(functional.avg_pool2d(x, x.size()[3]).flatten(1))


class Unit(nn.Module):
    """ShuffleNet's unit: half of the channels pass by, and then the halves are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.expand = nn.Conv2d(half, half, 1)
        self.depthwise = nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.project = nn.Conv2d(half, half, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, dim=1)
        right = self.project(self.depthwise(self.expand(right).relu())).relu()
        x = torch.cat((left, right), dim=1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Sized(nn.Module):
    """A number of channels in the code: no width but 32 runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3)
        self.second = nn.Conv2d(32, 48, 3)
        self.head = nn.Linear(48, 5)
        self.bias = torch.ones(1, 32, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu() + self.bias.to(x.dtype)).relu().mean((2, 3)))


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Linear(99, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def analyse(network: nn.Module, **settings: object) -> pruning.Analysis:
    torch.manual_seed(0)
    options = {"channel_multiple": 8, "min_channels": 8} | settings
    return pruning.analyse(network, EXAMPLE, **options)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 10, 12), nn.Flatten()
    )


def test_an_analysis_answers_for_many_budgets() -> None:
    network = plain()
    before = copy.deepcopy(network.state_dict())
    analysis = analyse(network)
    assert analysis.full == (32, 64, 10)
    assert analysis.ladders == ((8, 16, 24, 32), tuple(range(16, 65, 8)), (10,))
    assert analysis.lowest_macs == analysis.macs((8, 16, 10)) < analysis.full_macs
    for share in (0.9, 0.5, 0.2):
        widths = analysis.widths(macs=share)
        pruned = analysis.apply(widths)
        assert pruned.plan.macs_after == analysis.macs(widths) <= share * analysis.full_macs
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_channels_of_depthwise_layers_have_a_multiple_of_their_own() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 72, 1), nn.Conv2d(72, 72, 3, groups=72), nn.Conv2d(72, 48, 1), nn.Conv2d(48, 5, 1)
    )
    assert analyse(network, depthwise_multiple=16).ladders == ((32, 48, 64, 72), (16, 24, 32, 40, 48), (5,))
    assert analyse(network).ladders[0] == (24, 32, 40, 48, 56, 64, 72)


def test_changing_the_network_later_does_not_change_the_analysis() -> None:
    network = plain()
    analysis = analyse(network)
    first = analysis.apply((16, 32, 10)).module
    with torch.no_grad():
        network[0].weight.zero_()
    second = analysis.apply((16, 32, 10)).module
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.mark.parametrize("widths", [(16, 32), (12, 32, 10), (40, 32, 10), (16, 32, 8)])
def test_widths_off_the_ladder_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="allowed width"):
        analyse(plain()).apply(widths)


def test_uniform_allocation_cuts_the_same_share_everywhere() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in ((3, 96), (96, 192), (192, 64), (64, 10))))
    with torch.no_grad():
        network[1].weight *= torch.linspace(0, 2, 192)[:, None, None, None]
    analysis = analyse(network, channel_multiple=2)
    full, widths = analysis.full[:3], analysis.widths(macs=0.49, allocation="uniform")[:3]
    shares = [width / before for width, before in zip(widths, full, strict=True)]
    assert max(shares) - min(shares) < 0.05
    assert analysis.widths(macs=0.49)[:3] != widths


def test_sensitivity_holds_layers_wide() -> None:
    free = analyse(plain()).widths(macs=0.2)
    held = analyse(plain(), sensitivity={"2": 0.7}).widths(macs=0.5)
    assert free[1] < 0.7 * 64 <= held[1]


def test_macs_are_told_group_by_group() -> None:
    analysis = analyse(plain())
    assert sum(analysis.costs.written()) == analysis.full_macs
    assert analysis.costs.shared_out({"0": 0.25, "2": 0.5}) == (0.25, 0.5, 0.0)


def test_zeros_padded_beside_channels_shift_them() -> None:
    network = Shortcut()
    analysis = analyse(network, channel_multiple=4)
    joint = next(g for g in analysis.groups if "stem" in g.layers)
    assert joint.layers == ("stem", "second")
    assert {m.layer: m.indices for m in joint.members}["second"] == tuple(range(8, 24))
    assert analysis.fixed["second"] == "zero padding of channels"
    widths = analysis.lowest
    assert widths[analysis.groups.index(joint)] == 8
    assert analysis.apply(widths).module.second.out_channels == 8 + 8 + 8


def test_a_channel_split_is_left_whole_and_the_rest_cut() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3), Unit(32), Unit(32), nn.Conv2d(32, 48, 1), nn.Flatten(), nn.Linear(48 * 196, 5)
    )
    analysis = analyse(network)
    cuttable = {
        layer
        for g, limit in zip(analysis.groups, analysis.limits, strict=True)
        if not limit
        for layer in g.layers
    }
    assert cuttable == {"1.expand", "1.depthwise", "2.expand", "2.depthwise", "3"}
    assert {"0", "1.project", "2.project"} <= analysis.fixed.keys()
    assert "channels" in analysis.fixed["1.project"] and "channels" in analysis.fixed["0"]
    assert analysis.apply(analysis.lowest).module[1].expand.out_channels == 8


def test_a_fixed_shape_is_left_and_named() -> None:
    analysis = analyse(Sized())
    assert analysis.fixed == {"first": "tied to a fixed shape", "head": "network output"}
    assert analysis.apply(analysis.lowest).module.second.out_channels == 16


def test_one_layer_cannot_be_pruned() -> None:
    with pytest.raises(BudgetError, match="nothing of this network can be cut") as caught:
        analyse(nn.Sequential(nn.Flatten(), nn.Linear(768, 10))).widths(macs=0.5)
    assert "1 network output" in caught.value.hint


def test_a_channel_multiple_above_all_layers_leaves_nothing() -> None:
    with pytest.raises(BudgetError, match="nothing of this network can be cut") as caught:
        analyse(plain(), channel_multiple=512).widths(macs=0.5)
    assert "channel multiple 512" in caught.value.hint and "2 too narrow" in caught.value.hint
    assert "the widest has 64 channels (2)" in caught.value.hint


def test_a_budget_out_of_reach_names_the_best() -> None:
    analysis = analyse(plain())
    with pytest.raises(BudgetError, match=r"0\.010 cannot be met") as caught:
        analysis.widths(macs=0.01)
    assert "depthwise" not in caught.value.hint and "floor" not in caught.value.hint


@pytest.mark.parametrize("width", [24, 40, 56, 72])
def test_the_best_that_a_message_names_can_be_set(width: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 88, 3), nn.Conv2d(88, 5, 3))
    analysis = analyse(network)
    with pytest.raises(BudgetError) as caught:
        analysis.widths(macs=0.01)
    best = re.search(r"width (0\.\d{3}) of the MACs", caught.value.message)
    assert best and analysis.widths(macs=float(best[1])) == analysis.lowest


def test_limits_that_bind_are_named() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 72, 1), nn.Conv2d(72, 72, 3, groups=72), nn.Conv2d(72, 48, 1), nn.Conv2d(48, 5, 1)
    )
    with pytest.raises(BudgetError) as caught:
        analyse(network, depthwise_multiple=16, sensitivity={"2": 0.8}).widths(macs=0.01)
    assert "depthwise multiple 16 (holds 1 of the groups wider)" in caught.value.hint
    assert "prune.floor (holds 1 of the groups wider)" in caught.value.hint


@pytest.mark.parametrize(
    ("wrap", "part"),
    [
        (nn.utils.weight_norm, "weight_g, weight_v"),
        (nn.utils.spectral_norm, "weight_orig"),
        (nn.utils.parametrizations.weight_norm, "a parametrization"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_weights_that_are_computed_at_every_call_are_refused(wrap: Callable, part: str) -> None:
    with pytest.raises(ModelError, match=f"layer 0 cannot be cut: its weight is computed .*{part}"):
        analyse(nn.Sequential(wrap(nn.Conv2d(3, 32, 3)), nn.Conv2d(32, 8, 3)))


def test_a_failing_forward_names_the_layer() -> None:
    with pytest.raises(
        ModelError, match=r"does not run on an input of shape \(1, 3, 16, 16\) \(layer body.1\)"
    ):
        analyse(Breaks())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": ["9"]}, "keep: '9' is no"),
        ({"sensitivity": {"1": 0.5}}, "sensitivity: '1' is no"),
        ({"criterion": "taylor"}, "needs gradients"),
    ],
)
def test_settings_that_fit_no_network_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        analyse(plain(), **settings)


@pytest.mark.parametrize(
    "settings",
    [{"channel_multiple": 0}, {"min_channels": 0}, {"criterion": "l3"}, {"sensitivity": {"0": 1.5}}],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"out of range|between 0 and 1"):
        analyse(plain(), **settings)


def test_weights_in_another_type_are_named() -> None:
    with pytest.raises(
        ModelError, match="weights in float64 and does not run on an input in float32"
    ) as caught:
        analyse(plain().double())
    assert ".to(torch.float32)" in caught.value.hint
