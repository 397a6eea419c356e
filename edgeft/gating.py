"""The gate: results per target x limits of the recipe -> a verdict. No torch.

Accuracy is judged by non-inferiority on the same samples (DESIGN: section 10), size and coverage exactly,
speed by the interval of the interleaved timing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeft.errors import EdgeftError
from edgeft.measure.statistics import (
    certifiable_margin,
    drop_p_value,
    holm,
    mcnemar_exact,
    samples_needed,
    tango_interval,
)
from edgeft.recipe import Gate
from edgeft.types import AccuracyResult, Check, Outcome, TargetResult, Verdict

SIGNIFICANCE = 0.05
DEFAULT_MARGIN = 0.01
MAX_CONFIDENT_FLIPS = 0.01
"""Share of samples that may change class although the reference was sure by more than two LSB."""
FLOAT_SLOWDOWN = 1.1
"""How much slower a file may be that only stores its weights small: it computes in float, and is made for its size."""
SEED_NOTE = (
    "paired tests do not see seed variance: these weights were trained anew, and another run of the "
    "same recipe would give others with another accuracy"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairing:
    """Two models on the same n samples, as counts; see `edgeft.measure.statistics` for the drop."""

    n: int
    only_base_right: int
    only_head_right: int
    flips: int

    @property
    def drop(self) -> float:
        return (self.only_base_right - self.only_head_right) / self.n


def judge(
    results: Sequence[TargetResult],
    gate: Gate,
    *,
    reference: str,
    float_layers: Mapping[str, Sequence[str]] | None = None,
) -> Verdict:
    """Hold every target's result against the limits.

    Args:
        results: One per target.
        gate: The recipe's limits.
        reference: What the accuracy is compared with, for people.
        float_layers: Layers that are in float on purpose, by target: coverage does not count them.

    Returns:
        Fail if any check fails, else inconclusive if any is, else pass. A target's accuracy passes on its own
        one-sided 95 % upper bound of the drop (all targets must pass, so nothing is adjusted) and fails
        on the lower bound, adjusted over targets by Holm's method.

    Raises:
        EdgeftError: There are no results, or a target and its baseline were not scored on the same samples.
    """
    if not results:
        raise EdgeftError("there is no result to judge", "run at least one target")
    pairings = [_pair(result) for result in results]
    margins = [accuracy_margin(gate, pairing.n) for pairing in pairings]
    adjusted = holm(
        [
            drop_p_value(p.only_base_right, p.only_head_right, p.n, margin)
            for p, margin in zip(pairings, margins, strict=True)
        ]
    )
    checks: list[Check] = []
    for result, pairing, margin, p_worse in zip(results, pairings, margins, adjusted, strict=True):
        checks.append(_accuracy(result.target, pairing, margin, p_worse))
        checks.append(_size(result, gate))
        if result.artifact.scheme == "int8":
            checks.append(_coverage(result, gate, (float_layers or {}).get(result.target, ())))
        checks.append(_parity(result))
        if result.artifact.sha256 != result.baseline.sha256:  # a file is not slower than itself
            checks.append(_speed(result))
    return Verdict(
        outcome=overall([check.outcome for check in checks]),
        reference=reference,
        checks=tuple(checks),
        notes=(SEED_NOTE,),
    )


def accuracy_margin(gate: Gate, samples: int) -> float:
    """Return the acceptable drop: the recipe's, else 1 point, or more where the samples certify no less."""
    return gate.accuracy_margin or max(DEFAULT_MARGIN, certifiable_margin(samples))


def overall(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the worst of the outcomes: fail, else inconclusive, else pass."""
    ranking: tuple[Outcome, ...] = ("fail", "inconclusive")
    return next((worst for worst in ranking if worst in outcomes), "pass")


def _pair(result: TargetResult) -> _Pairing:
    head, base = result.accuracy, result.baseline_accuracy
    _require_same_samples(result.target, head, base)
    head_right, base_right = head.predictions == head.labels, base.predictions == base.labels
    return _Pairing(
        n=len(head.ids),
        only_base_right=int((base_right & ~head_right).sum()),
        only_head_right=int((head_right & ~base_right).sum()),
        flips=int((head.predictions != base.predictions).sum()),
    )


def _require_same_samples(target: str, head: AccuracyResult, base: AccuracyResult) -> None:
    if not head.ids:
        raise EdgeftError(
            f"target {target}: there are no test samples", "give the test split at least one sample"
        )
    if head.ids != base.ids:
        differ = len(set(head.ids) ^ set(base.ids))
        what = f"{differ} samples are in one only" if differ else "their order or number differs"
        raise EdgeftError(
            f"target {target}: the file and its baseline were not scored on the same samples ({what}); "
            "accuracies are compared in pairs",
            "score both on one test split",
        )
    if not np.array_equal(head.labels, base.labels):
        raise EdgeftError(
            f"target {target}: {int((head.labels != base.labels).sum())} samples have one label in the "
            "file's result and another in its baseline's",
            "score both against one labelling",
        )


def _accuracy(target: str, pairing: _Pairing, margin: float, p_worse: float) -> Check:
    """Judge non-inferiority; `p_worse` is the Holm-adjusted p-value of "the drop is at most the margin"."""
    b, c, n = pairing.only_base_right, pairing.only_head_right, pairing.n
    low, high = tango_interval(b, c, n, confidence=1.0 - 2.0 * SIGNIFICANCE)
    outcome: Outcome = "pass" if high < margin else "fail" if p_worse < SIGNIFICANCE else "inconclusive"
    certifiable, needed, mcnemar = certifiable_margin(n), samples_needed(margin), mcnemar_exact(b, c)
    detail = (
        f"drop {_points(pairing.drop)} [{_points(low)}, {_points(high)}] points (one-sided 95 % bounds), "
        f"margin {_points(margin)}; {n} samples can certify {_points(certifiable)}, this margin needs about "
        f"{needed}; "
        f"{pairing.flips} predictions differ ({b} became wrong, {c} became right), McNemar p = {mcnemar:.2g}"
    )
    if outcome == "fail":
        detail = f"certainly worse than the margin (Holm-adjusted p = {p_worse:.2g}): {detail}"
    if outcome == "inconclusive":
        detail = f"neither below nor above the margin with certainty: {detail}"
    values = {
        "drop": pairing.drop,
        "low": low,
        "high": high,
        "margin": margin,
        "certifiable_margin": certifiable,
        "samples": n,
        "samples_needed": needed,
        "only_base_right": b,
        "only_head_right": c,
        "flips": pairing.flips,
        "mcnemar_p": mcnemar,
        "p_worse": p_worse,
    }
    return Check(name="accuracy", target=target, outcome=outcome, detail=detail, values=values)


def _size(result: TargetResult, gate: Gate) -> Check:
    ratio = result.artifact.size_bytes / result.baseline.size_bytes
    return Check(
        name="size",
        target=result.target,
        outcome=_limit(ratio <= gate.max_size_ratio),
        detail=f"{result.artifact.size_bytes:,} bytes, {ratio:.2f} of the float file's "
        f"{result.baseline.size_bytes:,}; at most {gate.max_size_ratio:g}",
        values={"ratio": ratio, "limit": gate.max_size_ratio},
    )


def _coverage(result: TargetResult, gate: Gate, on_purpose: Sequence[str]) -> Check:
    """Judge the int8 share of MAC ops twice: as the file says, and as the runtime executes it."""
    coverage, executed = result.artifact.coverage, result.latency.runtime.mac_precision
    wanted = max(coverage.mac_ops - len(on_purpose), 1)
    in_file = min(coverage.int8_mac_ops / wanted, 1.0) if coverage.mac_ops else 1.0
    ran = max(sum(executed.values()) - len(on_purpose), 1)
    share = min(executed.get("int8", 0) / ran, 1.0) if executed else 1.0
    detail = (
        f"{coverage.int8_mac_ops} of {coverage.mac_ops} MAC ops are int8 in the file, "
        f"{executed.get('int8', 0)} of {sum(executed.values())} as executed; at least {gate.min_coverage:.0%}"
    )
    if coverage.float_ops:
        detail += f"; float in the file: {', '.join(coverage.float_ops[:5])}"
        detail += f" and {len(coverage.float_ops) - 5} more" if len(coverage.float_ops) > 5 else ""
    if on_purpose:
        detail += f"; float on purpose, and not counted: {', '.join(on_purpose)}"
    return Check(
        name="coverage",
        target=result.target,
        outcome=_limit(min(in_file, share) >= gate.min_coverage),
        detail=detail,
        values={"file": in_file, "executed": share, "limit": gate.min_coverage},
    )


def _parity(result: TargetResult) -> Check:
    parity = result.parity
    share = parity.confident_flips / parity.samples
    return Check(
        name="parity",
        target=result.target,
        outcome=_limit(share <= MAX_CONFIDENT_FLIPS),
        detail=f"agrees with the program it came from on {parity.agreement:.2%} of {parity.samples} samples; "
        f"{parity.flips} flips, {parity.confident_flips} of them against a clear margin (at most "
        f"{MAX_CONFIDENT_FLIPS:.0%} of the samples); logits at most {parity.max_lsb:.1f} LSB apart",
        values={
            "agreement": parity.agreement,
            "confident_flips": parity.confident_flips,
            "within_2_lsb": parity.within_2_lsb,
            "limit": MAX_CONFIDENT_FLIPS,
        },
    )


def _speed(result: TargetResult) -> Check:
    """Fail a file that is certainly slower than this runtime's fastest float: it would serve nobody."""
    ratio = result.ratio
    limit = FLOAT_SLOWDOWN if result.artifact.scheme in ("float16", "int8-weights") else 1.0
    bounds = f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
    interval = f"{bounds} of the latency of {ratio.base}, {ratio.pairs} process pairs"
    if ratio.low > 1.0:
        said = f"certainly slower than the runtime's fastest float: {interval}"
    elif ratio.high < 1.0:
        said = f"certainly faster: {interval}"
    else:
        said = f"not certainly faster, nor slower (advisory): {interval}"
    if limit > 1.0:
        said += f"; at most {limit:g}, for it stores its weights small and computes in float"
    return Check(
        name="speed",
        target=result.target,
        outcome=_limit(ratio.low <= limit),
        detail=said,
        values={"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "limit": limit},
    )


def _limit(holds: bool) -> Outcome:
    return "pass" if holds else "fail"


def _points(share: float) -> str:
    return f"{100 * share:.2f}"
