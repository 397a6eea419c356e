"""Embedded example data: scikit-learn's digits and breast cancer, which need no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeft import extras, recipe
from edgeft.data.sources import ImageSource, Listing
from edgeft.data.tables import Table
from edgeft.errors import DataError, nearest

PREFIX = "builtin:"

# A small network pretrained on digits 0..4 and carried over to 5..9 is the embedded transfer story.
_DIGITS = {"builtin:digits": range(5, 10), "builtin:digits-source": range(5)}
_BREAST_CANCER = "builtin:breast-cancer"
_KINDS = {
    **dict.fromkeys(_DIGITS, "image-classification"),
    _BREAST_CANCER: "tabular-classification",
}


def check_builtin(task: recipe.Task) -> None:
    """Raise `DataError` unless `task.data` is a builtin set of the task's kind, without tables beside it."""
    name = task.data
    if name not in _KINDS:
        raise DataError(
            f"task.data: unknown {name!r}{nearest(name, _KINDS)}; builtin sets are: {', '.join(_KINDS)}"
        )
    if _KINDS[name] != task.kind:
        raise DataError(f"task.data: {name} is for {_KINDS[name]}, not for task.kind {task.kind!r}")
    if task.val_data or task.test_data:
        raise DataError(f"task.val_data and task.test_data go with a table of your own, not with {name}")


def digits(task: recipe.Task) -> Listing[ImageSource]:
    """Return half of scikit-learn's 8 x 8 digits: 5 to 9, or 0 to 4 for ``builtin:digits-source``."""
    wanted = _DIGITS[task.data]
    loaded = extras.load("sklearn.datasets", task.data).load_digits()
    # 17 grey values 0..16 become 0..255. PGM has no compressor, so its bytes, the identity, never change.
    pixels = np.rint(loaded.images * (255 / 16)).astype(np.uint8)
    sources = tuple(
        ImageSource(
            name=str(index),
            label=int(digit) - wanted.start,
            encoded=b"P5 8 8 255\n" + pixels[index].tobytes(),
        )
        for index, digit in enumerate(loaded.target)
        if digit in wanted
    )
    return Listing(where=task.data, classes=tuple(str(digit) for digit in wanted), groups={"all": sources})


def breast_cancer(task: recipe.Task) -> Table:
    """Return the 569 tumours of Wolberg, Street and Mangasarian (1993), 30 numbers each, as a table."""
    loaded = extras.load("sklearn.datasets", task.data).load_breast_cancer()
    columns = tuple(str(name) for name in loaded.feature_names)
    rows = {
        line: {
            **{column: repr(float(value)) for column, value in zip(columns, values, strict=True)},
            task.label_column: str(loaded.target_names[label]),
        }
        for line, (values, label) in enumerate(zip(loaded.data, loaded.target, strict=True), start=1)
    }
    return Table(name=task.data, folder=Path(), columns=(*columns, task.label_column), rows=rows)
