"""Image folders: class folders, by themselves or below train/, val/ and test/."""

from __future__ import annotations

import os
from pathlib import Path

from edgeft.data.sources import SPLITS, ImageSource, Listing
from edgeft.errors import DataError, nearest

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
)
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})


def list_folder(root: Path) -> Listing[ImageSource]:
    """List class folders, below train/, val/ and test/ if there is a train/ with folders in it.

    Raises:
        DataError: The folder is empty, or its splits have other names or different classes.
    """
    bad: list[str] = []
    if not _folders(root / "train"):
        classes, sources = _list_classes(root, root, bad)
        if not sources and not bad:
            raise DataError(
                f"task.data: the folder {root} is empty",
                "put the images of each class into a folder of its own",
            )
        return Listing(where=str(root), classes=classes, groups={"all": sources}, bad=tuple(bad))
    present = [folder.name for folder in _folders(root)]
    strange = [name for name in present if name not in SPLITS]
    if strange:
        raise DataError(
            f"task.data: {root} has {strange[0]!r}{nearest(strange[0], SPLITS)} beside train/; "
            "allowed there are train/, val/ and test/",
            "rename or move it; a missing val/ or test/ is cut from train/",
        )
    bad += _stray(root, root)
    groups: dict[str, tuple[ImageSource, ...]] = {}
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
    return Listing(where=str(root), classes=classes, groups=groups, bad=tuple(bad))


def _list_classes(
    folder: Path, root: Path, bad: list[str]
) -> tuple[tuple[str, ...], tuple[ImageSource, ...]]:
    """Return class names and samples of one folder of class folders; add what is no sample to `bad`."""
    bad += _stray(folder, root)
    classes = _folders(folder)
    sources = []
    for label, place in enumerate(classes):
        for path in _files(place):
            name = path.relative_to(root).as_posix()
            if path.suffix.lower() in IMAGE_SUFFIXES:
                sources.append(ImageSource(name=name, label=label, encoded=path))
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
