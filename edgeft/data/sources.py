"""Where samples come from: what is in a data folder or a builtin set, before any pixel is decoded."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from edgeft import extras, recipe
from edgeft.errors import DataError, nearest
from edgeft.types import Split

SPLITS: tuple[Split, ...] = get_args(Split)
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
)
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})

# A small network pretrained on digits 0..4 and carried over to 5..9 is the embedded transfer story.
_BUILTIN_DIGITS = {"builtin:digits": range(5, 10), "builtin:digits-source": range(5)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One undecoded sample: encoded bytes or the file that holds them, and what it is called in messages."""

    name: str
    """Path relative to the data folder with forward slashes, or an index of a builtin set."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All samples of a data set by the splits it comes with; ``all`` where it comes with none."""

    classes: tuple[str, ...]
    groups: Mapping[str, tuple[Source, ...]]
    bad: tuple[str, ...] = ()
    """Files among the images that are none, as "path: reason"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a data set holds, found without decoding a pixel.

    `counts` maps each split that the data set comes with (or ``all``) to samples per class. `bad` names files
    among the images that are none. `listing` is a SHA-256 over names, sizes and modification times: it
    changes when a file is added, removed or rewritten, and costs nothing; identity by content is
    `Splits.fingerprint`.
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
        task: `task.data` is a folder (relative to `base`) or ``builtin:digits``.
        base: Folder of the recipe.

    Raises:
        DataError: The folder is missing, empty or not a folder; there are fewer than two classes, too few
            samples in a class, different classes in the splits, or files that are no images where
            `task.bad_samples` is ``error``.
        MissingDependencyError: A builtin set needs scikit-learn.
    """
    found = list_samples(task, base)
    digest = hashlib.sha256()
    for group, sources in found.groups.items():
        for source in sources:
            digest.update(f"{group}\0{source.name}\0{_stamp(source)}\n".encode())
    counts = {
        group: dict(zip(found.classes, class_counts(sources, found), strict=True))
        for group, sources in found.groups.items()
    }
    return Scan(classes=found.classes, counts=counts, bad=found.bad, listing=digest.hexdigest())


def list_samples(task: recipe.Task, base: Path) -> Listing:
    """Return the samples of a task, checked as `scan` says, in an order that depends on names alone."""
    if task.data.startswith("builtin:"):
        return _list_builtin(task.data)
    root = base / task.data
    if not root.exists():
        raise DataError(
            f"task.data: {root} does not exist", "give a folder of class folders, or builtin:digits"
        )
    if not root.is_dir():
        raise DataError(f"task.data: {root} is a file; allowed is a folder of class folders")
    found = _list_folder(root)
    if found.bad and task.bad_samples == "error":
        shown = "\n".join(f"  {line}" for line in found.bad[:5])
        more = f"\n  and {len(found.bad) - 5} more" if len(found.bad) > 5 else ""
        raise DataError(
            f"task.data: {root} holds {len(found.bad)} file(s) that are no samples:\n{shown}{more}",
            'remove them, or set task.bad_samples = "skip" to leave such files out and count them',
        )
    check_counts(found, str(root))
    return found


def check_counts(found: Listing, where: str) -> None:
    """Raise `DataError` unless there are two classes and enough samples of each to fill the splits."""
    if len(found.classes) < 2:
        names = f" ({found.classes[0]!r})" if found.classes else ""
        raise DataError(
            f"task.data: {where} has {len(found.classes)} class folder(s){names}; "
            "a classifier needs at least 2",
            "put the images of each class into a folder named after it",
        )
    for group, sources in found.groups.items():
        needed = samples_needed(group, found.groups)
        for name, count in zip(found.classes, class_counts(sources, found), strict=True):
            if count < needed:
                kinds = {3: "train, val and test", 2: "train and the missing split"}.get(needed, group)
                place = f"class {name!r}" if group == "all" else f"class {name!r} in {group}/"
                raise DataError(
                    f"task.data: {where}: {place} has {count} image(s); at least {needed} needed for {kinds}",
                    f"add images to {name!r}, or remove the folder",
                )


def samples_needed(group: str, groups: Mapping[str, tuple[Source, ...]]) -> int:
    """Return how many samples per class `group` must have: one for each split that is cut from it."""
    missing = sum(split not in groups for split in SPLITS)
    return {"all": 3, "train": 1 + missing}.get(group, 1)


def class_counts(sources: tuple[Source, ...], found: Listing) -> list[int]:
    """Return the number of samples per class, in the order of `found.classes`."""
    counts = Counter(source.label for source in sources)
    return [counts[label] for label in range(len(found.classes))]


def _stamp(source: Source) -> str:
    if isinstance(source.encoded, bytes):
        return hashlib.sha256(source.encoded).hexdigest()
    stat = source.encoded.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _list_builtin(name: str) -> Listing:
    if name not in _BUILTIN_DIGITS:
        allowed = ", ".join(_BUILTIN_DIGITS)
        raise DataError(
            f"task.data: unknown {name!r}{nearest(name, _BUILTIN_DIGITS)}; builtin sets are: {allowed}"
        )
    wanted = _BUILTIN_DIGITS[name]
    digits = extras.load("sklearn.datasets", name).load_digits()
    # 17 grey values 0..16 become 0..255. PGM has no compressor, so its bytes, the identity, never change.
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    sources = tuple(
        Source(
            name=str(index),
            label=int(digit) - wanted.start,
            encoded=b"P5 8 8 255\n" + pixels[index].tobytes(),
        )
        for index, digit in enumerate(digits.target)
        if digit in wanted
    )
    return Listing(classes=tuple(str(digit) for digit in wanted), groups={"all": sources})


def _list_folder(root: Path) -> Listing:
    """List class folders, below train/, val/ and test/ if there is a train/ with folders in it."""
    bad: list[str] = []
    if not _folders(root / "train"):
        classes, sources = _list_classes(root, root, bad)
        if not sources and not bad:
            raise DataError(
                f"task.data: the folder {root} is empty",
                "put the images of each class into a folder of its own",
            )
        return Listing(classes=classes, groups={"all": sources}, bad=tuple(bad))
    present = [folder.name for folder in _folders(root)]
    strange = [name for name in present if name not in SPLITS]
    if strange:
        raise DataError(
            f"task.data: {root} has {strange[0]!r}{nearest(strange[0], SPLITS)} beside train/; "
            "allowed there are train/, val/ and test/",
            "rename or move it; a missing val/ or test/ is cut from train/",
        )
    bad += _stray(root, root)
    groups: dict[str, tuple[Source, ...]] = {}
    classes = ()
    for split in SPLITS:
        if split in present:
            names, groups[split] = _list_classes(root / split, root, bad)
            if split != "train" and names != classes:
                only = sorted(set(names) ^ set(classes))
                raise DataError(
                    f"task.data: {root}: {split}/ and train/ have different classes; in one of them only: "
                    f"{', '.join(only[:5])}",
                    "every split needs the same class folders",
                )
            classes = names
    return Listing(classes=classes, groups=groups, bad=tuple(bad))


def _list_classes(folder: Path, root: Path, bad: list[str]) -> tuple[tuple[str, ...], tuple[Source, ...]]:
    """Return class names and samples of one folder of class folders; add what is no sample to `bad`."""
    bad += _stray(folder, root)
    classes = _folders(folder)
    sources = []
    for label, place in enumerate(classes):
        for path in _files(place):
            name = path.relative_to(root).as_posix()
            if path.suffix.lower() in IMAGE_SUFFIXES:
                sources.append(Source(name=name, label=label, encoded=path))
            else:
                bad.append(f"{name}: not an image file")
    return tuple(place.name for place in classes), tuple(sources)


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _stray(folder: Path, root: Path) -> list[str]:
    """Name the files that lie beside class folders, where no class is known."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not _is_system_file(entry.name))
    return [f"{path.relative_to(root).as_posix()}: not inside a class folder" for path in files]


def _files(folder: Path) -> list[Path]:
    """Return all files below `folder` except hidden and system files, sorted."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place) / name for name in names if not _is_system_file(name)]
    return sorted(found)


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES
