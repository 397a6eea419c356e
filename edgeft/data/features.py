"""Which columns of a table are features, and which of them are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeft import recipe
from edgeft.data.tables import Table
from edgeft.errors import DataError
from edgeft.preprocessing import parse_number

_MISSING = frozenset({"", "nan", "na", "n/a", "null", "none", "inf", "-inf", "?"})
_MOST_CATEGORIES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The columns that a model learns from, in the order of the table."""

    columns: tuple[str, ...]
    numeric: frozenset[str]

    def problem(self, cells: Mapping[str, str]) -> str:
        """Return what is wrong with a row's features, or an empty string."""
        for column in self.columns:
            try:
                if column in self.numeric:
                    parse_number(cells[column])
                elif not cells[column].strip():
                    raise ValueError("is empty")
            except ValueError as error:
                return f"column {column!r} {error}"
        return ""


def choose_features(task: recipe.Task, table: Table) -> Features:
    """Choose the feature columns of a table as the task says.

    Without `task.numeric_columns`, a column is numeric if all its cells hold numbers, missing ones apart. Without
    `task.categorical_columns`, all columns that hold anything else are categories. A column that is named in
    neither of two given lists is left out.

    Args:
        task: Names the label's column, and perhaps the numeric and the categorical ones.
        table: The training table: its cells decide, so that val and test cannot.

    Raises:
        DataError: A named column does not exist or is named twice; a column mixes numbers and words, or holds so
            many different words that it is no category; or nothing is left to learn from.
    """
    numeric, categorical = task.numeric_columns, task.categorical_columns
    named = {"numeric_columns": numeric or [], "categorical_columns": categorical or []}
    for key, columns in named.items():
        for column in columns:
            table.require_column(column, key)
            if column == task.label_column:
                raise DataError(f"task.{key}: {column!r} is the label's column")
    if both := sorted(set(named["numeric_columns"]) & set(named["categorical_columns"])):
        raise DataError(f"task.numeric_columns and task.categorical_columns both name {', '.join(both)}")
    chosen: dict[str, bool] = {}  # column -> is numeric
    for column in table.columns:
        if column == task.label_column:
            continue
        if column in named["numeric_columns"] or column in named["categorical_columns"]:
            chosen[column] = column in named["numeric_columns"]
        elif numeric is None or categorical is None:
            is_number = _holds_numbers(table, column)
            if (numeric if is_number else categorical) is None:
                chosen[column] = is_number
    if not chosen:
        raise DataError(f"{table.name}: there is no column to learn from beside {task.label_column!r}")
    return Features(
        columns=tuple(chosen), numeric=frozenset(c for c, is_number in chosen.items() if is_number)
    )


def _holds_numbers(table: Table, column: str) -> bool:
    """Return whether a column is one of numbers, else of categories. Raises `DataError` if it looks like neither."""
    cells = {line: row[column].strip() for line, row in table.rows.items()}
    words = {
        line: cell for line, cell in cells.items() if cell.lower() not in _MISSING and not _is_number(cell)
    }
    present = sum(cell.lower() not in _MISSING for cell in cells.values())
    if not words:
        return True
    if len(words) < present / 2:
        line, word = next(iter(words.items()))
        raise DataError(
            f"{table.name}:{line}: column {column!r} holds {word!r}, but numbers in {present - len(words)} of "
            f"{len(cells)} rows",
            "correct the cell, or name the column in task.categorical_columns",
        )
    different = len(set(cells.values()))
    if different > max(_MOST_CATEGORIES, present / 2):
        raise DataError(
            f"{table.name}: column {column!r} holds {different} different words in {len(cells)} rows: names or keys, "
            "not categories",
            "leave it out by naming the others in task.numeric_columns and task.categorical_columns",
        )
    return False


def _is_number(cell: str) -> bool:
    try:
        parse_number(cell)
    except ValueError:
        return False
    return True
