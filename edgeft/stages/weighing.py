"""What the channels of a network are worth: its analysis, with gradients where the criterion wants them."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from edgeft import models, pruning
from edgeft.errors import ConfigError, nearest
from edgeft.pruning import Analysis, PruningPlan
from edgeft.pruning.limits import out_of_reach
from edgeft.pruning.macs import evaluation
from edgeft.recipe import Prune
from edgeft.target import PruneLimits
from edgeft.training import Batches
from edgeft.types import FloatModel, Progress, example_inputs, silent

_GRADIENT_BATCHES = 16
_SHOWN = 8


def analyse(
    model: FloatModel,
    config: Prune,
    limits: PruneLimits,
    train: Batches,
    *,
    seed: int,
    progress: Progress = silent,
) -> Analysis:
    """Return the analysis of a network as the settings of the stage ask for it.

    Args:
        model: The network.
        config: Criterion, kept layers and floors.
        limits: Channel multiple and minimum of the targets.
        train: Batches of (x, y); the criterion taylor reads 16 of them.
        seed: Of the order of the batches, and of the criterion random.
        progress: Told how many batches were read.

    Raises:
        ModelError: The architecture cannot be pruned.
        ConfigError: A name of `keep` or `floor` is that of no layer.
    """
    gradients = None
    if config.criterion == "taylor":
        gradients = loss_gradients(model.module, train, seed=seed, progress=progress)
    return pruning.analyse(
        model.module,
        example_inputs(model.preprocessing),
        criterion=config.criterion,
        channel_multiple=limits.channel_multiple,
        min_channels=limits.min_channels,
        depthwise_multiple=limits.multiple_of_depthwise,
        keep=[name for pattern in config.keep for name in matching_layers(model.module, "keep", pattern)],
        sensitivity=_floors(model.module, config.floor),
        gradients=gradients,
        seed=seed,
    )


def widths_within(analysis: Analysis, model: FloatModel, config: Prune) -> tuple[int, ...]:
    """Return the widths that meet a budget of MACs.

    Args:
        analysis: Of the network that is cut: that of `model`, or its rewritten copy.
        model: The network that the budget is a share of.
        config: Budget and allocation.

    Raises:
        BudgetError: The budget is out of reach; the message names the best that is not.
    """
    share, full = config.budget.share, unpruned_macs(analysis, model, config)
    own = share if full == analysis.full_macs else share * full / analysis.full_macs
    if own >= 1:
        return analysis.full
    if analysis.lowest_macs > math.floor(round(share * full, 3)):
        raise out_of_reach(analysis, share, full_macs=full)
    return analysis.widths(macs=own, allocation=config.allocation)


def unpruned_macs(analysis: Analysis, model: FloatModel, config: Prune) -> int:
    """Return the MACs that shares of MACs are of: those of `model`, which a rewrite makes fewer."""
    if config.rewrite == "none":
        return analysis.full_macs
    return pruning.count_macs(model.module, example_inputs(model.preprocessing))


def from_unpruned(plan: PruningPlan, analysis: Analysis, model: FloatModel, config: Prune) -> PruningPlan:
    """Return `plan` with what `model` has before, which a rewrite changes by itself."""
    return dataclasses.replace(
        plan,
        macs_before=unpruned_macs(analysis, model, config),
        params_before=sum(p.numel() for p in model.module.parameters()),
    )


def check_pruning(module: nn.Module, config: Prune) -> None:
    """Raise what is wrong with the settings of a prune stage for a network, before anything is trained.

    Raises:
        ConfigError: A name of `keep` or `floor` is that of no layer.
        ModelError: There is nothing to rewrite.
    """
    network = _rewritten(module, config)
    for key, patterns in (("keep", config.keep), ("floor", config.floor)):
        for pattern in patterns:
            matching_layers(network, key, pattern)


def check_budget(model: FloatModel, config: Prune, limits: PruneLimits) -> None:
    """Raise what can be known of a budget out of reach before the network is trained: shapes tell, not weights.

    Of MACs that is all. What has to be tried on a target can only be met if anything can be cut at all, or is
    rewritten.

    Args:
        model: The network; its weights do not matter.
        config: Settings of the stage.
        limits: As in `analyse`.

    Raises:
        BudgetError: The budget is out of reach; the message names the best reachable.
        EdgeftError: As `analyse`.
    """
    share, untrained = config.budget.share, config
    if config.criterion == "taylor":  # needs data, and changes nothing of how far can be cut
        untrained = config.model_copy(update={"criterion": "magnitude"})
    source = dataclasses.replace(model, module=_rewritten(model.module, config))
    analysis = analyse(source, untrained, limits, (), seed=0)
    if config.budget.kind == "macs":
        widths_within(analysis, model, config)
    elif analysis.lowest == analysis.full and config.rewrite == "none":
        raise out_of_reach(analysis, share, what=config.budget.kind)


def _rewritten(module: nn.Module, config: Prune) -> nn.Module:
    """Return the network that is cut, in shape: its weights are not fitted to a rewrite."""
    return module if config.rewrite == "none" else models.to_edge_lite(module).module


def _floors(module: nn.Module, floor: Mapping[str, float]) -> dict[str, float]:
    """Return the largest share that each named layer has to keep."""
    floors: dict[str, float] = {}
    for pattern, share in floor.items():
        for name in matching_layers(module, "floor", pattern):
            floors[name] = max(share, floors.get(name, 0.0))
    return floors


def matching_layers(module: nn.Module, key: str, pattern: str) -> list[str]:
    """Return the convolutions and linear layers that a pattern of ``prune.KEY`` names.

    Raises:
        ConfigError: It names none.
    """
    layers = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)
    ]
    named = [name for name in layers if fnmatch.fnmatchcase(name, pattern)]
    if not named:
        shown = ", ".join(layers[:_SHOWN]) + (", ..." if len(layers) > _SHOWN else "")
        raise ConfigError(
            f"prune.{key}: no convolution or linear layer is called {pattern!r}{nearest(pattern, layers)}",
            f"the layers are {shown}; leave the name out, and edgeft prune RECIPE --explain shows them all",
        )
    return named


def first_batches(batches: Batches, count: int, *, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the first `count` batches of epoch 0: the same ones whatever was read before."""
    sampler: Any = getattr(batches, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for a user's own loader, which shuffles by torch's generator
        yield from itertools.islice(batches, count)


def loss_gradients(
    module: nn.Module, train: Batches, *, seed: int, progress: Progress = silent
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the gradients of the cross-entropy by parameter name, batch by batch; the module stays as it is.

    Everything runs in evaluation mode: dropout would add noise, and a small batch's own statistics are not what the
    deployed network computes with.
    """
    with evaluation(module):
        modes = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
        module.requires_grad_(True)
        names, parameters = zip(*module.named_parameters(), strict=True)
        try:
            for number, (x, y) in enumerate(first_batches(train, _GRADIENT_BATCHES, seed=seed)):
                progress("gradients of the loss", done=number, total=_GRADIENT_BATCHES)
                loss = nn.functional.cross_entropy(module(x), y)
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                yield {n: g for n, g in zip(names, gradients, strict=True) if g is not None}
        finally:
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(modes[name])
