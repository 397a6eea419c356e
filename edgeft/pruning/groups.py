"""Find the channels that can only be cut together.

A residual add, a concatenation, a depthwise convolution or a squeeze-and-excite gate ties the channels of
several layers to each other. `torch-pruning` finds these ties by following autograd's graph (Fang et al.,
"DepGraph: Towards Any Structural Pruning", CVPR 2023). Here they become plain records of names and indices:
nothing after this module knows torch-pruning. Attention heads are groups of our own (`attention`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch_pruning.ops import OPTYPE

from edgeft.pruning.attention import Attention, find_attention
from edgeft.pruning.macs import Layer
from edgeft.pruning.tracing import Trace, is_spatial, trace

Role = Literal["producer", "depthwise", "norm", "consumer"]

# Operations that pass each channel on by itself, so that removing one leaves the others as they were. All
# else (split, slice, layer norm, attention, free parameters) mixes channels or has their number in code.
_TRANSPARENT = (OPTYPE.ELEMENTWISE, OPTYPE.CONCAT, OPTYPE.RESHAPE)

# Operations of two tensors by autograd's names, and how they tie the layers that write these.
_TIES = {"AddBackward0": "add", "SubBackward0": "add", "MulBackward0": "multiplication"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A layer's part in a group: its channel `indices[i]` belongs to the group's channel `channels[i]`.

    Producers are indexed by output channel, consumers by input channel. After a flatten, several inputs of a
    linear layer belong to one channel; the channels of an attention head belong to one, too.
    """

    layer: str
    role: Role
    indices: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """`width` channels that run through `members` together.

    `limit` says why they cannot be cut, if so; `coupled_by` what ties the layers to each other. A group of
    attention heads has `unit` "head", `width` heads and `size` channels in each.
    """

    width: int
    members: tuple[Member, ...]
    limit: str = ""
    coupled_by: tuple[str, ...] = ()
    unit: Literal["channel", "head"] = "channel"
    size: int = 1

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose outputs these channels are."""
        return tuple(m.layer for m in self.members if m.role in ("producer", "depthwise"))

    @property
    def is_filtered(self) -> bool:
        """Whether a depthwise convolution filters these channels."""
        return any(m.role == "depthwise" for m in self.members)

    @property
    def readers(self) -> tuple[str, ...]:
        """Names of the layers that read these channels."""
        return tuple(m.layer for m in self.members if m.role == "consumer")


@dataclass(frozen=True, slots=True)
class _Mark:
    """Something said about some channels of the root layer: a limit, or what couples them."""

    kind: Literal["limit", "tie"]
    text: str
    channels: tuple[int, ...]


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether `layer` filters every channel by itself, one output per input."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def find_groups(
    module: nn.Module, example: torch.Tensor, *, keep: Collection[str]
) -> tuple[ChannelGroup, ...]:
    """Return all channel groups of `module`, in the order of its layers.

    Args:
        module: Network in evaluation mode.
        example: Input with a batch of 1.
        keep: Dotted names of layers whose outputs must stay as they are.

    Raises:
        ModelError: torch-pruning cannot follow the network's operations.
    """
    traced = trace(module, example)
    names = {layer: name for name, layer in module.named_modules()}
    order = {name: i for i, name in enumerate(names.values())}
    groups = [
        part
        for found in traced.groups
        for part in _split_by_members(*_read(traced, found, names, frozenset(keep)))
    ]
    groups = _with_heads(groups, find_attention(module), frozenset(keep))
    in_order = [
        replace(group, members=tuple(sorted(group.members, key=lambda m: order[m.layer]))) for group in groups
    ]
    return tuple(sorted(in_order, key=lambda g: order[g.members[0].layer]))


def _read(
    traced: Trace, found: Any, names: Mapping[nn.Module, str], keep: frozenset[str]
) -> tuple[list[Member], list[_Mark]]:
    """Translate one group of torch-pruning into members (channels are the root layer's) and marks."""
    members: list[Member] = []
    marks: list[_Mark] = []
    for item in found:
        node, channels = item.dep.target, tuple(item.root_idxs)
        layer, kind = node.module, node.type
        padding = traced.paddings.get(layer)
        if padding is not None:
            zeros = tuple(c for i, c in zip(item.idxs, channels, strict=True) if i not in padding)
            marks.append(_Mark("limit", "zero padding of channels", zeros))
        reason = traced.opaque.get(layer) or _obstacle(node, names)
        tie = _tie(layer, kind, node)
        if reason:
            marks.append(_Mark("limit", reason, channels))
        elif tie:
            marks.append(_Mark("tie", tie, channels))
        if reason or layer not in names or isinstance(layer, nn.PReLU):
            continue
        producing = bool(traced.graph.is_out_channel_pruning_fn(item.dep.handler))
        own = traced.graph.get_out_channels(layer) if producing else traced.graph.get_in_channels(layer)
        # Indices beyond the layer's channels: a mapping on the way was wrong.
        fitting = [(i, c) for i, c in zip(item.idxs, channels, strict=True) if i < own]
        if len(fitting) < len(channels):
            marks.append(_Mark("limit", "channels broadcast, gated or reshaped after it", channels))
        if not fitting:
            continue
        member = Member(
            layer=names[layer],
            role=_role(layer, producing),
            indices=tuple(i for i, _ in fitting),
            channels=tuple(c for _, c in fitting),
        )
        if member.role != "consumer" and member.layer in keep:
            marks.append(_Mark("limit", "kept", channels))
        members.append(member)
    if not any(m.role == "consumer" for m in members):
        marks.append(_Mark("limit", "network output", tuple(c for m in members for c in m.channels)))
    return members, marks


def _obstacle(node: Any, names: Mapping[nn.Module, str]) -> str:
    """Return why channels that reach this operation cannot be cut, or an empty string."""
    layer, kind = node.module, node.type
    if kind == OPTYPE.OUTPUT:
        return "network output"
    if (
        kind in _TRANSPARENT
        or is_spatial(node)
        or (isinstance(layer, nn.PReLU) and layer.num_parameters == 1)
    ):
        return ""
    if isinstance(layer, _ConvNd) and layer.groups > 1 and not is_depthwise(layer):
        return "grouped convolution"
    if isinstance(layer, (Layer, _BatchNorm)):
        return ""
    return type(layer).__name__ if layer in names else str(kind.name.lower())


def _tie(layer: Any, kind: Any, node: Any) -> str:
    """Return how this operation couples channels of several layers, or an empty string."""
    if kind == OPTYPE.CONCAT:
        return "concatenation"
    if is_depthwise(layer):
        return "depthwise convolution"
    return _TIES.get(type(node.grad_fn).__name__, "") if len(node.inputs) > 1 else ""


def _role(layer: nn.Module, producing: bool) -> Role:
    if isinstance(layer, _BatchNorm):
        return "norm"
    if is_depthwise(layer):
        return "depthwise"
    return "producer" if producing else "consumer"


def _split_by_members(members: Sequence[Member], marks: Iterable[_Mark]) -> list[ChannelGroup]:
    """Split channels that run through different layers, or have different limits, into groups of their own.

    Channels a and b of `conv(cat(a, b))` may share a layer and still be two groups: each has to keep a width
    that its own producer's kernel likes.
    """
    seen: defaultdict[int, list[int]] = defaultdict(list)
    for number, member in enumerate(members):
        for channel in dict.fromkeys(member.channels):
            seen[channel].append(number)
    limits: defaultdict[int, dict[str, None]] = defaultdict(dict)
    ties: defaultdict[int, set[str]] = defaultdict(set)
    for mark in marks:
        for channel in mark.channels:
            if mark.kind == "limit":
                limits[channel][mark.text] = None
            else:
                ties[channel].add(mark.text)
    parts: defaultdict[tuple[tuple[int, ...], tuple[str, ...]], list[int]] = defaultdict(list)
    for channel in sorted(seen):
        parts[tuple(seen[channel]), tuple(limits[channel])].append(channel)
    return [
        _part([members[n] for n in numbers], channels, reasons, {tie for c in channels for tie in ties[c]})
        for (numbers, reasons), channels in parts.items()
    ]


def _part(
    members: Iterable[Member], channels: Sequence[int], limits: Sequence[str], ties: set[str]
) -> ChannelGroup:
    """Return the group of these channels of the root layer, numbered from 0."""
    renumbered = {channel: i for i, channel in enumerate(channels)}
    own = []
    for member in members:
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
    reasons = [*limits, "uneven coupling"] if uneven else limits
    if any(len(m.indices) > len(channels) for m in own if m.role == "consumer"):
        ties = ties | {"flatten"}
    alone = sum(m.role in ("producer", "depthwise") for m in own) == 1
    return ChannelGroup(
        width=len(channels),
        members=tuple(own),
        limit=reasons[0] if reasons else "",
        coupled_by=tuple(sorted(ties - {"add", "multiplication"} if alone else ties)),
    )


def _with_heads(
    groups: Sequence[ChannelGroup], attentions: Iterable[Attention], keep: frozenset[str]
) -> list[ChannelGroup]:
    """Put a group of heads in the place of the channels of every attention whose projections stand alone."""
    left = list(groups)
    for attention in attentions:
        inside = set(attention.inputs)
        own = [group for group in left if inside & set(group.layers)]
        if any(set(group.layers) - inside for group in own):
            continue  # something else is added to queries, keys or values
        left = [group for group in left if group not in own] + [_heads(attention, keep)]
    return left


def _heads(attention: Attention, keep: frozenset[str]) -> ChannelGroup:
    """Return the group of an attention's heads."""
    width = attention.heads * attention.head_size
    channels = tuple(i // attention.head_size for i in range(width))
    members = [
        Member(
            layer=layer,
            role="producer",
            indices=tuple(range(attention.parts * width)),
            channels=channels * attention.parts,
        )
        for layer in attention.inputs
    ]
    members.append(
        Member(layer=attention.output, role="consumer", indices=tuple(range(width)), channels=channels)
    )
    return ChannelGroup(
        width=attention.heads,
        members=tuple(members),
        limit="kept" if keep & set(attention.inputs) else "",
        coupled_by=("attention heads",),
        unit="head",
        size=attention.head_size,
    )
