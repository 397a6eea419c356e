"""Prove a cut: the network computes what it computed when nothing read the removed channels, and it still trains."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn

from edgeft.errors import ModelError
from edgeft.pruning.macs import FORWARD_ERRORS
from edgeft.pruning.surgery import Removal, mask

_HINT = "name the layers around that operation in `keep`, or leave the prune stage out for this architecture"


_EXACT, _ROUNDED = 1e-6, 1e-3
"""How far outputs may lie apart, as a share of the largest: in float64, and in a network's own type."""


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
    x, expected, exact = _expected(masked, example)
    narrow = copy.deepcopy(pruned).cpu().eval()
    tolerance = _EXACT if exact else _ROUNDED
    try:
        with torch.no_grad():
            got = (narrow.double() if exact else narrow)(x)
    except FORWARD_ERRORS as error:
        raise CutError(
            f"this network cannot run with fewer channels: {error}", "tied to a fixed shape"
        ) from error
    if got.shape != expected.shape or not torch.allclose(
        got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
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


def _expected(masked: nn.Module, example: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Return an input, what `masked` computes of it, and whether in float64, which leaves no doubt.

    A network that insists on its own type runs in that.
    """
    failure: Exception | None = None
    with torch.no_grad():
        for exact in (True, False):
            network = copy.deepcopy(masked).double() if exact else masked
            for x in _inputs(example, torch.float64 if exact else example.dtype):
                try:
                    expected: torch.Tensor = network(x)
                except FORWARD_ERRORS as error:
                    failure = failure or error
                    continue
                if expected.isfinite().all():
                    return x, expected, exact
    if failure is None:
        raise ModelError(
            "cuts cannot be checked: the outputs of this network are NaN or infinite for noise, for its absolute "
            "values, and for numbers between 0 and 1",
            "look at its weights, or leave the prune stage out",
        )
    raise ModelError(
        f"this network does not run in float64, in which cuts are checked, nor on noise in its own type: {failure}",
        "make tensors that it creates in its code follow the type of its inputs",
    ) from failure


def _inputs(example: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield inputs like `example`: noise, its absolute values, numbers between 0 and 1; or other token ids."""
    generator = torch.Generator().manual_seed(0)
    if example.is_floating_point():
        noise = torch.randn(example.shape, dtype=torch.float64, generator=generator).to(dtype)
        yield from (noise, noise.abs(), torch.rand(example.shape, generator=generator).to(dtype))
        return
    ids = torch.randint(0, int(example.max()) + 1, example.shape, generator=generator).to(example.dtype)
    ids[:, 0] = example[:, 0].cpu()  # a text of padding alone has no mean
    yield ids
