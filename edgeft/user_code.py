"""Functions in a user's own Python file, named ``path/to/file.py:function``; their errors name file and line."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from edgeft.errors import EdgeftError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFunction:
    """A function of a user's file; `sha256` is that of the file's bytes, for cache keys."""

    name: str
    path: Path
    sha256: str
    function: Callable[..., Any]


def split(spec: str) -> tuple[str, str]:
    """Split ``path/to/file.py:function`` into the path and the function's name; both empty for anything else."""
    path, _, function = spec.rpartition(":")
    return (path, function) if path.endswith(".py") and function else ("", "")


def load(spec: str, base: Path, *, key: str, error: type[EdgeftError]) -> UserFunction:
    """Import the file and find its function.

    Args:
        spec: ``path/to/file.py:function``; a relative path starts at `base`.
        base: Folder of the recipe.
        key: Of the recipe, for messages.
        error: What to raise where there is no such file or function, or the file cannot be imported.
    """
    file, name = split(spec)
    if not file:
        raise error(f"{key}: got {spec!r}; allowed is path/to/file.py:function")
    path = base / file
    try:
        content = path.read_bytes()
    except OSError as reason:
        raise error(
            f"{key}: {path}: cannot be read ({reason.strerror})",
            "a relative path starts at the recipe's folder",
        ) from reason
    digest = hashlib.sha256(content).hexdigest()
    module = _import(path, digest, key, error)
    functions = [
        known for known, value in vars(module).items() if callable(value) and not known.startswith("_")
    ]
    if name not in functions:
        there = f"; there are: {', '.join(functions)}" if functions else ""
        raise error(f"{key}: {path} has no function {name!r}{nearest(name, functions)}{there}")
    return UserFunction(name=name, path=path, sha256=digest, function=getattr(module, name))


class Blamed:
    """Turns whatever a user's code raises inside the block into an edgeft error that names its line.

    A context manager, because that code may raise any exception, and no handler in edgeft catches all of them.

    Args:
        path: The user's file.
        what: What was called, for the message.
        key: Of the recipe, for the message.
        error: What to raise instead.
        hint: How it is called, for the author of the file.
    """

    def __init__(self, path: Path, what: str, *, key: str, error: type[EdgeftError], hint: str = "") -> None:
        self._path, self._what, self._key, self._error, self._hint = path, what, key, error, hint

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, EdgeftError):
            return
        if isinstance(error, SyntaxError) and error.filename == str(self._path):
            line, said = error.lineno, error.msg
        else:
            frames = [f.lineno for f in traceback.extract_tb(trace) if f.filename == str(self._path)]
            line, said = (frames[-1] if frames else None), str(error)
        where = f"{self._path}, line {line}" if line else f"{self._path}"
        text = f"{self._key}: {where}: {self._what} raised {type(error).__name__}: {said}"
        raise self._error(text, self._hint) from error


def _import(path: Path, digest: str, key: str, error: type[EdgeftError]) -> ModuleType:
    """Import a file under a name of its own, so that two files called model.py do not meet."""
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    name = f"edgeft_user_{path.stem}_{place[:8]}{digest[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error(f"{key}: {path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look themselves up
    try:
        with Blamed(path, "the file", key=key, error=error):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
