"""Calibration recipes: how activation ranges are found. TOML, schema 1 (DESIGN: section 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgeft import resources, schema
from edgeft.schema import Strict


class CalibrationRecipe(Strict):
    """Which training samples are shown to the observers, and what those keep of them."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    id: str
    title: str
    observer: Literal["minmax", "moving-average"] = "minmax"
    samples: Annotated[int, Field(ge=1)] = 128
    """Drawn from the training split; fewer available is an error, not a shorter run."""
    sampling: Literal["random", "stratified"] = "stratified"


def load(value: str, base: Path | None = None) -> CalibrationRecipe:
    """Read a calibration recipe by shipped name or path (relative to `base`). Raises `ConfigError`."""
    return schema.read(resources.find("calibration", value, base), CalibrationRecipe)
