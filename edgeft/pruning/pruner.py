"""Prune a network to a share of its MACs: find groups, score, allocate, cut once, prove."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from edgeft.errors import BudgetError, EdgeftError, ModelError, nearest
from edgeft.pruning.allocation import FLOOR_SHARE, allocate, allowed_widths, cost_model
from edgeft.pruning.groups import ChannelGroup, find_groups
from edgeft.pruning.importance import channel_importance
from edgeft.pruning.macs import Layer, count_macs, count_positions
from edgeft.pruning.plan import GroupDecision, PrunedModel, PruningPlan
from edgeft.pruning.surgery import check_cut, cut, removals


def prune(
    module: nn.Module,
    example: torch.Tensor,
    *,
    macs: float,
    channel_multiple: int,
    min_channels: int,
    keep: Collection[str] = (),
    importance: Literal["magnitude"] = "magnitude",
) -> PrunedModel:
    """Return a narrower copy of `module` that costs at most `macs` of its multiply-accumulates.

    The network's input and its outputs keep their widths. The same weights give the same plan. The result is
    checked: its MACs are counted again on the cut network, and it computes what `module` computes when
    nothing reads the removed channels.

    Args:
        module: Network from one tensor (N, C, H, W) to one tensor; not changed.
        example: One input, shape (1, C, H, W); only its shape and device matter.
        macs: Share of the MACs that may be left, above 0 and up to 1.
        channel_multiple: Every width that is cut becomes a multiple of this.
        min_channels: A group of channels keeps at least this many; one that has no more is left alone.
        keep: Dotted names of layers whose outputs are not cut.
        importance: How channels are judged; "magnitude" is `importance.channel_importance`.

    Raises:
        BudgetError: The budget is below what the limits allow; the message names the best reachable.
        ModelError: The network's architecture cannot be pruned, or `keep` names no layer of it.
        ValueError: A number is out of its range.
    """
    if not 0 < macs <= 1 or channel_multiple < 1 or min_channels < 1 or importance != "magnitude":
        raise ValueError(f"out of range: {macs=}, {channel_multiple=}, {min_channels=}, {importance=}")
    _check_prunable(module, keep)
    pruned = copy.deepcopy(module).eval()
    layers = dict(pruned.named_modules())
    try:
        positions = count_positions(pruned, example)
    except RuntimeError as error:
        raise ModelError(
            f"the network does not run on an input of shape {tuple(example.shape)}: {error}"
        ) from error
    groups = _traced_groups(pruned, example, keep)
    costs = cost_model(groups, layers, positions)
    macs_before = costs.macs(costs.full)
    budget = math.floor(macs * macs_before)
    importances = [channel_importance(group, layers) for group in groups]
    ladders = [
        allowed_widths(g, channel_multiple=channel_multiple, min_channels=min_channels) for g in groups
    ]
    try:
        widths = allocate(importances, ladders, costs, budget=budget)
    except BudgetError as error:
        raise BudgetError(error.message, _limits(groups, ladders, channel_multiple, min_channels)) from error
    removed = [
        scores.argsort(descending=True, stable=True)[width:].tolist()
        for scores, width in zip(importances, widths, strict=True)
    ]
    losses = removals(groups, removed)
    cut(pruned, losses)
    check_cut(module, pruned, losses, example.shape)
    macs_after = count_macs(pruned, example)
    if macs_after != costs.macs(widths) or macs_after > budget:
        raise EdgeftError(
            f"the pruned network has {macs_after:,} MACs; planned were {costs.macs(widths):,}, "
            f"allowed {budget:,}",
            "this is a defect of edgeft: please report the architecture",
        )
    plan = PruningPlan(
        macs_before=macs_before,
        macs_after=macs_after,
        params_before=_parameters(module),
        params_after=_parameters(pruned),
        groups=tuple(
            GroupDecision(layers=g.layers, width_before=g.width, width_after=width, limit=_limit(g, ladder))
            for g, width, ladder in zip(groups, widths, ladders, strict=True)
        ),
    )
    return PrunedModel(module=pruned, plan=plan)


def _check_prunable(module: nn.Module, keep: Collection[str]) -> None:
    """Raise `ModelError` if the channels of `module` cannot be cut or `keep` names no layer of it."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, Layer)}
    if isinstance(module, torch.jit.ScriptModule) or (isinstance(module, fx.GraphModule) and not layers):
        raise ModelError(
            f"a {type(module).__name__} cannot be pruned: an exported or scripted graph has fixed shapes "
            "and no layers",
            "prune the eager network and export the result",
        )
    if not layers:
        raise ModelError("a network without convolution and linear layers cannot be pruned")
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer):
            raise ModelError(
                f"layer {name} cannot be cut: its weight is computed by a parametrization",
                "call torch.nn.utils.parametrize.remove_parametrizations on it first",
            )
    for name in keep:
        if name not in layers:
            raise ModelError(
                f"keep: {name!r} is no convolution or linear layer of this network{nearest(name, layers)}",
                f"the last ones are {', '.join(list(layers)[-3:])}",
            )


def _traced_groups(
    network: nn.Module, example: torch.Tensor, keep: Collection[str]
) -> tuple[ChannelGroup, ...]:
    """Find the channel groups with every parameter requiring gradients, as the tracing needs."""
    trainable = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    network.requires_grad_(True)
    try:
        return find_groups(network, example, keep=keep)
    finally:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(trainable[name])


def _limit(group: ChannelGroup, ladder: Sequence[int]) -> str:
    """Return why `group` could not be cut, or an empty string."""
    return group.limit or ("" if len(ladder) > 1 else "too narrow")


def _limits(
    groups: Sequence[ChannelGroup], ladders: Sequence[Sequence[int]], channel_multiple: int, min_channels: int
) -> str:
    """Return the hint of a budget error: what stops the groups from getting narrower."""
    reasons = Counter(_limit(g, ladder) for g, ladder in zip(groups, ladders, strict=True))
    opened = reasons.pop("", 0)
    fixed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return (
        f"raise prune.budget.macs; the limits are {FLOOR_SHARE:.0%} of each group, channel multiple "
        f"{channel_multiple}, at least {min_channels} channels; {opened} of {len(groups)} groups can be cut"
        + (f" (not: {fixed})" if fixed else "")
    )


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
