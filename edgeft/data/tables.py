"""Tables in files: which file holds which split, and how a .csv, .tsv or .jsonl is read. Every cell is text.

A ``.csv`` has commas and quotes as in RFC 4180. A ``.tsv`` has tabs and **no** quoting: a quotation mark is a
character like any other, because published text sets hold unpaired ones. Both begin with a header line. A
``.jsonl`` has one flat JSON object per line. All are UTF-8.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from edgeft import recipe
from edgeft.data.sources import SPLITS
from edgeft.errors import DataError, nearest

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
_ALLOWED = ".csv, .tsv or .jsonl"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of one file, as text."""

    name: str
    """As messages and manifests call it: the path as the recipe gives it, or the name in the data folder."""
    folder: Path
    """What paths inside the table are relative to."""
    columns: tuple[str, ...]
    rows: Mapping[int, Mapping[str, str]]
    """Cells by column, by the line (1-based) that the row begins at."""

    def require_column(self, column: str, key: str) -> None:
        """Raise `DataError` if there is no `column`, which the recipe's ``task.<key>`` names."""
        if column not in self.columns:
            raise DataError(
                f"{self.name}: there is no column {column!r}{nearest(column, self.columns)}; "
                f"the columns are: {', '.join(self.columns)}",
                f"name the right one in task.{key}; a .csv or .tsv needs a header line",
            )


def find_tables(task: recipe.Task, base: Path) -> dict[str, tuple[str, Path]]:
    """Return name and path of the table of each split (or ``all``); nothing if `task.data` is a folder without any.

    Raises:
        DataError: A file is missing, given twice or of another format; or a folder has tables but not one for each
            of train, val and test at most.
    """
    root = base / task.data
    if not root.exists():
        raise DataError(
            f"task.data: {root} does not exist", f"give a folder, a {_ALLOWED} file, or a builtin set"
        )
    given = {"val": task.val_data, "test": task.test_data}
    if root.is_dir():
        found = _find_in_folder(root)
        if extra := [split for split, path in given.items() if path]:
            raise DataError(
                f"task.{extra[0]}_data: only for task.data that is a file; {root} is a folder",
                f"put {extra[0]} into that folder",
            )
        return {split: (path.name, path) for split, path in found.items()}
    files = {split: path for split, path in given.items() if path}
    files = {"train" if files else "all": task.data, **files}
    keys = {"val": "task.val_data", "test": "task.test_data"}
    for split, name in files.items():
        path = base / name
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise DataError(
                f"{keys.get(split, 'task.data')}: {path} is a file of an unknown kind; allowed is {_ALLOWED}"
                f"{' or a folder' if split not in keys else ''}"
            )
        if not path.is_file():
            raise DataError(f"{keys[split]}: {path} does not exist", f"give a {_ALLOWED} file")
    for (one, a), (other, b) in combinations(files.items(), 2):
        if (base / a).samefile(base / b):
            raise DataError(
                f"task: {one} and {other} are the same file, {base / b}",
                "a model must not be judged by samples that it has learned from: leave the key out to have the "
                "split cut from task.data",
            )
    return {split: (Path(name).as_posix(), base / name) for split, name in files.items()}


def _find_in_folder(root: Path) -> dict[str, Path]:
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
    if not any(path.stem == "train" for path in tables):
        return {}
    found: dict[str, Path] = {}
    for path in tables:
        if path.stem not in SPLITS:
            raise DataError(
                f"task.data: {root} has {path.name!r}{nearest(path.stem, SPLITS)} beside the training table; "
                "allowed there are tables named train, val and test",
                "rename or move it; a missing val or test is cut from train",
            )
        if path.stem in found:
            raise DataError(
                f"task.data: {root} has both {found[path.stem].name} and {path.name}", "remove one of them"
            )
        found[path.stem] = path
    return {split: found[split] for split in SPLITS if split in found}


def read_table(path: Path, name: str) -> Table:
    """Read a whole table.

    Args:
        path: A .csv, .tsv or .jsonl file.
        name: What to call it.

    Raises:
        DataError: The file cannot be read, is not UTF-8, is empty, or a row of it does not fit the others.
    """
    text = _read_text(path, name)
    rows: dict[int, Mapping[str, str]] = {}
    if path.suffix.lower() == ".jsonl":
        for line, record in _jsonl_records(text, name):
            columns = tuple(next(iter(rows.values()), record))
            if record.keys() != set(columns):
                odd = sorted(record.keys() ^ set(columns))
                raise DataError(f"{name}:{line}: other keys than in the first object: {', '.join(odd)}")
            rows[line] = record
    else:
        records = _delimited_records(text, name, tabs=path.suffix.lower() == ".tsv")
        columns = _header(next(records, (1, [])), name)
        for line, cells in records:
            if len(cells) != len(columns):
                raise DataError(
                    f"{name}:{line}: {len(cells)} cell(s); the header has {len(columns)} columns",
                    "quote a cell that holds a comma, or use a .tsv" if path.suffix.lower() == ".csv" else "",
                )
            rows[line] = dict(zip(columns, cells, strict=True))
    if not rows:
        raise DataError(f"{name}: the table has no rows")
    return Table(name=name, folder=path.parent, columns=tuple(columns), rows=rows)


def _read_text(path: Path, name: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return content.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}:{line}: byte 0x{content[error.start]:02x} is not UTF-8",
            "save the table as UTF-8 (for example: iconv -f latin1 -t utf-8)",
        ) from error


def _header(first: tuple[int, list[str]], name: str) -> tuple[str, ...]:
    columns = tuple(cell.strip() for cell in first[1])
    if not columns:
        raise DataError(f"{name}: the table is empty", "a header line and a row per sample are needed")
    for position, column in enumerate(columns, start=1):
        if not column:
            raise DataError(f"{name}:{first[0]}: column {position} has no name in the header")
        if column in columns[: position - 1]:
            raise DataError(f"{name}:{first[0]}: two columns are called {column!r}")
    return columns


def _delimited_records(text: str, name: str, *, tabs: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each line that is not blank, with the line it begins at."""
    lines = io.StringIO(text, newline="")
    reader = (
        csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
    )
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{name}:{line}: not a row of a table ({error})",
                "a quotation mark inside a quoted cell is written twice" if not tabs else "",
            ) from error
        if cells:
            yield line, cells


def _jsonl_records(text: str, name: str) -> Iterator[tuple[int, dict[str, str]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except ValueError as error:
            raise DataError(f"{name}:{line}: not JSON ({error})", "each line is one JSON object") from error
        if not isinstance(record, dict):
            raise DataError(
                f"{name}:{line}: holds a {type(record).__name__}; each line is one JSON object",
                'write each sample as {"column": cell, ...} on a line of its own',
            )
        yield line, {key: _as_text(value, f"{name}:{line}: key {key!r}") for key, value in record.items()}


def _as_text(value: Any, place: str) -> str:
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise DataError(f"{place} holds half of a surrogate pair, which is not a character")
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    raise DataError(
        f"{place} holds a {type(value).__name__}; allowed are text, numbers, true, false and null",
        "one value per key: spread lists and objects over keys of their own",
    )


def same_columns(tables: Iterable[Table]) -> None:
    """Raise `DataError` unless all tables have the columns of the first, in whatever order."""
    first, *others = tables
    for table in others:
        only = [column for column in table.columns if column not in first.columns]
        lacking = [column for column in first.columns if column not in table.columns]
        if only or lacking:
            parts = [f"lacks {', '.join(lacking)}"] if lacking else []
            parts += [f"has also {', '.join(only)}"] if only else []
            raise DataError(
                f"{table.name}: other columns than {first.name}: {' and '.join(parts)}",
                "every split needs the same columns",
            )
