"""`edgeft clean`: remove what no recipe needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeft import workspace
from edgeft.errors import ConfigError, ExitCode


def clean(
    folder: Annotated[
        Path | None, typer.Argument(help="A workspace; by default all of runs/.", metavar="RUN_DIR")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Empty RUN_DIR: finished stages, packages and reports too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the removed paths as JSON.")] = False,
) -> int:
    """Remove stages that no recipe needs and the scratch of runs that cannot be continued."""
    if everything and folder is None:
        raise ConfigError("edgeft clean --all: which run?", "name its folder: edgeft clean --all runs/<name>")
    runs = sorted(Path("runs").glob("*/"))
    folders = [folder] if folder else [path for path in runs if workspace.is_workspace(path)]
    removed = [str(path) for each in folders for path in workspace.clean(each, everything=everything)]
    if as_json:
        print(json.dumps({"removed": removed}, indent=2))
    else:
        for path in removed:
            print(f"removed {path}")
        if not removed:
            print("nothing to remove")
    return ExitCode.OK
