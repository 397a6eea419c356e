"""The verdict of `edgeft gate`: a release against the baseline and its anchor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeft.errors import ConfigError
from edgeft.gating import checks
from edgeft.gating.baseline import Baseline, Estimate, Release, TargetRelease, read_baseline
from edgeft.gating.checks import DEFAULT_MARGIN, SEED_NOTE, Pairing, overall
from edgeft.gating.release import Candidate, read_report
from edgeft.gating.samples import decode
from edgeft.gating.timing import TimingRecord, latency, read_timing, require_useful
from edgeft.recipe import Gate
from edgeft.types import Check, IntArray, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the gate allows: the recipe's [gate] section, as far as a caller does not say otherwise.

    Args:
        accuracy_margin: Largest acceptable accuracy drop, 0..1. Never widened to what the samples can certify.
        latency_ratio: Largest acceptable ratio of p50 latencies, and of a compiler's cycles.
        size_ratio: Largest acceptable ratio of sizes, MACs and memory.
        min_coverage: Least int8 share of MAC ops.
        max_size_ratio: Largest size relative to the float file.
    """

    accuracy_margin: float
    latency_ratio: float
    size_ratio: float
    min_coverage: float
    max_size_ratio: float

    @classmethod
    def of(cls, gate: Gate, *, margin: float | None = None, latency_ratio: float | None = None) -> Limits:
        """Return the limits of a recipe, or the caller's where given.

        Raises:
            ConfigError: A given limit makes no sense.
        """
        if margin is not None and not 0.0 < margin < 1.0:
            raise ConfigError(f"margin {margin:g}: a share above 0 and below 1 is needed", "1 point is 0.01")
        if latency_ratio is not None and not 0.0 < latency_ratio < math.inf:
            raise ConfigError(
                f"latency ratio {latency_ratio:g}: a finite number above 0 is needed", "5 % slower is 1.05"
            )
        return cls(
            accuracy_margin=margin or gate.accuracy_margin or DEFAULT_MARGIN,
            latency_ratio=latency_ratio or gate.latency_ratio,
            size_ratio=gate.size_ratio,
            min_coverage=gate.min_coverage,
            max_size_ratio=gate.max_size_ratio,
        )


def gate(
    report: Path | str,
    *,
    baseline: Path | str,
    anchor: Path | str | None = None,
    compare: Sequence[Path | str] = (),
    margin: float | None = None,
    latency_ratio: float | None = None,
    allow_missing: bool = False,
) -> Verdict:
    """Judge the report of a run against a baseline file; the same as `edgeft gate`.

    Args:
        report: A report.json.
        baseline: A baseline file; where there is none, the outcome is "no baseline".
        anchor: Another baseline file, whose release takes the place of the baseline's own anchor.
        compare: Records of `edgeft compare` of the baseline's files with the report's.
        margin: Largest acceptable accuracy drop, instead of the recipe's (else 0.01).
        latency_ratio: Largest acceptable ratio of p50 latencies, instead of the recipe's.
        allow_missing: Whether targets of the baseline may be missing in the report.

    Raises:
        ConfigError: A file is missing or damaged, or the two were made with other samples, labels, classes or
            preprocessing.
    """
    candidate = read_report(Path(report))
    known = read_baseline(Path(baseline)) if Path(baseline).exists() else None
    return compare_releases(
        candidate,
        known,
        Limits.of(candidate.gate, margin=margin, latency_ratio=latency_ratio),
        where=str(baseline),
        anchor=None if anchor is None else read_baseline(Path(anchor)),
        anchor_where=str(anchor),
        records=[read_timing(Path(path)) for path in compare],
        allow_missing=allow_missing,
    )


def compare_releases(
    candidate: Candidate,
    baseline: Baseline | None,
    limits: Limits,
    *,
    where: str = "the baseline",
    anchor: Baseline | None = None,
    anchor_where: str = "the anchor",
    records: Sequence[TimingRecord] = (),
    allow_missing: bool = False,
) -> Verdict:
    """Judge a release against a baseline; without one, say so.

    Args:
        candidate: Release to judge.
        baseline: What it is compared with, if there is such a thing.
        limits: What is allowed.
        where: What the baseline was read from, for messages.
        anchor: A baseline whose release takes the place of the baseline's own anchor.
        anchor_where: What that was read from.
        records: Of `edgeft compare`.
        allow_missing: Whether targets of the baseline may be missing.

    Raises:
        ConfigError: The releases cannot be paired, have no target in common, or a record is about other files.
    """
    if baseline is None:
        notes = [f"{where} does not exist: nothing was compared; --update writes it", *_own(candidate)]
        return Verdict(outcome="no baseline", reference="", checks=(), notes=tuple(notes))
    baseline.samples.require_same(candidate.samples, where)
    if anchor is not None:
        anchor.samples.require_same(candidate.samples, anchor_where)
    head, base = candidate.release, baseline.release
    pinned = anchor.release if anchor is not None else baseline.anchor
    _require_shared(head, base, where)
    if anchor is not None:
        _require_shared(head, anchor.release, anchor_where)
    require_useful(records, base, head)
    found = list(_missing(head, base, allow_missing=allow_missing))
    found += _accuracy(candidate, base, pinned, limits.accuracy_margin)
    if head.macs is not None and base.macs is not None:
        of = "the baseline's"
        found.append(checks.at_most("macs", "", head.macs, base.macs, limits.size_ratio, of=of, unit="MACs"))
    for name in head.targets:
        found += _exact(name, head, base, limits)
        found += [checks.budget(name, each) for each in candidate.budgets.get(name, ())]
        if name in base.targets:
            timed = latency(name, records, base, head, limits.latency_ratio)
            found += [timed] if timed is not None else []
    reference = f"{base.title}" + (f" and anchor {pinned.title}" if pinned else "")
    return Verdict(
        outcome=overall([check.outcome for check in found]),
        reference=reference,
        checks=tuple(found),
        notes=tuple(_notes(candidate, base)),
    )


def _accuracy(candidate: Candidate, base: Release, pinned: Release | None, margin: float) -> list[Check]:
    """Judge every target against the last release and, where that is another one, the anchor."""
    samples, head = candidate.samples, candidate.release
    labels = samples.label_indices("the report")
    found, pairings, names = [], [], []
    references = [(base, "accuracy"), *([(pinned, "accuracy since anchor")] if pinned else [])]
    for reference, name in references:
        for target, now in head.targets.items():
            then = reference.targets.get(target)
            if then is None:
                if reference is pinned and target in base.targets:
                    detail = f"the anchor, {reference.title}, does not know this target"
                    found.append(Check(name=name, target=target, outcome="no baseline", detail=detail))
                continue
            if _is_the_same(then, now):  # exactly the same, however few samples there are
                detail = "the same file, runtime and predictions"
                found.append(Check(name=name, target=target, outcome="pass", detail=detail))
                continue
            was, is_now = (_predictions(candidate, release, target) for release in (reference, head))
            pairings.append(Pairing.of(target, labels, was, is_now, len(samples.classes)))
            names.append(name)
    if pairings:
        found += checks.accuracy(pairings, margin, names=names, classes=samples.classes)
    return found


def _require_shared(head: Release, reference: Release, where: str) -> None:
    """Check that there is a target to compare: a verdict without any accuracy in it would tell nothing."""
    if not head.targets.keys() & reference.targets.keys():
        raise ConfigError(
            f"{where}: knows none of the targets to judge ({', '.join(head.targets)}); it has "
            f"{', '.join(reference.targets)}",
            "name the target as the baseline does, or begin another baseline file for it",
        )


def _is_the_same(then: TargetRelease, now: TargetRelease) -> bool:
    return (
        then.digests == now.digests
        and then.predicted_by == now.predicted_by
        and then.predictions == now.predictions
    )


def _predictions(candidate: Candidate, release: Release, target: str) -> IntArray:
    samples = candidate.samples
    lines = release.targets[target].predictions
    return decode(lines, len(samples.classes), samples.count, f"{release.title}: target {target}")


def _missing(head: Release, base: Release, *, allow_missing: bool) -> Iterator[Check]:
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


def _exact(name: str, head: Release, base: Release, limits: Limits) -> Iterator[Check]:
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
    yield checks.parity(name, now.parity.samples, now.parity.flips, now.parity.confident_flips)


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


def _own(candidate: Candidate) -> Iterator[str]:
    if candidate.own_outcome in ("fail", "inconclusive"):
        yield f"the run's own verdict, against its float model, is {candidate.own_outcome}: see its report"


def _notes(candidate: Candidate, base: Release) -> Iterator[str]:
    head = candidate.release
    changed = any(
        name in base.targets and target.digests != base.targets[name].digests
        for name, target in head.targets.items()
    )
    if changed and head.trained:
        yield SEED_NOTE
    yield from _own(candidate)
    if head.data_fingerprint != base.data_fingerprint:
        yield "training or validation data differ from the baseline's; the test samples are the same"
    for key in sorted(head.limits.keys() | base.limits.keys()):
        if head.limits.get(key) != base.limits.get(key):
            before, after = base.limits.get(key, "default"), head.limits.get(key, "default")
            yield f"the recipe's limit gate.{key} differs from the baseline's: {before} -> {after}"
    if base.accepted:
        yield f"the baseline was accepted although the gate did not pass it: {base.accepted}"
