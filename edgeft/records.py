"""Store the records of `edgeft.types` as JSON and read them back with their exact types.

A stage keeps its results on disk between two runs. pydantic does this for plain types, but not for the numpy
arrays that the records carry, hence these few lines over the dataclasses' own type hints.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgeft.errors import WorkspaceError

T = TypeVar("T")


def encode(value: Any, root: Path) -> Any:
    """Return `value` (a record, or what one holds) as JSON values; paths become relative to `root`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name), root) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return value.relative_to(root).as_posix() if value.is_relative_to(root) else str(value)
    if isinstance(value, Mapping):
        return {str(key): encode(item, root) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [encode(item, root) for item in value]
    return value


def decode(kind: type[T], value: Any, root: Path) -> T:
    """Return the record of type `kind` that `encode` turned into `value`.

    Raises:
        WorkspaceError: The value does not have the record's shape (another version wrote it).
    """
    try:
        decoded: T = _decode(kind, value, root)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WorkspaceError(
            f"a stored {kind.__name__} cannot be read: {error!r}",
            "remove the workspace's stages and run again",
        ) from error
    return decoded


def _decode(kind: Any, value: Any, root: Path) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{f.name: _decode(hints[f.name], value[f.name], root) for f in dataclasses.fields(kind)})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is np.ndarray:
        return np.asarray(value, dtype=typing.get_args(arguments[1])[0])
    if origin is tuple:
        return tuple(_decode(arguments[0], item, root) for item in value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _decode(arguments[1], item, root) for key, item in value.items()}
    if origin in (types.UnionType, typing.Union):
        inner = next(a for a in arguments if a is not type(None))
        return None if value is None else _decode(inner, value, root)
    if kind is Path:
        return root / value
    return value
