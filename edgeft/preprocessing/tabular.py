"""Table preprocessing: standardised numbers and one-hot categories, by columns."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgeft.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericColumn:
    """A column of numbers, which becomes one feature: (number - mean) / std."""

    name: str
    mean: float
    std: float

    @property
    def width(self) -> int:
        """Number of features."""
        return 1

    def encode(self, cell: str) -> list[float]:
        """Return the feature of one cell. Raises `ValueError`, without a place, if it holds no number."""
        return [(parse_number(cell) - self.mean) / self.std]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"type": "numeric", "name": self.name, "mean": self.mean, "std": self.std}


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoricalColumn:
    """A column of categories, which becomes one feature per category: 1 for the cell's own, 0 for the others.

    A category that is not among `categories` (not seen in training) is all zeros: no evidence for any.
    """

    name: str
    categories: tuple[str, ...]

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.categories)

    def encode(self, cell: str) -> list[float]:
        """Return the features of one cell. Raises `ValueError`, without a place, if it is empty."""
        if not cell.strip():
            raise ValueError("is empty")
        return [float(cell.strip() == category) for category in self.categories]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"type": "categorical", "name": self.name, "categories": list(self.categories)}


Column = NumericColumn | CategoricalColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularPreprocessing:
    """How a row of a table becomes a vector of features, column after column."""

    columns: tuple[Column, ...]

    kind: ClassVar[Literal["table"]] = "table"
    input_dtype: ClassVar[Literal["float32"]] = "float32"

    def __post_init__(self) -> None:
        if not self.columns:
            raise ConfigError("preprocessing: a table needs at least one column of features")
        for column in self.columns:
            if isinstance(column, NumericColumn) and not (column.std > 0 and math.isfinite(column.mean)):
                raise ConfigError(
                    f"preprocessing: column {column.name!r} has mean {column.mean} and std {column.std}; "
                    "allowed are finite means and standard deviations above 0"
                )

    @property
    def input_shape(self) -> tuple[int]:
        """Shape of one model input as (F,)."""
        return (sum(column.width for column in self.columns),)

    def encode(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = ()
    ) -> npt.NDArray[np.float32]:
        """Turn N rows (column name -> cell, as text) into model inputs (N, F) float32.

        Args:
            rows: Cells by column; columns that this object does not name are ignored.
            names: What to call each row in an error; "row 1", "row 2", ... by default.

        Raises:
            DataError: A cell is missing or empty, or one of a numeric column holds no finite number.
        """
        features = np.empty((len(rows), *self.input_shape), dtype=np.float32)
        for index, row in enumerate(rows):
            features[index] = self._encode_row(row, names[index] if names else f"row {index + 1}")
        return features

    def _encode_row(self, row: Mapping[str, str], name: str) -> list[float]:
        values: list[float] = []
        for column in self.columns:
            if column.name not in row:
                raise DataError(f"{name}: the column {column.name!r} is missing")
            try:
                values += column.encode(row[column.name])
            except ValueError as error:
                raise DataError(
                    f"{name}: column {column.name!r} {error}", "fill in the cell, or leave the row out"
                ) from error
        return values

    @classmethod
    def fitted(
        cls, rows: Sequence[Mapping[str, str]], columns: Sequence[str], numeric: Collection[str]
    ) -> TabularPreprocessing:
        """Take means, standard deviations and categories from training rows.

        A numeric column that has one value only gets the standard deviation 1: its feature is then 0 in training.

        Args:
            rows: Training rows, at least one; others would leak into the statistics.
            columns: Names of the columns to use, in the order of the features.
            numeric: Which of them hold numbers; the others are categories, sorted as text.

        Raises:
            DataError: As `encode`.
        """
        fit = {name: _fit_numeric if name in numeric else _fit_categorical for name in columns}
        return cls(columns=tuple(fit[name](name, rows) for name in columns))

    def files(self) -> dict[str, str]:
        """Return the files that belong beside `to_dict`: none."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `from_dict` reads it back."""
        return {"kind": self.kind, "columns": [column.to_dict() for column in self.columns]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TabularPreprocessing:
        """Read what `to_dict` wrote."""
        return cls(columns=tuple(_read_column(column) for column in data["columns"]))


def parse_number(cell: str) -> float:
    """Return the finite number that a cell holds, with a point for decimals.

    Raises:
        ValueError: It is empty, not a number, NaN or infinite; the message continues "column 'x' ...".
    """
    if not cell.strip():
        raise ValueError("is empty; a number is needed")
    try:
        value = math.nan if "_" in cell else float(cell)  # Python alone reads 1_000 as a number
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"holds {cell!r}; a finite number is needed")
    return value


def _fit_numeric(name: str, rows: Sequence[Mapping[str, str]]) -> NumericColumn:
    identity = TabularPreprocessing(columns=(NumericColumn(name=name, mean=0.0, std=1.0),))
    values = np.array([identity._encode_row(row, f"row {n}") for n, row in enumerate(rows, start=1)])
    # Compared, not computed: the deviation of equal numbers may come out as 1e-17.
    std = 1.0 if values.min() == values.max() else float(values.std())
    return NumericColumn(name=name, mean=float(values.mean()), std=std)


def _fit_categorical(name: str, rows: Sequence[Mapping[str, str]]) -> CategoricalColumn:
    return CategoricalColumn(name=name, categories=tuple(sorted({row[name].strip() for row in rows} - {""})))


def _read_column(data: Mapping[str, Any]) -> Column:
    if data["type"] == "numeric":
        return NumericColumn(name=data["name"], mean=data["mean"], std=data["std"])
    return CategoricalColumn(name=data["name"], categories=tuple(data["categories"]))
