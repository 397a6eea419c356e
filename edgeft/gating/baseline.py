"""The baseline file, ``edgeft-baseline`` version 1: what a release is judged against, kept in version control.

Keys: ``schema version samples release anchor``. ``samples`` (`samples.SampleSet`) are the test samples, once;
``release`` is the last release and ``anchor`` an older one that stays where it is, so that drops which are too small
to be seen one by one cannot add up; it is null as long as the release is its own anchor. Both are `Release`: figures,
fingerprints and provenance, and per target the predicted class of every sample, in the order of the samples.

``latency`` of a target is null where no clock tells one. Such targets have keys that came later within version 1 and
are left out of the others: ``runtime`` and, with a compiler, ``estimate``. So has a target that was timed on a board:
``host``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from edgeft import documents
from edgeft.errors import ConfigError
from edgeft.files import write_text
from edgeft.gating.samples import SampleSet, decode
from edgeft.recipe import Gate
from edgeft.schema import Strict

SCHEMA: Final = "edgeft-baseline"
VERSION: Final = 1
_HINT: Final = "take it from version control, or write a new one: edgeft gate REPORT --baseline FILE --update"
_LATER: Final = ("runtime", "host", "estimate")
# A list of figures or names that json.dumps spread over lines; lists of whole lines of text stay as they are.
_SHORT_LIST = re.compile(r'\[\n\s*((?:"[^"\n]{0,24}"|[-+.\deE]+|true|false|null)(?:,\n\s*(?:"[^"\n]{0,24}"|'
                         r'[-+.\deE]+|true|false|null))*)\n\s*\]')  # fmt: skip


Count = Annotated[int, Field(ge=0, lt=2**63)]
"""What fits any machine's integers: figures beyond are damage."""


class Coverage(Strict):
    """Int8 share of MAC ops, 0..1, without those that are float on purpose."""

    file: float
    executed: float


class Parity(Strict):
    """Agreement with the program that a file was made from."""

    samples: Annotated[int, Field(ge=1)]
    flips: Count
    confident_flips: Count


class Latency(Strict):
    """Of the release's own report: advisory, for two reports are not measured side by side."""

    p50_ms: float
    p90_ms: float
    threads: Count
    evidence: str
    runtime: str


class Estimate(Strict):
    """Of the device's compiler: exact, and comparable where `source` (tool, version, settings) is the same."""

    cycles: Count
    ms: float
    source: str


class TargetRelease(Strict):
    """One target's file, what it weighs, and what it predicts."""

    scheme: str
    files: dict[str, str]
    """Name -> SHA-256."""
    size_bytes: Annotated[Count, Field(ge=1)]
    float_size_bytes: Count
    """0 where it is not known."""
    arena_bytes: Count | None = None
    flash_bytes: Count | None = None
    coverage: Coverage | None
    """Of int8 files."""
    parity: Parity
    runtime: str = ""
    """Name and version of what the predictions come from, where there is no latency that says it."""
    latency: Latency | None
    host: dict[str, Any] | None = None
    """Fingerprint of the board that the latency is from; None where that is the release's host."""
    estimate: Estimate | None = None
    accuracy: float
    predictions: list[str]

    @property
    def digests(self) -> frozenset[str]:
        """The SHA-256 of every file."""
        return frozenset(self.files.values())

    @property
    def predicted_by(self) -> str:
        """Name and version of what the predictions come from."""
        return self.latency.runtime if self.latency else self.runtime


class Release(Strict):
    """One release: provenance, fingerprints, and its targets."""

    name: str
    created: str
    edgeft: str
    commit: str
    accepted: str
    """Why it was taken although the gate did not pass it; empty if it did."""
    recipe_hash: str
    data_fingerprint: str
    trained: bool
    """Whether any stage trained its weights."""
    macs: Count | None
    limits: dict[str, Any]
    """The recipe's [gate] section."""
    host: dict[str, Any]
    versions: dict[str, str]
    targets: dict[str, TargetRelease]

    def host_of(self, target: str) -> Mapping[str, Any]:
        """Return the fingerprint of what a target's latency was measured on."""
        return self.targets[target].host or self.host

    @property
    def title(self) -> str:
        """Name, date and commit, for people."""
        commit = f", commit {self.commit[:9]}" if self.commit else ""
        return f"{self.name} of {self.created[:10]}{commit}"


class Baseline(Strict):
    """The whole file."""

    schema_: Annotated[Literal["edgeft-baseline"], Field(alias="schema")] = "edgeft-baseline"
    version: Literal[1] = VERSION
    samples: SampleSet
    release: Release
    anchor: Release | None

    @property
    def pinned(self) -> Release:
        """The anchor, which is the release itself if there is no older one."""
        return self.anchor or self.release


def known_limits(limits: Mapping[str, Any], where: str, hint: str) -> Gate:
    """Return a recipe's [gate] section without keys that only a newer edgeft knows: those are for that one to judge by.

    Args:
        limits: The section, as a report or a release holds it.
        where: What it was read from, for messages.
        hint: Where such files come from.

    Raises:
        ConfigError: A limit has a value that is not allowed.
    """
    known = {key: value for key, value in limits.items() if key in Gate.model_fields}
    return documents.validated(Gate, known, where, hint)


def changed_limits(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return key, old and new value of the limits that differ, in order; a default that is written out is none.

    Args:
        before: A recipe's [gate] section, as a release holds it.
        after: Another one.
    """

    def shown(limits: Mapping[str, Any], key: str) -> str:
        default = Gate.model_fields[key].default if key in Gate.model_fields else None
        value = limits.get(key, default)
        return "default" if value is None else str(value)

    keys = sorted(before.keys() | after.keys())
    rows = [(key, shown(before, key), shown(after, key)) for key in keys]
    return [row for row in rows if row[1] != row[2]]


def find_baseline(path: Path) -> Baseline | None:
    """Read a baseline file; None where there is none yet.

    Raises:
        ConfigError: As `read_baseline`, or it is a link to nothing: a baseline that was lost is no first release.
    """
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{path}: a link to {path.readlink()}, which does not exist", _HINT)
    return read_baseline(path) if path.exists() else None


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        ConfigError: It is missing, not JSON, of another version, damaged or incomplete.
    """
    document = documents.read(path, schema=SCHEMA, version=VERSION, hint=_HINT)
    baseline = documents.validated(Baseline, document, path, _HINT)
    samples = baseline.samples
    samples.label_indices(str(path))
    for part, release in (("release", baseline.release), ("anchor", baseline.pinned)):
        known_limits(release.limits, f"{path}: {part}.limits", _HINT)
        for name, target in release.targets.items():
            where = f"{path}: {part}.targets.{name}.predictions"
            decode(target.predictions, len(samples.classes), samples.count, where)
    return baseline


def write_baseline(baseline: Baseline, path: Path) -> Path:
    """Write a baseline file, complete or not at all. Returns `path`.

    Raises:
        WorkspaceError: It cannot be written.
    """
    document = baseline.model_dump(mode="json", by_alias=True)
    for release in filter(None, (document["release"], document["anchor"])):
        for target in release["targets"].values():
            for key in _LATER:
                if not target[key]:
                    del target[key]
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    text = _SHORT_LIST.sub(lambda found: "[" + re.sub(r"\n\s*", " ", found[1]) + "]", text)
    return write_text(path, text + "\n")
