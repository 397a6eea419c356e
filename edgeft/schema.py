"""Strict TOML: read a file into a frozen pydantic model, with errors a person can act on."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from edgeft.errors import ConfigError, nearest


class Strict(BaseModel):
    """Base of every configuration section: unknown keys are errors, values are not coerced, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


M = TypeVar("M", bound=Strict)


def read(path: Path, model: type[M]) -> M:
    """Read and validate one TOML file.

    Raises:
        ConfigError: The file is missing, is not TOML, or has an unknown key or a value that is not allowed;
            the message names the file, the key, what was got and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return validate(data, model, str(path))


def validate(data: dict[str, Any], model: type[M], where: str, *, whole: str = "the file") -> M:
    """Validate parsed data. `where` names its origin in errors, `whole` all of it. Raises `ConfigError`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(*_explain(error, model, where, whole)) from None


def _explain(error: ValidationError, model: type[Strict], where: str, whole: str) -> tuple[str, str]:
    lines = []
    hint = ""
    for item in error.errors(include_url=False):
        path = [str(part) for part in item["loc"]]
        key = ".".join(path)
        if item["type"] == "extra_forbidden":
            allowed = _keys(model, path[:-1])
            lines.append(f"{where}: unknown key {key!r}{nearest(path[-1], allowed)}")
            hint = f"keys allowed there: {', '.join(sorted(allowed))}"
        elif item["type"] == "missing":
            lines.append(f"{where}: key {key!r} is missing")
        else:
            got = "" if isinstance(item["input"], dict) else f"; got {item['input']!r}"
            lines.append(f"{where}: {key or whole}: {_plain(item['msg'])}{got}")
    return "\n".join(lines), hint


def _plain(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _keys(model: type[Strict], path: list[str]) -> list[str]:
    """Return the allowed keys of the section at `path` in `model`."""
    current: type[BaseModel] = model
    for part in path:
        inner = _section(current.model_fields.get(part))
        if inner is None:
            return []
        current = inner
    return [field.alias or name for name, field in current.model_fields.items()]


def _section(field: FieldInfo | None) -> type[BaseModel] | None:
    candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def dump(model: Strict) -> str:
    """Write a configuration as TOML with every default spelled out; keys without a value are left out."""
    data = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    lines: list[str] = []
    for key, value in data.items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {_value(value)}")
    for key, value in data.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]"] + [f"{_key(k)} = {_value(v)}" for k, v in value.items()]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML basic string
        case list():
            return "[" + ", ".join(_value(v) for v in value) + "]"
        case dict() if not value:
            return "{}"
        case dict():
            return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
        case _:
            return repr(value)
