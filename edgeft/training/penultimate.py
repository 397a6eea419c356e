"""What goes into a network's head: the features of feature extraction and of feature distillation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgeft.errors import ModelError


class HeadInput:
    """Remembers what the layer `head` of a network was last given.

    Raises:
        ModelError: Nothing in the network is called `head`.
    """

    def __init__(self, module: nn.Module, head: str) -> None:
        try:
            layer = module.get_submodule(head) if head else None
        except AttributeError:
            layer = None
        if layer is None:
            raise ModelError(
                f"training: the network has no layer {head!r} whose inputs could be its features"
            )
        self._name, self._value = head, torch.empty(0)
        self._handle = layer.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._value = args[0] if args else next(iter(kwargs.values()))

    def take(self) -> torch.Tensor:
        """Return the features of the last forward pass, (N, ...), and forget them."""
        value, self._value = self._value, torch.empty(0)
        if not value.numel():
            raise ModelError(f"training: the layer {self._name!r} was not run in the forward pass")
        return value

    def close(self) -> None:
        """Stop watching."""
        self._handle.remove()


class FeatureMatch(nn.Module):
    """Distance between a student's and a teacher's features, through a learned linear map (Romero et al. 2015).

    The features are what goes into the heads, flattened. The distance is the mean squared error relative to
    the mean square of the teacher's features, so that its weight means the same for every teacher.
    """

    def __init__(self, student: HeadInput, teacher: HeadInput, widths: tuple[int, int]) -> None:
        super().__init__()
        self._student, self._teacher = student, teacher
        self.map = nn.Linear(*widths)

    def forward(self) -> torch.Tensor:
        """Return the distance for the batch that both networks have just seen."""
        ours = self.map(self._student.take().flatten(1).float())
        theirs = self._teacher.take().flatten(1).float()
        return F.mse_loss(ours, theirs) / theirs.square().mean().clamp_min(1e-12)


@contextlib.contextmanager
def feature_match(
    student: tuple[nn.Module, str], teacher: tuple[nn.Module, str], example: torch.Tensor
) -> Iterator[FeatureMatch]:
    """Watch two networks' heads, given as (network, head), and match what goes into them.

    Both networks must be in evaluation mode; `example` (N, ...) tells how wide their features are. The map's
    first weights come from torch's generator.

    Raises:
        ModelError: A head is not there.
    """
    with contextlib.ExitStack() as stack:
        watches, widths = [], []
        for module, head in (student, teacher):
            watch = HeadInput(module, head)
            stack.callback(watch.close)
            with torch.no_grad():
                module(example)
            watches.append(watch)
            widths.append(watch.take().flatten(1).shape[1])
        yield FeatureMatch(watches[0], watches[1], (widths[0], widths[1])).to(example.device)
