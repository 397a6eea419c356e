"""`edgeft targets`: the shipped deployment targets, or one whole profile."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from edgeft.cli import console
from edgeft.errors import ExitCode


def targets(
    name: Annotated[
        str | None, typer.Argument(help="A shipped target or the path of one.", metavar="NAME")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """List the deployment targets, or print the whole profile of one."""
    from edgeft import resources, schema, target

    if name is not None:
        profile = target.load(name)
        as_text = schema.dump(profile).rstrip()
        print(json.dumps(profile.model_dump(mode="json", by_alias=True), indent=2) if as_json else as_text)
        return ExitCode.OK
    records = [_describe(target.load(each)) for each in resources.names("targets")]
    if as_json:
        print(json.dumps(records, indent=2))
    else:
        console.print_table([{key: _text(value) for key, value in record.items()} for record in records])
    return ExitCode.OK


def _describe(profile: Any) -> dict[str, Any]:
    from edgeft import extras

    missing = [module for module in profile.runtime.requires if not extras.is_installed(module)]
    return {
        "target": profile.id,
        "kind": profile.kind,
        "evidence": profile.evidence,
        "runtime": profile.runtime.name,
        "installed": not missing,
        "missing": missing,
    }


def _text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(value)
        case _:
            return str(value)
