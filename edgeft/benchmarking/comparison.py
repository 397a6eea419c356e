"""Compare the latency of two files: interleaved fresh processes, and the record ``edgeft-compare`` version 1.

The record: ``schema version created base head limit outcome p50 p95 noise pairs looks confidence stopped seconds
time_limit_seconds host warnings``. ``base`` and ``head`` have ``name target sha256 size_bytes evidence threads options
asked inputs runtime p50_ms p95_ms samples_ms``: one list of samples per process in the order of time, and medians over
processes.
``p50 p95`` and ``noise.p50`` are ratios with their interval (``ratio low high``): head over base, and for ``noise``
the later over the earlier process of base.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from edgeft import measure
from edgeft.benchmarking.interleaving import Interleaving, Side
from edgeft.benchmarking.subjects import Subject, subject
from edgeft.errors import ConfigError
from edgeft.measure.host import host_fingerprint, host_state, host_warnings, int8_warning
from edgeft.measure.sequential import FEWEST_PAIRS, Decision, decide
from edgeft.types import Estimate, Progress, silent

SCHEMA = "edgeft-compare"
VERSION = 1
LIMIT = 1.05
TIME_LIMIT_SECONDS = 60.0

_CLOCK_EVIDENCE = ("measured", "hardware")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How head's latency compares with base's, measured side by side on one machine."""

    base: Side
    head: Side
    limit: float
    time_limit_seconds: float
    decision: Decision
    created: str
    host: Mapping[str, Any]
    warnings: tuple[str, ...]

    @property
    def outcome(self) -> Literal["pass", "fail", "inconclusive"]:
        """``fail`` if head is slower than the limit allows, ``pass`` if it is not, ``inconclusive`` if that is open."""
        return self.decision.outcome

    @property
    def stopped(self) -> str:
        """Why no more was measured."""
        pairs, seconds = self.decision.pairs, self.decision.seconds
        where = {
            "fail": f"the interval lies above {self.limit:g}",
            "pass": f"the interval lies below {self.limit:g}",
            "inconclusive": f"the time limit of {self.time_limit_seconds:g} s, with {self.limit:g} in the interval",
        }[self.outcome]
        return f"{where} after {pairs} pairs, {seconds:.0f} s"

    def record(self) -> dict[str, Any]:
        """Return the JSON record, as the module describes it."""
        decision = self.decision
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "created": self.created,
            "base": _side_record(self.base),
            "head": _side_record(self.head),
            "limit": self.limit,
            "outcome": self.outcome,
            "p50": _ratio_record(decision.p50),
            "p95": _ratio_record(decision.p95),
            "noise": {"p50": _ratio_record(decision.noise)},
            "pairs": decision.pairs,
            "looks": decision.looks,
            "confidence": decision.confidence,
            "stopped": self.stopped,
            "seconds": decision.seconds,
            "time_limit_seconds": self.time_limit_seconds,
            "host": dict(self.host),
            "warnings": list(self.warnings),
        }


def compare(
    base: str | Path,
    head: str | Path,
    *,
    limit: float = LIMIT,
    time_limit_seconds: float = TIME_LIMIT_SECONDS,
    threads: int | None = None,
    device: str | None = None,
    options: Mapping[str, str] | None = None,
    host: str = "",
    inputs: Literal["random"] | Path | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Time two packages or model files side by side until it is clear whether head is slower than allowed.

    Both are fed the same inputs where they take the same: those of base. The order of every four processes (base,
    head, head, base or the reverse) is drawn, so that nothing on the machine can beat in time with it.

    Args:
        base: A package, or an .onnx, .xml or .tflite file: what is released.
        head: The same: what is to be released.
        limit: The largest acceptable ratio of head's p50 to base's.
        time_limit_seconds: When to give up; at least `FEWEST_PAIRS` process pairs are taken in any case.
        threads: Per inference, instead of the packages'.
        device: The runtime's name of one, instead of the packages'.
        options: Runtime options over the packages'.
        host: Where to measure; on this machine if empty.
        inputs: A folder of samples, or ``random``; by default golden vectors.
        shapes: Input name -> whole shape, for free dimensions of files without a package.
        seed: Of the order of processes.
        progress: Told how many pairs are done, and of the seconds that have passed and are allowed.

    Raises:
        ConfigError: The limits make no sense, or the two cannot be compared: their evidence or host differs.
        EdgeftError: As `subjects.subject` and `measure.session.Session` raise.
    """
    started = time.monotonic()
    if not 0 < limit < math.inf or not 0 < time_limit_seconds < math.inf:
        raise ConfigError(
            f"limit {limit:g} and time limit {time_limit_seconds:g} s; both must be finite and above 0",
            "a limit of 1.05 accepts a head that is 5 % slower",
        )
    settings: dict[str, Any] = {
        "threads": threads,
        "device": device,
        "options": options,
        "host": host,
        "inputs": inputs,
        "shapes": shapes,
    }
    subjects = [subject(value, **settings) for value in (base, head)]
    require_comparable(*subjects)
    subjects[1], warnings = _feed_alike(*subjects)
    runtime = subjects[0].profile.runtime
    interleaving = Interleaving(*subjects, seed=seed, started=started, progress=progress)
    with measure.connect(runtime.host):  # one connection for all processes
        before = host_state(runtime.host)
        decision = decide(
            interleaving.rounds(time_limit_seconds), limit=limit, time_limit_seconds=time_limit_seconds
        )
        disturbed = host_warnings(before, host_state(runtime.host), threads=runtime.threads)
        fingerprint = host_fingerprint(runtime.host)
    base_side, head_side = interleaving.sides()
    return Comparison(
        base=base_side,
        head=head_side,
        limit=limit,
        time_limit_seconds=time_limit_seconds,
        decision=decision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        host=fingerprint,
        warnings=(
            *warnings,
            *differences(base_side, head_side),
            *doubts(decision, limit, time_limit_seconds),
            *_arithmetic(base_side, head_side, fingerprint),
            *disturbed,
        ),
    )


def require_comparable(base: Subject, head: Subject) -> None:
    """Raise `ConfigError` if there is no ratio of the latencies of the two: not of a clock, or of two machines."""
    for side in (base, head):
        if side.profile.evidence not in _CLOCK_EVIDENCE:
            raise ConfigError(
                f"{side.name}: target {side.profile.id} is {side.profile.evidence}; only a clock can be compared",
                "compare packages whose evidence is measured or hardware",
            )
    if base.profile.evidence != head.profile.evidence:
        raise ConfigError(
            f"{base.name} is {base.profile.evidence}, {head.name} is {head.profile.evidence}: no ratio of these"
        )
    if base.profile.runtime.host != head.profile.runtime.host:
        hosts = [side.profile.runtime.host or "this machine" for side in (base, head)]
        raise ConfigError(
            f"{base.name} runs on {hosts[0]}, {head.name} on {hosts[1]}: two machines are no comparison",
            "say with --host where both are to run",
        )


def _feed_alike(base: Subject, head: Subject) -> tuple[Subject, list[str]]:
    """Give head the inputs of base if it takes such; else say that they differ."""
    takes = [[(array.shape[1:], array.dtype) for array in side.inputs] for side in (base, head)]
    if takes[0] == takes[1]:
        random = base.inputs_origin.startswith("random")
        warnings = ["fed with random numbers, not samples"] if random else []
        return replace(head, inputs=base.inputs, inputs_origin=base.inputs_origin), warnings
    shapes = [", ".join(str(array.shape[1:]) for array in side.inputs) for side in (base, head)]
    return head, [f"base takes inputs {shapes[0]}, head {shapes[1]}: each was fed its own"]


def differences(base: Side, head: Side) -> list[str]:
    """Say what differs between the two besides the file."""
    settings = {
        "runtime": [f"{side.runtime.runtime} {side.runtime.version}" for side in (base, head)],
        "device": [side.runtime.device for side in (base, head)],
        "threads": [str(side.subject.profile.runtime.threads) for side in (base, head)],
        "options": [_options(side.subject) for side in (base, head)],
    }
    return [
        f"{what}: base {one}, head {other}; the ratio is of this difference as well as of the files"
        for what, (one, other) in settings.items()
        if one != other
    ]


def _options(subject: Subject) -> str:
    options = subject.profile.runtime.options
    return ", ".join(f"{key}={options[key]}" for key in sorted(options)) or "none"


def doubts(decision: Decision, limit: float, time_limit_seconds: float) -> list[str]:
    """Say what a reader of the outcome should know about how it came about."""
    found, noise = [], decision.noise
    if decision.pairs <= FEWEST_PAIRS and decision.seconds > time_limit_seconds:
        found.append(
            f"{decision.pairs} pairs, the fewest that decide anything, took {decision.seconds:.0f} s, more than the "
            f"time limit of {time_limit_seconds:g} s"
        )
    if noise.low > 1.0 or noise.high < 1.0:
        found.append(
            f"the machine drifted: base against itself, later over earlier, is {noise.value:.3f} "
            f"[{noise.low:.3f}, {noise.high:.3f}]; pairs are neighbours in time, so that head and base share it"
        )
    if decision.outcome != "fail" and decision.p95.low > limit:
        found.append(
            f"the slow runs of head are slower than allowed: p95 ratio {decision.p95.value:.3f} "
            f"[{decision.p95.low:.3f}, {decision.p95.high:.3f}]; the outcome is that of p50"
        )
    return found


def _arithmetic(base: Side, head: Side, host: Mapping[str, Any]) -> list[str]:
    """Say if one of the two computes in int8 on a CPU that is not made for it."""
    computes = set(base.runtime.mac_precision) | set(head.runtime.mac_precision)
    warning = int8_warning(host["flags"]) if computes & {"int8", "int8-dynamic"} else ""
    return [warning] if warning else []


def _ratio_record(estimate: Estimate) -> dict[str, float]:
    return {"ratio": estimate.value, "low": estimate.low, "high": estimate.high}


def _asked(subject: Subject) -> dict[str, Any]:
    """Return device and options that were asked for in place of the package's own."""
    if subject.package is None:
        return {}
    own, used = subject.package.profile.runtime, subject.profile.runtime
    return {
        key: getattr(used, key) for key in ("device", "options") if getattr(used, key) != getattr(own, key)
    }


def _side_record(side: Side) -> dict[str, Any]:
    subject, artifact = side.subject, side.subject.artifact
    return {
        "name": subject.name,
        "target": subject.target,
        "sha256": dict(artifact.sha256),
        "size_bytes": artifact.size_bytes,
        "evidence": subject.profile.evidence,
        "threads": subject.profile.runtime.threads,
        "options": dict(subject.profile.runtime.options),
        "asked": _asked(subject),
        "inputs": subject.inputs_origin,
        "runtime": dataclasses.asdict(side.runtime),
        "p50_ms": side.p50_ms,
        "p95_ms": side.p95_ms,
        # The clock counts nanoseconds.
        "samples_ms": [[round(ms, 6) for ms in samples] for samples in side.samples_ms],
    }
