"""A lock on a folder that dies with its holder: `flock` on an open file, freed by the kernel at any death."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from edgeft.errors import WorkspaceError

_held: Final[set[int]] = set()


def _close_in_child() -> None:
    # A forked child (a data loader's worker) shares the open file, hence a lock that outlives its parent.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


class FolderLock:
    """An exclusive lock; the file holds the holder's process id, for the message only."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, path: Path) -> FolderLock:
        """Lock `path`, creating it, without waiting.

        Raises:
            WorkspaceError: Another process holds it, or the file system has no locks.
            OSError: The file cannot be opened or written.
        """
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _lock(descriptor, path)
                # `clean` may remove the file between our open and our lock: then ours is a lock on nothing.
                if _is_same_file(descriptor, path):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()}\n".encode())
                    _held.add(descriptor)
                    return cls(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def release(self) -> None:
        """Free the lock; a second call does nothing."""
        if self._descriptor in _held:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = -1


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        raise WorkspaceError(
            f"workspace {path.parent} is in use by another run" + (f" (process {holder})" if holder else ""),
            "wait until it ends or stop it, or give this run a folder of its own with --workspace",
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        raise WorkspaceError(
            f"workspace {path.parent}: its file system has no locks ({error.strerror})",
            "choose a folder on a local disk with --workspace",
        ) from error


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
