"""Which samples make which batch: seeded per epoch, balanced if asked, shared out among processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from edgeft.training.placement import World
from edgeft.types import FloatArray, IntArray

Draw = tuple[int, int, int]
"""One sample of a batch: (epoch, index, how often this epoch has drawn it before)."""

# Streams of random numbers that must not repeat each other.
SHUFFLE, AUGMENT = 0, 1


def class_weights(labels: IntArray, classes: int) -> FloatArray:
    """Return inverse class frequencies (classes,) that average to 1 over the samples; 0 for absent classes."""
    counts = np.bincount(labels, minlength=classes)
    weights = np.divide(len(labels), counts, out=np.zeros(classes), where=counts > 0)
    return (weights / np.count_nonzero(counts)).astype(np.float32)


class EpochBatches(Sampler[list[Draw]]):
    """Yields whole batches; their content depends on (seed, epoch) alone.

    Under several processes each yields its part of the same batches.

    Args:
        labels: Of all samples, (N,).
        batch_size: Samples per batch, of all processes together; the last batch may be smaller.
        seed: Of the order.
        shuffle: Whether this is for training. Samples are shuffled anew in each epoch, and a last batch that
            leaves a process with a single sample, on which batch norm is undefined, is left out.
        balanced: With `shuffle`, draw N samples with replacement so that all classes are as likely.
    """

    def __init__(
        self, labels: IntArray, *, batch_size: int, seed: int, shuffle: bool, balanced: bool = False
    ) -> None:
        self._labels, self._batch_size, self._seed = labels, batch_size, seed
        self._shuffle, self.balanced = shuffle, shuffle and balanced
        self._epoch, self._world = 0, World()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self._epoch = epoch

    def set_shard(self, world: World) -> None:
        """Yield only the part of this process of `world` from now on."""
        self._world = world

    def __len__(self) -> int:
        whole, rest = divmod(len(self._labels), self._batch_size)
        part = self._world.part(rest)
        keep = rest >= 2 * self._world.size if self._shuffle and whole else part.stop > part.start
        return whole + keep

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = list(_counted(self._epoch, self._order()))
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            batch = draws[start : start + self._batch_size]
            yield batch[self._world.part(len(batch))]

    def _order(self) -> IntArray:
        count = len(self._labels)
        order = np.arange(count)
        if not self._shuffle:
            return order
        rng = np.random.default_rng((self._seed, SHUFFLE, self._epoch))
        if self.balanced:
            weights = class_weights(self._labels, int(self._labels.max()) + 1)[self._labels].astype(float)
            return rng.choice(order, size=count, p=weights / weights.sum())
        rng.shuffle(order)
        return order


def _counted(epoch: int, order: Iterable[Any]) -> Iterator[Draw]:
    """Number the repeated draws of a sample, so that each is augmented in its own way."""
    seen: Counter[int] = Counter()
    for index in map(int, order):
        yield epoch, index, seen[index]
        seen[index] += 1
