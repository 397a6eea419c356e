"""Prune a network to a share of its MACs in one call."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from edgeft.pruning.analysis import Allocation, analyse
from edgeft.pruning.importance import Criterion
from edgeft.pruning.plan import PrunedModel


def prune(
    module: nn.Module,
    example: torch.Tensor,
    *,
    macs: float,
    channel_multiple: int,
    min_channels: int,
    depthwise_multiple: int = 1,
    keep: Collection[str] = (),
    criterion: Criterion = "magnitude",
    allocation: Allocation = "global",
    gradients: Iterable[Mapping[str, torch.Tensor]] | None = None,
    sensitivity: Mapping[str, float] | None = None,
    seed: int = 0,
) -> PrunedModel:
    """Return a narrower copy of `module` that costs at most `macs` of its multiply-accumulates.

    The network's input and its outputs keep their widths. The same weights give the same plan. The result is
    checked: its MACs are counted again on the cut network, and it computes what `module` computes when
    nothing reads the removed channels. To try several budgets, call `analyse` once and its methods often.

    Args:
        module: Network from one tensor to one tensor; not changed.
        example: One input with a batch of 1; of images only its shape matters.
        macs: Share of the MACs that may be left, above 0 and up to 1.
        channel_multiple: Every width that is cut becomes a multiple of this.
        min_channels: A group of channels keeps at least this many; one that has no more is left alone.
        depthwise_multiple: As in `analyse`.
        keep: Dotted names of layers whose outputs are not cut.
        criterion: How channels are judged, see `importance.Criterion`.
        allocation: Where they are cut, see `Analysis.widths`.
        gradients: As in `analyse`.
        sensitivity: As in `analyse`.
        seed: As in `analyse`.

    Raises:
        BudgetError: The budget is below what the limits allow; the message names the best reachable.
        ModelError: The network's architecture cannot be pruned, or `keep` names no layer of it.
        ValueError: A number is out of its range.
    """
    analysis = analyse(
        module,
        example,
        criterion=criterion,
        channel_multiple=channel_multiple,
        min_channels=min_channels,
        depthwise_multiple=depthwise_multiple,
        keep=keep,
        gradients=gradients,
        sensitivity=sensitivity,
        seed=seed,
    )
    return analysis.apply(analysis.widths(macs=macs, allocation=allocation))
