"""Count multiply-accumulates with forward hooks.

One rule covers convolutions, transposed convolutions and linear layers: every weight is used once per
position, so MACs = positions * number of weights. Positions are output pixels (input pixels for a transposed
convolution, rows for a linear layer) and do not change when channels are cut; that is what makes the cost of
a plan plain arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edgeft.errors import ModelError

Layer = _ConvNd | nn.Linear
"""The layers that cost MACs and whose channels can be cut."""

FORWARD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a forward fails with on an input, or with widths, that it is not made for."""


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Put `module` into evaluation mode, and every submodule back into its own mode afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


@contextmanager
def all_trainable(module: nn.Module) -> Iterator[None]:
    """Let every parameter require gradients for a while: the graph that is followed is autograd's."""
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def layer_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the input of a convolution or linear layer from what a hook is told of its call."""
    found: torch.Tensor = args[0] if args else kwargs.get("input", next(iter(kwargs.values())))
    return found


def count_positions(module: nn.Module, example: torch.Tensor) -> dict[str, int]:
    """Return how often each layer's weights are used for one sample, by the layer's dotted name.

    Args:
        module: Any network; left in the modes that it was in.
        example: Input of shape (N, C, H, W), or whatever the network takes.

    Raises:
        ModelError: The network does not run on `example`; names the layer that fails.
    """
    positions: dict[str, int] = {}
    handles = []
    entered: list[str] = []
    for name, layer in module.named_modules():

        def enter(layer: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            entered.append(name)

        def leave(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            entered.pop()

        handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
        if isinstance(layer, Layer):

            def record(
                layer: nn.Module,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                output: torch.Tensor,
                name: str = name,
            ) -> None:
                if isinstance(layer, nn.Linear):
                    count = math.prod(output.shape[:-1])
                else:
                    pixels = layer_input(args, kwargs) if isinstance(layer, _ConvTransposeNd) else output
                    count = pixels.shape[0] * math.prod(pixels.shape[2:])
                positions[name] = positions.get(name, 0) + count

            handles.append(layer.register_forward_hook(record, with_kwargs=True))
    try:
        with evaluation(module), torch.no_grad():
            module(example)
    except FORWARD_ERRORS as error:
        place = f" (layer {entered[-1]})" if entered and entered[-1] else ""
        own = next((p.dtype for p in module.parameters() if p.is_floating_point()), example.dtype)
        if example.is_floating_point() and own != example.dtype:
            raise ModelError(
                f"the network has weights in {_word(own)} and does not run on an input in {_word(example.dtype)}"
                f"{place}: {error}",
                f"call .to(torch.{_word(example.dtype)}) on it first",
            ) from error
        raise ModelError(
            f"the network does not run on an input of shape {tuple(example.shape)}{place}: {error}",
            "give it the input size and channels that it was made for",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return {name: count // example.shape[0] for name, count in positions.items()}


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def count_macs(module: nn.Module, example: torch.Tensor) -> int:
    """Return the multiply-accumulates of one sample in convolutions and linear layers.

    Functional calls (`F.conv2d`, `matmul`) and element-wise work are not counted.

    Args:
        module: Any network; left in the modes that it was in.
        example: Input of shape (N, C, H, W), or whatever the network takes.
    """
    weights = {
        name: layer.weight.numel() for name, layer in module.named_modules() if isinstance(layer, Layer)
    }
    return sum(count * weights[name] for name, count in count_positions(module, example).items())
