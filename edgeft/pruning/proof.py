"""Prove a cut: the network computes what it computed when nothing read the removed channels, and it still trains."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
from torch import nn

from edgeft.errors import ModelError
from edgeft.pruning.macs import FORWARD_ERRORS
from edgeft.pruning.surgery import Removal, mask

_HINT = "name the layers around that operation in `keep`, or leave the prune stage out for this architecture"


class CutError(ModelError):
    """A network that does not survive a cut.

    Args:
        message: As of every error.
        limit: Why, as a group's limit says it.
    """

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message, _HINT)
        self.limit = limit


def check_cut(
    original: nn.Module, pruned: nn.Module, losses: Mapping[str, Removal], example: torch.Tensor
) -> None:
    """Raise unless `pruned` computes what `original` computes when nobody reads the removed channels.

    The dependency graph takes every operation that it does not know for an element-wise one (a channel
    shuffle, attention heads). Where that is wrong it is found out here, and not by a bad accuracy later.

    Args:
        original: The unpruned network.
        pruned: The network after `surgery.cut` with the same `losses`.
        losses: What every layer lost.
        example: An input.

    Raises:
        CutError: The outputs differ or the pruned network cannot run.
        ModelError: The unpruned network cannot be compared with.
    """
    masked = copy.deepcopy(original).cpu().eval()
    mask(masked, losses)
    double = copy.deepcopy(pruned).double().cpu().eval()
    noise = _noise(example)
    with torch.no_grad():
        try:
            expected = masked.double()(noise)
        except FORWARD_ERRORS as error:
            raise ModelError(
                f"this network does not run in float64, in which cuts are checked: {error}",
                "make tensors that it creates in its code follow the type of its inputs",
            ) from error
        try:
            got = double(noise)
        except FORWARD_ERRORS as error:
            raise CutError(
                f"this network cannot run with fewer channels: {error}", "tied to a fixed shape"
            ) from error
    if got.shape != expected.shape or not torch.allclose(
        got, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()), equal_nan=True
    ):
        raise CutError(
            "this network mixes channels in a way that pruning does not follow (a channel shuffle, attention "
            "heads, a normalisation over channels): cutting channels that nothing reads changed its output",
            "channels are mixed after it",
        )


def check_training(pruned: nn.Module, example: torch.Tensor, idle: Collection[str]) -> None:
    """Raise unless `pruned`, whose original does, runs in training mode: there it may have other layers.

    Args:
        pruned: The network after `surgery.cut`.
        example: One input with a batch of 1.
        idle: Layers that do not run in evaluation, for the message.

    Raises:
        CutError: It does not.
    """
    error = training_error(pruned, example)
    if error is not None:
        layers = f" (layers that evaluation does not run: {', '.join(idle)})" if idle else ""
        raise CutError(
            f"this network cannot train with fewer channels{layers}: {error}", "read in training only"
        ) from error


def training_error(module: nn.Module, example: torch.Tensor) -> Exception | None:
    """Return what a copy of `module` fails with in training mode, with `example` twice as its batch; None if it runs.

    Neither the module's statistics nor torch's random numbers are touched.
    """
    trained = copy.deepcopy(module).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            trained(torch.cat([example, example]))
        except FORWARD_ERRORS as error:
            return error
    return None


def _noise(example: torch.Tensor) -> torch.Tensor:
    """Return an input like `example`: noise in float64, where a difference is no rounding, or other token ids."""
    generator = torch.Generator().manual_seed(0)
    if example.is_floating_point():
        return torch.randn(example.shape, dtype=torch.float64, generator=generator)
    noise = torch.randint(0, int(example.max()) + 1, example.shape, generator=generator).to(example.dtype)
    noise[:, 0] = example[:, 0].cpu()  # a text of padding alone has no mean
    return noise
