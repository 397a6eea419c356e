"""Write text files: a reader sees the old file or the new one, never a part, whoever else writes it meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from edgeft.errors import WorkspaceError


def write_text(path: Path, text: str) -> Path:
    """Write a file by renaming a finished one into its place; where a link points to it, into that place.

    Returns:
        `path`.

    Raises:
        WorkspaceError: It cannot be written; nothing is left behind.
    """
    try:
        with _begun(path, text) as (partial, place):
            partial.replace(place)
    except (OSError, ValueError) as error:  # ValueError: the path names no file, or the text is no UTF-8
        raise WorkspaceError(f"{path}: cannot be written ({error})") from error
    return path


def require_writable(path: Path) -> None:
    """Check that `write_text` can write a file, before the work whose result it is to hold. Raises `WorkspaceError`."""
    if path.exists() and not path.is_file():
        raise WorkspaceError(f"{path}: cannot be written (it is no plain file)", "name a file")
    try:
        with _begun(path, ""):
            pass
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"{path}: cannot be written ({error})") from error


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process is within `alone` for a file of this folder, and keep others waiting meanwhile.

    Raises:
        WorkspaceError: There is no such folder and none can be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise WorkspaceError(f"{path}: cannot be written ({error})") from error
    try:
        with contextlib.suppress(OSError):  # file systems without locks: as before there were any
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _begun(path: Path, text: str) -> Iterator[tuple[Path, Path]]:
    """Write what is to become a file beside its place, under a name of its own; what is not renamed is removed."""
    place = path.resolve() if path.is_symlink() else path
    partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        yield partial, place
    finally:
        partial.unlink(missing_ok=True)
