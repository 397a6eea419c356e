"""`edgeft report`: the page of a run again, from its report.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeft.cli import console
from edgeft.errors import ExitCode


def report(
    run: Annotated[
        Path, typer.Argument(help="A run's folder, e.g. runs/NAME, or a report.json.", metavar="RUN")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The page; report.html beside it by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the page's path as JSON.")] = False,
) -> int:
    """Write report.html again from report.json: of another edgeft, or after the page was lost."""
    from edgeft import reporting

    source = run / "report.json" if run.is_dir() else run
    page = reporting.write_html(reporting.read_json(source), output or source.with_name("report.html"))
    print(json.dumps({"page": str(page)}, indent=2) if as_json else f"report: {console.shown(page)}")
    return ExitCode.OK
