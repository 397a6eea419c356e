"""`edgeft pack`: one file of a package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeft.cli import console
from edgeft.errors import ExitCode


def pack(
    package: Annotated[Path, typer.Argument(help="A package's folder.", metavar="PACKAGE")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The archive; by default PACKAGE.zip.", metavar="FILE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print path, size and SHA-256 as JSON.")] = False,
) -> int:
    """Make one archive of a package, the same bytes every time; `verify`, `predict` and `bench` read it."""
    from edgeft import package as packages

    path = packages.pack(package, output)
    record = {"archive": str(path), "size_bytes": path.stat().st_size, "sha256": packages.sha256(path)}
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        print(f"{console.shown(path)}  {record['size_bytes']:,} bytes, sha256 {record['sha256']}")
    return ExitCode.OK
