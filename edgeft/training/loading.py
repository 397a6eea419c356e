"""Batches from samples: inputs of any kind, and augmentation that a resumed run repeats exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from edgeft import extras
from edgeft.preprocessing import ImagePreprocessing, Preprocessing
from edgeft.training.sampling import AUGMENT, Draw, EpochBatches
from edgeft.types import ImageSamples, InputArray, IntArray, Pixels, Samples

Augmentation = Literal["none", "crop", "crop-flip", "trivial"]
Imbalance = Literal["none", "weighted-loss", "weighted-sampling"]

# Random resized crops (Szegedy et al. 2015) at the gentle end: 0.08..1, the ImageNet habit, cuts small sets'
# subjects away and an 8x8 digit to pieces.
_CROP_AREA = (0.7, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)


def loader(
    samples: Samples,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    seed: int = 0,
    augment: Augmentation = "none",
    shuffle: bool = False,
    imbalance: Imbalance = "none",
) -> DataLoader[Any]:
    """Return a loader of (x, y): model inputs (N, ...), and class indices (N,) int64.

    Order and augmentation depend on (seed, epoch, index) alone, so that a resumed training sees what an
    undisturbed one sees. The epoch is set by ``loader.sampler.set_epoch(epoch)``; `fit` does it.

    Args:
        samples: One split: pictures, texts or rows of a table.
        preprocessing: The model's; of pictures it decides size, channels and normalisation.
        batch_size: Samples per batch; the last batch may be smaller.
        seed: Of order and augmentation.
        augment: Pictures only. ``crop`` is a random resized crop of 70 to 100 % of the area, ``crop-flip`` also
            mirrors half of the samples left to right, ``trivial`` goes on with TrivialAugmentWide (Müller &
            Hutter 2021), ``none`` is the centre crop that the deployed model sees.
        shuffle: Whether this is for training: samples are shuffled anew in each epoch, and a last batch of
            one sample, on which batch norm is undefined, is left out of that epoch.
        imbalance: With `shuffle`, ``weighted-sampling`` draws with replacement so that every class is as
            likely; the other values leave the samples as they are.
    """
    batches = EpochBatches(
        samples.labels,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        balanced=imbalance == "weighted-sampling",
    )
    inputs: Callable[[Sequence[Draw]], InputArray]
    if isinstance(preprocessing, ImagePreprocessing) and augment != "none":
        inputs = _Augmented(cast(ImageSamples, samples), preprocessing, seed, augment)
    else:
        inputs = _Plain(samples)
    return DataLoader(BatchDataset(inputs, samples), sampler=batches, batch_size=None)


def without_augmentation(batches: Any, *, batch_size: int) -> Any:
    """Return all samples of a loader that `loader` made, in order and as the deployed model sees them.

    Any other iterable of batches is returned as it is: what it does to its samples is not known here.
    """
    dataset = getattr(batches, "dataset", None)
    if not isinstance(dataset, BatchDataset):
        return batches
    order = EpochBatches(dataset.labels, batch_size=batch_size, seed=0, shuffle=False)
    return DataLoader(BatchDataset(_Plain(dataset.samples), dataset.samples), sampler=order, batch_size=None)


class BatchDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Maps the draws of one batch to (x, y)."""

    def __init__(self, inputs: Callable[[Sequence[Draw]], InputArray], samples: Samples) -> None:
        self._inputs, self.samples = inputs, samples

    @property
    def labels(self) -> IntArray:
        """Class indices of all samples, (N,)."""
        return self.samples.labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.labels[[index for _, index, _ in draws]]
        return torch.from_numpy(self._inputs(draws)), torch.from_numpy(np.asarray(y, dtype=np.int64))


class _Plain:
    """Inputs as the device makes them."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __call__(self, draws: Sequence[Draw]) -> InputArray:
        return self._samples.inputs([index for _, index, _ in draws])


class _Augmented:
    """Pictures, augmented one by one and normalised as a batch: (N, C, H, W) float32."""

    def __init__(
        self, samples: ImageSamples, preprocessing: ImagePreprocessing, seed: int, augment: Augmentation
    ) -> None:
        self._samples, self._preprocessing, self._seed, self._augment = samples, preprocessing, seed, augment
        self._trivial = _trivial_augment() if augment == "trivial" else None

    def __call__(self, draws: Sequence[Draw]) -> InputArray:
        return self._preprocessing.normalize(np.stack([self._pixels(*draw) for draw in draws]))

    def _pixels(self, epoch: int, index: int, repeat: int) -> Pixels:
        entropy = (self._seed, AUGMENT, epoch, index) + ((repeat,) if repeat else ())
        rng = np.random.default_rng(entropy)
        pixels = _random_resized_crop(self._samples.image(index), self._preprocessing, rng)
        if self._augment != "crop" and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if self._trivial is None:
            return pixels
        picture = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))  # torchvision draws from torch's generator
            changed: Pixels = self._trivial(picture).numpy()
        return changed.transpose(1, 2, 0)


def _trivial_augment() -> Callable[[torch.Tensor], torch.Tensor]:
    transforms = extras.load("torchvision.transforms.v2", 'augment = "trivial"')
    augment: Callable[[torch.Tensor], torch.Tensor] = transforms.TrivialAugmentWide(
        interpolation=transforms.InterpolationMode.BILINEAR
    )
    return augment


def _random_resized_crop(
    pixels: Pixels, preprocessing: ImagePreprocessing, rng: np.random.Generator
) -> Pixels:
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
