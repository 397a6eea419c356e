"""Latency checks from the records of `edgeft compare` (``edgeft-compare`` version 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeft import documents
from edgeft.errors import ConfigError
from edgeft.gating.baseline import Latency, Release
from edgeft.measure.sequential import FEWEST_PAIRS
from edgeft.types import Check, Outcome

SCHEMA: Final = "edgeft-compare"
VERSION: Final = 1
_HINT: Final = "make one: edgeft compare BASE_PACKAGE HEAD_PACKAGE --output FILE"
# What makes one machine another as far as latency goes; the operating system's patch level does not.
_HOST_KEYS: Final = ("cpu", "machine", "cores", "flags")


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Runtime(_Part):
    runtime: str = ""
    version: str = ""


class _Side(_Part):
    name: str
    target: str
    sha256: dict[str, str]
    evidence: str
    threads: int
    asked: dict[str, Any] = {}
    """What the comparison was told to do otherwise than the package says."""
    runtime: _Runtime = _Runtime()


class _Ratio(_Part):
    ratio: float
    low: float
    high: float

    @model_validator(mode="after")
    def _is_an_interval(self) -> _Ratio:
        if not 0.0 < self.low <= self.high:
            raise ValueError(f"no interval of a ratio: {self.low} to {self.high}")
        return self


class TimingRecord(_Part):
    """What the gate reads of a record; `source` is the file, for messages."""

    source: str
    base: _Side
    head: _Side
    p50: _Ratio
    p95: _Ratio
    limit: float
    pairs: Annotated[int, Field(ge=FEWEST_PAIRS)]
    host: dict[str, Any]
    warnings: list[str]

    def times(self, target: str, base: frozenset[str], head: frozenset[str]) -> bool:
        """Say whether these are the very files of a target, by their SHA-256."""
        sides = ((self.base, base), (self.head, head))
        return all(
            frozenset(side.sha256.values()) == digests and side.target in ("", target)
            for side, digests in sides
        )


def read_timing(path: Path) -> TimingRecord:
    """Read a record of `edgeft compare`.

    Raises:
        ConfigError: It is missing, not JSON, of another version, or incomplete.
    """
    document = documents.read(path, schema=SCHEMA, version=VERSION, hint=_HINT)
    return documents.validated(TimingRecord, {**document, "source": str(path)}, path, _HINT)


def require_useful(records: Sequence[TimingRecord], base: Release, head: Release) -> None:
    """Check that every record compares a target's file of `base` with that of `head`.

    Raises:
        ConfigError: One is about other files, and which side it is; or two are about the same.
    """
    seen: dict[str, str] = {}
    for record in records:
        shared = head.targets.keys() & base.targets.keys()
        found = [
            name
            for name in sorted(shared)
            if record.times(name, base.targets[name].digests, head.targets[name].digests)
        ]
        if not found:
            raise ConfigError(_stranger(record, base, head), _HINT)
        for name in found:
            if name in seen:
                raise ConfigError(
                    f"{record.source} and {seen[name]}: both compare the files of target {name}",
                    "give one record per target: choosing among several would bias the verdict",
                )
            seen[name] = record.source


def latency(
    target: str, records: Sequence[TimingRecord], base: Release, head: Release, limit: float
) -> Check | None:
    """Judge a target's latency by its record; without one there is nothing to judge, only advice.

    Args:
        target: In both releases.
        records: Those given, one of which may be about this target.
        base: Release to compare with.
        head: Release to judge.
        limit: Largest acceptable ratio of the p50 latencies.

    Returns:
        The check, or None for a target that no clock measures.
    """
    then, now = base.targets[target], head.targets[target]
    record = next((r for r in records if r.times(target, then.digests, now.digests)), None)
    if record is not None:
        return _from_record(target, record, head, limit)
    if then.latency is None or now.latency is None:
        return None
    if then.digests == now.digests and _timed_alike(then.latency, now.latency):
        return Check(
            name="latency",
            target=target,
            outcome="pass",
            detail="the same file and runtime as the baseline's",
        )
    return _advice(target, base, head, then.latency, now.latency)


def _timed_alike(then: Latency, now: Latency) -> bool:
    """Say whether one file has one latency: its runtime, threads and kind of evidence are the same."""
    return (then.runtime, then.threads, then.evidence) == (now.runtime, now.threads, now.evidence)


def _from_record(target: str, record: TimingRecord, head: Release, limit: float) -> Check:
    p50, p95 = record.p50, record.p95
    detail = (
        f"p50 {p50.ratio:.3f} [{p50.low:.3f}, {p50.high:.3f}] of the baseline's, at most {limit:g}; "
        f"p95 {p95.ratio:.3f} [{p95.low:.3f}, {p95.high:.3f}]; {record.pairs} interleaved process pairs"
    )
    outcome: Outcome = "fail" if p50.low > limit else "pass" if p50.high < limit else "inconclusive"
    if outcome == "inconclusive":
        detail = f"the limit is inside the interval, {_cure(record, limit)}: {detail}"
    other = _otherwise(record, head, target)
    if other:
        said = "above" if outcome == "fail" else "below" if outcome == "pass" else "around"
        detail = f"advisory, {said} the limit: {other}: {detail}"
        outcome = "no baseline"
    if record.warnings:
        detail += f"; {'; '.join(record.warnings)}"
    values = {"ratio": p50.ratio, "low": p50.low, "high": p50.high, "limit": limit}
    return Check(name="latency", target=target, outcome=outcome, detail=detail, values=values)


def _cure(record: TimingRecord, limit: float) -> str:
    """Say how to get a clear answer: measuring ends as soon as the limit of the comparison itself is clear."""
    if record.limit != limit:
        return f"compare against this very limit (--limit {limit:g}, the record's is {record.limit:g})"
    return "compare for longer (--time-limit)"


def _otherwise(record: TimingRecord, head: Release, target: str) -> str:
    """Say in what a record was measured otherwise than the report that is judged; empty if in nothing."""
    host = differing_host(record.host, head.host_of(target))
    found = [f"compared on another host than the report's ({host})"] if host else []
    reported = head.targets[target].latency
    found += [
        f"{side.name!r} ran with {side.threads} threads ({side.evidence}), the report's target with "
        f"{reported.threads} ({reported.evidence})"
        for side in (record.base, record.head)
        if reported and (side.threads, side.evidence) != (reported.threads, reported.evidence)
    ]
    used = {f"{side.runtime.runtime} {side.runtime.version}".strip() for side in (record.base, record.head)}
    found += [
        f"it ran in {name}, the report's target in {reported.runtime}"
        for name in sorted(used - {""})
        if reported and name != reported.runtime
    ]
    asked = {**record.base.asked, **record.head.asked}
    found += [f"compared with {key} {value}, not as the package says" for key, value in sorted(asked.items())]
    return "; ".join(found)


def _advice(target: str, base: Release, head: Release, then: Latency, now: Latency) -> Check:
    ratio = now.p50_ms / then.p50_ms if then.p50_ms else float("inf")
    detail = (
        f"advisory, not judged: {now.p50_ms:.3g} ms in this report, {then.p50_ms:.3g} ms in the baseline's "
        f"({ratio:.2f}); two reports are not measured side by side"
    )
    other = differing_host(base.host_of(target), head.host_of(target))
    if other:
        detail += f", and these not on one host ({other})"
    if (then.threads, then.runtime) != (now.threads, now.runtime):
        detail += f"; {then.runtime}, {then.threads} threads -> {now.runtime}, {now.threads} threads"
    return Check(
        name="latency",
        target=target,
        outcome="no baseline",
        detail=f"{detail}: compare the packages and give the record (edgeft compare, --compare)",
        values={"ratio": ratio},
    )


def differing_host(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return in what two host fingerprints differ that latency depends on; empty if in nothing."""
    return ", ".join(
        f"{key} {one.get(key)!r} and {other.get(key)!r}"
        for key in _HOST_KEYS
        if one.get(key) != other.get(key)
    )


def _stranger(record: TimingRecord, base: Release, head: Release) -> str:
    """Say which side of a record is about an unknown file."""
    wrong = []
    for side, name, release, role in (
        (record.base, "base", base, "the baseline"),
        (record.head, "head", head, "the report"),
    ):
        digests = frozenset(side.sha256.values())
        if not any(digests == target.digests for target in release.targets.values()):
            shown = ", ".join(sorted(value[:12] for value in digests))
            wrong.append(f"{name} {side.name!r} (SHA-256 {shown}) is no file of {role}")
    return f"{record.source}: " + ("; ".join(wrong) or "its two files are not of one target")
