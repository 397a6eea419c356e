"""Batches from samples: preprocessing, and shuffling and augmentation that a resumed run repeats exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from edgeft.preprocessing import Preprocessing
from edgeft.types import Pixels, Samples

Augmentation = Literal["none", "crop", "crop-flip"]
Key = tuple[int, int]
"""What the sampler hands to the data set: (epoch, index)."""

# Random resized crops (Szegedy et al. 2015) at the gentle end: 0.08..1, the ImageNet habit, cuts small sets'
# subjects away and an 8x8 digit to pieces.
_CROP_AREA = (0.7, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)

# Streams of random numbers that must not repeat each other.
_SHUFFLE, _AUGMENT = 0, 1


def loader(
    samples: Samples,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    seed: int = 0,
    augment: Augmentation = "none",
    shuffle: bool = False,
) -> DataLoader[Any]:
    """Return a loader of (x, y): float32 (N, C, H, W), normalised, and int64 (N,) class indices.

    Order and augmentation depend on (seed, epoch, index) alone, so that a resumed training sees what an
    undisturbed one sees. The epoch is set by ``loader.sampler.set_epoch(epoch)``; `fit` does it.

    Args:
        samples: One split.
        preprocessing: The model's; decides size, channels and normalisation.
        batch_size: Samples per batch; the last batch may be smaller.
        seed: Of order and augmentation.
        augment: ``crop`` is a random resized crop of 70 to 100 % of the area, ``crop-flip`` also mirrors
            half of the samples left to right, ``none`` is the centre crop that the deployed model sees.
        shuffle: Whether this is for training: samples are shuffled anew in each epoch, and a last batch of
            one sample, on which batch norm is undefined, is left out of that epoch.
    """
    count = len(samples)
    return DataLoader(
        _Augmented(samples, preprocessing, seed, augment),
        batch_size=batch_size,
        sampler=_EpochSampler(count, seed, shuffle),
        drop_last=shuffle and count > batch_size and count % batch_size == 1,
        collate_fn=_Collate(preprocessing),
    )


class _EpochSampler(Sampler[Key]):
    """Yields (epoch, index), shuffled by (seed, epoch) if asked."""

    def __init__(self, count: int, seed: int, shuffle: bool) -> None:
        self._count, self._seed, self._shuffle, self._epoch = count, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Key]:
        order = np.arange(self._count)
        if self._shuffle:
            np.random.default_rng((self._seed, _SHUFFLE, self._epoch)).shuffle(order)
        return iter([(self._epoch, int(index)) for index in order])


class _Augmented(Dataset[tuple[Pixels, int]]):
    """Maps (epoch, index) to pixels (size, size, C) uint8 and a label."""

    def __init__(
        self, samples: Samples, preprocessing: Preprocessing, seed: int, augment: Augmentation
    ) -> None:
        self._samples, self._preprocessing, self._seed, self._augment = samples, preprocessing, seed, augment
        self._labels = samples.labels

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: Key) -> tuple[Pixels, int]:
        epoch, index = key
        label = int(self._labels[index])
        if self._augment == "none":
            return self._samples.pixels(index), label
        rng = np.random.default_rng((self._seed, _AUGMENT, epoch, index))
        pixels = _random_resized_crop(self._samples.image(index), self._preprocessing, rng)
        if self._augment == "crop-flip" and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return pixels, label


class _Collate:
    """Stacks pixels and normalises the whole batch at once."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing

    def __call__(self, batch: list[tuple[Pixels, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        x = self._preprocessing.normalize(np.stack([pixels for pixels, _ in batch]))
        return torch.from_numpy(x), torch.tensor([label for _, label in batch], dtype=torch.int64)


def _random_resized_crop(pixels: Pixels, preprocessing: Preprocessing, rng: np.random.Generator) -> Pixels:
    """Cut a random box out of pixels (H, W, C) and resize it to the model's input size.

    The area is relative to the largest centre square, so that a panorama is not seen as a distant whole.
    """
    height, width = pixels.shape[:2]
    area = min(height, width) ** 2 * rng.uniform(*_CROP_AREA)
    ratio = np.exp(rng.uniform(*np.log(_CROP_RATIO)))
    box_height = min(height, max(1, round(np.sqrt(area / ratio))))
    box_width = min(width, max(1, round(np.sqrt(area * ratio))))
    top = int(rng.integers(height - box_height + 1))
    left = int(rng.integers(width - box_width + 1))
    box = pixels[top : top + box_height, left : left + box_width]
    picture = Image.fromarray(box[:, :, 0] if preprocessing.channels == 1 else box)
    resized = np.asarray(picture.resize((preprocessing.size,) * 2, Image.Resampling.BILINEAR), dtype=np.uint8)
    return resized[:, :, None] if resized.ndim == 2 else resized
