"""``path/to/file.py:build``: a network that the user's own code makes."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from edgeft.errors import ModelError, nearest
from edgeft.preprocessing import Preprocessing

# What the user's code may raise; anything else is a bug worth its traceback.
_ERRORS = (
    ArithmeticError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError, SyntaxError, TypeError,
    ValueError,
)  # fmt: skip


def split(source: str) -> tuple[str, str]:
    """Split ``path/to/file.py:build`` into the path and the function's name; both empty for other sources."""
    path, _, function = source.rpartition(":")
    return (path, function) if path.endswith(".py") and function else ("", "")


def load_builder(source: str, base: Path) -> Callable[..., Any]:
    """Import the file and return its function.

    Raises:
        ModelError: No such file or function, or the file cannot be imported.
    """
    name, function = split(source)
    path = (base / name).resolve()
    if not path.is_file():
        raise ModelError(
            f"model.source: {base / name} does not exist", "its path is relative to the recipe's folder"
        )
    # A name of its own for every content, so that two files called model.py do not meet.
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    module_name = f"edgeft_user_{path.stem}_{digest}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ModelError(f"model.source: {path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # before it runs: dataclasses and pickle look themselves up
        try:
            spec.loader.exec_module(module)
        except _ERRORS as error:
            del sys.modules[module_name]
            raise ModelError(f"model.source: {path} cannot be imported ({_where(error, path)})") from error
    found = getattr(module, function, None)
    if not callable(found):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise ModelError(
            f"model.source: {path.name} has no function {function!r}{nearest(function, names)}",
            f"there are: {', '.join(names)}"
            if names
            else "write def build(classes): ... that returns an nn.Module",
        )
    builder: Callable[..., Any] = found
    return builder


def call_builder(
    builder: Callable[..., Any], classes: int, preprocessing: Preprocessing, source: str
) -> nn.Module:
    """Call ``build(classes)``; `input_shape` and `preprocessing` are passed if its signature names them.

    Raises:
        ModelError: It fails, or returns no `nn.Module`.
    """
    hints = {"input_shape": preprocessing.input_shape, "preprocessing": preprocessing}
    wanted = inspect.signature(builder).parameters
    try:
        made = builder(classes, **{name: value for name, value in hints.items() if name in wanted})
    except _ERRORS as error:
        path = Path(inspect.getsourcefile(builder) or source)
        raise ModelError(
            f"model.source {source} failed for {classes} classes ({_where(error, path)})"
        ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"model.source {source} returned a {type(made).__name__}; allowed is a torch.nn.Module"
        )
    return made


def _where(error: BaseException, path: Path) -> str:
    """Return the error with the last line of the user's file that it passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    line = f", line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{line}"
