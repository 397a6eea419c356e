"""What the weights that stay take over from those that are cut."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgeft import pruning
from edgeft.pruning.compensation import second_moments

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Redundant(nn.Module):
    """24 channels, of which 8 are mixtures of the other 16, read by a convolution and through a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 1, bias=False)
        self.reader = nn.Conv2d(24, 6, 3, padding=1)
        self.other = nn.Conv2d(24, 6, 1)
        mixture = torch.randn(8, 16)
        with torch.no_grad():
            # Mixtures are small, so that magnitude cuts them.
            self.first.weight[16:] = 0.01 * torch.einsum("gk,kihw->gihw", mixture, self.first.weight[:16])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return (self.reader(x) + self.other(x)).flatten(1)


def analyse(network: nn.Module, example: torch.Tensor = EXAMPLE) -> pruning.Analysis:
    return pruning.analyse(network, example, channel_multiple=8, min_channels=8)


@pytest.fixture
def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(3)]


def test_channels_that_others_predict_are_cut_without_loss(images: list[torch.Tensor]) -> None:
    torch.manual_seed(0)
    network = Redundant()
    with torch.no_grad():
        network.reader.weight[:, 16:] *= 100  # what is cut matters: without compensation the answers change
        network.other.weight[:, 16:] *= 100
    analysis = analyse(network)
    widths = (16, *analysis.full[1:])
    expected = network(images[0])
    plain = analysis.apply(widths).module(images[0])
    made_up = analysis.apply(widths, moments=analysis.moments(images)).module(images[0])
    scale = float(expected.abs().max())
    assert (plain - expected).abs().max() > 0.1 * scale
    assert (made_up - expected).abs().max() < 0.01 * scale


def test_the_prediction_is_least_squares(images: list[torch.Tensor]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 5, 1), nn.Flatten())
    analysis = analyse(network)
    widths = (8, *analysis.full[1:])
    pruned = analysis.apply(widths, moments=analysis.moments(images)).module
    plain = analysis.apply(widths).module
    x = torch.cat(images)
    rows = pruned[:2](x).movedim(1, -1).reshape(-1, 8)
    wanted = network[:3](x).movedim(1, -1).reshape(-1, 5) - network[2].bias
    best = torch.linalg.lstsq(rows, wanted).solution.T
    found = pruned[2].weight[:, :, 0, 0]
    errors = [(rows @ w.T - wanted).square().mean() for w in (best, found, plain[2].weight[:, :, 0, 0])]
    assert errors[0] <= errors[1] < 1.01 * errors[0]  # the ridge costs next to nothing
    assert errors[1] < 0.8 * errors[2]


def test_moments_leave_the_network_as_it_is_and_leave_out_what_does_not_suit(
    images: list[torch.Tensor],
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.ConvTranspose2d(16, 16, 1),
        nn.Conv2d(16, 4, 1),
        nn.Flatten(),
        nn.Linear(144, 5),
    )
    before = copy.deepcopy(network.state_dict())
    found = second_moments(network, ["2", "3", "4", "6"], images)
    assert {name: tuple(moment.shape) for name, moment in found.items()} == {"4": (16, 16), "6": (144, 144)}
    assert network.training and not network[4]._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    x = torch.cat(images)
    network.eval()
    rows = network[:6](x).double()
    torch.testing.assert_close(found["6"], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)


def test_transformers_make_up_for_narrower_layers() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 12), nn.LayerNorm(12))
    x = torch.randn(64, 5, 12)
    analysis = analyse(network, x[:1])
    widths = tuple(16 if width == 32 else width for width in analysis.full)
    expected = network(x)
    errors = [
        (analysis.apply(widths, moments=m).module(x) - expected).square().mean()
        for m in ({}, analysis.moments([x]))
    ]
    assert errors[1] < 0.8 * errors[0]
