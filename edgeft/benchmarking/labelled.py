"""Labelled samples for a package: read from a folder or table, encoded as the package itself says."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeft.data import folders, loading, rows, tables
from edgeft.data.samples import EncodedSamples, PixelCache, subset
from edgeft.data.sources import ImageSource, Listing, RowSource, S, TextSource
from edgeft.errors import DataError, nearest
from edgeft.package import Package
from edgeft.preprocessing import (
    ArrayPreprocessing,
    ImagePreprocessing,
    NumericColumn,
    TabularPreprocessing,
    TextPreprocessing,
)
from edgeft.recipe import Task
from edgeft.types import Samples

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the columns of a table are called, as a recipe's ``[task]`` names them."""

    label: str = "label"
    path: str = "path"
    """Image tables: column of the files' paths, relative to the table."""
    text: str = "text"


def read(package: Package, data: Path, *, columns: Columns | None = None) -> Samples:
    """Return the samples under `data` with their content ids, labelled by the package's own list of labels.

    Args:
        package: Says which kind of data it takes, and how a sample becomes an input.
        data: Images: a folder of class folders, or a table of paths and labels. Texts and rows: a .csv, .tsv or
            .jsonl file. Of a folder that holds train and test, test is taken.
        columns: Names of a table's columns.

    Raises:
        DataError: There is no sample, or a class that the package has not; a file or row is no sample; or as
            `edgeft.data.scan`.
    """
    preprocessing = package.preprocessing
    if isinstance(preprocessing, ArrayPreprocessing):
        raise DataError(
            f"{package.source}: its file was made elsewhere and takes ready arrays; nothing tells their labels",
            "accuracy needs a package that a run of edgeft has made",
        )
    if not data.exists():
        raise DataError(f"{data} does not exist", "give a folder of samples, or a .csv, .tsv or .jsonl file")
    names = columns or Columns()
    with plainly():
        if isinstance(preprocessing, ImagePreprocessing):
            images = _labelled(_list_images(data, names), package.labels)
            return EncodedSamples(
                sources=images,
                ids=tuple(hashlib.sha256(source.read()).hexdigest() for source in images),
                labels=np.array([source.label for source in images], dtype=np.int64),
                preprocessing=preprocessing,
                cache=PixelCache(limit=0),  # each is decoded once, when it is predicted
                pixel_digests={},
            )
        if isinstance(preprocessing, TextPreprocessing):
            return loading.text_samples(_labelled(_list_texts(data, names), package.labels), preprocessing)
        cells = _labelled(_list_rows(data, names, preprocessing), package.labels)
        return loading.row_samples(cells, preprocessing)


def select(samples: Samples, ids: Sequence[str], where: str) -> Samples:
    """Return the samples with these content ids, in their order: an earlier test split, out of the whole data set.

    Args:
        samples: Of all the data.
        ids: Content ids, or beginnings of them that are equally long; one that occurs twice stands for two samples of
            equal content.
        where: What the samples were read from, for messages.

    Raises:
        DataError: No sample is asked for, one is missing, or an id's beginning fits samples of different content.
    """
    if not ids:
        raise DataError(f"{where}: zero samples were asked for", "name at least one")
    digits = len(ids[0])
    found: dict[str, list[int]] = defaultdict(list)
    for index, identity in enumerate(samples.ids):
        found[identity[:digits]].append(index)
    wanted = Counter(ids)
    missing = sorted(identity for identity, count in wanted.items() if len(found[identity]) < count)
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of the {len(wanted)} samples asked for are not there or have changed, "
            f"e.g. the one with SHA-256 {missing[0]}",
            "give the data that the earlier result was scored on",
        )
    for identity, count in wanted.items():
        if len(found[identity]) > count and len({samples.ids[index] for index in found[identity]}) > 1:
            raise DataError(
                f"{where}: {len(found[identity])} different samples have a SHA-256 that begins with {identity}",
                "give a folder or table that holds the samples asked for and no others",
            )
    following = {identity: iter(indices) for identity, indices in found.items()}
    return subset(samples, [next(following[identity]) for identity in ids])


@contextmanager
def plainly() -> Iterator[None]:
    """Take the keys of recipes out of the messages of `edgeft.data`: there is no recipe here."""
    try:
        yield
    except DataError as error:
        # A broken file is no reason to score another set than the one that was asked for.
        hint = "remove or replace it" if "bad_samples" in error.hint else error.hint.replace("task.", "")
        message = error.message.removeprefix("task.data: ").replace("task.", "")
        raise DataError(message, hint) from error


def _list_images(data: Path, columns: Columns) -> Listing[ImageSource]:
    task = Task(data=str(data), path_column=columns.path, label_column=columns.label)
    files = tables.find_tables(task, Path())
    if files:
        return rows.list_image_table(task, _read(files))
    found = folders.list_folder(data)
    return folders.list_folder(data / "test") if "test" in found.groups else found


def _list_texts(data: Path, columns: Columns) -> Listing[TextSource]:
    task = Task(
        kind="text-classification",
        data=str(data),
        text_column=columns.text,
        label_column=columns.label,
    )
    return rows.list_texts(task, _tables(task, data))


def _list_rows(data: Path, columns: Columns, preprocessing: TabularPreprocessing) -> Listing[RowSource]:
    numeric = [column.name for column in preprocessing.columns if isinstance(column, NumericColumn)]
    task = Task(
        kind="tabular-classification",
        data=str(data),
        label_column=columns.label,
        numeric_columns=numeric,
        categorical_columns=[column.name for column in preprocessing.columns if column.name not in numeric],
    )
    return rows.list_rows(task, _tables(task, data))[0]


def _tables(task: Task, data: Path) -> dict[str, tables.Table]:
    files = tables.find_tables(task, Path())
    if not files:
        raise DataError(
            f"{data}: the folder holds no table named train", "give the .csv, .tsv or .jsonl file itself"
        )
    return _read(files)


def _read(files: dict[str, tuple[str, Path]]) -> dict[str, tables.Table]:
    wanted = {"test": files["test"]} if "test" in files else files
    return {split: tables.read_table(path, name) for split, (name, path) in wanted.items()}


def _labelled(found: Listing[S], labels: Sequence[str]) -> tuple[S, ...]:
    """Return the samples to score, with their indices into `labels`."""
    if found.bad:
        shown = "\n".join(f"  {line}" for line in found.bad[:_SHOWN])
        more = f"\n  and {len(found.bad) - _SHOWN} more" if len(found.bad) > _SHOWN else ""
        raise DataError(
            f"{found.where} holds {len(found.bad)} file(s) or row(s) that are no samples:\n{shown}{more}",
            "correct or remove them",
        )
    group = next((name for name in ("test", "all") if name in found.groups), "")
    if not group:
        raise DataError(
            f"{found.where} has {', '.join(found.groups)} and no test", "name the samples to score themselves"
        )
    if not found.groups[group]:
        raise DataError(f"{found.where}: there are no samples", "give at least one labelled sample")
    return tuple(_relabelled(source, found, labels) for source in found.groups[group])


def _relabelled(source: S, found: Listing[S], labels: Sequence[str]) -> S:
    name = found.classes[source.label]
    if name not in labels:
        raise DataError(
            f"{source.name}: class {name!r}{nearest(name, labels)} is none of the package's, which are: "
            f"{', '.join(labels[:10])}{', ...' if len(labels) > 10 else ''}",
            "score the package on data of the task that it was made for",
        )
    return replace(source, label=labels.index(name))  # type: ignore[type-var]
