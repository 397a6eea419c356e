"""Decide how wide every group stays: arithmetic on widths, no tracing in the search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgeft.errors import BudgetError
from edgeft.pruning.groups import ChannelGroup, is_depthwise
from edgeft.pruning.macs import Layer

FLOOR_SHARE = 0.25
"""No group gets narrower than this share of itself: a network with one collapsed layer does not recover."""

COST_EXPONENT = 0.1
"""How much more a channel is worth for the work that it does; see `allocate`."""

WELL_USED = 0.97
"""Share of the budget from which on nothing more is done to use the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """MACs of one layer: `unit` * outputs * inputs (1 input for a depthwise layer).

    `writers` and `readers` are (group, n): each channel of that group is n outputs (inputs) of the layer.
    """

    unit: int
    outputs: int
    inputs: int
    writers: tuple[tuple[int, int], ...]
    readers: tuple[tuple[int, int], ...]

    def macs(self, cut: Sequence[int]) -> int:
        """Return the MACs after `cut[g]` channels of each group g are gone."""
        outputs = self.outputs - sum(n * cut[g] for g, n in self.writers)
        inputs = self.inputs - sum(n * cut[g] for g, n in self.readers)
        return self.unit * outputs * inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """MACs of the whole network as a function of the groups' widths."""

    full: tuple[int, ...]
    layers: tuple[LayerCost, ...]

    def macs(self, widths: Sequence[int]) -> int:
        """Return the MACs of one sample if group g is `widths[g]` wide."""
        cut = [full - width for full, width in zip(self.full, widths, strict=True)]
        return sum(layer.macs(cut) for layer in self.layers)


def cost_model(
    groups: Sequence[ChannelGroup], layers: Mapping[str, nn.Module], positions: Mapping[str, int]
) -> CostModel:
    """Return the cost model of a network.

    Args:
        groups: All channel groups.
        layers: Modules by dotted name.
        positions: How often each layer's weights are used for one sample (`macs.count_positions`).
    """
    writers: dict[str, list[tuple[int, int]]] = {name: [] for name in positions}
    readers: dict[str, list[tuple[int, int]]] = {name: [] for name in positions}
    for number, group in enumerate(groups):
        for member in group.members:
            if member.layer in positions:
                side = readers if member.role == "consumer" else writers
                side[member.layer].append((number, len(member.indices) // group.width))
    costs = []
    for name, count in positions.items():
        layer = layers[name]
        if isinstance(layer, _ConvNd):
            outputs, inputs = layer.out_channels, layer.in_channels
            unit = count * math.prod(layer.kernel_size)
            if (
                layer.groups > 1
            ):  # a grouped layer that is not depthwise is never cut, so its inputs are a constant
                inputs = 1 if is_depthwise(layer) else inputs // layer.groups
        elif isinstance(layer, nn.Linear):
            outputs, inputs, unit = layer.out_features, layer.in_features, count
        else:
            raise TypeError(f"{name} is no {Layer}")
        costs.append(
            LayerCost(
                unit=unit,
                outputs=outputs,
                inputs=inputs,
                writers=tuple(writers[name]),
                readers=tuple(readers[name]),
            )
        )
    return CostModel(full=tuple(g.width for g in groups), layers=tuple(costs))


def allowed_widths(group: ChannelGroup, *, channel_multiple: int, min_channels: int) -> tuple[int, ...]:
    """Return the widths that `group` may have, ascending; the last is its own.

    Args:
        group: The channels.
        channel_multiple: A cut group's width is a multiple of this.
        min_channels: A cut group keeps at least this many; one that has no more is left alone.
    """
    if group.limit or group.width <= min_channels:
        return (group.width,)
    floor = max(min_channels, FLOOR_SHARE * group.width, 1)
    lowest = math.ceil(floor / channel_multiple) * channel_multiple
    return (*range(lowest, group.width, channel_multiple), group.width)


def allocate(
    importances: Sequence[torch.Tensor], ladders: Sequence[tuple[int, ...]], costs: CostModel, *, budget: int
) -> tuple[int, ...]:
    """Return the groups' widths that keep the most importance within `budget` MACs.

    A channel is worth its importance * (MACs that go with it / their mean over all channels) **
    COST_EXPONENT: one of 16 channels at high resolution, or one that several blocks read, is not as easily
    spared as one of 960 late in the network, though both have importance 1 if they are their group's average.
    Dividing by the cost instead, as a knapsack would, empties the residual stream. Measured on MobileNetV2 at
    65 % of its MACs (6 classes, 55 steps of distillation, one seed, the images that it was chosen on), validation
    accuracy, unpruned 0.747:
    exponent 0.1: 0.741; 0: 0.637; -0.1 (dividing): 0.576; equal shares everywhere: 0.640.

    One threshold over all groups says how many channels each keeps, rounded to the nearest allowed width;
    the lowest threshold within the budget is found by bisection. What rounding left unused is given back, the
    most worthy step first.

    Args:
        importances: Per group, shape (width,), comparable between groups.
        ladders: Per group, its allowed widths (`allowed_widths`).
        costs: MACs as a function of the widths.
        budget: Most MACs of one sample.

    Raises:
        BudgetError: The narrowest allowed widths still cost more.
    """
    full = costs.macs(costs.full)
    floor = [ladder[0] for ladder in ladders]
    if costs.macs(floor) > budget:
        raise BudgetError(
            f"a MACs budget of {budget / full:.3f} cannot be met: with every group of channels at its lowest "
            f"allowed width {costs.macs(floor) / full:.3f} of the MACs are left",
        )
    worths = _worths(importances, costs)
    open_groups = [g for g, ladder in enumerate(ladders) if len(ladder) > 1]
    thresholds = [*sorted({float(w) for g in open_groups for w in worths[g]}), math.inf]

    def widths_at(threshold: float) -> list[int]:
        widths = list(costs.full)
        for g in open_groups:
            wanted = int((worths[g] >= threshold).sum())
            widths[g] = min(ladders[g], key=lambda width: (abs(width - wanted), width))
        return widths

    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        if costs.macs(widths_at(thresholds[middle])) <= budget:
            high = middle
        else:
            low = middle + 1
    return _give_back(widths_at(thresholds[low]), worths, ladders, costs, budget)


def _worths(importances: Sequence[torch.Tensor], costs: CostModel) -> list[torch.Tensor]:
    """Return importance * (relative MACs) ** COST_EXPONENT, each group's channels in descending order."""
    full = costs.macs(costs.full)
    saved = []
    for g, width in enumerate(costs.full):
        fewer = [*costs.full[:g], width - 1, *costs.full[g + 1 :]]
        saved.append(full - costs.macs(fewer))
    mean = sum(s * w for s, w in zip(saved, costs.full, strict=True)) / sum(costs.full)
    return [
        importance.sort(descending=True).values * (max(s, 1) / mean) ** COST_EXPONENT
        for importance, s in zip(importances, saved, strict=True)
    ]


def _give_back(
    widths: list[int],
    worths: Sequence[torch.Tensor],
    ladders: Sequence[tuple[int, ...]],
    costs: CostModel,
    budget: int,
) -> tuple[int, ...]:
    """Widen groups step by step, the worthiest step that still fits first, until none does."""
    while True:
        steps = []
        for g, ladder in enumerate(ladders):
            wider = next((w for w in ladder if w > widths[g]), None)
            if wider is not None and costs.macs([*widths[:g], wider, *widths[g + 1 :]]) <= budget:
                steps.append((float(worths[g][widths[g] : wider].mean()), -g, wider))
        if steps:
            _, negative, wider = max(steps)
            widths[-negative] = wider
        elif costs.macs(widths) >= WELL_USED * budget or not _trade(widths, ladders, costs, budget):
            return tuple(widths)


def _trade(widths: list[int], ladders: Sequence[tuple[int, ...]], costs: CostModel, budget: int) -> bool:
    """Narrow one group and widen another by a step so that more of the budget is used; False if no pair does.

    In a small network with wide steps the give-back alone can end far below the budget.
    """
    pairs = list(zip(ladders, widths, strict=True))
    lower = [max((w for w in ladder if w < now), default=now) for ladder, now in pairs]
    upper = [min((w for w in ladder if w > now), default=now) for ladder, now in pairs]
    best, best_macs = None, costs.macs(widths)
    for narrow, widen in itertools.permutations(range(len(widths)), 2):
        traded = list(widths)
        traded[narrow], traded[widen] = lower[narrow], upper[widen]
        macs = costs.macs(traded)
        if best_macs < macs <= budget:
            best, best_macs = traded, macs
    if best is not None:
        widths[:] = best
    return best is not None
