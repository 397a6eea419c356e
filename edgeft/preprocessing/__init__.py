"""Preprocessing: one frozen object, the same in training, calibration, evaluation and on the device.

Each kind of data has its own; all have `kind`, `input_dtype`, `input_shape`, `to_dict` and `files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from edgeft.errors import ConfigError
from edgeft.preprocessing.array import ArrayPreprocessing
from edgeft.preprocessing.image import ImagePreprocessing, Interpolation
from edgeft.preprocessing.tabular import (
    CategoricalColumn,
    NumericColumn,
    TabularPreprocessing,
    parse_number,
)
from edgeft.preprocessing.text import TOKENIZER_FILE, TextPreprocessing

Preprocessing = ImagePreprocessing | TextPreprocessing | TabularPreprocessing
"""Of data sets that are read and trained on; files made elsewhere have `ArrayPreprocessing`."""

__all__ = [
    "TOKENIZER_FILE",
    "ArrayPreprocessing",
    "CategoricalColumn",
    "ImagePreprocessing",
    "Interpolation",
    "NumericColumn",
    "Preprocessing",
    "TabularPreprocessing",
    "TextPreprocessing",
    "from_dict",
    "parse_number",
]

_NO_FILES: Mapping[str, str] = MappingProxyType({})


def from_dict(data: Mapping[str, Any], files: Mapping[str, str] = _NO_FILES) -> Preprocessing:
    """Read what any preprocessing's `to_dict` and `files` wrote.

    Args:
        data: The dictionary; its ``kind`` is image, text or table.
        files: Name -> contents of the files beside it (texts: ``tokenizer.json``).

    Raises:
        ConfigError: The kind is unknown, or a file is missing or is another one.
    """
    kind = data.get("kind")
    if kind == ImagePreprocessing.kind:
        return ImagePreprocessing.from_dict(dict(data))
    if kind == TextPreprocessing.kind:
        return TextPreprocessing.from_dict(data, files)
    if kind == TabularPreprocessing.kind:
        return TabularPreprocessing.from_dict(data)
    raise ConfigError(f"preprocessing: unknown kind {kind!r}; allowed are image, text and table")
