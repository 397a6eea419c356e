"""An exponential moving average of the weights (Polyak & Juditsky 1992), kept beside the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """Averages parameters, and with `buffers` batch-norm statistics, after every step.

    The first steps count for more, as if the decay were (1 + n) / (10 + n): a short training would otherwise
    end in an average that is mostly its start.

    Args:
        module: What is averaged; `swap` exchanges its tensors with their averages.
        decay: Share of the old average in the new one, 0..1.
        buffers: Average floating-point buffers too. Observers' ranges must not be.
    """

    def __init__(self, module: nn.Module, decay: float, *, buffers: bool) -> None:
        self._live: dict[str, torch.Tensor] = dict(module.named_parameters())
        if buffers:
            self._live |= {name: b for name, b in module.named_buffers() if b.is_floating_point()}
        self._average = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self._decay, self._steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present weights into the average."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, average in self._average.items():
            average.lerp_(self._live[name], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights with their averages; a second call puts them back."""
        for name, average in self._average.items():
            live = self._live[name]
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on."""
        return {"steps": self._steps, "average": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._steps = state["steps"]
        with torch.no_grad():
            for name, average in self._average.items():
                average.copy_(state["average"][name])


def floating_buffers(module: nn.Module) -> Iterable[torch.Tensor]:
    """Yield the buffers that hold real numbers, such as running means and variances."""
    return (buffer for buffer in module.buffers() if buffer.is_floating_point())
