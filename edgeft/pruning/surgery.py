"""Cut channels, and give a new network the shapes of a pruned one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from edgeft.errors import ModelError
from edgeft.pruning.attention import Attention, find_attention, update_heads
from edgeft.pruning.groups import ChannelGroup, is_depthwise
from edgeft.pruning.macs import Layer

_RESTORE_HINT = "build the network that was pruned, with the same number of classes"


@dataclass(slots=True)
class Removal:
    """Output and input channels that one layer loses."""

    outputs: set[int] = field(default_factory=set)
    inputs: set[int] = field(default_factory=set)


def removals(groups: Sequence[ChannelGroup], removed: Sequence[Sequence[int]]) -> dict[str, Removal]:
    """Return what every layer loses, by dotted name.

    Args:
        groups: All channel groups.
        removed: Per group, the channels to cut.
    """
    losses: defaultdict[str, Removal] = defaultdict(Removal)
    for group, channels in zip(groups, removed, strict=True):
        gone = set(channels)
        for member in group.members if gone else ():
            loss = losses[member.layer]
            side = loss.inputs if member.role == "consumer" else loss.outputs
            side.update(i for i, c in zip(member.indices, member.channels, strict=True) if c in gone)
    return dict(losses)


def cut(module: nn.Module, losses: Mapping[str, Removal]) -> None:
    """Remove the channels of `losses` from `module`, in place."""
    attentions = find_attention(module)
    for name, loss in losses.items():
        layer = module.get_submodule(name)
        for key, tensor in _tensors(layer).items():
            kept = tensor
            for side, axis in _axes(layer, key).items():
                gone = loss.outputs if side == "outputs" else loss.inputs
                index = [i for i in range(kept.shape[axis]) if i not in gone]
                kept = kept.index_select(axis, torch.tensor(index, device=kept.device))
            _replace(layer, key, kept)
        _read_widths(layer)
    update_heads(module, attentions)


def mask(module: nn.Module, losses: Mapping[str, Removal]) -> None:
    """Zero the weights that read the channels of `losses`, in place: the unpruned twin of `cut`."""
    for name, loss in losses.items():
        layer = module.get_submodule(name)
        if loss.inputs and isinstance(layer, Layer):
            index = torch.tensor(sorted(loss.inputs), device=layer.weight.device)
            with torch.no_grad():
                layer.weight.index_fill_(_axes(layer, "weight")["inputs"], index, 0)


def restore(module: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Give a freshly built unpruned network the shapes and values of a pruned one's state dict.

    So a pruned model is stored as plain tensors and its architecture's name; no code and no pickle.

    Args:
        module: The unpruned network; changed in place (not at all if the state does not fit).
        state: Tensors by dotted name, as `state_dict()` of the pruned network gave them.

    Returns:
        `module`.

    Raises:
        ModelError: Names are missing or unknown, or a shape is not one that cutting channels can lead to.
    """
    own = module.state_dict()
    for words, names in (("lacks", own.keys() - state.keys()), ("has unknown", state.keys() - own.keys())):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ModelError(f"the pruned state {words} {listed}", _RESTORE_HINT)
    attentions = find_attention(module)
    resized: list[tuple[str, nn.Module]] = []
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        tensors = {key: tensor for key, tensor in _tensors(layer).items() if prefix + key in own}
        if any(state[prefix + key].shape != tensor.shape for key, tensor in tensors.items()):
            _check_resize(name, layer, {key: tuple(state[prefix + key].shape) for key in tensors})
            resized.append((prefix, layer))
    for attention in attentions:
        _check_heads(attention, state)
    for prefix, layer in resized:
        for key, tensor in _tensors(layer).items():
            if prefix + key in own:
                _replace(layer, key, tensor.new_empty(state[prefix + key].shape))
        _read_widths(layer)
    update_heads(module, attentions)
    module.load_state_dict(state, strict=True)
    return module


def _tensors(layer: nn.Module) -> dict[str, torch.Tensor]:
    """Return the layer's own parameters and buffers, detached, by name."""
    own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return {key: tensor.detach() for key, tensor in own}


def _axes(layer: nn.Module, key: str) -> dict[str, int]:
    """Return which axes of tensor `key` are output and input channels: {"outputs": axis, "inputs": axis}."""
    if key == "num_batches_tracked":
        return {}
    if isinstance(layer, _BatchNorm) or key == "bias" or is_depthwise(layer):
        return {"outputs": 0}
    if isinstance(layer, _ConvNd) and layer.transposed:
        return {"outputs": 1, "inputs": 0}
    return {"outputs": 0, "inputs": 1}


def _replace(layer: nn.Module, key: str, tensor: torch.Tensor) -> None:
    """Put `tensor` in the place of parameter or buffer `key`."""
    old = getattr(layer, key)
    if isinstance(old, nn.Parameter):
        setattr(layer, key, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        setattr(layer, key, tensor)


def _read_widths(layer: nn.Module) -> None:
    """Set the layer's width attributes from its tensors."""
    if isinstance(layer, _BatchNorm):
        vector = layer.running_mean if layer.running_mean is not None else layer.weight
        layer.num_features = len(vector)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _ConvNd):
        if is_depthwise(layer):
            layer.groups = layer.in_channels = layer.out_channels = layer.weight.shape[0]
        else:
            axes = _axes(layer, "weight")
            layer.out_channels = layer.weight.shape[axes["outputs"]]
            layer.in_channels = layer.weight.shape[axes["inputs"]]


def _check_resize(name: str, layer: nn.Module, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `ModelError` if cutting channels cannot have given `layer` the shapes `wanted`."""
    cuttable = isinstance(layer, (Layer, _BatchNorm)) and (
        getattr(layer, "groups", 1) == 1 or is_depthwise(layer)
    )
    widths = set()
    for key, tensor in _tensors(layer).items():
        if key not in wanted:
            continue
        old, new, axes = tuple(tensor.shape), wanted[key], _axes(layer, key)
        fits = len(old) == len(new) and all(
            0 < after <= before if axis in axes.values() else after == before
            for axis, (before, after) in enumerate(zip(old, new, strict=False))
        )
        if not (cuttable and fits):
            raise ModelError(
                f"layer {name}: {key} has shape {new} in the pruned state, and {old} cannot be cut to it",
                _RESTORE_HINT,
            )
        if axes:
            widths.add(new[axes["outputs"]])
    if len(widths) > 1:
        raise ModelError(
            f"layer {name}: the pruned state's tensors disagree about its width: {sorted(widths)}",
            _RESTORE_HINT,
        )


def _check_heads(attention: Attention, state: Mapping[str, torch.Tensor]) -> None:
    """Raise `ModelError` unless the state has the same number of whole heads in every projection."""
    widths = {state[f"{layer}.weight"].shape[0] // attention.parts for layer in attention.inputs}
    widths.add(state[f"{attention.output}.weight"].shape[1])
    if len(widths) > 1 or min(widths) % attention.head_size:
        raise ModelError(
            f"attention {attention.name}: the pruned state has projections {sorted(widths)} wide, which are no whole "
            f"heads of {attention.head_size} channels",
            _RESTORE_HINT,
        )
