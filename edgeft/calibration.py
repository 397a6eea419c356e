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
    observer: Literal["minmax", "moving-average", "percentile", "mse"] = "minmax"
    percentile: Annotated[float, Field(gt=50.0, le=100.0, strict=False)] = 99.99
    """Of the values that lie inside the range, per side; the percentile observer's only."""
    samples: Annotated[int, Field(ge=1)] = 128
    """Drawn from the training split; fewer available is an error, not a shorter run."""
    sampling: Literal["random", "stratified"] = "stratified"
    cross_layer_equalization: bool = False
    """Level the channel ranges of successive convolutions before ranges are found (Nagel et al., 2019)."""
    bias_correction: bool = False
    """Take the mean error that rounding the weights makes out of each bias (Nagel et al., 2019)."""
    smooth_quant: Annotated[float, Field(gt=0.0, lt=1.0, strict=False)] | None = None
    """Migration strength between activations and weights behind a LayerNorm (Xiao et al., 2023); absent: off."""


def load(value: str, base: Path | None = None) -> CalibrationRecipe:
    """Read a calibration recipe by shipped name or path (relative to `base`). Raises `ConfigError`."""
    return schema.read(resources.find("calibration", value, base), CalibrationRecipe)
