"""What the gate checks without statistics: which targets there are, sizes, memory, coverage, cycles, parity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from edgeft.errors import ConfigError
from edgeft.gating import checks
from edgeft.gating.baseline import Estimate, Release
from edgeft.gating.checks import DEFAULT_MARGIN
from edgeft.recipe import SMALLEST_MARGIN, Gate
from edgeft.types import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the gate allows: the recipe's [gate] section, as far as a caller does not say otherwise.

    Args:
        accuracy_margin: Largest acceptable accuracy drop, 0..1. Never widened to what the samples can certify.
        latency_ratio: Largest acceptable ratio of p50 latencies, and of a compiler's cycles.
        size_ratio: Largest acceptable ratio of sizes, MACs and memory.
        min_coverage: Least int8 share of MAC ops.
        max_confident_flips: Largest share of samples whose class the file changes against a clear margin.
        max_size_ratio: Largest size relative to the float file.
    """

    accuracy_margin: float
    latency_ratio: float
    size_ratio: float
    min_coverage: float
    max_confident_flips: float
    max_size_ratio: float

    @classmethod
    def of(cls, gate: Gate, *, margin: float | None = None, latency_ratio: float | None = None) -> Limits:
        """Return the limits of a recipe, or the caller's where given.

        Raises:
            ConfigError: A given limit makes no sense.
        """
        if margin is not None and not SMALLEST_MARGIN <= margin < 1.0:
            raise ConfigError(
                f"margin {margin:g}: a share from {SMALLEST_MARGIN:g} to below 1 is needed", "1 point is 0.01"
            )
        if latency_ratio is not None and not 0.0 < latency_ratio < math.inf:
            raise ConfigError(
                f"latency ratio {latency_ratio:g}: a finite number above 0 is needed", "5 % slower is 1.05"
            )
        return cls(
            accuracy_margin=margin or gate.accuracy_margin or DEFAULT_MARGIN,
            latency_ratio=latency_ratio or gate.latency_ratio,
            size_ratio=gate.size_ratio,
            min_coverage=gate.min_coverage,
            max_confident_flips=gate.max_confident_flips,
            max_size_ratio=gate.max_size_ratio,
        )


def presence(head: Release, base: Release, *, allow_missing: bool) -> Iterator[Check]:
    """Check that the targets of the baseline are there, and name the new ones."""
    for name in base.targets:
        if name not in head.targets:
            yield Check(
                name="target",
                target=name,
                outcome="no baseline" if allow_missing else "fail",
                detail="in the baseline, missing in the report"
                + (" (allowed)" if allow_missing else ": add it, or allow it with --allow-missing"),
            )
    for name in head.targets:
        if name not in base.targets:
            yield Check(
                name="target",
                target=name,
                outcome="no baseline",
                detail="new: the baseline does not know it; only its own limits are checked",
            )


def figures(name: str, head: Release, base: Release, limits: Limits) -> Iterator[Check]:
    """Check what needs no statistics: a target's own limits, and those relative to the baseline if it is there."""
    now, then = head.targets[name], base.targets.get(name)
    if now.float_size_bytes:
        yield checks.at_most(
            "size vs float",
            name,
            now.size_bytes,
            now.float_size_bytes,
            limits.max_size_ratio,
            of="the float file's",
        )
    if then is not None:
        for kind in ("size", "arena", "flash"):
            new, old = getattr(now, f"{kind}_bytes"), getattr(then, f"{kind}_bytes")
            if new is not None and old is not None:
                yield checks.at_most(kind, name, new, old, limits.size_ratio, of="the baseline's")
        if then.estimate is not None and now.estimate is not None:
            yield _estimate(name, now.estimate, then.estimate, limits.latency_ratio)
        if then.scheme != now.scheme:
            yield Check(
                name="scheme",
                target=name,
                outcome="no baseline",
                detail=f"{now.scheme}, the baseline's file is {then.scheme}",
            )
    if now.coverage is not None:
        was = f" (baseline {then.coverage.executed:.1%})" if then is not None and then.coverage else ""
        yield checks.coverage(
            name,
            now.coverage.file,
            now.coverage.executed,
            limits.min_coverage,
            f"{now.coverage.file:.1%} of the MAC ops are int8 in the file, {now.coverage.executed:.1%} as "
            f"executed{was}; at least {limits.min_coverage:.0%}",
        )
    parity = now.parity
    yield checks.parity(
        name, parity.samples, parity.flips, parity.confident_flips, limits.max_confident_flips
    )


def _estimate(name: str, now: Estimate, then: Estimate, limit: float) -> Check:
    """Check cycles, which are exact, unless the compiler or its settings changed: then they do not compare."""
    if now.source == then.source:
        of = f"the baseline's by {now.source}:"
        return checks.at_most("estimate", name, now.cycles, then.cycles, limit, of=of, unit="cycles")
    return Check(
        name="estimate",
        target=name,
        outcome="no baseline",
        detail=f"{now.cycles:,} cycles by {now.source}, the baseline's {then.cycles:,} by {then.source}: figures of "
        "two compilers or settings do not compare",
    )
