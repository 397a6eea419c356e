"""The verdict of `edgeft gate`: a release against the baseline and its anchor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeft.errors import ConfigError
from edgeft.gating import checks, exact
from edgeft.gating.baseline import (
    Baseline,
    Release,
    TargetRelease,
    changed_limits,
    find_baseline,
    read_baseline,
)
from edgeft.gating.checks import SEED_NOTE, Pairing, overall
from edgeft.gating.exact import Limits
from edgeft.gating.release import Candidate, read_report
from edgeft.gating.samples import decode
from edgeft.gating.timing import TimingRecord, latency, read_timing, require_useful
from edgeft.types import Check, IntArray, Verdict


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
    known = find_baseline(Path(baseline))
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
    if baseline is None and (anchor is not None or records):
        given = f"the anchor {anchor_where}" if anchor is not None else f"the record {records[0].source}"
        raise ConfigError(
            f"{where} does not exist, and {given} is nothing to judge by without it",
            "name the baseline file that is there, or leave the rest out to begin one",
        )
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
    found = list(exact.presence(head, base, allow_missing=allow_missing))
    found += _accuracy(candidate, base, pinned, limits.accuracy_margin)
    if head.macs is not None and base.macs is not None:
        of = "the baseline's"
        found.append(checks.at_most("macs", "", head.macs, base.macs, limits.size_ratio, of=of, unit="MACs"))
    for name in head.targets:
        found += exact.figures(name, head, base, limits)
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
    for key, before, after in changed_limits(base.limits, head.limits):
        yield f"the recipe's limit gate.{key} differs from the baseline's: {before} -> {after}"
    if base.accepted:
        yield f"the baseline was accepted although the gate did not pass it: {base.accepted}"
