"""Load a data set: identify every sample by content, split, and complete the preprocessing from the training split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeft import recipe
from edgeft.data import scanning
from edgeft.data.samples import EncodedSamples, PixelCache, StoredSamples, TableSamples, TextSamples
from edgeft.data.sources import ImageSource, RowSource, TextSource, check_counts
from edgeft.data.splitting import split
from edgeft.errors import ConfigError, DataError
from edgeft.preprocessing import (
    ImagePreprocessing,
    Preprocessing,
    TabularPreprocessing,
    TextPreprocessing,
)
from edgeft.types import IntArray, Pixels, Progress, Splits, silent

_DECODERS = 4  # threads; Pillow decodes outside the interpreter's lock
_PROGRESS_EVERY = 50  # samples


def load(
    task: recipe.Task,
    template: ImagePreprocessing | TextPreprocessing | None,
    *,
    base: Path,
    seed: int,
    progress: Progress = silent,
) -> Splits:
    """Read every sample once, identify it by content and return the splits.

    Splits that the data set comes with (folders or tables train, val and test, `task.val_data`,
    `task.test_data`) are used as they are. What is missing of val and test is cut from train (or from everything)
    by `task.val_fraction` and `task.test_fraction`: class by class, seeded, at least one sample of each class in
    each split.

    Args:
        task: Kind, and where the data is (relative to `base`); `task.bad_samples` says whether a sample that
            cannot be read is an error or is left out and named in `Splits.skipped`.
        template: What the model wants: for images their size and channels (up to 1 GiB of decoded pixels is
            kept); for texts the tokenizer, where a `max_length` of 0 is chosen from the training texts; None for
            tables, whose statistics and categories all come from the training rows.
        base: Folder of the recipe.
        seed: Of the split.
        progress: Told about decoding, in samples.

    Raises:
        ConfigError: `template` is of another kind than the task.
        DataError: As `scan`, or a sample is broken and `task.bad_samples` is ``error``.
    """
    if task.kind == "image-classification" and isinstance(template, ImagePreprocessing):
        return _load_images(task, template, base, seed, progress)
    if task.kind == "text-classification" and isinstance(template, TextPreprocessing):
        return _load_texts(task, template, base, seed)
    if task.kind == "tabular-classification" and template is None:
        return _load_rows(task, base, seed)
    got = "table rows" if template is None else f"{template.kind}s"
    raise ConfigError(
        f"task.kind is {task.kind!r}, but the model takes {got}",
        "give a model for this task, or another task.kind",
    )


def _load_images(
    task: recipe.Task, preprocessing: ImagePreprocessing, base: Path, seed: int, progress: Progress
) -> Splits:
    found = scanning.list_images(task, base)
    decoded = DecodedImages(preprocessing)
    skipped = list(found.bad)
    groups: dict[str, tuple[ImageSource, ...]] = {}
    for group, sources in found.groups.items():
        errors = decoded.add(sources, progress)
        if errors and task.bad_samples == "error":
            raise next(iter(errors.values()))
        skipped += [error.message for error in errors.values()]
        groups[group] = tuple(source for source in sources if source.name not in errors)
    check_counts(replace(found, groups=groups))
    parts = {name: decoded.samples(sources) for name, sources in split(groups, task, seed).items()}
    return assemble(parts, found.classes, preprocessing, tuple(skipped))


def _load_texts(task: recipe.Task, template: TextPreprocessing, base: Path, seed: int) -> Splits:
    found = scanning.list_texts(task, base)
    parts = split(found.groups, task, seed)
    preprocessing = template.fitted([source.text for source in parts["train"]])
    samples = {name: text_samples(sources, preprocessing) for name, sources in parts.items()}
    return assemble(samples, found.classes, preprocessing, found.bad)


def _load_rows(task: recipe.Task, base: Path, seed: int) -> Splits:
    found, features = scanning.list_rows(task, base)
    parts = split(found.groups, task, seed)
    preprocessing = TabularPreprocessing.fitted(
        [source.cells for source in parts["train"]], features.columns, features.numeric
    )
    samples = {name: row_samples(sources, preprocessing) for name, sources in parts.items()}
    return assemble(samples, found.classes, preprocessing, found.bad)


def text_samples(sources: Sequence[TextSource], preprocessing: TextPreprocessing) -> TextSamples:
    """Return texts as samples."""
    return TextSamples(
        sources=tuple(sources),
        ids=tuple(source.identity() for source in sources),
        labels=_labels(sources),
        encoded=preprocessing.encode([source.text for source in sources]),
    )


def row_samples(sources: Sequence[RowSource], preprocessing: TabularPreprocessing) -> TableSamples:
    """Return rows of a table as samples. Raises `DataError` for a cell that cannot be a feature."""
    cells, names = [source.cells for source in sources], [source.name for source in sources]
    return TableSamples(
        sources=tuple(sources),
        ids=tuple(source.identity() for source in sources),
        labels=_labels(sources),
        encoded=preprocessing.encode(cells, names=names),
    )


class DecodedImages:
    """Images that were decoded once: their content ids, and their pixels as far as they fit into memory."""

    def __init__(self, preprocessing: ImagePreprocessing) -> None:
        self._preprocessing = preprocessing
        self._cache = PixelCache()
        self._pixel_digests: dict[str, str] = {}
        self.ids: dict[str, str] = {}
        """Content id by the source's name."""

    def add(self, sources: Sequence[ImageSource], progress: Progress) -> dict[str, DataError]:
        """Decode images and return the errors by name; those that failed get no id."""
        errors: dict[str, DataError] = {}
        for source, result in zip(sources, self._decode(sources, progress), strict=True):
            if isinstance(result, DataError):
                errors[source.name] = result
                continue
            identity, digest, pixels = result
            self.ids[source.name] = identity
            self._pixel_digests[identity] = digest
            self._cache.put(identity, pixels)
        return errors

    def samples(self, sources: Sequence[ImageSource]) -> EncodedSamples:
        """Return decoded sources as samples."""
        return EncodedSamples(
            sources=tuple(sources),
            ids=tuple(self.ids[source.name] for source in sources),
            labels=_labels(sources),
            preprocessing=self._preprocessing,
            cache=self._cache,
            pixel_digests=self._pixel_digests,
        )

    def _decode(
        self, sources: Sequence[ImageSource], progress: Progress
    ) -> Iterator[tuple[str, str, Pixels] | DataError]:
        """Yield content id, hash of the pixels and pixels of every source in order, or the error in their place."""

        def decode(source: ImageSource) -> tuple[str, str, Pixels] | DataError:
            try:
                encoded = source.read()
                pixels = self._preprocessing.load(encoded, name=source.name)
            except DataError as error:
                return error
            digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
            return hashlib.sha256(encoded).hexdigest(), digest, pixels

        with ThreadPoolExecutor(_DECODERS) as pool:
            for done, result in enumerate(pool.map(decode, sources), start=1):
                if done % _PROGRESS_EVERY == 0 or done == len(sources):
                    progress("reading images", done=done, total=len(sources))
                yield result


def assemble(
    parts: Mapping[str, StoredSamples],
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    skipped: tuple[str, ...],
) -> Splits:
    """Return the splits with their fingerprint: a SHA-256 over classes, and content id and label of each sample."""
    lines = sorted(
        f"{name} {identity} {label}"
        for name, samples in parts.items()
        for identity, label in zip(samples.ids, samples.labels, strict=True)
    )
    fingerprint = hashlib.sha256("\n".join([*classes, "", *lines]).encode()).hexdigest()
    return Splits(
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        classes=classes,
        preprocessing=preprocessing,
        fingerprint=fingerprint,
        skipped=skipped,
    )


def _labels(sources: Sequence[ImageSource | TextSource | RowSource]) -> IntArray:
    return np.array([source.label for source in sources], dtype=np.int64)
