"""What a data set lists: samples that are not decoded yet, by class and by the splits it comes with."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar, get_args

from edgeft.errors import DataError
from edgeft.types import Split

SPLITS: tuple[Split, ...] = get_args(Split)
_SHOWN = 5  # bad samples that an error names


class Source(Protocol):
    """One sample before it becomes a model input."""

    @property
    def name(self) -> str:
        """What it is called in messages and manifests; no two samples share one."""

    @property
    def label(self) -> int:
        """Index of its class."""

    def stamp(self) -> str:
        """Return what changes when the sample does, at little cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """A picture: encoded bytes, or the file that holds them."""

    name: str
    """Path relative to the data folder (or to the table's) with forward slashes, or an index of a builtin set."""
    label: int
    encoded: Path | bytes

    def read(self) -> bytes:
        """Return the encoded image. Raises `DataError` if the file cannot be read."""
        if isinstance(self.encoded, bytes):
            return self.encoded
        try:
            return self.encoded.read_bytes()
        except OSError as error:
            raise DataError(f"{self.encoded}: cannot be read ({error.strerror})") from error

    def stamp(self) -> str:
        """Return size and modification time, or the content's hash if there is no file."""
        if isinstance(self.encoded, bytes):
            return hashlib.sha256(self.encoded).hexdigest()
        stat = self.encoded.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """A text out of a table."""

    name: str
    """Table and line: ``train.tsv:17``."""
    label: int
    text: str

    def identity(self) -> str:
        """Return the text's SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    stamp = identity


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """A row of a table, without its label."""

    name: str
    """Table and line: ``train.csv:17``."""
    label: int
    cells: Mapping[str, str]

    def identity(self) -> str:
        """Return the SHA-256 of the cells as canonical JSON."""
        canonical = json.dumps(dict(self.cells), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    stamp = identity


S = TypeVar("S", bound=Source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Generic[S]):
    """All samples of a data set by the splits it comes with; ``all`` where it comes with none."""

    where: str
    """The folder or table, as messages call it."""
    classes: tuple[str, ...]
    groups: Mapping[str, tuple[S, ...]]
    bad: tuple[str, ...] = ()
    """Files or rows that are no samples, as "place: reason"."""
    label_column: str = ""
    """Where the classes come from; empty if they are folders."""


def refuse_bad(found: Listing[S]) -> None:
    """Raise `DataError` that names the files or rows that are no samples, if there are any."""
    if not found.bad:
        return
    shown = "\n".join(f"  {line}" for line in found.bad[:_SHOWN])
    more = f"\n  and {len(found.bad) - _SHOWN} more" if len(found.bad) > _SHOWN else ""
    what = "row(s)" if found.label_column else "file(s)"
    raise DataError(
        f"task.data: {found.where} holds {len(found.bad)} {what} that are no samples:\n{shown}{more}",
        'correct or remove them, or set task.bad_samples = "skip" to leave such samples out and count them',
    )


def check_counts(found: Listing[S]) -> None:
    """Raise `DataError` unless there are two classes and enough samples of each to fill the splits."""
    tabular = bool(found.label_column)
    if len(found.classes) < 2:
        names = f" ({found.classes[0]!r})" if found.classes else ""
        what = f"class(es) in column {found.label_column!r}" if tabular else "class folder(s)"
        raise DataError(
            f"task.data: {found.where} has {len(found.classes)} {what}{names}; a classifier needs at least 2",
            "name the column of the classes in task.label_column"
            if tabular
            else "put the images of each class into a folder named after it",
        )
    for group, sources in found.groups.items():
        needed = samples_needed(group, found.groups)
        for name, count in zip(found.classes, class_counts(sources, found), strict=True):
            if count < needed:
                kinds = {3: "train, val and test", 2: "train and the missing split"}.get(needed, group)
                split = group if tabular else f"{group}/"
                place = f"class {name!r}" if group == "all" else f"class {name!r} in {split}"
                what = "sample" if tabular else "image"
                raise DataError(
                    f"task.data: {found.where}: {place} has {count} {what}(s); at least {needed} needed for {kinds}",
                    f"add {what}s of {name!r}, or remove the class",
                )


def samples_needed(group: str, groups: Mapping[str, tuple[S, ...]]) -> int:
    """Return how many samples per class `group` must have: one for each split that is cut from it."""
    missing = sum(split not in groups for split in SPLITS)
    return {"all": 3, "train": 1 + missing}.get(group, 1)


def class_counts(sources: tuple[S, ...], found: Listing[S]) -> list[int]:
    """Return the number of samples per class, in the order of `found.classes`."""
    counts = Counter(source.label for source in sources)
    return [counts[label] for label in range(len(found.classes))]
