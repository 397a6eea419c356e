"""Load a data set: verify and identify every sample, split, and store the split to have it again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import recipe
from edgeft.data.samples import EncodedSamples, PixelCache
from edgeft.data.sources import SPLITS, Listing, Source, check_counts, list_samples
from edgeft.errors import DataError
from edgeft.preprocessing import Preprocessing
from edgeft.types import Pixels, Progress, Splits, silent

_DECODERS = 4  # threads; Pillow decodes outside the interpreter's lock
_PROGRESS_EVERY = 50  # samples


def load(
    task: recipe.Task,
    preprocessing: Preprocessing,
    *,
    base: Path,
    seed: int,
    progress: Progress = silent,
) -> Splits:
    """Decode every sample once, identify it by content and return the splits.

    Folders train/, val/ and test/ are used as they are. What is missing of val and test is cut from train (or
    from everything) by `task.val_fraction` and `task.test_fraction`: class by class, seeded, at least one
    sample of each class in each split.

    Args:
        task: `task.data` is a folder (relative to `base`) or ``builtin:digits``; `task.bad_samples` says
            whether a sample that cannot be decoded is an error or is left out and named in `Splits.skipped`.
        preprocessing: Size and channels to decode to. Up to 1 GiB of decoded pixels is kept.
        base: Folder of the recipe.
        seed: Of the split.
        progress: Told about decoding, in samples.

    Raises:
        DataError: As `scan`, or a sample is broken and `task.bad_samples` is ``error``.
    """
    found = list_samples(task, base)
    cache = PixelCache()
    everything = [source for sources in found.groups.values() for source in sources]
    ids: dict[str, str] = {}
    skipped = list(found.bad)
    for source, result in zip(everything, _decode_all(everything, preprocessing, progress), strict=True):
        if isinstance(result, DataError):
            if task.bad_samples == "error":
                raise result
            skipped.append(result.message)
            continue
        ids[source.name] = cache.put(*result)
    groups = {
        group: tuple(source for source in sources if source.name in ids)
        for group, sources in found.groups.items()
    }
    check_counts(Listing(classes=found.classes, groups=groups), task.data)
    parts = {
        split: _samples(sources, tuple(ids[source.name] for source in sources), preprocessing, cache)
        for split, sources in _split(groups, task, seed).items()
    }
    return _splits(parts, found.classes, tuple(skipped))


def to_manifest(splits: Splits) -> dict[str, Any]:
    """Return the split as a JSON-ready dictionary that `from_manifest` reads.

    `leaks` names test samples whose content is also in train or val: they flatter the model.

    Args:
        splits: What `load` or `from_manifest` returned.

    Raises:
        DataError: The samples do not come from `load`, so their sources are not known.
    """
    entries = {}
    for split in SPLITS:
        samples = getattr(splits, split)
        if not isinstance(samples, EncodedSamples):
            raise DataError(f"{split}: only splits made by edgeft.data.load can be stored")
        entries[split] = [
            {"id": identity, "source": source.name, "label": source.label}
            for identity, source in zip(samples.ids, samples.sources, strict=True)
        ]
    seen = {entry["id"] for split in ("train", "val") for entry in entries[split]}
    return {
        "version": 1,
        "classes": list(splits.classes),
        "fingerprint": splits.fingerprint,
        "skipped": list(splits.skipped),
        "leaks": [entry["source"] for entry in entries["test"] if entry["id"] in seen],
        "splits": entries,
    }


def from_manifest(
    manifest: Mapping[str, Any],
    task: recipe.Task,
    preprocessing: Preprocessing,
    *,
    base: Path,
    progress: Progress = silent,
) -> Splits:
    """Return the splits that `to_manifest` stored, every sample checked against its content id.

    Files that were added to the folder since then are not part of them.

    Raises:
        DataError: A sample changed or is gone, or the manifest is of another version or contradicts itself.
    """
    if manifest.get("version") != 1:
        raise DataError(f"data manifest: version {manifest.get('version')!r}; this edgeft reads version 1")
    known: dict[str, bytes | Path] = {}
    if task.data.startswith("builtin:"):
        known = {source.name: source.encoded for source in list_samples(task, base).groups["all"]}
    parts: dict[str, EncodedSamples] = {}
    cache = PixelCache()
    for split in SPLITS:
        entries = manifest["splits"][split]
        sources = tuple(
            Source(
                name=entry["source"],
                label=entry["label"],
                encoded=known.get(entry["source"]) or base / task.data / entry["source"],
            )
            for entry in entries
        )
        ids = tuple(entry["id"] for entry in entries)
        for source, identity, result in zip(
            sources, ids, _decode_all(sources, preprocessing, progress), strict=True
        ):
            if isinstance(result, DataError) or result[0] != identity:
                raise DataError(
                    f"task.data: {source.name} changed or is gone since the data set was split",
                    "restore it, or remove the stored data stage to split anew",
                )
            cache.put(*result)
        parts[split] = _samples(sources, ids, preprocessing, cache)
    splits = _splits(parts, tuple(manifest["classes"]), tuple(manifest["skipped"]))
    if splits.fingerprint != manifest["fingerprint"]:
        raise DataError("data manifest: its fingerprint does not fit its samples", "remove it to split anew")
    return splits


def _samples(
    sources: tuple[Source, ...], ids: tuple[str, ...], preprocessing: Preprocessing, cache: PixelCache
) -> EncodedSamples:
    labels = np.array([source.label for source in sources], dtype=np.int64)
    return EncodedSamples(sources=sources, ids=ids, labels=labels, preprocessing=preprocessing, cache=cache)


def _splits(
    parts: Mapping[str, EncodedSamples], classes: tuple[str, ...], skipped: tuple[str, ...]
) -> Splits:
    lines = sorted(
        f"{split} {identity} {label}"
        for split, samples in parts.items()
        for identity, label in zip(samples.ids, samples.labels, strict=True)
    )
    fingerprint = hashlib.sha256("\n".join([*classes, "", *lines]).encode()).hexdigest()
    return Splits(
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        classes=classes,
        fingerprint=fingerprint,
        skipped=skipped,
    )


def _decode_all(
    sources: Iterable[Source], preprocessing: Preprocessing, progress: Progress
) -> Iterable[tuple[str, Pixels] | DataError]:
    """Yield content id and pixels of every source in order, or the error in its place."""
    sources = list(sources)

    def decode(source: Source) -> tuple[str, Pixels] | DataError:
        try:
            encoded = source.read()
            return hashlib.sha256(encoded).hexdigest(), preprocessing.load(encoded, name=source.name)
        except DataError as error:
            return error

    with ThreadPoolExecutor(_DECODERS) as pool:
        for done, result in enumerate(pool.map(decode, sources), start=1):
            if done % _PROGRESS_EVERY == 0 or done == len(sources):
                progress("reading images", done=done, total=len(sources))
            yield result


def _split(
    groups: Mapping[str, tuple[Source, ...]], task: recipe.Task, seed: int
) -> dict[str, tuple[Source, ...]]:
    """Cut the missing splits from ``all`` or ``train``, class by class.

    Not scikit-learn's stratified split: that one may leave a small class without a sample in a small split.
    """
    pool = groups.get("all") or groups["train"]
    fractions = {"val": task.val_fraction, "test": task.test_fraction}
    cut = {split: fraction for split, fraction in fractions.items() if split not in groups}
    parts: dict[str, list[int]] = {split: [] for split in ("train", *cut)}
    labels = np.array([source.label for source in pool])
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng((seed, label)).permutation(members)
        start = 0
        for position, (split, fraction) in enumerate(cut.items(), start=1):
            # Room is left for one sample in each split that follows, train included.
            room = len(order) - start - (len(cut) - position + 1)
            size = min(max(1, round(fraction * len(members))), room)
            parts[split] += order[start : start + size].tolist()
            start += size
        parts["train"] += order[start:].tolist()
    made = {split: tuple(pool[index] for index in sorted(indices)) for split, indices in parts.items()}
    return {split: made.get(split) or groups[split] for split in SPLITS}
