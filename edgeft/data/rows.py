"""Samples that are rows of tables: texts, features, or paths of images, with their labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edgeft import recipe
from edgeft.data.features import Features, choose_features
from edgeft.data.sources import ImageSource, Listing, RowSource, S, TextSource
from edgeft.data.tables import Table, same_columns
from edgeft.errors import DataError, nearest

Cells = Mapping[str, str]


def list_texts(task: recipe.Task, tables: Mapping[str, Table]) -> Listing[TextSource]:
    """List the rows of tables as texts, one per row.

    Raises:
        DataError: A table lacks the column of texts or labels, or val or test have a class that train has not.
    """
    for table in tables.values():
        table.require_column(task.text_column, "text_column")

    def problem(table: Table, cells: Cells) -> str:
        return "" if cells[task.text_column].strip() else f"column {task.text_column!r}: the text is empty"

    def make(table: Table, name: str, label: int, cells: Cells) -> TextSource:
        return TextSource(name=name, label=label, text=cells[task.text_column])

    return _list(task, tables, problem, make)


def list_rows(task: recipe.Task, tables: Mapping[str, Table]) -> tuple[Listing[RowSource], Features]:
    """List the rows of tables as features, and say which columns those are.

    Raises:
        DataError: A table lacks the column of labels, the tables have different columns, val or test have a class
            that train has not, or as `choose_features`.
    """
    for table in tables.values():
        table.require_column(task.label_column, "label_column")
    same_columns(tables.values())
    features = choose_features(task, next(iter(tables.values())))

    def problem(table: Table, cells: Cells) -> str:
        return features.problem(cells)

    def make(table: Table, name: str, label: int, cells: Cells) -> RowSource:
        unlabelled = {column: cell for column, cell in cells.items() if column != task.label_column}
        return RowSource(name=name, label=label, cells=unlabelled)

    return _list(task, tables, problem, make), features


def list_image_table(task: recipe.Task, tables: Mapping[str, Table]) -> Listing[ImageSource]:
    """List the images that the rows of tables name; paths are relative to the table's own folder.

    Raises:
        DataError: A table lacks the column of paths or labels, or val or test have a class that train has not.
    """
    for table in tables.values():
        table.require_column(task.path_column, "path_column")

    def problem(table: Table, cells: Cells) -> str:
        path = cells[task.path_column].strip()
        return "" if path and (table.folder / path).is_file() else f"there is no file {path!r}"

    def make(table: Table, name: str, label: int, cells: Cells) -> ImageSource:
        path = cells[task.path_column].strip()
        # The name leads from the folder of the data to the file, whichever table of it has named the file.
        shown = (Path(table.name).parent / path).as_posix()
        return ImageSource(name=shown, label=label, encoded=table.folder / path)

    return _list(task, tables, problem, make)


def _list(
    task: recipe.Task,
    tables: Mapping[str, Table],
    problem: Callable[[Table, Cells], str],
    make: Callable[[Table, str, int, Cells], S],
) -> Listing[S]:
    """Turn all rows into sources, the classes being the labels of the first table, sorted as text."""
    for table in tables.values():
        table.require_column(task.label_column, "label_column")
    first = next(iter(tables.values()))
    classes = tuple(sorted({cells[task.label_column].strip() for cells in first.rows.values()} - {""}))
    index = {name: label for label, name in enumerate(classes)}
    bad: list[str] = []
    groups: dict[str, tuple[S, ...]] = {}
    for group, table in tables.items():
        sources = []
        for line, cells in table.rows.items():
            name, label = f"{table.name}:{line}", cells[task.label_column].strip()
            reason = "" if label else f"column {task.label_column!r}: the label is empty"
            if reason := reason or problem(table, cells):
                bad.append(f"{name}: {reason}")
                continue
            if label not in index:
                raise DataError(
                    f"{name}: class {label!r}{nearest(label, classes)} is not in {first.name}, which has: "
                    f"{', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}",
                    "every class needs samples to learn from",
                )
            sources.append(make(table, name, index[label], cells))
        groups[group] = tuple(sources)
    return Listing(
        where=", ".join(table.name for table in tables.values()),
        classes=classes,
        groups=groups,
        bad=tuple(bad),
        label_column=task.label_column,
    )
