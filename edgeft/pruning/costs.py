"""What a network costs as a function of its groups' widths: arithmetic, no tracing in the search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgeft.pruning.groups import ChannelGroup, is_depthwise
from edgeft.pruning.macs import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """MACs of one layer: `unit` * outputs * inputs (1 input for a depthwise layer).

    `writers` and `readers` are (group, n): each channel of that group is n outputs (inputs) of the layer.
    """

    layer: str
    unit: int
    outputs: int
    inputs: int
    writers: tuple[tuple[int, int], ...]
    readers: tuple[tuple[int, int], ...]

    def widths(self, cut: Sequence[int]) -> tuple[int, int]:
        """Return the outputs and inputs after `cut[g]` channels of each group g are gone."""
        outputs = self.outputs - sum(n * cut[g] for g, n in self.writers)
        inputs = self.inputs - sum(n * cut[g] for g, n in self.readers)
        return outputs, inputs

    def macs(self, cut: Sequence[int]) -> int:
        """Return the MACs after `cut[g]` channels of each group g are gone."""
        return self.unit * math.prod(self.widths(cut))


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """MACs of the whole network as a function of the groups' widths."""

    full: tuple[int, ...]
    layers: tuple[LayerCost, ...]

    def cut(self, widths: Sequence[int]) -> list[int]:
        """Return how many channels of each group are gone if group g is `widths[g]` wide."""
        return [full - width for full, width in zip(self.full, widths, strict=True)]

    def macs(self, widths: Sequence[int]) -> int:
        """Return the MACs of one sample if group g is `widths[g]` wide."""
        cut = self.cut(widths)
        return sum(layer.macs(cut) for layer in self.layers)

    def written(self) -> tuple[int, ...]:
        """Return the MACs that compute each group's channels."""
        uncut = self.cut(self.full)
        return tuple(map(round, self.shared_out({layer.layer: layer.macs(uncut) for layer in self.layers})))

    def shared_out(self, amounts: Mapping[str, float]) -> tuple[float, ...]:
        """Return what each group's channels have of amounts by layer; one of several groups is shared out by width."""
        shares = [0.0] * len(self.full)
        for layer in self.layers:
            for group, n in layer.writers:
                shares[group] += amounts.get(layer.layer, 0.0) * n * self.full[group] / layer.outputs
        return tuple(shares)


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
            if layer.groups > 1:
                # A grouped layer that is not depthwise is never cut, so its inputs are a constant.
                inputs = 1 if is_depthwise(layer) else inputs // layer.groups
        elif isinstance(layer, nn.Linear):
            outputs, inputs, unit = layer.out_features, layer.in_features, count
        else:
            raise TypeError(f"{name} is no {Layer}")
        costs.append(
            LayerCost(
                layer=name,
                unit=unit,
                outputs=outputs,
                inputs=inputs,
                writers=tuple(writers[name]),
                readers=tuple(readers[name]),
            )
        )
    return CostModel(full=tuple(g.width for g in groups), layers=tuple(costs))
