"""The workspace ``runs/<name>/``: finished stages on disk, so that a killed run continues where it was.

A stage is made in a scratch folder and becomes visible by one atomic rename, after everything in it has
reached the disk. At whatever instant a run is killed, a folder ``stages/<nn>-<name>/`` is therefore a
finished stage; a scratch folder resumes (same key), or is complete and lacks only its rename, or is dropped.

    .lock                          held (flock) by the run that is going on; the kernel frees it at its death
    stages.json                    the stage keys that the recipe needs: {"01-finetune": "<key>", ...}
    stages/01-finetune/            a finished stage: its files and meta.json
    stages/.tmp-01-finetune-<key>/ scratch of an unfinished one (first 12 digits of the key)
    stages/.old-01-finetune/       a replaced one, for the moment between two renames
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from edgeft.errors import WorkspaceError
from edgeft.lock import FolderLock

META_SCHEMA: Final = 1
KEYS_FILE: Final = "stages.json"

_LOCK = ".lock"
_META = "meta.json"
_ATTEMPTS = ".attempts.json"
_NAME = re.compile(r"[a-z][a-z0-9-]*")


def stage_key(name: str, inputs: Mapping[str, Any]) -> str:
    """Return the key of a stage: SHA-256 over its name and everything that it reads.

    Args:
        name: The stage's name.
        inputs: JSON values only: config, seed, upstream keys, digests of files, versions. The order of keys
            does not matter.

    Returns:
        64 hex digits.

    Raises:
        TypeError: An input is not a JSON value (a path or an array has no canonical form).
        ValueError: An input is NaN or infinite.
    """
    record = {"schema": META_SCHEMA, "name": name, "inputs": inputs}
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Workspace:
    """An open workspace; a context manager that holds the folder's lock.

    Stages are numbered by their place in the recipe: finished stage 1 ``finetune`` is ``stages/01-finetune``.
    """

    def __init__(self, path: Path, lock: FolderLock, note: Callable[[str], None]) -> None:
        self.path = path
        self._lock = lock
        self._note = note
        self._stages = path / "stages"

    @classmethod
    def open(cls, path: Path, *, note: Callable[[str], None] = lambda text: None) -> Self:
        """Create the folder if need be, lock it, and finish a replacement that a kill has interrupted.

        Args:
            path: The workspace folder; a new one, an empty one, or a workspace.
            note: Told in one line about anything found damaged and done again.

        Raises:
            WorkspaceError: Another run holds it, it cannot be written, or it is a folder of something else.
        """
        path = Path(os.path.abspath(path))  # noqa: PTH100 - a symlinked runs/ stays the path that the user knows
        with _explained(path):
            path.mkdir(parents=True, exist_ok=True)
            if not is_workspace(path) and any(path.iterdir()):
                raise WorkspaceError(
                    f"{path} is neither empty nor a workspace of edgeft",
                    "give a new folder: a workspace belongs to one run, and `edgeft clean --all` empties it",
                )
            lock = FolderLock.acquire(path / _LOCK)
            workspace = cls(path, lock, note)
            try:
                workspace._stages.mkdir(exist_ok=True)
                workspace._recover()
            except BaseException:
                lock.release()
                raise
        return workspace

    def close(self) -> None:
        """Give the lock back; the workspace must not be used afterwards."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stage(self, index: int, name: str, key: str) -> Path | None:
        """Return the folder of a finished stage with this key whose files are all there, else None."""
        folder, scratch = self._folder(index, name), self._scratch(index, name, key)
        with _explained(self.path):
            if _is_finished(scratch, key):  # killed between its last byte and the rename
                self._publish(scratch, folder)
            meta = _read_json(folder / _META)
            if meta.get("key") != key:
                return None
            if damage := _damage(folder, meta):
                self._note(f"stage {folder.name} is done again: {damage}")
                return None
        return folder

    def begin(self, index: int, name: str, key: str) -> Path:
        """Return the scratch folder to make a stage in.

        What an earlier, killed attempt with the same key left there is kept, so that checkpoints resume;
        scratch of the same stage with other keys is removed. A finished stage stays until `commit`.

        Raises:
            WorkspaceError: The folder cannot be written.
        """
        scratch = self._scratch(index, name, key)
        with _explained(self.path):
            for other in self._stages.glob(f".tmp-{index:02d}-{name}-*"):
                if other != scratch:
                    shutil.rmtree(other)
            scratch.mkdir(exist_ok=True)
            for leftover in (scratch / _META, _part(scratch / _META), _part(scratch / _ATTEMPTS)):
                leftover.unlink(missing_ok=True)
            earlier = _seconds_of_killed_attempts(scratch)
            _write(scratch / _ATTEMPTS, json.dumps([*earlier, {"began": time.time()}]))
        return scratch

    def commit(
        self,
        index: int,
        name: str,
        key: str,
        *,
        inputs: Mapping[str, Any],
        seconds: float,
        temporary: Collection[str] = (),
    ) -> Path:
        """Finish a stage: write ``meta.json``, bring everything to the disk, make it visible by one rename.

        Args:
            index: Place in the recipe, as given to `begin`.
            name: The stage's name.
            key: Its key.
            inputs: What the key was made of, for people who ask why a stage ran again.
            seconds: Time that this attempt took; that of earlier, killed ones is added.
            temporary: Files that are of use only until the stage is finished (checkpoints): removed once it is,
                not before, so that a run killed in here does not train again.

        Returns:
            The finished stage's folder.

        Raises:
            WorkspaceError: The folder cannot be written, or `begin` was not called.
        """
        folder, scratch = self._folder(index, name), self._scratch(index, name, key)
        with _explained(self.path):
            earlier = [a["seconds"] for a in _read_json(scratch / _ATTEMPTS, default=[]) if "seconds" in a]
            meta = {
                "schema": META_SCHEMA,
                "name": name,
                "key": key,
                "inputs": inputs,
                "seconds": round(seconds + sum(earlier), 3),
                "attempts": 1 + len(earlier),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "files": _sync_files(scratch, temporary),
            }
            _write(scratch / _META, json.dumps(meta, indent=2, allow_nan=False) + "\n")
            (scratch / _ATTEMPTS).unlink(missing_ok=True)
            self._publish(scratch, folder)
            for file in temporary:
                (folder / file).unlink(missing_ok=True)
        return folder

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the workspace's root; a reader sees the old content or the new, never a part.

        Raises:
            WorkspaceError: The file cannot be written.
            ValueError: `name` is not a plain file name.
        """
        if Path(name).name != name or name in ("", ".", "..", _LOCK):
            raise ValueError(f"{name!r} is not the plain name of a file in the workspace's root")
        with _explained(self.path):
            _write(self.path / name, text)
        return self.path / name

    def stale(self) -> list[Path]:
        """Return stage and scratch folders that no key of ``stages.json`` needs, sorted.

        Without a readable ``stages.json`` nothing is known to be superfluous, and the list is empty.
        """
        keys = _read_json(self.path / KEYS_FILE)
        if not keys:
            return []
        found = {stage: _read_json(self._stages / stage / _META).get("key") for stage in keys}
        needed = {stage for stage, key in keys.items() if found[stage] == key}
        needed |= {f".tmp-{stage}-{key[:12]}" for stage, key in keys.items() if stage not in needed}
        with _explained(self.path):
            return sorted(entry for entry in self._stages.iterdir() if entry.name not in needed)

    def _folder(self, index: int, name: str) -> Path:
        if not _NAME.fullmatch(name) or not 0 <= index <= 99:
            raise ValueError(
                f"stage {index} {name!r}: a number of 0..99 and lower-case letters, digits, '-' are allowed"
            )
        return self._stages / f"{index:02d}-{name}"

    def _scratch(self, index: int, name: str, key: str) -> Path:
        return self._stages / f".tmp-{self._folder(index, name).name}-{key[:12]}"

    def _publish(self, scratch: Path, folder: Path) -> None:
        """Rename `scratch` to `folder`; an old one steps aside, as no rename replaces a folder with files."""
        aside = self._stages / f".old-{folder.name}"
        if folder.exists():
            if aside.exists():
                shutil.rmtree(aside)
            folder.rename(aside)
        scratch.rename(folder)
        _sync(self._stages)
        if aside.exists():
            shutil.rmtree(aside)

    def _recover(self) -> None:
        """Undo or finish a replacement that was cut between its two renames."""
        for aside in self._stages.glob(".old-*"):
            folder = self._stages / aside.name.removeprefix(".old-")
            if folder.exists():
                shutil.rmtree(aside)
            else:
                aside.rename(folder)


def is_workspace(path: Path) -> bool:
    """Return whether `path` is a folder that `Workspace.open` has made."""
    return (path / _LOCK).is_file()


def clean(path: Path, *, everything: bool = False) -> list[Path]:
    """Remove what the recipe does not need: stages with other keys, and scratch that nothing resumes.

    Args:
        path: A workspace.
        everything: Empty the folder: finished stages, packages and reports too.

    Returns:
        What was removed, sorted.

    Raises:
        WorkspaceError: It is not a workspace, is in use, or cannot be written.
    """
    if not is_workspace(path):
        raise WorkspaceError(
            f"{path} is not a workspace of edgeft, nothing was removed",
            "name the folder of a run: runs/<name>",
        )
    with Workspace.open(path) as workspace:
        entries = sorted(workspace.path.iterdir()) if everything else workspace.stale()
        doomed = [entry for entry in entries if entry.name != _LOCK]
        with _explained(workspace.path):
            for entry in doomed:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            if everything:
                (workspace.path / _LOCK).unlink()
    return doomed


def _is_finished(folder: Path, key: str) -> bool:
    meta = _read_json(folder / _META)
    return meta.get("key") == key and not _damage(folder, meta)


def _damage(folder: Path, meta: Mapping[str, Any]) -> str:
    """Return what is wrong with a finished stage's files (by their sizes), or an empty string."""
    if meta.get("schema") != META_SCHEMA or not isinstance(meta.get("files"), dict):
        return f"its {_META} is of another version"
    for name, size_bytes in meta["files"].items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size_bytes:
            return f"{name} has {found} bytes instead of {size_bytes}"
    return ""


def _seconds_of_killed_attempts(scratch: Path) -> list[dict[str, float]]:
    """Return one record per earlier attempt. A killed one cannot say how long it took; its last write can."""
    attempts: list[dict[str, float]] = _read_json(scratch / _ATTEMPTS, default=[])
    if not attempts or "seconds" in attempts[-1]:
        return attempts
    last_write = max(entry.stat().st_mtime for entry in [scratch, *scratch.rglob("*")])
    return [*attempts[:-1], {"seconds": round(max(0.0, last_write - attempts[-1]["began"]), 3)}]


def _read_json(path: Path, default: Any = None) -> Any:
    """Return a JSON file's content; `default` (an empty object) if it is absent or of another shape."""
    default = {} if default is None else default
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default
    return content if isinstance(content, type(default)) else default


def _write(path: Path, text: str) -> None:
    """Write a file atomically and durably."""
    temporary = _part(path)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _sync_files(folder: Path, temporary: Collection[str]) -> dict[str, int]:
    """Bring all below `folder` to the disk; return the sizes of files that stay, by relative path."""
    sizes = {}
    for entry in sorted(folder.rglob("*")):
        _sync(entry)
        if entry.is_file() and entry.name not in (_ATTEMPTS, *temporary):
            sizes[entry.relative_to(folder).as_posix()] = entry.stat().st_size
    return sizes


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an `OSError` on the way into a `WorkspaceError` that names the file and the reason."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        reason = error.strerror or str(error)
        raise WorkspaceError(
            f"workspace {path}: cannot write {where}: {reason}",
            "free some space, or choose a folder that you may write to with --workspace",
        ) from error
