"""Splits in memory: decoded pixels up to a bound, decoded again beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeft.calibration import CalibrationRecipe
from edgeft.data.sources import Source
from edgeft.errors import DataError
from edgeft.preprocessing import Preprocessing
from edgeft.types import IntArray, Pixels, Samples

CACHE_BYTES = 1 << 30


@dataclass(slots=True)
class PixelCache:
    """Decoded images of a whole data set by content id, up to `limit` bytes; what is in stays in.

    Training visits all samples in each epoch, so that evicting would only move the misses around.
    """

    limit: int = CACHE_BYTES
    used: int = 0
    images: dict[str, Pixels] = field(default_factory=dict)

    def put(self, key: str, pixels: Pixels) -> str:
        """Keep `pixels` (H, W, C) if they fit, and return `key`."""
        if key not in self.images and self.used + pixels.nbytes <= self.limit:
            self.images[key] = pixels
            self.used += pixels.nbytes
        return key


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSamples:
    """Samples that are decoded from their sources (`types.Samples`)."""

    sources: tuple[Source, ...]
    ids: tuple[str, ...]
    labels: IntArray
    preprocessing: Preprocessing
    cache: PixelCache

    def __len__(self) -> int:
        return len(self.sources)

    def image(self, index: int) -> Pixels:
        """Return sample `index` uncropped, shorter side at `preprocessing.resize`: (H, W, C) uint8."""
        cached = self.cache.images.get(self.ids[index])
        if cached is not None:
            return cached
        source = self.sources[index]
        return self.preprocessing.load(source.read(), name=source.name)

    def pixels(self, index: int) -> Pixels:
        """Return the centre crop of `image(index)`: (size, size, C) uint8."""
        return self.preprocessing.crop(self.image(index))


@dataclass(frozen=True, slots=True)
class _Subset:
    """Some samples of others, in the order of `indices`."""

    samples: Samples
    indices: tuple[int, ...]

    @property
    def ids(self) -> Sequence[str]:
        return tuple(self.samples.ids[index] for index in self.indices)

    @property
    def labels(self) -> IntArray:
        return self.samples.labels[list(self.indices)]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Pixels:
        return self.samples.image(self.indices[index])

    def pixels(self, index: int) -> Pixels:
        return self.samples.pixels(self.indices[index])


def subset(samples: Samples, indices: Sequence[int]) -> Samples:
    """Return a view of the samples at `indices`, in that order."""
    return _Subset(samples, tuple(int(index) for index in indices))


def calibration_samples(train: Samples, recipe: CalibrationRecipe, seed: int) -> Samples:
    """Draw the samples that a calibration recipe asks for, without repetition, in the order of `train`.

    ``stratified`` keeps the class shares of `train`, rounded by largest remainder.

    Raises:
        DataError: The recipe asks for more samples than there are.
    """
    if recipe.samples > len(train):
        raise DataError(
            f"calibration {recipe.id!r} asks for {recipe.samples} samples; the training split has "
            f"{len(train)}",
            f"use a calibration recipe with samples = {len(train)} or fewer, or add training data",
        )
    rng = np.random.default_rng(seed)
    if recipe.sampling == "random":
        return subset(train, sorted(rng.choice(len(train), recipe.samples, replace=False)))
    classes, counts = np.unique(train.labels, return_counts=True)
    exact = counts * recipe.samples / len(train)
    share = np.floor(exact).astype(int)
    for index in np.argsort(share - exact, kind="stable")[: recipe.samples - share.sum()]:
        share[index] += 1
    drawn = [
        rng.choice(np.flatnonzero(train.labels == label), size, replace=False)
        for label, size in zip(classes, share, strict=True)
    ]
    return subset(train, sorted(np.concatenate(drawn)))
