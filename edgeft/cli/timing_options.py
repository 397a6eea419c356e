"""Options of the commands that time files: `edgeft bench` and `edgeft compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edgeft.errors import ConfigError


def option(name: str, metavar: str, text: str, **limits: Any) -> Any:
    """Return what typer needs to know of an option that takes a value."""
    return typer.Option(name, metavar=metavar, help=text, **limits)


InputsOption = Annotated[
    Path | None,
    option("--inputs", "FOLDER", "Real samples: what a package takes, else .npy or .npz arrays."),
]
RandomOption = Annotated[
    bool, typer.Option("--random", help="Feed random numbers instead of samples; the result says so.")
]
ShapeOption = Annotated[
    list[str] | None, option("--shape", "NAME=1,3,224,224", "Size of an input with free dimensions.")
]
ThreadsOption = Annotated[
    int | None, option("--threads", "N", "Threads per inference; by default a package's own, else 1.", min=1)
]
RuntimeDeviceOption = Annotated[str | None, option("--device", "NAME", "The runtime's own name of a device.")]
SettingOption = Annotated[
    list[str] | None, option("--option", "KEY=VALUE", "A setting of the runtime; may be repeated.")
]
HostOption = Annotated[str, option("--host", "ADDRESS", "Measure there: user@board, or adb:SERIAL.")]


def fed_with(inputs: Path | None, random: bool) -> Path | Literal["random"] | None:
    """Return what --inputs and --random say that files are fed with. Raises `ConfigError` where both are given."""
    if inputs is not None and random:
        raise ConfigError("--inputs and --random exclude each other", "give one of them")
    return "random" if random else inputs


def options_of(texts: Sequence[str] | None) -> dict[str, str]:
    """Return what --option was given as KEY=VALUE. Raises `ConfigError` for anything else."""
    return dict(_pair(text, "--option", "KEY=VALUE") for text in texts or ())


def shapes_of(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Return what --shape was given as NAME=1,3,224,224. Raises `ConfigError` for anything else."""
    return dict(_shape(text) for text in texts or ())


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, sizes = _pair(text, "--shape", "NAME=1,3,224,224")
    try:
        return name, tuple(int(size) for size in sizes.split(","))
    except ValueError:
        raise ConfigError(f"--shape {text}: sizes are whole numbers with commas, NAME=1,3,224,224") from None


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    # The name of a tensor may hold a sign of equality, a list of sizes does not.
    name, separator, value = text.rpartition("=") if option == "--shape" else text.partition("=")
    if not (name and separator and value):
        raise ConfigError(f"{option} {text}: allowed is {form}")
    return name, value
