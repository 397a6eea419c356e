"""Find the declarative files (targets, calibration recipes) in the wheel or in the checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgeft.errors import ConfigError, nearest

Kind = Literal["targets", "calibration"]

_PACKAGE = Path(__file__).resolve().parent


def folder(kind: Kind) -> Path:
    """Return the folder of shipped files of one kind: inside the wheel, else beside the package."""
    shipped = _PACKAGE / "_data" / kind
    return shipped if shipped.is_dir() else _PACKAGE.parent / kind


def names(kind: Kind) -> tuple[str, ...]:
    """Return the shipped names of one kind, sorted."""
    return tuple(sorted(path.stem for path in folder(kind).glob("*.toml")))


def find(kind: Kind, value: str, base: Path | None = None) -> Path:
    """Return the file that `value` names.

    A value with a path separator or ending in ``.toml`` is a path (relative to `base`); any other is a shipped
    name. The working directory is never searched for a bare name, so that a stray file cannot shadow a target.

    Raises:
        ConfigError: No such file or shipped name.
    """
    if "/" in value or "\\" in value or value.endswith(".toml"):
        path = (base or Path()) / value
        if not path.is_file():
            raise ConfigError(
                f"{kind}: file {path} does not exist",
                f"give a path that exists or one of: {', '.join(names(kind))}",
            )
        return path
    path = folder(kind) / f"{value}.toml"
    if value not in names(kind):
        label = "target" if kind == "targets" else "calibration recipe"
        raise ConfigError(
            f"unknown {label} {value!r}{nearest(value, names(kind))}; shipped are: {', '.join(names(kind))}",
            f"use a shipped name, or the path of a file of your own (./my-{label.split()[0]}.toml)",
        )
    return path
