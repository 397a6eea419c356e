"""Look at a data set without decoding anything: classes, counts, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeft import recipe
from edgeft.data import builtin, folders, rows, tables
from edgeft.data.features import Features
from edgeft.data.sources import (
    ImageSource,
    Listing,
    RowSource,
    S,
    TextSource,
    check_counts,
    class_counts,
    refuse_bad,
)
from edgeft.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a data set holds, found without decoding a sample.

    `counts` maps each split that the data set comes with (or ``all``) to samples per class. `bad` names the files
    or rows that are no samples. `listing` is a SHA-256 over names, classes, and sizes and modification times of
    files or contents of rows: it changes when a sample is added, removed or rewritten, and costs little; identity
    by content is `Splits.fingerprint`.
    """

    classes: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    bad: tuple[str, ...]
    listing: str

    @property
    def samples(self) -> int:
        """Number of samples in all splits."""
        return sum(sum(counts.values()) for counts in self.counts.values())


def scan(task: recipe.Task, base: Path) -> Scan:
    """Look at the data set of a task and check that it can be split and learned from.

    Args:
        task: Kind, and where the data is (relative to `base`).
        base: Folder of the recipe.

    Raises:
        DataError: Data are missing, empty or of another format; a table is not UTF-8, lacks a column or has a row
            that does not fit; there are fewer than two classes, too few samples in a class, different classes or
            columns in the splits, one file as two splits, or files and rows that are no samples where
            `task.bad_samples` is ``error``.
        MissingDependencyError: A builtin set needs scikit-learn.
    """
    if task.kind == "image-classification":
        return _summary(list_images(task, base))
    if task.kind == "text-classification":
        return _summary(list_texts(task, base))
    return _summary(list_rows(task, base)[0])


def list_images(task: recipe.Task, base: Path) -> Listing[ImageSource]:
    """Return the images of a task, checked as `scan` says, in an order that depends on names alone."""
    if task.data.startswith(builtin.PREFIX):
        builtin.check_builtin(task)
        return builtin.digits(task)
    files = tables.find_tables(task, base)
    if files:
        return _checked(task, rows.list_image_table(task, _read(files)))
    return _checked(task, folders.list_folder(base / task.data))


def list_texts(task: recipe.Task, base: Path) -> Listing[TextSource]:
    """Return the texts of a task, checked as `scan` says, in the order of the tables."""
    return _checked(task, rows.list_texts(task, read_tables(task, base)))


def list_rows(task: recipe.Task, base: Path) -> tuple[Listing[RowSource], Features]:
    """Return the rows of a task, checked as `scan` says, in the order of the tables, and the feature columns."""
    found, features = rows.list_rows(task, read_tables(task, base))
    return _checked(task, found), features


def read_tables(task: recipe.Task, base: Path) -> dict[str, tables.Table]:
    """Return the table of each split, or of ``all``. Raises `DataError` as `scan`."""
    if task.data.startswith(builtin.PREFIX):
        builtin.check_builtin(task)
        return {"all": builtin.breast_cancer(task)}
    files = tables.find_tables(task, base)
    if not files:
        raise DataError(
            f"task.data: the folder {base / task.data} holds no table named train",
            "give a .csv, .tsv or .jsonl file, or a folder with tables named train, val and test",
        )
    return _read(files)


def _read(files: Mapping[str, tuple[str, Path]]) -> dict[str, tables.Table]:
    return {split: tables.read_table(path, name) for split, (name, path) in files.items()}


def _checked(task: recipe.Task, found: Listing[S]) -> Listing[S]:
    if task.bad_samples == "error":
        refuse_bad(found)
    check_counts(found)
    return found


def _summary(found: Listing[S]) -> Scan:
    digest = hashlib.sha256()
    for group, sources in found.groups.items():
        for source in sources:
            line = f"{group}\0{source.name}\0{found.classes[source.label]}\0{source.stamp()}\n"
            digest.update(line.encode())
    counts = {
        group: dict(zip(found.classes, class_counts(sources, found), strict=True))
        for group, sources in found.groups.items()
    }
    return Scan(classes=found.classes, counts=counts, bad=found.bad, listing=digest.hexdigest())
