"""`edgeft gate`: is this release as good as the last one?"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeft.cli import console
from edgeft.errors import ConfigError, EdgeftError, ExitCode, WorkspaceError
from edgeft.files import write_text

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
    with files.telling_errors(str(source)):
        document = gating.read_document(source)
        files.require_whole(document, str(source))
        commit = gating.commit_of(source.resolve().parent)
        candidate = gating.from_report(document, where=str(source), commit=commit)
        known = gating.find_baseline(baseline)
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
    code = _exit_code(verdict, tolerated=inconclusive is Inconclusive.PASSES)
    changes: list[dict[str, str]] = []
    moves = update and (verdict.outcome in ("pass", "no baseline") or bool(accept))
    reason = accept if moves and verdict.outcome in ("fail", "inconclusive") else ""
    if moves:
        new = gating.updated(known, candidate, pin=pin, accepted=reason)
        changes = gating.changes(known, new)
        code = ExitCode.OK
    if not as_json:  # first: a file that cannot be written by now does not hide the verdict
        console.print_verdict(dataclasses.asdict(verdict), console.make())
    try:
        files.write(document, verdict, commit, accepted=reason)
        if moves:
            gating.write_baseline(new, baseline)  # last: whatever fails before leaves it as it was
    except WorkspaceError as error:
        if as_json:  # one document with both
            return _print_unwritten(verdict, error)
        raise
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

    @contextlib.contextmanager
    def telling_errors(self, report: str) -> Iterator[None]:
        """Write what ends the gate without a verdict into the files that CI shows: an older one would say "passed"."""
        try:
            yield
        except EdgeftError as error:
            with contextlib.suppress(WorkspaceError):
                self._tell(error.message, f"edgeft gate: {report}")
            raise

    def _tell(self, message: str, title: str) -> None:
        from edgeft.reporting.junit import junit_error
        from edgeft.reporting.markdown import append_summary, error_section

        if self.junit:
            write_text(self.junit, junit_error(message, suite=title))
        if self.markdown:
            write_text(self.markdown, error_section(message, title=title))
        if self.summary:
            append_summary(Path(self.summary), error_section(message, title=title))

    def write(self, document: Mapping[str, Any], verdict: Verdict, commit: str, *, accepted: str) -> None:
        """Write what was asked for; reports take longer to import than the gate does to judge."""
        if not (self.junit or self.markdown or self.history or self.summary):
            return
        from edgeft import reporting
        from edgeft.reporting import history as releases
        from edgeft.reporting.junit import junit as as_junit
        from edgeft.reporting.markdown import append_summary
        from edgeft.reporting.markdown import markdown as as_markdown

        title = f"edgeft gate: {document['name']}"
        if self.junit:
            write_text(
                self.junit,
                as_junit(verdict, suite=title, inconclusive=self.inconclusive.value, accepted=accepted),
            )
        if self.markdown or self.summary:
            judged = {**document, "verdict": reporting.plain(verdict)}
            # The table is the run's own; the checks below it are against the baseline.
            headings = {**reporting.headings(judged), "drop": "drop from its float model [95 %], points"}
            text = as_markdown(verdict, title=title, rows=reporting.table(judged), headings=headings)
            if self.markdown:
                write_text(self.markdown, text)
            if self.summary:
                append_summary(Path(self.summary), text)
        if self.history:
            releases.append(self.history, document, verdict, release=self.release, commit=commit)
            if self.trend:
                write_text(self.trend, releases.trend_page(self.history))


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


def _print_unwritten(verdict: Verdict, error: WorkspaceError) -> int:
    told = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    record = {**_record(verdict, (), moved=False), "error": {**told, "exit_code": int(error.exit_code)}}
    print(json.dumps(record, indent=2, allow_nan=False))
    return error.exit_code


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
