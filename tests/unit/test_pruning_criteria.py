"""What channels are worth: each criterion against what it is defined to be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from edgeft import pruning
from edgeft.errors import BudgetError, ModelError

EXAMPLE = torch.zeros(1, 3, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 4, 5),
    ).eval()


def analyse(module: nn.Module, criterion: str, **settings: object) -> pruning.Analysis:
    return pruning.analyse(
        module, EXAMPLE, criterion=criterion, channel_multiple=4, min_channels=4, **settings
    )


def gradients(module: nn.Module, batches: int = 2) -> Iterator[dict[str, torch.Tensor]]:
    for x, y in data(batches):
        module.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        yield {name: p.grad for name, p in module.named_parameters()}


def data(batches: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(0, 5, (8,), generator=generator))
        for _ in range(batches)
    ]


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_filter_norms_are_relative_to_their_layer(criterion: str, power: int) -> None:
    module = network()
    with torch.no_grad():
        module[3].weight *= 100
    analysis = analyse(module, criterion)
    for layer, worth in zip((module[0], module[3]), analysis.importances, strict=False):
        norms = layer.weight.detach().double().flatten(1).norm(p=power, dim=1)
        torch.testing.assert_close(worth, norms / norms.mean())


def test_batch_norm_scale_judges_what_has_one() -> None:
    module = network()
    with torch.no_grad():
        module[1].weight.copy_(torch.linspace(-1, 2, 16))
    analysis = analyse(module, "bn-scale")
    expected = torch.linspace(-1, 2, 16).abs().double()
    torch.testing.assert_close(analysis.importances[0], expected / expected.mean())
    assert analysis.fixed["3"] == "no batch norm scale"
    kept = analysis.apply((8, 24, 5)).module[1].weight.detach()
    assert kept.abs().min() > expected.sort().values[7]


def test_batch_norm_scale_without_batch_norms_cuts_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 6), nn.Flatten())
    with pytest.raises(BudgetError, match="nothing") as caught:
        analyse(module, "bn-scale").widths(macs=0.5)
    assert "no batch norm scale" in caught.value.hint


def test_taylor_is_the_slope_of_the_loss_as_a_channel_fades() -> None:
    module = network().double()
    module[2], module[4] = nn.Softplus(), nn.Softplus()  # a slope is where no kink is
    x, y = data(1)[0]
    module.zero_grad()
    nn.functional.cross_entropy(module(x.double()), y).backward()
    given = {name: p.grad.clone() for name, p in module.named_parameters()}
    analysis = pruning.analyse(
        module, EXAMPLE.double(), criterion="taylor", channel_multiple=4, min_channels=4, gradients=[given]
    )
    worth = analysis.importances[0]

    def loss(channel: int, step: float) -> float:
        weight = module[3].weight
        before = weight.detach().clone()
        with torch.no_grad():
            weight[:, channel] *= 1 - step
            value = nn.functional.cross_entropy(module(x.double()), y).item()
            weight.copy_(before)
        return value

    step = 1e-5
    slopes = torch.tensor([abs(loss(c, step) - loss(c, -step)) / (2 * step) for c in range(16)]).double()
    torch.testing.assert_close(worth / worth.mean(), slopes / slopes.mean(), rtol=1e-4, atol=1e-6)


def test_taylor_reads_batch_by_batch_and_takes_the_root_mean_square() -> None:
    module = network()
    both = analyse(module, "taylor", gradients=gradients(module)).importances
    one, two = ([{n: g.clone() for n, g in batch.items()}] for batch in gradients(module))
    # The scale is lost in the mean over all channels: compare the shape of the whole.
    scores = []
    for batch in (one, two):
        weight = module[3].weight.detach().double()
        scores.append((batch[0]["3.weight"].double() * weight).sum((0, 2, 3)).square())
    expected = (sum(scores) / 2).sqrt()
    torch.testing.assert_close(both[0] / both[0].mean(), expected / expected.mean())


def test_taylor_needs_this_network_s_gradients() -> None:
    module = network()
    with pytest.raises(ModelError, match=r"needs the gradient of 3\.weight"):
        analyse(module, "taylor", gradients=[{"0.weight": torch.zeros(16, 3, 3, 3)}])


def test_random_repeats_with_its_seed_only() -> None:
    first, again, other = (analyse(network(), "random", seed=seed).importances[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("criterion", ["magnitude", "l1", "l2", "taylor", "random"])
def test_every_criterion_meets_a_budget(criterion: str) -> None:
    module = network()
    analysis = analyse(module, criterion, gradients=gradients(module))
    for allocation in ("global", "uniform"):
        plan = analysis.apply(analysis.widths(macs=0.5, allocation=allocation)).plan
        assert 0.3 < plan.macs_share <= 0.5
