"""The committed operator table is what the operators' networks say today."""

from __future__ import annotations

import operator_table
import pytest
from deployment import RUNTIMES
from operator_networks import OPERATORS


def committed() -> list[list[str]]:
    lines = [
        line for line in operator_table.TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("|")
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_has_every_operator_and_runtime() -> None:
    header, _, *rows = committed()
    assert len(header) == 1 + len(RUNTIMES)
    assert [row[0] for row in rows] == list(OPERATORS)
    assert {cell for row in rows for cell in row[1:]} <= {"int8", "float", "unsupported"}


@pytest.mark.slow
def test_the_table_is_what_the_runtimes_say() -> None:
    header, _, *rows = committed()
    titles, found = operator_table.rows()
    assert header[1:] == titles
    assert rows == found
