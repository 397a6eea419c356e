"""`edgeft gate`: is this release as good as the last one?"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeft.cli import console
from edgeft.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from edgeft.types import Verdict


class Inconclusive(StrEnum):
    """What to make of a verdict that the samples or the timing cannot decide."""

    FAILS = "fail"
    PASSES = "pass"


def gate(
    report: Annotated[
        Path, typer.Argument(help="The report.json of a run, or the run's folder.", metavar="REPORT")
    ],
    baseline: Annotated[
        Path, typer.Option("--baseline", "-b", metavar="FILE", help="What the last release was: in git.")
    ],
    anchor: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A baseline whose release is the anchor, instead of the pinned one."
        ),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RECORD", help="A record of `edgeft compare`: latency is judged by nothing else."
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Largest accuracy drop; default: the recipe's, else 0.01."),
    ] = None,
    latency_ratio: Annotated[
        float | None, typer.Option(metavar="RATIO", help="Largest ratio of latencies; default: the recipe's.")
    ] = None,
    inconclusive: Annotated[
        Inconclusive, typer.Option(help="What an inconclusive verdict exits with: 4, or 0.")
    ] = Inconclusive.FAILS,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Let targets of the baseline be missing in the report.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Make this release the baseline, if it passes; say what changes.")
    ] = False,
    accept: Annotated[
        str,
        typer.Option(
            metavar="REASON", help="With --update: even if it does not pass; the file keeps the reason."
        ),
    ] = "",
    pin: Annotated[
        bool, typer.Option("--pin", help="With --update: make this release the anchor too.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write Markdown; it is also added to $GITHUB_STEP_SUMMARY if set."),
    ] = None,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Add one line about this release.")
    ] = None,
    release: Annotated[str, typer.Option(metavar="VERSION", help="What --history calls this release.")] = "",
    trend: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --history: write a page of all its releases.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the verdict as JSON; a ratio to 0 is null.")
    ] = False,
) -> int:
    """Judge a run against the last release and a pinned anchor: pass, fail or inconclusive.

    Accuracy by non-inferiority on the same samples, latency by the records of `edgeft compare`, sizes, int8 coverage
    and parity exactly. Exits with 0 (pass, or there is no baseline), 1 (fail) or 4 (inconclusive).
    """
    from edgeft import gating

    if (accept or pin) and not update:
        raise ConfigError("--accept and --pin say how to update a baseline", "add --update")
    if trend and not history:
        raise ConfigError("--trend shows the releases of a history", "add --history FILE")
    source = report / "report.json" if report.is_dir() else report
    files = _Files(
        junit=junit,
        markdown=markdown,
        summary=os.environ.get("GITHUB_STEP_SUMMARY", ""),
        history=history,
        release=release,
        trend=trend,
        inconclusive=inconclusive,
    )
    document = gating.read_document(source)
    files.require_whole(document, str(source))
    commit = gating.commit_of(source.resolve().parent)
    candidate = gating.from_report(document, where=str(source), commit=commit)
    known = gating.read_baseline(baseline) if baseline.exists() else None
    verdict = gating.compare_releases(
        candidate,
        known,
        gating.Limits.of(candidate.gate, margin=margin, latency_ratio=latency_ratio),
        where=str(baseline),
        anchor=None if anchor is None else gating.read_baseline(anchor),
        anchor_where=str(anchor),
        records=[gating.read_timing(path) for path in compare or ()],
        allow_missing=allow_missing,
    )
    tolerated = inconclusive is Inconclusive.PASSES
    code = _exit_code(verdict, tolerated=tolerated)
    changes: list[dict[str, str]] = []
    moves = update and (verdict.outcome in ("pass", "no baseline") or bool(accept))
    if moves:
        reason = accept if verdict.outcome in ("fail", "inconclusive") else ""
        new = gating.updated(known, candidate, pin=pin, accepted=reason)
        changes = gating.changes(known, new)
        code = ExitCode.OK
    if not as_json:  # first: a file that cannot be written does not hide the verdict
        console.print_verdict(dataclasses.asdict(verdict), console.make())
    _write_files(files, document, verdict, commit)
    if moves:
        gating.write_baseline(new, baseline)  # last: whatever fails before leaves it as it was
    if as_json:
        print(json.dumps(_record(verdict, changes, moved=moves), indent=2, allow_nan=False))
    elif update:
        _show_update(verdict, baseline, changes, moved=moves)
    return code


def _exit_code(verdict: Verdict, *, tolerated: bool) -> ExitCode:
    match verdict.outcome:
        case "fail":
            return ExitCode.CHECK_FAILED
        case "inconclusive" if not tolerated:
            return ExitCode.INCONCLUSIVE
        case _:
            return ExitCode.OK


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """What to write for CI, and what goes into these files."""

    junit: Path | None
    markdown: Path | None
    summary: str
    """Path of the CI job's; empty without one."""
    history: Path | None
    release: str
    trend: Path | None
    inconclusive: Inconclusive

    def require_whole(self, document: Mapping[str, Any], where: str) -> None:
        """Raise `ConfigError` if a report lacks what the files show of it, which is more than the gate judges."""
        if self.markdown or self.summary or self.history:
            from edgeft.reporting.storage import require_whole

            require_whole(document, where)


def _write_files(files: _Files, document: Mapping[str, Any], verdict: Verdict, commit: str) -> None:
    """Write what was asked for; reports take longer to import than the gate does to judge."""
    if not (files.junit or files.markdown or files.history or files.summary):
        return
    from edgeft import reporting
    from edgeft.reporting import history as releases
    from edgeft.reporting.junit import junit as as_junit
    from edgeft.reporting.markdown import append_summary
    from edgeft.reporting.markdown import markdown as as_markdown
    from edgeft.reporting.storage import write_text

    title = f"edgeft gate: {document['name']}"
    if files.junit:
        write_text(files.junit, as_junit(verdict, suite=title, inconclusive=files.inconclusive.value))
    if files.markdown or files.summary:
        judged = {**document, "verdict": reporting.plain(verdict)}
        text = as_markdown(
            verdict, title=title, rows=reporting.table(judged), headings=reporting.headings(judged)
        )
        if files.markdown:
            write_text(files.markdown, text)
        if files.summary:
            append_summary(Path(files.summary), text)
    if files.history:
        releases.append(files.history, document, verdict, release=files.release, commit=commit)
        if files.trend:
            write_text(files.trend, releases.trend_page(files.history))


def _lines(changes: Sequence[Mapping[str, str]]) -> list[str]:
    """Return one line per change; of what is new there is nothing that it was before."""
    target, what = (max((len(row[key]) for row in changes), default=0) for key in ("target", "what"))
    return [
        f"{row['target']:<{target}}  {row['what']:<{what}}  "
        + (f"{row['before']} -> {row['after']}" if row["before"] not in ("", "-") else row["after"])
        for row in changes
    ]


def _record(verdict: Verdict, changes: Sequence[Mapping[str, str]], *, moved: bool) -> dict[str, Any]:
    record = {**dataclasses.asdict(verdict), "updated": moved, "changes": list(changes)}
    for check in record["checks"]:  # JSON has no infinity
        check["values"] = {
            key: value if math.isfinite(value) else None for key, value in check["values"].items()
        }
    return record


def _show_update(
    verdict: Verdict, baseline: Path, changes: Sequence[Mapping[str, str]], *, moved: bool
) -> None:
    terminal, name = console.make(), console.shown(baseline)
    if moved:
        terminal.print(f"{name} moves on to this release; what changes:" if changes else f"{name}: no change")
        for line in _lines(changes):
            terminal.print(f"  {line}", soft_wrap=True)
    else:
        terminal.print(
            f"{name} stays as it is, for the verdict is {verdict.outcome}; to take this release all the same: "
            '--update --accept "REASON"',
            soft_wrap=True,
        )
