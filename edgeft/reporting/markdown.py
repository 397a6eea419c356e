"""GitHub-flavoured Markdown: the summary of a CI job, from a verdict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edgeft.errors import WorkspaceError
from edgeft.types import Check, Outcome, Verdict

_MARKS: dict[Outcome, str] = {
    "pass": "\N{WHITE HEAVY CHECK MARK}",
    "fail": "\N{CROSS MARK}",
    "inconclusive": "\N{WARNING SIGN}\N{VARIATION SELECTOR-16}",
    "no baseline": "\N{WHITE SQUARE BUTTON}",
}
# Escaped wherever they stand, which CommonMark allows: emphasis, code, links, HTML, cells; also GitHub's own
# mentions, issue numbers, strikethrough and formulas.
_SPECIAL = re.compile(r"[\\`*_\[\]<>|~&$#@!]")
# And what makes a list at the beginning of a line.
_BULLET = re.compile(r"^(\d*)([-+.)])")
_ESCAPED_BULLET = r"\1\\\2"
_NUMERIC = re.compile(r"[-+\N{MINUS SIGN}]?\d")


def markdown(
    verdict: Verdict,
    *,
    title: str,
    rows: Sequence[Mapping[str, str]],
    headings: Mapping[str, str] | None = None,
) -> str:
    """Return a verdict as a Markdown section: outcome, targets, checks, notes.

    Checks that did not pass come first and open, those that passed are folded away below them.

    Args:
        verdict: The gate's decision.
        title: Heading of the section.
        rows: The table of targets, as `reporting.table` gives it; it may be empty.
        headings: Column key -> heading, as `reporting.headings` gives it; the keys themselves by default.
    """
    reference = f" against {_text(verdict.reference)}" if verdict.reference else ""
    parts = [f"## {_text(title)}", f"**{_outcome(verdict.outcome)}**{reference}"]
    if rows:
        named = [{(headings or {}).get(key, key): cell for key, cell in row.items()} for row in rows]
        parts.append(_table(list(named[0]), [[_marked(cell) for cell in row.values()] for row in named]))
    ranking = list(_MARKS)
    open_checks = [check for check in verdict.checks if check.outcome != "pass"]
    passed = [check for check in verdict.checks if check.outcome == "pass"]
    if open_checks:
        parts.append(_checks(sorted(open_checks, key=lambda check: ranking.index(check.outcome))))
    if passed:
        number = f"{len(passed)} check{'' if len(passed) == 1 else 's'} passed"
        parts.append(f"<details>\n<summary>{number}</summary>\n\n{_checks(passed)}\n\n</details>")
    if verdict.notes:
        parts.append("\n".join(f"- {_BULLET.sub(_ESCAPED_BULLET, _text(note))}" for note in verdict.notes))
    return "\n\n".join(parts) + "\n"


def error_section(message: str, *, title: str) -> str:
    """Return a Markdown section that says why there is no verdict.

    Args:
        message: What went wrong; line breaks stay.
        title: Heading of the section.
    """
    lines = "  \n".join(map(_text, message.splitlines()))
    return f"## {_text(title)}\n\n**{_MARKS['fail']} error: there is no verdict**\n\n{lines}\n"


def append_summary(path: Path, text: str) -> None:
    """Append a section to a job's summary, the file that GitHub names in ``$GITHUB_STEP_SUMMARY``.

    Raises:
        WorkspaceError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")  # the empty line keeps the next section's heading a heading
    except OSError as error:
        raise WorkspaceError(f"{path}: cannot be written ({error})") from error


def _checks(checks: Sequence[Check]) -> str:
    cells = [[_outcome(check.outcome), check.target, check.name, check.detail] for check in checks]
    return _table(["outcome", "target", "check", "detail"], cells)


def _outcome(outcome: Outcome) -> str:
    return f"{_MARKS[outcome]} {outcome}"


def _marked(cell: str) -> str:
    """Return an outcome with its mark, and anything else as it is."""
    return next((_outcome(outcome) for outcome in _MARKS if outcome == cell), cell)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; columns of figures are aligned to the right."""
    numeric = [all(_NUMERIC.match(row[column]) for row in rows) for column in range(len(headings))]
    rule = ["---:" if right else "---" for right in numeric]
    return "\n".join([_row(map(_text, headings)), _row(rule), *(_row(map(_text, row)) for row in rows)])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """Return a text that means itself, on one line."""
    return " ".join(_SPECIAL.sub(r"\\\g<0>", text).split())
