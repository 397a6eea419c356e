"""What people see: stages as they pass, tables that stay readable when narrow, verdicts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

_MARKS: Final = {
    "pass": ("✓", "ok", "green"),
    "ok": ("✓", "ok", "green"),
    "fail": ("✗", "FAIL", "red"),
    "error": ("✗", "FAIL", "red"),
    "inconclusive": ("?", "?", "yellow"),
    "warning": ("!", "!", "yellow"),
    "no baseline": ("-", "-", "yellow"),
}

Rows = Sequence[Mapping[str, str]]


def make(*, to_stderr: bool = False) -> Console:
    """Return a console that prints texts as they are: no markup, no guessing what is a number."""
    return Console(file=sys.stderr if to_stderr else sys.stdout, markup=False, highlight=False, emoji=False)


class StageLog:
    """Draws a run (`edgeft.pipeline.RunProgress`): live on a terminal, else one line per finished stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Progress | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            self._task = self._live.add_task("starting", total=None)
        self._titles: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def stage_started(self, name: str, title: str) -> None:
        """Show that work on a stage begins."""
        self._titles[name] = title
        if self._live:
            self._live.reset(self._task, description=escape(title), total=None)

    def stage_reused(self, name: str, title: str) -> None:
        """Show a stage that an earlier run has finished."""
        self._print_stage(title, "reused", "")

    def stage_progress(self, message: str, *, done: int = 0, total: int = 0) -> None:
        """Show how far the stage is; drawn on a terminal only."""
        if self._live:
            text = escape(message)
            self._live.update(self._task, description=text, completed=done, total=total or None)

    def stage_finished(self, name: str, seconds: float, summary: str) -> None:
        """Show a finished stage with its time and a one-line summary."""
        self._print_stage(self._titles.get(name, name), f"{seconds:.1f} s", summary)

    def note(self, text: str) -> None:
        """Show something that people should know about this run."""
        self._console.print(_mark(self._console, "warning"), text, soft_wrap=True)

    def _print_stage(self, title: str, time: str, summary: str) -> None:
        line = f"{title:<24} {time:>8}  {summary}".rstrip()
        self._console.print(_mark(self._console, "ok"), line, soft_wrap=True)


def print_table(rows: Rows, console: Console | None = None) -> None:
    """Print records: one per row, turned on its side, or one block each, whichever fits without cutting."""
    console = console or make()
    if not rows:
        return
    for layout in (rows, _transposed(rows)):
        if _natural_width(layout) <= console.width:
            console.print(_table(layout))
            return
    for row in rows:
        label = max(map(cell_len, row))
        console.print(*(f"{key:<{label}}  {value}" for key, value in row.items()), sep="\n", end="\n\n")


def print_verdict(verdict: Mapping[str, Any], console: Console) -> None:
    """Print the outcome, then one line per check, then the notes."""
    colour = _MARKS.get(verdict["outcome"], _MARKS["warning"])[2]
    outcome = Text(verdict["outcome"].upper(), style=f"bold {colour}")
    against = f"(against {verdict['reference']})" if verdict.get("reference") else ""
    console.print("verdict:", outcome, against)
    checks = verdict.get("checks", [])
    target = max((cell_len(check["target"]) for check in checks), default=0)
    name = max((cell_len(check["name"]) for check in checks), default=0)
    for check in checks:
        text = f"{check['target']:<{target}}  {check['name']:<{name}}  {check['detail']}"
        console.print(" ", _mark(console, check["outcome"]), text, soft_wrap=True)
    for note in verdict.get("notes", []):
        console.print("  note:", note, soft_wrap=True)


def print_findings(findings: Sequence[tuple[str, str, str, str]]) -> None:
    """Print the findings of `check`: (level, topic, text, hint) each."""
    console = make()
    width = max((cell_len(topic) for _, topic, _, _ in findings), default=0)
    for level, topic, text, hint in findings:
        console.print(_mark(console, level), f"{topic:<{width}}  {text}", soft_wrap=True)
        if hint:
            console.print(f"  -> {hint}", soft_wrap=True)


def print_mark(outcome: str, text: str, console: Console) -> None:
    """Print one line behind the mark of its outcome (``ok``, ``fail``, ``warning``)."""
    console.print(_mark(console, outcome), text, soft_wrap=True)


def machine(host: Mapping[str, Any]) -> str:
    """Return where something was measured, from a fingerprint."""
    where = f"{host['cpu'] or host['machine']}, {host['cores']} cores"
    return f"{host['host']} ({where})" if host.get("host") else where


def shown(path: Path) -> str:
    """Return `path` as a user in the working directory would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _mark(console: Console, outcome: str) -> Text:
    symbol, plain, colour = _MARKS.get(outcome, _MARKS["warning"])
    return Text(symbol if console.encoding.startswith("utf") else plain, style=colour)


def _transposed(rows: Rows) -> list[dict[str, str]]:
    """Turn records into columns: the first field of each heads its column."""
    first, *others = rows[0]
    return [{first: key} | {row[first]: row[key] for row in rows} for key in others]


def _natural_width(rows: Rows) -> int:
    if not rows:
        return 0
    widths = [max(cell_len(key), *(cell_len(row[key]) for row in rows)) for key in rows[0]]
    return sum(widths) + 2 * len(widths)


def _table(rows: Rows) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for key in rows[0]:
        numeric = all(row[key][:1] in "0123456789+-" for row in rows)
        table.add_column(Text(key), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    return table
