"""`edgeft targets`: the shipped deployment targets, one whole profile, or a new one of your own."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeft.cli import console
from edgeft.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from edgeft.diagnosis import TargetDiagnosis

_NEW = "new"


def targets(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A shipped target or the path of one; or `new`, to make one.", metavar="[NAME | new]"
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Argument(help="After `new`: the file to write.", metavar="[FILE]")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="NAME", help="With `new`: the target to start from.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """List the targets and whether they run here, print the whole profile of one, or make one of your own.

    `edgeft targets new --from npu-ethos-u55-128 my-board.toml` copies a profile, comments included, for you to change;
    a recipe then names it as "./my-board.toml".
    """
    if name == _NEW:
        return _make(file, start, as_json)
    if file is not None or start is not None:
        raise ConfigError(
            "a file and --from go with `new` only", "edgeft targets new --from NAME my-board.toml"
        )
    if name is not None:
        return _show(name, as_json)
    from edgeft import diagnosis, resources, target

    found = diagnosis.diagnose_targets([target.load(each) for each in resources.names("targets")])
    if as_json:
        print(json.dumps([_record(each) for each in found], indent=2))
        return ExitCode.OK
    output = console.make()
    console.print_table([_row(each) for each in found], output)
    if any(each.obstacles for each in found):
        output.print("edgeft doctor says what is in the way of the others, and the cure.", soft_wrap=True)
    return ExitCode.OK


def _show(name: str, as_json: bool) -> int:
    from edgeft import schema, target

    profile = target.load(name)
    as_text = schema.dump(profile).rstrip()
    print(json.dumps(profile.model_dump(mode="json", by_alias=True), indent=2) if as_json else as_text)
    return ExitCode.OK


def _make(file: Path | None, start: str | None, as_json: bool) -> int:
    """Copy a profile under a new name: its text, so that the comments, which say why, come along."""
    from edgeft import resources, target

    if file is None or start is None:
        raise ConfigError(
            "new needs a target to start from and a file", "edgeft targets new --from NAME my-board.toml"
        )
    if file.suffix != ".toml":
        raise ConfigError(f"{file}: a target's file ends in .toml", f"name it {file.with_suffix('.toml')}")
    if file.exists():
        raise ConfigError(f"{file}: exists already", "choose another name, or remove it")
    if file.stem in resources.names("targets"):
        raise ConfigError(f"{file}: {file.stem} is a shipped target", "choose a name of your own")
    source = target.load(start)
    text = resources.find("targets", start).read_text(encoding="utf-8")
    text = re.sub(r"(?m)^id = .*$", lambda _: f"id = {json.dumps(file.stem)}", text, count=1)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error})") from error
    made = target.load(str(file.resolve()))
    if as_json:
        print(json.dumps({"file": str(file), "id": made.id, "from": source.id}))
    else:
        output = console.make()
        output.print(
            f"{console.shown(file)}: target {made.id}, like {source.id}. Change its title and what is "
            f'different; a recipe in the same folder names it as "./{file.name}".',
            soft_wrap=True,
        )
    return ExitCode.OK


def _record(found: TargetDiagnosis) -> dict[str, Any]:
    profile = found.profile
    return {
        "target": profile.id,
        "kind": profile.kind,
        "evidence": profile.evidence,
        "runtime": profile.runtime.name,
        "compiler": profile.compiler.name if profile.compiler else None,
        "device": found.device,
        "runs": found.runs,
        "makes": found.makes,
        "obstacles": [dataclasses.asdict(obstacle) for obstacle in found.obstacles],
    }


def _row(found: TargetDiagnosis) -> dict[str, str]:
    profile = found.profile
    through = f"{profile.runtime.name}, {profile.compiler.name}" if profile.compiler else profile.runtime.name
    return {
        "target": profile.id,
        "kind": profile.kind,
        "evidence": profile.evidence,
        "runtime": through,
        "runs here": "yes" if found.runs else "no",
        "made here": "yes" if found.makes else "no",
    }
