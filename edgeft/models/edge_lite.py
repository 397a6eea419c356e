"""The edge-lite rewrite: what int8 kernels are slow at gives way to what they are fast at, by replacing modules.

MobileNetV3 and EfficientNet gain accuracy per multiply-accumulate from hardswish, SiLU and squeeze-and-excite. In
int8 each of these is several small operations between convolutions, with rounding and a memory pass of its own, and
the file ends up slower than the float one. ReLU6 costs nothing (it is the clamp of the convolution before), and
without squeeze-and-excite nothing waits for a mean over the picture. It is what the EfficientNet-Lite networks do
(Google, 2020); unlike them, the weights are kept, and distillation from the original recovers the accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from edgeft.errors import ModelError

# timm's own activations, which it uses where torch's do not fit; nn.SiLU and nn.Hardswish are told by their type.
_ACTIVATION_NAMES = {"Swish", "SwishMe", "HardSwish", "HardSwishMe", "SiLUActivation"}
# torchvision, timm (three kinds) and transformers. Each maps features to the same features, scaled per channel.
_GATE_NAMES = {
    *("SqueezeExcitation", "SqueezeExcite", "SEModule", "EffectiveSEModule"),
    *("EfficientNetSqueezeExciteLayer", "SqueezeExciteCl"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeLite:
    """A rewritten copy of a network: dotted names of the replaced activations and gates.

    `folded` are the gates whose mean went into the weights of the convolution behind them.
    """

    module: nn.Module
    activations: tuple[str, ...]
    gates: tuple[str, ...]
    folded: tuple[str, ...] = ()


def to_edge_lite(module: nn.Module, inputs: Iterable[torch.Tensor] = ()) -> EdgeLite:
    """Return a copy of `module` with ReLU6 for hardswish and SiLU, and without squeeze-and-excite.

    A gate multiplies each channel by a number that changes from sample to sample around a mean, often far below 1.
    With `inputs` that mean is multiplied into the convolution that reads the gate's output, so that what follows sees
    features of the size that it was trained for.

    Args:
        module: From torchvision, timm or transformers, or of one's own with their layers; not changed.
        inputs: Batches (N, ...) to take the gates' means on; none leaves the weights as they are.

    Raises:
        ModelError: There is nothing to rewrite.
    """
    copied = copy.deepcopy(module).eval()
    activations, gates = edge_lite_sites(copied)
    if not gates and not activations:
        raise ModelError(
            f'rewrite = "edge-lite": this {type(module).__name__} has no module of hardswish, SiLU or '
            "squeeze-and-excite",
            "leave prune.rewrite out; functions called inside forward() (F.silu) cannot be replaced",
        )
    means = _watch_gates(copied, gates, inputs)
    for watched in means.values():
        _fold(watched)
    for name in gates:
        copied.set_submodule(name, nn.Identity())
    for name in activations:
        copied.set_submodule(name, nn.ReLU6(inplace=True))
    return EdgeLite(module=copied, activations=activations, gates=gates, folded=tuple(sorted(means)))


def edge_lite_sites(module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the dotted names of the activations and of the gates that `to_edge_lite` would replace."""
    gates = tuple(name for name, layer in module.named_modules() if type(layer).__name__ in _GATE_NAMES)
    inside = tuple(f"{name}." for name in gates)
    activations = tuple(
        name
        for name, layer in module.named_modules()
        if _is_slow_activation(layer) and not name.startswith(inside)
    )
    return activations, gates


def _is_slow_activation(layer: nn.Module) -> bool:
    return isinstance(layer, nn.SiLU | nn.Hardswish) or type(layer).__name__ in _ACTIVATION_NAMES


@dataclass(slots=True)
class _Watched:
    """Per channel, sums over features x before and y behind a gate, and the convolution that reads y."""

    products: torch.Tensor | float = 0.0
    squares: torch.Tensor | float = 0.0
    output: torch.Tensor | None = field(default=None, repr=False)
    reader: nn.Conv2d | None = None
    several: bool = False


def _watch_gates(
    module: nn.Module, names: tuple[str, ...], inputs: Iterable[torch.Tensor]
) -> dict[str, _Watched]:
    """Run `inputs` and return what was seen of the gates that one convolution alone reads."""
    watched = {name: _Watched() for name in names}
    handles = []

    def see_gate(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
            x, gate = _inputs(args, kwargs)[0].double(), watched[name]
            gate.products = gate.products + (x * output).sum((0, 2, 3))
            gate.squares = gate.squares + x.square().sum((0, 2, 3))
            gate.output = output

        return hook

    def see_reader(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for gate in watched.values():
            if gate.output is not None and any(x is gate.output for x in _inputs(args, kwargs)):
                gate.several |= gate.reader not in (None, layer)
                gate.reader = layer if isinstance(layer, nn.Conv2d) else None

    for name, layer in module.named_modules():
        if name in watched:
            handles.append(layer.register_forward_hook(see_gate(name), with_kwargs=True))
        elif not list(layer.children()):
            handles.append(layer.register_forward_pre_hook(see_reader, with_kwargs=True))
    try:
        with torch.no_grad():
            for batch in inputs:
                module(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: gate
        for name, gate in watched.items()
        if gate.reader is not None and not gate.several and gate.reader.groups == 1
    }


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Return the tensors that a module is called with, by position or by name."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]


@torch.no_grad()
def _fold(gate: _Watched) -> None:
    """Multiply a gate's per-channel means, in the sense of least squares, into its reader's weights."""
    if gate.reader is None or isinstance(gate.squares, float):
        return
    means = torch.where(gate.squares > 0, gate.products / gate.squares.clamp_min(1e-30), 1.0)
    gate.reader.weight.mul_(means.to(gate.reader.weight.dtype).view(1, -1, 1, 1))
