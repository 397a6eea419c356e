"""What the loop trains on: batches that know their epoch, and whose part this process takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from edgeft.errors import DataError
from edgeft.training.placement import World
from edgeft.types import IntArray

Batch = tuple[torch.Tensor, torch.Tensor]


class Batches(Protocol):
    """What `fit` trains on: any iterable of (x, y) that knows how many batches it has."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


class Epochs:
    """Batches that know their epoch also where Lightning counts from a resume; validation stays at epoch 0.

    torch is seeded before each pass, so that a user's own shuffling loader repeats itself after a resume. A
    plain list passes as well, which Lightning by itself would take for several loaders. Batches of a loader
    that cannot be shared out among processes are cut here.
    """

    def __init__(self, batches: Batches, seed: int, world: World) -> None:
        self._batches, self._seed, self._world, self.epoch = batches, seed, world, 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        sampler: Any = getattr(self._batches, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self.epoch)
        torch.manual_seed(torch_seed(self._seed, self.epoch))
        if hasattr(sampler, "set_shard"):
            yield from self._batches
            return
        for x, y in self._batches:
            part = self._world.part(len(y))
            yield x[part], y[part]


def all_labels(batches: Batches) -> IntArray:
    """Return the class indices of all samples, (N,): known by a loader of ours, else found by one pass.

    Raises:
        DataError: There is no batch.
    """
    known = getattr(getattr(batches, "dataset", None), "labels", None)
    if isinstance(known, np.ndarray):
        return known
    found = [np.asarray(y, dtype=np.int64) for _, y in batches]
    if not found:
        raise DataError("training: train has no batch", "give every split at least one sample")
    return np.concatenate(found)


def torch_seed(*parts: int) -> int:
    """Return a seed for torch's generator that depends on all `parts`."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
