"""`edgeft doctor`: this host, what is installed, which targets it can run, and the cure for each that it cannot."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgeft
from edgeft.cli import console
from edgeft.errors import ExitCode

if TYPE_CHECKING:
    from edgeft.diagnosis import Diagnosis, Installed


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> int:
    """Say what this host is, what is installed, and for every target whether it runs here, why not, and the cure."""
    from edgeft import diagnosis

    found = diagnosis.diagnose()
    if as_json:
        print(json.dumps(_record(found), indent=2))
    else:
        _print(found)
    return ExitCode.OK


def _record(found: Diagnosis) -> dict[str, Any]:
    targets = [
        {
            "target": each.profile.id,
            "kind": each.profile.kind,
            "evidence": each.profile.evidence,
            "device": each.device,
            "runs": each.runs,
            "makes": each.makes,
            "obstacles": [dataclasses.asdict(obstacle) for obstacle in each.obstacles],
        }
        for each in found.targets
    ]
    return {
        "edgeft": edgeft.__version__,
        "host": dict(found.host),
        "packages": [dataclasses.asdict(each) for each in found.packages],
        "targets": targets,
        "notes": [dataclasses.asdict(note) for note in found.notes],
    }


def _print(found: Diagnosis) -> None:
    host = found.host
    memory = host["memory_bytes"]
    print(f"edgeft {edgeft.__version__}, Python {host['python']}, {host['os']}")
    print(
        f"CPU      {host['cpu'] or host['machine']}, {host['cores']} cores, governor {host['governor'] or 'unknown'}"
    )
    print(f"flags    {' '.join(host['flags']) or 'none that matter here'}")
    print(f"memory   {f'{memory / 1024**3:.1f} GiB' if memory else 'unknown'}\n")
    console.print_findings([*_extras(found.packages)])
    print()
    rows = []
    for each in found.targets:
        state = (
            "runs and makes packages" if each.makes else "runs packages, makes none" if each.runs else "no"
        )
        named = each.device and each.profile.runtime.device.lower() != "cpu"
        device = f" ({each.device})" if named else ""
        rows.append(
            (
                "pass" if each.makes else "warning",
                each.profile.id,
                f"{each.profile.evidence}: {state}{device}",
                "",
            )
        )
        rows += [("warning", "", obstacle.reason, obstacle.cure) for obstacle in each.obstacles]
    console.print_findings(rows)
    if found.notes:
        print()
        console.print_findings([("warning", "note", note.reason, note.cure) for note in found.notes])


def _extras(packages: Iterable[Installed]) -> Iterator[tuple[str, str, str, str]]:
    """Yield one finding per extra of edgeft: what it brings and enables, and how to get what is missing of it."""
    for extra, group in itertools.groupby(
        sorted(packages, key=lambda each: each.extra), lambda each: each.extra
    ):
        brought = list(group)
        present = [f"{each.distribution} {each.version}" for each in brought if each.version]
        absent = [each.distribution for each in brought if not each.version]
        missing = f"; missing: {', '.join(absent)}" if absent else ""
        text = f"{', '.join(present) or 'nothing installed'}{missing} ({brought[0].enables})"
        cure = (
            f"pip install 'edgeft[{extra}]'" if absent and extra else "pip install edgeft" if absent else ""
        )
        yield "warning" if absent else "pass", extra or "core", text, cure
