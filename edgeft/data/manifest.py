"""Store a split as JSON, and have the very same one again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from edgeft import recipe
from edgeft.data import loading, scanning
from edgeft.data.builtin import PREFIX
from edgeft.data.samples import EncodedSamples, StoredSamples, TableSamples, TextSamples
from edgeft.data.sources import SPLITS, ImageSource, RowSource, TextSource
from edgeft.errors import DataError
from edgeft.preprocessing import ImagePreprocessing, Preprocessing, TabularPreprocessing, TextPreprocessing
from edgeft.types import Progress, Samples, Splits, silent

_VERSION = 2


def to_manifest(splits: Splits) -> dict[str, Any]:
    """Return the split as a JSON-ready dictionary that `from_manifest` reads.

    `leaks` names test samples that are also in train or val, which flatters the model: the same pixels, also in
    files of other bytes; the same text but for case and white space; the same row but for the label.

    Args:
        splits: What `load` or `from_manifest` returned.

    Raises:
        DataError: The samples do not come from `load`, so their sources are not known.
    """
    entries: dict[str, list[dict[str, Any]]] = {}
    likeness: dict[str, list[str]] = {}
    for split in SPLITS:
        samples = getattr(splits, split)
        if not _is_stored(samples):
            raise DataError(f"{split}: only splits made by edgeft.data.load can be stored")
        likeness[split] = list(samples.likeness())
        entries[split] = [
            {"id": identity, "source": source.name, "label": source.label}
            for identity, source in zip(samples.ids, samples.sources, strict=True)
        ]
    seen = {*likeness["train"], *likeness["val"]}
    leaks = [
        entry["source"] for entry, key in zip(entries["test"], likeness["test"], strict=True) if key in seen
    ]
    return {
        "version": _VERSION,
        "classes": list(splits.classes),
        "preprocessing": splits.preprocessing.to_dict(),
        "fingerprint": splits.fingerprint,
        "skipped": list(splits.skipped),
        "leaks": leaks,
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

    Files and rows that were added to the data since then are not part of them.

    Args:
        manifest: What `to_manifest` returned.
        task: The same task as then.
        preprocessing: The complete one of then: its dictionary is in the manifest, its files are stored beside it.
        base: Folder of the recipe.
        progress: Told about decoding, in samples.

    Raises:
        DataError: A sample changed or is gone, or the manifest is of another version or preprocessing, or
            contradicts itself.
    """
    if manifest.get("version") != _VERSION:
        raise DataError(
            f"data manifest: version {manifest.get('version')!r}; this edgeft reads version {_VERSION}",
            "remove the stored data stage to split anew",
        )
    # Through JSON, which turns tuples into lists, as the manifest's own went.
    if json.loads(json.dumps(preprocessing.to_dict())) != json.loads(json.dumps(manifest["preprocessing"])):
        raise DataError("data manifest: it was made with another preprocessing", "remove it to split anew")
    if isinstance(preprocessing, ImagePreprocessing):
        parts = _restore_images(manifest, task, preprocessing, base, progress)
    elif isinstance(preprocessing, TextPreprocessing):
        parts = _restore_texts(manifest, task, preprocessing, base)
    else:
        parts = _restore_rows(manifest, task, preprocessing, base)
    for split in SPLITS:
        for source, identity, entry in zip(
            parts[split].sources, parts[split].ids, manifest["splits"][split], strict=True
        ):
            if identity != entry["id"]:
                raise _changed(source.name)
    splits = loading.assemble(parts, tuple(manifest["classes"]), preprocessing, tuple(manifest["skipped"]))
    if splits.fingerprint != manifest["fingerprint"]:
        raise DataError("data manifest: its fingerprint does not fit its samples", "remove it to split anew")
    return splits


def _restore_images(
    manifest: Mapping[str, Any],
    task: recipe.Task,
    preprocessing: ImagePreprocessing,
    base: Path,
    progress: Progress,
) -> dict[str, StoredSamples]:
    known: dict[str, bytes | Path] = {}
    if task.data.startswith(PREFIX):
        known = {source.name: source.encoded for source in scanning.list_images(task, base).groups["all"]}
    # Names lead from the data folder, or from the recipe's where `task.data` is a table.
    root = base / task.data if (base / task.data).is_dir() else base
    decoded = loading.DecodedImages(preprocessing)
    parts: dict[str, StoredSamples] = {}
    for split in SPLITS:
        sources = [
            ImageSource(name=name, label=entry["label"], encoded=known.get(name) or root / name)
            for entry in manifest["splits"][split]
            for name in (entry["source"],)
        ]
        for name in decoded.add(sources, progress):
            raise _changed(name)
        parts[split] = decoded.samples(sources)
    return parts


def _restore_texts(
    manifest: Mapping[str, Any], task: recipe.Task, preprocessing: TextPreprocessing, base: Path
) -> dict[str, StoredSamples]:
    rows = _labelled_rows(manifest, task, base)
    return {
        split: loading.text_samples(
            [
                TextSource(name=name, label=label, text=cells.get(task.text_column, ""))
                for name, label, cells in rows[split]
            ],
            preprocessing,
        )
        for split in SPLITS
    }


def _restore_rows(
    manifest: Mapping[str, Any], task: recipe.Task, preprocessing: TabularPreprocessing, base: Path
) -> dict[str, StoredSamples]:
    rows = _labelled_rows(manifest, task, base)
    return {
        split: loading.row_samples(
            [
                RowSource(
                    name=name,
                    label=label,
                    cells={column: cell for column, cell in cells.items() if column != task.label_column},
                )
                for name, label, cells in rows[split]
            ],
            preprocessing,
        )
        for split in SPLITS
    }


def _labelled_rows(
    manifest: Mapping[str, Any], task: recipe.Task, base: Path
) -> dict[str, list[tuple[str, int, Mapping[str, str]]]]:
    """Return name, label and cells of the manifest's rows, read again. Raises `DataError` if a label changed."""
    known = {
        f"{table.name}:{line}": cells
        for table in scanning.read_tables(task, base).values()
        for line, cells in table.rows.items()
    }
    found: dict[str, list[tuple[str, int, Mapping[str, str]]]] = {}
    for split in SPLITS:
        found[split] = []
        for entry in manifest["splits"][split]:
            name, label = entry["source"], entry["label"]
            cells = known.get(name, {})
            if cells.get(task.label_column, "").strip() != manifest["classes"][label]:
                raise _changed(name)
            found[split].append((name, label, cells))
    return found


def _changed(name: str) -> DataError:
    return DataError(
        f"task.data: {name} changed or is gone since the data set was split",
        "restore it, or remove the stored data stage to split anew",
    )


def _is_stored(samples: Samples) -> TypeGuard[StoredSamples]:
    return isinstance(samples, EncodedSamples | TextSamples | TableSamples)
