"""Odd networks: what pruning finds out by running them, and what it says of them before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from edgeft import pruning
from edgeft.errors import ModelError

EXAMPLE = torch.zeros(1, 3, 16, 16)


class Base(nn.Module):
    """A stem, what is to be tried, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.tail = nn.Conv2d(32, 48, 3, padding=1)
        self.head = nn.Linear(48, 10)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.tail(self.middle(self.stem(x))).relu().mean((2, 3)))


class Auxiliary(Base):
    """GoogLeNet's way: a second head that training alone runs."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.Conv2d(32, 32, 3, padding=1)
        self.aux = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        early = self.stem(x)
        out = self.head(self.tail(self.between(early)).relu().mean((2, 3)))
        return out + 0.3 * self.aux(early.mean((2, 3))) if self.training else out


def analyse(network: nn.Module, **settings: object) -> pruning.Analysis:
    options = {"channel_multiple": 8, "min_channels": 8} | settings
    return pruning.analyse(network, EXAMPLE, **options)


def built(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def test_what_a_layer_of_training_alone_reads_is_left_whole() -> None:
    network = built(Auxiliary)
    before = copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()
    analysis = analyse(network)
    assert analysis.fixed == {
        "stem.0": "read in training only",
        "aux": "does not run in evaluation",
        "head": "network output",
    }
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    pruned = analysis.apply(analysis.lowest).module
    assert (pruned.between.out_channels, pruned.tail.out_channels) == (8, 16)
    pruned.train()(torch.randn(2, 3, 16, 16)).sum().backward()


def test_a_network_that_does_not_train_anyway_is_cut() -> None:
    class Refuses(Base):
        def middle(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise RuntimeError("not made for it")
            return x

    assert analyse(built(Refuses)).fixed == {"head": "network output"}


def test_a_layer_that_is_used_without_being_called_runs() -> None:
    class Used(Base):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = nn.Linear(32, 32)

        def middle(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x.transpose(1, 3), self.mixer.weight).transpose(1, 3)

    assert "mixer" not in analyse(built(Used)).fixed


def test_layers_may_be_called_by_keyword() -> None:
    class Keyword(Base):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(32, 32, 3, padding=1), nn.ConvTranspose2d(32, 32, 2, 2)

        def middle(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(output_size=(32, 32), input=self.one(input=x).relu())

    network = built(Keyword)
    analysis = analyse(network)
    moments = analysis.moments([torch.randn(2, 3, 16, 16)])
    assert moments.keys() == {"one", "tail", "head"}, "not the transposed one, which this does not suit"
    plan = analysis.apply(analysis.lowest, moments=moments).plan
    assert {layer.layer: layer.macs[1] for layer in plan.layers}["two"] == 16 * 16 * (2 * 2 * 8 * 8)


@pytest.mark.parametrize("returned", [lambda y: (y, y), lambda y: {"logits": y}])
def test_an_output_that_is_not_one_tensor_is_refused(returned: Callable) -> None:
    class Several(Base):
        def forward(self, x: torch.Tensor) -> object:
            return returned(super().forward(x))

    with pytest.raises(ModelError, match=r"has to be one tensor; this Several returns a (tuple|dict)"):
        analyse(built(Several))


def test_a_forward_without_gradients_is_refused() -> None:
    class Deaf(Base):
        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    with pytest.raises(ModelError, match="the forward of this Deaf runs without gradients"):
        analyse(built(Deaf))


class Shuffled(Base):
    """Mixes channels: the stem must not be cut."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Logarithm(Shuffled):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.log1p(x))


def test_noise_that_a_network_is_not_made_for_is_not_taken() -> None:
    analysis = analyse(built(Logarithm))
    assert analysis.fixed.keys() == {"stem.0", "head"}
    assert analysis.apply(analysis.lowest).module.tail.out_channels == 16


def test_a_network_without_finite_outputs_is_refused() -> None:
    network = built(Base)
    nn.init.constant_(network.tail.weight, torch.nan)
    with pytest.raises(ModelError, match="NaN or infinite for noise"):
        analyse(network)


class Insists(Shuffled):
    """Takes float32 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.eye(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()) @ self.matrix


def test_a_network_that_insists_on_float32_is_checked_in_float32() -> None:
    analysis = analyse(built(Insists))
    assert analysis.fixed.keys() == {"stem.0", "head"}
    assert analysis.apply(analysis.lowest).module.tail.out_channels == 16


def test_a_network_that_runs_on_no_noise_is_refused() -> None:
    class Zeros(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.any():
                raise ValueError("zeros are needed")
            return super().forward(x)

    with pytest.raises(ModelError, match=r"does not run in float64.* own type: zeros are needed"):
        analyse(built(Zeros))


def test_a_head_of_zeros_does_not_hide_what_is_before_it() -> None:
    network = built(Shuffled)
    nn.init.zeros_(network.head.weight)
    analysis = analyse(network)
    assert analysis.fixed.keys() == {"stem.0", "head"}
    assert not analysis.apply(analysis.lowest).module.head.weight.any(), "only the trial has other weights"


class Tied(Base):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(2))
        self.second.weight = self.first.weight

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).relu()


def test_tied_weights_stay_tied() -> None:
    analysis = analyse(built(Tied))
    assert analysis.fixed == {
        "stem.0": "read by first, weight shared with second",
        "first": "weight shared with second",
        "second": "weight shared with first",
        "head": "network output",
    }
    pruned = analysis.apply(analysis.lowest).module
    assert pruned.first.weight is pruned.second.weight
    assert pruned.tail.out_channels == 16


def test_a_layer_that_is_used_twice_is_cut() -> None:
    class Twice(Tied):
        def __init__(self) -> None:
            super().__init__()
            self.second = self.first

    assert analyse(built(Twice)).fixed == {"head": "network output"}


def test_layers_that_are_not_cut_say_why() -> None:
    class Grouped(Base):
        def __init__(self) -> None:
            super().__init__()
            self.groups, self.multiplied = nn.Conv2d(32, 32, 1, groups=4), nn.Conv2d(32, 64, 1, groups=32)
            self.back = nn.Conv2d(64, 32, 1)

        def middle(self, x: torch.Tensor) -> torch.Tensor:
            return self.back(self.multiplied(self.groups(x)))

    class Recurrent(Base):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.GRU(48, 48, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = self.tail(self.stem(x)).flatten(2).transpose(1, 2)
            return self.head(self.memory(rows)[0][:, -1])

    fixed = analyse(built(Grouped), sensitivity={"tail": 1.0}).fixed
    assert fixed["groups"] == fixed["multiplied"] == "grouped convolution"
    assert fixed["tail"] == "prune.floor"
    assert analyse(built(Recurrent)).fixed["memory"] == "recurrent, MACs not counted"
    assert "prune.floor" not in analyse(built(Base), sensitivity={"tail": 0.5}).fixed.values()
    assert analyse(built(Base), min_channels=48).fixed["tail"] == "too narrow"
