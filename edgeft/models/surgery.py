"""Model surgery: find and replace the head, cut, freeze, change the input channels. Usable on any `nn.Module`.

What needs the order in which layers run takes an example input and watches one forward pass, so that no
architecture has to be known by its attribute names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from edgeft.errors import ModelError, nearest

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def find_head(module: nn.Module, example: torch.Tensor) -> str:
    """Return the dotted name of the layer that makes the logits: the last linear or convolution to run.

    Args:
        module: Maps `example` to logits (N, K).
        example: Inputs (N, ...).

    Raises:
        ModelError: There is none, the layer that runs last does not make K outputs (several heads), or the
            example does not go through.
    """
    try:
        order, logits = _watch(module, example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{type(module).__name__} does not take inputs of shape {tuple(example.shape[1:])} ({reason})"
        ) from error
    ran = [(name, layer) for name, layer in order if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not ran or not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise ModelError(
            f"{type(module).__name__} has no classification head: it must end in a linear or convolutional "
            "layer and return logits (N, classes)"
        )
    name, head = ran[-1]
    width = head.out_features if isinstance(head, nn.Linear) else head.out_channels
    if width != logits.shape[1] or not name:
        raise ModelError(
            f"{type(module).__name__}: its last layer {name!r} makes {width} values, and its output has "
            f"{logits.shape[1]}; exactly one head that makes the logits is supported"
        )
    return name


def replace_head(module: nn.Module, classes: int, seed: int, *, example: torch.Tensor) -> str:
    """Give `module` a fresh head for `classes` classes, in place, and return the head's dotted name.

    Args:
        module: Changed in place; its head is the last linear or convolution to run, whatever its name.
        classes: Outputs of the new head, at least 2.
        seed: Of the fresh values; torch's own generator is left alone.
        example: Inputs (N, ...), to find the head with.

    Raises:
        ModelError: There is no such head, or the network does not work with one of another size.
    """
    name = find_head(module, example)
    old: Any = module.get_submodule(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(old, nn.Linear):
            new: nn.Module = nn.Linear(old.in_features, classes, old.bias is not None)
        else:
            new = _conv_like(old, out_channels=classes)
    reference = next(old.parameters())
    module.set_submodule(name, new.to(device=reference.device, dtype=reference.dtype))
    try:
        _, logits = _watch(module, example)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{type(module).__name__} does not run with a head of {classes} classes ({reason})"
        ) from error
    if logits.shape[1] != classes:
        raise ModelError(
            f"{type(module).__name__} returns {logits.shape[1]} values after its head {name!r} was replaced by "
            f"one for {classes} classes; exactly one head that makes the logits is supported"
        )
    return name


def cut_after(module: nn.Module, layer: str, example: torch.Tensor) -> nn.Module:
    """Return a feature extractor: a copy of `module` that stops behind `layer` and returns its output.

    What runs only behind the cut is dropped from the copy, so that it is as small as it is shallow. The copy
    trains and evaluates, whatever its architecture; it leaves the forward pass by an exception, which
    `torch.export` cannot follow.

    Args:
        module: Left as it is.
        layer: Dotted name of a submodule.
        example: Inputs (N, ...), to see what runs before the cut.

    Raises:
        ModelError: There is no such layer, or it does not run.
    """
    _require_layer(module, layer)
    extractor = CutNetwork(copy.deepcopy(module), layer)
    ran = {name.removeprefix("network.") for name, _ in _watch(extractor, example)[0]}
    finished = [name for name in ran if not layer.startswith(f"{name}.") and name not in ("", "network")]
    dropped: list[str] = []
    for name, child in module.named_modules():
        # A layer that ran may use a child by its parameters alone (attention does): such a child stays.
        needed = any(_covers(name, other) for other in ran) or any(_covers(done, name) for done in finished)
        if name and not needed and not any(_covers(gone, name) for gone in dropped) and _has_weights(child):
            extractor.network.set_submodule(name, nn.Identity())
            dropped.append(name)
    return extractor


def freeze_to(module: nn.Module, layer: str, example: torch.Tensor) -> list[str]:
    """Freeze `layer` and every layer that runs before it, in place; return the frozen parameters' names.

    Args:
        module: Its parameters' `requires_grad` is changed in place.
        layer: Dotted name of a submodule.
        example: Inputs (N, ...), to see the order in which layers run.

    Raises:
        ModelError: There is no such layer, or it does not run.
    """
    _require_layer(module, layer)
    order, _ = _watch(CutNetwork(module, layer), example)
    ran = {name.removeprefix("network.") for name, _ in order}
    finished = [name for name in ran if not layer.startswith(f"{name}.") and name not in ("", "network")]
    frozen = []
    for name, parameter in module.named_parameters():
        # What an enclosing layer owns itself (a class token, position embeddings) acts before its children.
        owner = name.rpartition(".")[0]
        if not owner or layer.startswith(f"{owner}.") or any(_covers(done, name) for done in finished):
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen


def adapt_input_channels(module: nn.Module, channels: int) -> str:
    """Make the first convolution take `channels` input channels, in place; return its dotted name.

    Its weights are adapted, not dropped: old channels are repeated cyclically and rescaled by old / new, so that
    grey is the sum of RGB's weights (equal answers on grey pictures), and RGB a third of grey's in each channel.

    Args:
        module: Changed in place.
        channels: At least 1.

    Raises:
        ModelError: There is no convolution, or the first one is grouped.
    """
    found = next(((n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d)), None)
    if found is None or found[1].groups != 1:
        raise ModelError(
            f"{type(module).__name__} does not start with an ordinary convolution: its number of input channels "
            "cannot be changed"
        )
    name, old = str(found[0]), found[1]
    if old.in_channels == channels:
        return name
    new = _conv_like(old, in_channels=channels)
    with torch.no_grad():
        if channels == 1:
            new.weight.copy_(old.weight.sum(1, keepdim=True))
        else:
            repeated = old.weight[:, [i % old.in_channels for i in range(channels)]]
            new.weight.copy_(repeated * (old.in_channels / channels))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    module.set_submodule(name, new.to(device=old.weight.device, dtype=old.weight.dtype))
    return name


class Block(NamedTuple):
    """A unit of freezing and of learning rates: its name, and the prefixes of its parameters' names."""

    name: str
    prefixes: tuple[str, ...]


def blocks(module: nn.Module, head: str = "") -> list[Block]:
    """Return the network's blocks in the order in which it registers them, without the head.

    A block is an element of the network's innermost plain `nn.Sequential` or `nn.ModuleList` along its spine
    (features.0 to features.18 in MobileNetV2, layer1.0 in a ResNet, encoder.layer.0 in BERT), or a layer outside
    of one. A norm belongs to the block before it.

    Args:
        module: Any network.
        head: Dotted prefix of the head, which is left out.
    """
    units: list[tuple[str, nn.Module]] = []
    _expand("", module, head, units, inside=False)
    found: list[Block] = []
    for name, unit in units:
        if isinstance(unit, _NORMS) and found:
            found[-1] = Block(found[-1].name, (*found[-1].prefixes, name))
        else:
            found.append(Block(name, (name,)))
    direct = _direct_parameters(module, found, head)
    if direct and found:
        found[0] = Block(found[0].name, (*found[0].prefixes, *direct))
    return found


def _expand(
    name: str, module: nn.Module, head: str, units: list[tuple[str, nn.Module]], *, inside: bool
) -> None:
    """Append the blocks of `module`. `inside` tells that it is an element of a plain container."""
    if not _has_weights(module) or (name and _covers(head, name)):
        return
    holds_head = bool(head) and head.startswith(f"{name}." if name else "")
    plain = type(module) in (nn.Sequential, nn.ModuleList)
    nested = any(type(m) in (nn.Sequential, nn.ModuleList) for m in module.modules())
    # The root is always looked into, a list always; a composite (bert, encoder) only on the way to a list.
    if not name or plain or holds_head or (nested and not inside):
        for child_name, child in module.named_children():
            _expand(f"{name}.{child_name}".lstrip("."), child, head, units, inside=plain)
    else:
        units.append((name, module))


def _covers(prefix: str, name: str) -> bool:
    return bool(prefix) and (name == prefix or name.startswith(f"{prefix}."))


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _direct_parameters(module: nn.Module, found: list[Block], head: str) -> tuple[str, ...]:
    """Return parameters that belong to no block (a class token, position embeddings): they act at the input."""
    prefixes = [prefix for block in found for prefix in block.prefixes]
    return tuple(
        name
        for name, _ in module.named_parameters()
        if not _covers(head, name) and not any(_covers(prefix, name) for prefix in prefixes)
    )


class _Stop(Exception):  # noqa: N818  (a signal, not an error)
    """Leave a forward pass behind a layer."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output


class CutNetwork(nn.Module):
    """Run `network` up to `layer` and return that layer's output."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network = network
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map what the network takes to what the layer makes."""

        def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
            raise _Stop(output)

        handle = self.network.get_submodule(self.layer).register_forward_hook(stop)
        try:
            self.network(x)
        except _Stop as stopped:
            output = stopped.output[0] if isinstance(stopped.output, tuple) else stopped.output
            return output
        finally:
            handle.remove()
        raise ModelError(f"layer {self.layer!r} does not run in {type(self.network).__name__}")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put every layer into evaluation mode, and each back into its own afterwards."""
    modes = [(layer, layer.training) for layer in module.modules()]
    for layer, _ in modes:
        layer.training = False
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def _watch(module: nn.Module, example: torch.Tensor) -> tuple[list[tuple[str, nn.Module]], torch.Tensor]:
    """Run `example` through in evaluation mode; return the layers in the order in which they start, and the output."""
    order: list[tuple[str, nn.Module]] = []
    handles = [
        layer.register_forward_pre_hook(lambda m, _inputs, name=name: order.append((name, m)))
        for name, layer in module.named_modules()
    ]
    try:
        with _evaluating(module), torch.no_grad():
            return order, module(example)
    finally:
        for handle in handles:
            handle.remove()


def _require_layer(module: nn.Module, layer: str) -> None:
    names = [name for name, _ in module.named_modules() if name]
    if layer not in names:
        raise ModelError(
            f"{type(module).__name__} has no layer {layer!r}{nearest(layer, names)}",
            "the names are those of named_modules()",
        )


def _conv_like(conv: nn.Conv2d, **changes: Any) -> nn.Conv2d:
    settings: dict[str, Any] = {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": conv.padding_mode,
    }
    return nn.Conv2d(**{**settings, **changes})
