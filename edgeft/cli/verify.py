"""`edgeft verify`: is a package as it was written, and does it give its answers here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeft.cli import console
from edgeft.errors import ExitCode


def verify(
    package: Annotated[Path, typer.Argument(help="A package: its folder or archive.", metavar="PACKAGE")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Check a package: every byte of it, this host's fitness, and the golden vectors through its runtime."""
    from edgeft import package as packages

    found = packages.verify(package)
    if as_json:
        record = {
            "package": str(package),
            "passed": found.passed,
            "failed": found.failed,
            "problems": list(found.problems),
            "figures": dict(found.figures),
        }
        print(json.dumps(record, indent=2))
    elif found.passed:
        figures = found.figures
        text = (
            f"every byte as written; {figures['samples']:.0f} golden samples within {figures['max_lsb']:.2f} LSB of "
            f"the packaged answers, {figures['program_max_lsb']:.2f} of the program's"
        )
        console.print_findings([("pass", str(package), text, "")])
    else:
        console.print_findings([("fail", str(package), problem, "") for problem in found.problems])
    if found.failed == "host":
        return ExitCode.MISSING
    return ExitCode.OK if found.passed else ExitCode.CHECK_FAILED
