"""Read versioned JSON documents, with one clear message for each way in which a file can be wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from edgeft.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


def read(path: Path, *, schema: str, version: int, hint: str) -> dict[str, Any]:
    """Read a document and check what it says it is.

    Args:
        path: The file.
        schema: Its ``schema`` key.
        version: Its ``version`` key, the only one that this edgeft reads.
        hint: Where such files come from.

    Raises:
        ConfigError: It is missing, cannot be read, is not JSON, is another document, or of another version.
    """
    try:
        document = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})", hint) from error
    except ValueError as error:  # of which JSONDecodeError is one
        raise ConfigError(f"{path}: not valid JSON, perhaps truncated: {error}", hint) from error
    if not isinstance(document, dict) or document.get("schema") != schema:
        got = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise ConfigError(f'{path}: key "schema" is {got!r}; {schema!r} is needed', hint)
    found = document.get("version")
    if found != version:
        newer = isinstance(found, int) and found > version
        raise ConfigError(
            f"{path}: {schema} version {found!r}, this edgeft reads {version}",
            "update edgeft" if newer else hint,
        )
    return document


def parse(text: str) -> Any:
    """Return what a JSON text says. Raises `ValueError` if it is none, nests too deep, or has a number without end."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("too many brackets within each other") from None


def validated(model: type[M], document: dict[str, Any], where: str | Path, hint: str) -> M:
    """Return the document as a model.

    Args:
        model: What it has to be.
        document: What was read.
        where: From which file, and from which place in it.
        hint: Where such files come from.

    Raises:
        ConfigError: It is something else; the message names the first keys that are wrong.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        lines = [f"{where}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found]
        if any(item["type"] == "extra_forbidden" for item in found):
            hint = f"update edgeft, if a later one wrote it; else {hint}"
        raise ConfigError("\n".join(lines[:3]), hint) from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is larger than any number here")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
