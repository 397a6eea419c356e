"""Move a baseline on to a release, and say what that changes."""

from __future__ import annotations

from collections.abc import Iterator

from edgeft.gating.baseline import Baseline, Release, TargetRelease, changed_limits
from edgeft.gating.release import Candidate
from edgeft.gating.samples import SampleSet, decode
from edgeft.gating.timing import differing_host


def updated(
    baseline: Baseline | None, candidate: Candidate, *, pin: bool = False, accepted: str = ""
) -> Baseline:
    """Return the baseline with a candidate as its release.

    The anchor stays: where there was none, the release that is replaced becomes it.

    Args:
        baseline: What is there; None for the first one.
        candidate: The new release, made with the same samples.
        pin: Make the new release the anchor too.
        accepted: Why it is taken although the gate did not pass it.
    """
    release = candidate.release.model_copy(update={"accepted": accepted})
    anchor = None if baseline is None or pin else baseline.pinned
    return Baseline(samples=candidate.samples, release=release, anchor=anchor)


def changes(baseline: Baseline | None, new: Baseline) -> list[dict[str, str]]:
    """Return what an update changes, as rows with the columns what, target, before, after; only differences."""
    old = baseline.release if baseline else None
    rows = [
        {"what": what, "target": target, "before": before, "after": after}
        for what, target, before, after in [
            *_about(old, new.release),
            *_samples(baseline, new),
            *_targets(old, new.release, new.samples),
        ]
        if before != after
    ]
    before, after = (b.pinned.title if b else "-" for b in (baseline, new))
    if before != after:
        rows.append({"what": "anchor", "target": "", "before": before, "after": after})
    return rows


_Row = tuple[str, str, str, str]


def _about(old: Release | None, new: Release) -> Iterator[_Row]:
    for what, attribute, length in (
        ("release", "title", None),
        ("recipe", "recipe_hash", 12),
        ("data", "data_fingerprint", 12),
        ("edgeft", "edgeft", None),
        ("MACs", "macs", None),
        ("accepted because", "accepted", None),
    ):
        before = _text(getattr(old, attribute))[:length] if old else "-"
        yield what, "", before, _text(getattr(new, attribute))[:length]
    if old:
        for key, before, after in changed_limits(old.limits, new.limits):
            yield f"limit {key}", "", before, after
        yield "host", "", *_hosts(old, new)


def _hosts(old: Release, new: Release) -> tuple[str, str]:
    different = differing_host(old.host, new.host)
    return ("the same", f"another: {different}") if different else ("", "")


def _samples(old: Baseline | None, new: Baseline) -> Iterator[_Row]:
    yield "test samples", "", _text(old.samples.count) if old else "-", _text(new.samples.count)


def _targets(old: Release | None, new: Release, samples: SampleSet) -> Iterator[_Row]:
    known = old.targets if old else {}
    for name in sorted(known.keys() | new.targets.keys()):
        then, now = known.get(name), new.targets.get(name)
        for (what, before), (_, after) in zip(_figures(then), _figures(now), strict=True):
            yield what, name, before, after
        if then and now:
            was, now_is = (
                decode(release.predictions, len(samples.classes), samples.count, f"target {name}")
                for release in (then, now)
            )
            flips = int((was != now_is).sum())
            yield "predictions", name, "", f"{flips} differ" if flips else ""


def _figures(target: TargetRelease | None) -> list[tuple[str, str]]:
    names = ("file", "scheme", "accuracy", "size", "RAM", "p50 (advisory)", "estimate", "int8 as executed")
    if target is None:
        return [(name, "-") for name in names]
    coverage = f"{target.coverage.executed:.1%}" if target.coverage else "-"
    values = (
        " ".join(sorted(digest[:12] for digest in target.digests)),
        target.scheme,
        f"{target.accuracy:.2%}",
        f"{target.size_bytes:,} bytes",
        "-" if target.arena_bytes is None else f"{target.arena_bytes:,} bytes",
        f"{target.latency.p50_ms:.3g} ms" if target.latency else "-",
        f"{target.estimate.ms:.3g} ms ({target.estimate.source})" if target.estimate else "-",
        coverage,
    )
    return list(zip(names, values, strict=True))


def _text(value: object) -> str:
    match value:
        case None | "":
            return "-"
        case int():
            return f"{value:,}"
        case dict():
            return ", ".join(f"{key} {item}" for key, item in value.items()) or "defaults"
        case _:
            return str(value)
