"""Cut channels, prove that nothing else changed, and give a new network the shapes of a pruned one."""

from __future__ import annotations

import copy
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
from edgeft.pruning.macs import FORWARD_ERRORS, Layer

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


def check_cut(
    original: nn.Module, pruned: nn.Module, losses: Mapping[str, Removal], example: torch.Tensor
) -> None:
    """Raise unless `pruned` computes what `original` computes when nobody reads the removed channels.

    The dependency graph takes every operation that it does not know for an element-wise one (a channel
    shuffle, attention heads). Where that is wrong it is found out here, and not by a bad accuracy later.

    Args:
        original: The unpruned network.
        pruned: The network after `cut` with the same `losses`.
        losses: What every layer lost.
        example: An input.

    Raises:
        ModelError: The outputs differ or the pruned network cannot run.
    """
    masked = copy.deepcopy(original).double().cpu().eval()
    mask(masked, losses)
    double = copy.deepcopy(pruned).double().cpu().eval()
    noise = _noise(example)
    hint = (
        "name the layers around that operation in `keep`, or leave the prune stage out for this architecture"
    )
    with torch.no_grad():
        try:
            expected = masked(noise)
        except FORWARD_ERRORS as error:
            raise ModelError(
                f"this network does not run in float64, in which cuts are checked: {error}",
                "make tensors that it creates in its code follow the type of its inputs",
            ) from error
        try:
            got = double(noise)
        except FORWARD_ERRORS as error:
            raise ModelError(f"this network cannot run with fewer channels: {error}", hint) from error
    if got.shape != expected.shape or not torch.allclose(
        got, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()), equal_nan=True
    ):
        raise ModelError(
            "this network mixes channels in a way that pruning does not follow (a channel shuffle, attention "
            "heads, a normalisation over channels): cutting channels that nothing reads changed its output",
            hint,
        )


def _noise(example: torch.Tensor) -> torch.Tensor:
    """Return an input like `example`: noise in float64, where a difference is no rounding, or other token ids."""
    generator = torch.Generator().manual_seed(0)
    if example.is_floating_point():
        return torch.randn(example.shape, dtype=torch.float64, generator=generator)
    noise = torch.randint(0, int(example.max()) + 1, example.shape, generator=generator).to(example.dtype)
    noise[:, 0] = example[:, 0].cpu()  # a text of padding alone has no mean
    return noise


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
