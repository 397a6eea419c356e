"""Find the channels that can only be cut together.

A residual add, a concatenation, a depthwise convolution or a squeeze-and-excite gate ties the channels of
several layers to each other. `torch-pruning` finds these ties by following autograd's graph (Fang et al.,
"DepGraph: Towards Any Structural Pruning", CVPR 2023). Here they become plain records of names and indices:
nothing after this module knows torch-pruning.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch_pruning
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch_pruning.ops import OPTYPE

from edgeft.errors import ModelError
from edgeft.pruning.macs import Layer

Role = Literal["producer", "depthwise", "norm", "consumer"]

# Operations that pass each channel on by itself, so that removing one leaves the others as they were. All
# else (split, slice, layer norm, attention, free parameters) mixes channels or has their number in code.
_TRANSPARENT = (OPTYPE.ELEMENTWISE, OPTYPE.CONCAT, OPTYPE.RESHAPE)

# What torch-pruning 1.6 dies with on operations that it does not know: it has no exceptions of its own.
_TRACER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A layer's part in a group: its channel `indices[i]` belongs to the group's channel `channels[i]`.

    Producers are indexed by output channel, consumers by input channel. After a flatten, several inputs of a
    linear layer belong to one channel.
    """

    layer: str
    role: Role
    indices: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """`width` channels that run through `members` together; `limit` says why they cannot be cut, if so."""

    width: int
    members: tuple[Member, ...]
    limit: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose outputs these channels are."""
        return tuple(m.layer for m in self.members if m.role in ("producer", "depthwise"))


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether `layer` filters every channel by itself, one output per input."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def find_groups(
    module: nn.Module, example: torch.Tensor, *, keep: Collection[str]
) -> tuple[ChannelGroup, ...]:
    """Return all channel groups of `module`, in the order of its layers.

    Args:
        module: Network in evaluation mode whose parameters all require gradients (the graph is autograd's).
        example: Input of shape (1, C, H, W).
        keep: Dotted names of layers whose outputs must stay as they are.

    Raises:
        ModelError: torch-pruning cannot follow the network's operations.
    """
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad():
            # A tuple: torch-pruning unpacks a bare tensor along its batch axis and tries that first.
            graph.build_dependency(module, (example,), verbose=False)
        coupled = list(graph.get_all_groups(root_module_types=[_ConvNd, nn.Linear]))
    except _TRACER_ERRORS as error:
        raise ModelError(
            f"torch-pruning cannot follow the channels of this {type(module).__name__}: "
            f"{type(error).__name__}: {error}",
            "leave the prune stage out for this architecture",
        ) from error
    names = {layer: name for name, layer in module.named_modules()}
    order = {name: i for i, name in enumerate(names.values())}
    groups = [
        part for found in coupled for part in _split_by_members(*_read(graph, found, names, frozenset(keep)))
    ]
    in_order = [
        replace(group, members=tuple(sorted(group.members, key=lambda m: order[m.layer]))) for group in groups
    ]
    return tuple(sorted(in_order, key=lambda g: order[g.members[0].layer]))


def _read(
    graph: Any, found: Any, names: dict[nn.Module, str], keep: frozenset[str]
) -> tuple[list[Member], str]:
    """Translate one group of torch-pruning into members (channels are the root layer's) and a limit."""
    members: list[Member] = []
    limits: list[str] = []
    for item in found:
        layer, kind = item.dep.target.module, item.dep.target.type
        role: Role
        if kind in _TRANSPARENT:
            continue
        if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
            continue
        if kind == OPTYPE.OUTPUT:
            limits.append("network output")
            continue
        if is_depthwise(layer):
            role = "depthwise"
        elif isinstance(layer, _ConvNd) and layer.groups > 1:
            limits.append("grouped convolution")
            continue
        elif isinstance(layer, Layer):
            role = "producer" if graph.is_out_channel_pruning_fn(item.dep.handler) else "consumer"
        elif isinstance(layer, _BatchNorm):
            role = "norm"
        else:
            limits.append(type(layer).__name__ if layer in names else kind.name.lower())
            continue
        if role != "consumer" and names[layer] in keep:
            limits.append("kept")
        members.append(
            Member(layer=names[layer], role=role, indices=tuple(item.idxs), channels=tuple(item.root_idxs))
        )
    if not any(m.role == "consumer" for m in members):
        limits.append("network output")
    return members, limits[0] if limits else ""


def _split_by_members(members: list[Member], limit: str) -> list[ChannelGroup]:
    """Split channels that run through different layers into groups of their own.

    Channels a and b of `conv(cat(a, b))` may share a layer and still be two groups: each has to keep a width
    that its own producer's kernel likes.
    """
    seen: defaultdict[int, list[int]] = defaultdict(list)
    for number, member in enumerate(members):
        for channel in dict.fromkeys(member.channels):
            seen[channel].append(number)
    parts: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for channel in sorted(seen):
        parts[tuple(seen[channel])].append(channel)
    groups = []
    for numbers, channels in parts.items():
        renumbered = {channel: i for i, channel in enumerate(channels)}
        own = []
        for member in (members[n] for n in numbers):
            pairs = [
                (i, renumbered[c])
                for i, c in zip(member.indices, member.channels, strict=True)
                if c in renumbered
            ]
            own.append(
                Member(
                    layer=member.layer,
                    role=member.role,
                    indices=tuple(i for i, _ in pairs),
                    channels=tuple(c for _, c in pairs),
                )
            )
        uneven = any(len(set(Counter(m.channels).values())) > 1 for m in own)
        reason = limit or ("uneven coupling" if uneven else "")
        groups.append(ChannelGroup(width=len(channels), members=tuple(own), limit=reason))
    return groups
