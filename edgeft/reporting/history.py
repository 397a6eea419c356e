"""The history of releases, ``edgeft-history`` version 1: JSON lines, one per release, oldest first.

Every line stands for itself and diffs well in git::

    {"schema": "edgeft-history", "version": 1, "created": "2026-11-21T17:00:00+00:00", "name": "flowers",
     "release": "1.4", "commit": "3f2a...", "outcome": "pass", "targets": {"cpu-litert": {...}}}

with ``created`` and ``name`` of the report, and per target ``accuracy``, its 95 % interval ``low`` and ``high`` (all
0..1), ``samples``, ``p50_ms``, ``ratio`` (latency over this runtime's fastest float, with ``ratio_low`` and
``ratio_high``), ``size_bytes``, ``coverage`` (0..1) and ``outcome``. Targets that no clock measures have null for
``p50_ms`` and the ratios; ``estimated_ms`` and ``ram_bytes`` are null where they are not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgeft import documents
from edgeft.errors import ConfigError
from edgeft.files import alone, write_text
from edgeft.reporting import rows, trend
from edgeft.reporting.document import plain
from edgeft.reporting.releases import SCHEMA, VERSION, Release
from edgeft.types import Verdict


def append(
    path: Path, report: Mapping[str, Any], verdict: Verdict, *, release: str = "", commit: str = ""
) -> bool:
    """Add a release to the history; a reader sees the old file or the new one, never a part.

    A job that runs a second time adds nothing: the line is compared with all that are there.

    Args:
        path: The history; a new one is begun where there is no file.
        report: The report of the run that is released.
        verdict: The gate's decision about it.
        release: Its version, for people.
        commit: Commit that it was made from.

    Returns:
        Whether the release was not in the history yet.

    Raises:
        ConfigError: The file that is there is not a whole history of this version.
        WorkspaceError: It cannot be written.
    """
    new = _line(report, verdict, release, commit)
    with alone(path):  # two jobs at a time lose neither line
        known = _lines(path) if path.exists() else []
        for number, line in enumerate(known, start=1):
            _release(line, f"{path}:{number}")
        if new in known:
            return False
        write_text(path, "".join(f"{line}\n" for line in [*known, new]))
    return True


def read(path: Path) -> tuple[Release, ...]:
    """Read a history, oldest release first.

    Raises:
        ConfigError: The file is missing, is not a history, of another version, or a line of it is damaged.
    """
    return tuple(_release(line, f"{path}:{number}") for number, line in enumerate(_lines(path), start=1))


def trend_page(path: Path) -> str:
    """Return a self-contained page that shows accuracy, latency and size of each target over the releases.

    Raises:
        ConfigError: As `read`, or there is no release to show.
    """
    releases = read(path)
    if not releases:
        raise ConfigError(f"{path}: there is no release in it", "add one: edgeft gate --history FILE")
    return trend.page(releases)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file", "the first `edgeft gate --history FILE` begins one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    # Not `splitlines`: a name may hold one of Unicode's other line separators.
    return text.removesuffix("\n").split("\n") if text else []


def _line(report: Mapping[str, Any], verdict: Verdict, release: str, commit: str) -> str:
    checks = [plain(check) for check in verdict.checks]
    record = {
        "schema": SCHEMA,
        "version": VERSION,
        "created": report["created"],
        "name": report["name"],
        "release": release,
        "commit": commit,
        "outcome": verdict.outcome,
        "targets": {target["target"]: _target(target, checks) for target in report["targets"]},
    }
    _validated(record, f"report of {report['name']}", "such a release has no place in a history")
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def _target(target: Mapping[str, Any], checks: list[dict[str, Any]]) -> dict[str, Any]:
    accuracy, ratio = target["accuracy"], target["ratio"] or {}
    latency, estimate, memory = (target.get(key) or {} for key in ("latency", "estimate", "memory"))
    return {
        "accuracy": accuracy["value"],
        "low": accuracy["low"],
        "high": accuracy["high"],
        "samples": accuracy["samples"],
        "p50_ms": latency.get("p50_ms"),
        "estimated_ms": estimate.get("ms"),
        "ratio": ratio.get("ratio"),
        "ratio_low": ratio.get("low"),
        "ratio_high": ratio.get("high"),
        "ram_bytes": memory.get("ram_bytes"),
        "size_bytes": target["artifact"]["size_bytes"],
        "coverage": target["artifact"]["coverage"]["ratio"],
        "outcome": rows.outcome(target["target"], checks),
    }


def _release(line: str, place: str) -> Release:
    repair = "take the file from version control, or remove the line"
    try:
        record = documents.parse(line)
    except ValueError as error:
        raise ConfigError(f"{place}: not JSON ({error})", repair) from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ConfigError(f'{place}: not a release (key "schema" is not "{SCHEMA}")', repair)
    if record.get("version") != VERSION:
        raise ConfigError(
            f"{place}: history version {record.get('version')!r}, this edgeft reads {VERSION}",
            "read it with the edgeft that wrote it",
        )
    return _validated(record, place, repair)


def _validated(record: Mapping[str, Any], place: str, hint: str) -> Release:
    try:
        return Release.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{place}: {'.'.join(map(str, first['loc']))}: {first['msg']}", hint) from None
