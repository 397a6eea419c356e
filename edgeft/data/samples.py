"""Splits in memory: images decoded up to a bound and again beyond it; texts and rows encoded once."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgeft.calibration import CalibrationRecipe
from edgeft.data.sources import ImageSource, RowSource, Source, TextSource
from edgeft.errors import DataError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.types import FloatArray, ImageSamples, InputArray, IntArray, Pixels, Samples, Splits

CACHE_BYTES = 1 << 30
_PREVIEW_EDGE = 128  # pixels


class StoredSamples(Samples, Protocol):
    """Samples whose sources are known, so that a manifest can bring them back."""

    @property
    def sources(self) -> Sequence[Source]:
        """Where each sample comes from."""

    def likeness(self) -> Sequence[str]:
        """Return a key per sample that is equal for samples which a person would call the same."""


@dataclass(slots=True)
class PixelCache:
    """Decoded images of a whole data set by content id, up to `limit` bytes; what is in stays in.

    Training visits all samples in each epoch, so that evicting would only move the misses around.
    """

    limit: int = CACHE_BYTES
    used: int = 0
    images: dict[str, Pixels] = field(default_factory=dict)

    def put(self, key: str, pixels: Pixels) -> None:
        """Keep `pixels` (H, W, C) if they fit."""
        if key not in self.images and self.used + pixels.nbytes <= self.limit:
            self.images[key] = pixels
            self.used += pixels.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSamples:
    """Images that are decoded from their sources (`types.ImageSamples`)."""

    sources: tuple[ImageSource, ...]
    ids: tuple[str, ...]
    labels: IntArray
    preprocessing: ImagePreprocessing
    cache: PixelCache
    pixel_digests: Mapping[str, str]
    """Hash of the decoded pixels by content id: the same for one picture in two files of different bytes."""

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

    def inputs(self, indices: Sequence[int]) -> FloatArray:
        """Return model inputs (len(indices), C, H, W) float32."""
        return self.preprocessing.normalize(np.stack([self.pixels(index) for index in indices]))

    def name(self, index: int) -> str:
        """Return the path of sample `index`."""
        return self.sources[index].name

    def preview(self, index: int) -> bytes:
        """Return sample `index` as a PNG of at most 128 pixels a side, uncropped."""
        from PIL import Image

        pixels = self.image(index)
        picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        picture.thumbnail((_PREVIEW_EDGE, _PREVIEW_EDGE))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()

    def likeness(self) -> tuple[str, ...]:
        """Return the hash of each sample's decoded pixels."""
        return tuple(self.pixel_digests[identity] for identity in self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSamples:
    """Texts, tokenized (`types.Samples`)."""

    sources: tuple[TextSource, ...]
    ids: tuple[str, ...]
    labels: IntArray
    encoded: InputArray
    """Token ids (N, T) int32."""

    def __len__(self) -> int:
        return len(self.sources)

    def inputs(self, indices: Sequence[int]) -> InputArray:
        """Return token ids (len(indices), T) int32."""
        return self.encoded[list(indices)]

    def name(self, index: int) -> str:
        """Return table and line of sample `index`."""
        return self.sources[index].name

    def preview(self, index: int) -> str:
        """Return the text of sample `index`."""
        return self.sources[index].text

    def likeness(self) -> tuple[str, ...]:
        """Return each text without case and with single spaces."""
        return tuple(" ".join(source.text.casefold().split()) for source in self.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSamples:
    """Rows of features (`types.Samples`)."""

    sources: tuple[RowSource, ...]
    ids: tuple[str, ...]
    labels: IntArray
    encoded: InputArray
    """Features (N, F) float32."""

    def __len__(self) -> int:
        return len(self.sources)

    def inputs(self, indices: Sequence[int]) -> InputArray:
        """Return features (len(indices), F) float32."""
        return self.encoded[list(indices)]

    def name(self, index: int) -> str:
        """Return table and line of sample `index`."""
        return self.sources[index].name

    def preview(self, index: int) -> str:
        """Return the cells of sample `index`, a line per column."""
        return "\n".join(f"{column} = {cell}" for column, cell in self.sources[index].cells.items())

    def likeness(self) -> tuple[str, ...]:
        """Return each row's content id."""
        return self.ids


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

    def inputs(self, indices: Sequence[int]) -> InputArray:
        return self.samples.inputs([self.indices[index] for index in indices])

    def name(self, index: int) -> str:
        return self.samples.name(self.indices[index])

    def preview(self, index: int) -> bytes | str:
        return self.samples.preview(self.indices[index])


@dataclass(frozen=True, slots=True)
class _ImageSubset(_Subset):
    """Some images of others."""

    samples: ImageSamples

    def image(self, index: int) -> Pixels:
        return self.samples.image(self.indices[index])

    def pixels(self, index: int) -> Pixels:
        return self.samples.pixels(self.indices[index])


def subset(samples: Samples, indices: Sequence[int]) -> Samples:
    """Return a view of the samples at `indices`, in that order; images stay images."""
    chosen = tuple(int(index) for index in indices)
    if isinstance(samples, EncodedSamples | _ImageSubset):
        return _ImageSubset(samples, chosen)
    return _Subset(samples, chosen)


def embed_normalization(splits: Splits) -> Splits:
    """Return a data set of pictures whose inputs are pixels in 0..255, for networks that normalise by themselves."""
    picture = splits.preprocessing
    if not isinstance(picture, ImagePreprocessing):
        raise DataError("only pictures have pixels", 'leave export.preprocess = "embedded" out')
    embedded = dataclasses.replace(picture, embedded=True)

    def embed(samples: Samples) -> Samples:
        known = isinstance(samples, EncodedSamples)
        return dataclasses.replace(samples, preprocessing=embedded) if known else samples  # type: ignore[type-var]

    return dataclasses.replace(
        splits,
        train=embed(splits.train),
        val=embed(splits.val),
        test=embed(splits.test),
        preprocessing=embedded,
    )


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
