"""Structured pruning: the budget, the widths, and that nothing but the removed channels changes."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from edgeft import pruning
from edgeft.errors import BudgetError, ModelError


class Tangled(nn.Module):
    """A residual add, a depthwise convolution, a concatenation, a transposed convolution and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.back = nn.Conv2d(32, 32, 1)
        self.side = nn.Conv2d(32, 40, 1)
        self.join = nn.Conv2d(72, 64, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(64, 48, 2, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(48 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(self.depthwise(x))
        x = torch.cat([x, self.side(x)], dim=1)
        x = self.up(self.join(x).relu()).relu()
        return self.head(self.pool(x).flatten(1))


class Shuffled(nn.Module):
    """A channel shuffle: the dependency graph takes it for an operation that keeps channels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3)
        self.second = nn.Conv2d(32, 32, 3)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.second(x).relu().mean((2, 3)))


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def tangled(seed: int = 0) -> Tangled:
    torch.manual_seed(seed)
    network = Tangled()
    with torch.no_grad():
        network.norm.weight.uniform_(0.5, 1.5)
        network.norm.running_mean.uniform_(-0.5, 0.5)
    return network


EXAMPLE = torch.zeros(1, 3, 16, 16)


def prune(network: nn.Module, example: torch.Tensor = EXAMPLE, *, macs: float = 0.6) -> pruning.PrunedModel:
    return pruning.prune(network, example, macs=macs, channel_multiple=8, min_channels=8)


def widths(network: nn.Module) -> dict[str, int]:
    return {n: p.shape[0] for n, p in network.state_dict().items() if n.endswith("weight")}


@pytest.mark.parametrize("macs", [0.8, 0.6, 0.4])
def test_budget_is_met_and_used(macs: float) -> None:
    plan = prune(tangled(), macs=macs).plan
    assert 0.94 * macs < plan.macs_share <= macs
    assert plan.params_after < plan.params_before


def test_counted_macs_are_those_of_the_layers() -> None:
    # stem 16*16 px, depthwise 1 input per output, join at stride 2 on 8*8, up: one 64x48x2x2 per input pixel.
    expected = 256 * (32 * 3 * 9 + 32 * 9 + 32 * 32 + 40 * 32) + 64 * (64 * 72 * 9 + 64 * 48 * 4) + 10 * 192
    assert pruning.count_macs(tangled(), EXAMPLE) == expected
    assert pruning.count_macs(tangled(), EXAMPLE.expand(4, -1, -1, -1)) == expected


def test_counting_leaves_modes_and_statistics_alone() -> None:
    network = tangled().train()
    network.norm.eval()
    before = copy.deepcopy(network.state_dict())
    pruning.count_macs(network, torch.randn(2, 3, 16, 16))
    assert network.training and not network.norm.training
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


@pytest.mark.parametrize("make", [tangled, perceptron])
def test_cut_widths_are_multiples_and_above_the_floor(make: type[nn.Module]) -> None:
    example = EXAMPLE if make is tangled else torch.zeros(1, 3, 4, 4)
    plan = prune(make(), example, macs=0.4).plan
    cut = [g for g in plan.groups if g.width_after < g.width_before]
    assert cut
    for group in cut:
        assert group.width_after % 8 == 0
        assert group.width_after >= max(8, 0.25 * group.width_before)


def test_coupled_layers_are_cut_alike() -> None:
    network = prune(tangled(), macs=0.4).module
    out = widths(network)
    assert out["stem.weight"] == out["norm.weight"] == out["depthwise.weight"] == out["back.weight"] < 32
    assert network.depthwise.groups == out["stem.weight"]
    assert network.join.in_channels == out["stem.weight"] + out["side.weight"]
    assert network.head.in_features == 4 * network.up.out_channels


def test_input_and_output_keep_their_widths() -> None:
    pruned = prune(tangled(), macs=0.4)
    assert pruned.module.stem.in_channels == 3
    assert pruned.module.head.out_features == 10
    assert [g.limit for g in pruned.plan.groups if g.layers == ("head",)] == ["network output"]


def test_kept_layer_is_not_cut() -> None:
    pruned = pruning.prune(tangled(), EXAMPLE, macs=0.6, channel_multiple=8, min_channels=8, keep=["join"])
    assert pruned.module.join.out_channels == 64


def test_narrow_groups_stay() -> None:
    pruned = pruning.prune(tangled(), EXAMPLE, macs=0.8, channel_multiple=8, min_channels=40)
    assert pruned.module.side.out_channels == 40
    assert pruned.module.stem.out_channels == 32


def test_planted_dead_channels_are_the_ones_that_go() -> None:
    network = tangled().eval()
    dead = torch.tensor([1, 5, 6, 7, 13, 20, 30, 31])
    wider = torch.arange(0, 64, 2)
    with torch.no_grad():
        for layer in (network.stem, network.depthwise, network.back, network.norm):
            layer.weight[dead] = 0
            layer.bias[dead] = 0
        network.norm.running_mean[dead] = 0
        network.join.weight[wider] = 0
        network.join.bias[wider] = 0
    example = torch.randn(2, 3, 16, 16)
    # The budget that exactly the dead channels make up.
    groups = {"stem": 24, "join": 32}
    share = _macs(groups) / _macs({})
    pruned = prune(network, macs=share + 1e-9)
    assert (pruned.module.stem.out_channels, pruned.module.join.out_channels) == (24, 32)
    with torch.no_grad():
        torch.testing.assert_close(pruned.module(example), network(example))
    assert torch.equal(pruned.module.norm.running_mean, network.norm.running_mean[_without(dead, 32)])


def _without(gone: torch.Tensor, width: int) -> list[int]:
    return [i for i in range(width) if i not in gone.tolist()]


def _macs(groups: dict[str, int]) -> int:
    stem, join = groups.get("stem", 32), groups.get("join", 64)
    return (
        256 * (stem * 3 * 9 + stem * 9 + stem * stem + 40 * stem)
        + 64 * (join * (stem + 40) * 9 + join * 48 * 4)
        + 10 * 192
    )


def test_caller_s_module_is_untouched_and_the_plan_repeats() -> None:
    network = tangled().train()
    network.stem.weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    one, two = prune(network), prune(network)
    assert network.training and not one.module.training
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert one.plan == two.plan
    assert not one.module.stem.weight.requires_grad and one.module.back.weight.requires_grad
    assert all(map(torch.equal, one.module.state_dict().values(), two.module.state_dict().values()))


def test_frozen_network_can_be_pruned() -> None:
    pruned = prune(tangled().requires_grad_(False))
    assert not any(p.requires_grad for p in pruned.module.parameters())


def test_plan_becomes_plain_data() -> None:
    plan = prune(tangled()).plan
    data = plan.to_dict()
    assert data["macs_after"] == plan.macs_after
    first = data["groups"][0]
    assert first.keys() == {"layers", "width_before", "width_after", "limit", "coupled_by", "unit"}
    assert first["layers"] == ["stem", "depthwise", "back"]
    assert first["coupled_by"] == ["add", "concatenation", "depthwise convolution"]
    assert json.loads(json.dumps(data)) == data


def test_plan_tells_every_layer_s_width_and_macs() -> None:
    pruned = prune(tangled(), macs=0.4)
    layers = {layer.layer: layer for layer in pruned.plan.layers}
    assert layers.keys() == {"stem", "depthwise", "back", "side", "join", "up", "head"}
    assert layers["join"].outputs == (64, pruned.module.join.out_channels)
    assert layers["join"].inputs == (72, pruned.module.join.in_channels)
    assert layers["head"].outputs == (10, 10)
    assert sum(layer.macs[1] for layer in layers.values()) == pruned.plan.macs_after
    assert sum(layer.macs[0] for layer in layers.values()) == pruned.plan.macs_before


def test_unreachable_budget_names_the_best() -> None:
    with pytest.raises(BudgetError, match=r"0\.0\d\d of the MACs are left") as caught:
        prune(tangled(), macs=0.01)
    assert "25%" in caught.value.hint and "network output" in caught.value.hint


def test_full_budget_cuts_nothing() -> None:
    plan = prune(tangled(), macs=1.0).plan
    assert plan.macs_after == plan.macs_before


def test_exported_graph_is_refused() -> None:
    graph = torch.export.export(perceptron().eval(), (torch.zeros(1, 3, 4, 4),)).module()
    with pytest.raises(ModelError, match="cannot be pruned"):
        prune(graph, torch.zeros(1, 3, 4, 4))


def test_what_a_channel_shuffle_mixes_is_left_whole() -> None:
    torch.manual_seed(0)
    pruned = prune(Shuffled())
    assert (pruned.module.first.out_channels, pruned.module.second.out_channels) == (32, 16)
    assert pruned.plan.groups[0].limit == "channels are mixed after it"


def test_unknown_kept_layer_is_refused() -> None:
    with pytest.raises(ModelError, match="did you mean 'head'"):
        pruning.prune(tangled(), EXAMPLE, macs=0.6, channel_multiple=8, min_channels=8, keep=["heat"])


def test_grouped_convolution_stays_valid() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, groups=4), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 10, 3)
    )
    pruned = prune(network, macs=0.7)
    assert [layer.out_channels for layer in pruned.module][:2] == [32, 32]
    assert pruned.module[2].out_channels < 64


def test_restore_round_trips() -> None:
    pruned = prune(tangled(), macs=0.4).module
    fresh = tangled(seed=1)
    assert pruning.restore(fresh, pruned.state_dict()) is fresh
    example = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(example), pruned(example))
    assert fresh.depthwise.groups == pruned.depthwise.groups
    assert fresh.norm.num_features == pruned.norm.num_features


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("back.weight", None, "lacks back.weight"),
        ("extra", torch.zeros(1), "has unknown extra"),
        ("stem.weight", torch.zeros(24, 3, 5, 5), "cannot be cut to it"),
        ("stem.weight", torch.zeros(64, 3, 3, 3), "cannot be cut to it"),
        ("stem.bias", torch.zeros(24), "disagree about its width"),
    ],
)
def test_restore_refuses_what_does_not_fit(key: str, tensor: torch.Tensor | None, message: str) -> None:
    state = dict(tangled().state_dict())
    if tensor is None:
        del state[key]
    else:
        state[key] = tensor
    fresh = tangled(seed=1)
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(ModelError, match=message):
        pruning.restore(fresh, state)
    assert all(torch.equal(t, before[n]) for n, t in fresh.state_dict().items())
