"""What a network's layers are and which of them run, found out once before anything of it is cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgeft.errors import ModelError
from edgeft.pruning.groups import ChannelGroup, is_depthwise
from edgeft.pruning.macs import FORWARD_ERRORS, Layer, all_trainable, count_positions
from edgeft.pruning.proof import training_error

_GRADIENTS = (
    "take torch.no_grad(), torch.inference_mode() and detach() out of its code: the caller decides about them"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What running a network shows; layers by dotted name.

    `positions` says how often each layer's weights are used for one sample in evaluation
    (`macs.count_positions`); `idle` are the layers that evaluation does not run; `shared` maps layers to
    another one that has the same parameter; `trains` says whether the network runs in training mode as it does in
    evaluation.
    """

    positions: Mapping[str, int]
    idle: tuple[str, ...]
    shared: Mapping[str, str]
    trains: bool


def survey(network: nn.Module, example: torch.Tensor) -> Survey:
    """Return what running `network` shows.

    Args:
        network: In evaluation mode; not changed.
        example: One input with a batch of 1.

    Raises:
        ModelError: The network does not run on `example`, returns anything but one tensor, or computes it without
            gradients, which its channels are followed by.
    """
    positions = count_positions(network, example)
    reached = _reached(network, example)
    idle = tuple(
        name
        for name, layer in network.named_modules()
        if isinstance(layer, Layer)
        and name not in positions
        and not any(id(parameter) in reached for parameter in layer.parameters())
    )
    return Survey(
        positions=positions,
        idle=idle,
        shared=_shared(network),
        trains=training_error(network, example) is None,
    )


def limit_shared(groups: Iterable[ChannelGroup], shared: Mapping[str, str]) -> Iterator[ChannelGroup]:
    """Yield the groups, with a limit for those that write, pass or are read by a layer of `shared`.

    A cut gives each layer a tensor of its own: what was one parameter would be two, with a size and a training each.
    """
    for group in groups:
        layer = next((member.layer for member in group.members if member.layer in shared), None)
        if group.limit or layer is None:
            yield group
            continue
        read = "" if layer in group.layers else f"read by {layer}, "
        yield replace(group, limit=f"{read}weight shared with {shared[layer]}")


def _shared(network: nn.Module) -> dict[str, str]:
    """Return the modules that have a parameter in common with another one; used twice, a module is still one."""
    owners: defaultdict[int, list[str]] = defaultdict(list)
    for name, module in network.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners[id(parameter)].append(name or key)
    found: dict[str, str] = {}
    for names in owners.values():
        for name in dict.fromkeys(names):
            others = [other for other in names if other != name]
            if others:
                found.setdefault(name, others[0])
    return found


def uncut(network: nn.Module, survey: Survey, followed: Collection[str]) -> dict[str, str]:
    """Return the layers of no group by dotted name, and why.

    Args:
        network: The network.
        survey: Of it.
        followed: The layers of groups.
    """
    reasons = dict.fromkeys(survey.idle, "does not run in evaluation")
    for name, layer in network.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            reasons[name] = "attention in one kernel"
        elif isinstance(layer, nn.RNNBase | nn.RNNCellBase):
            reasons[name] = "recurrent, MACs not counted"
        elif name in survey.positions and name not in followed:
            grouped = isinstance(layer, _ConvNd) and layer.groups > 1
            reasons[name] = "grouped convolution" if grouped and not is_depthwise(layer) else "not followed"
    return reasons


def _reached(network: nn.Module, example: torch.Tensor) -> set[int]:
    """Return the ids of the parameters that the output depends on: a layer may be used without being called."""
    kind = type(network).__name__
    with torch.enable_grad(), all_trainable(network):
        try:
            output = network(example)
        except FORWARD_ERRORS as error:
            raise ModelError(
                f"the forward of this {kind} runs without gradients only, and its channels are followed by these: "
                f"{error}",
                _GRADIENTS,
            ) from error
    if not isinstance(output, torch.Tensor):
        raise ModelError(
            f"the output of a network that is pruned has to be one tensor; this {kind} returns a "
            f"{type(output).__name__}",
            "wrap it in a module that returns the logits alone",
        )
    if output.grad_fn is None:
        raise ModelError(
            f"the forward of this {kind} runs without gradients, and its channels are followed by these",
            _GRADIENTS,
        )
    found: set[int] = set()
    queue, seen = [output.grad_fn], {output.grad_fn}
    while queue:
        function = queue.pop()
        variable = getattr(function, "variable", None)
        if variable is not None:
            found.add(id(variable))
        fresh = {source for source, _ in function.next_functions if source is not None} - seen
        seen |= fresh
        queue += fresh
    return found
