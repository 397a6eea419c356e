"""The verdict that a run gives itself: every target's file against the float model that it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeft.errors import DataError
from edgeft.gating import checks
from edgeft.gating.checks import DEFAULT_MARGIN, SEED_NOTE, Pairing, overall
from edgeft.measure.noninferiority import certifiable_margin
from edgeft.recipe import Gate
from edgeft.types import AccuracyResult, Check, RatioResult, TargetResult, Verdict

FLOAT_SLOWDOWN = 1.1
"""How much slower a file may be that only stores its weights small: it computes in float, and is made for its size."""


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
        DataError: There are no results, or a target and its baseline were not scored on the same samples.
    """
    if not results:
        raise DataError("there is no result to judge", "run at least one target")
    pairings = [_pair(result) for result in results]
    margin = accuracy_margin(gate, pairings[0].n)
    found: list[Check] = []
    for result, accuracy in zip(results, checks.accuracy(pairings, margin), strict=True):
        parity = result.parity
        found.append(accuracy)
        found.append(
            checks.at_most(
                "size",
                result.target,
                result.artifact.size_bytes,
                result.baseline.size_bytes,
                gate.max_size_ratio,
                of="the float file's",
            )
        )
        if result.artifact.scheme == "int8":
            found.append(_coverage(result, gate, (float_layers or {}).get(result.target, ())))
        apart = f"; logits at most {parity.max_lsb:.1f} LSB apart"
        found.append(
            checks.parity(
                result.target,
                parity.samples,
                parity.flips,
                parity.confident_flips,
                gate.max_confident_flips,
                apart,
            )
        )
        # A file is not slower than itself, and where no clock runs there is no float to be slower than.
        if result.ratio is not None and result.artifact.sha256 != result.baseline.sha256:
            found.append(_speed(result, result.ratio))
        found += [checks.budget(result.target, each) for each in result.budgets]
    return Verdict(
        outcome=overall([check.outcome for check in found]),
        reference=reference,
        checks=tuple(found),
        notes=(SEED_NOTE,),
    )


def accuracy_margin(gate: Gate, samples: int) -> float:
    """Return the acceptable drop: the recipe's, else 1 point, or more where the samples certify no less."""
    return gate.accuracy_margin or max(DEFAULT_MARGIN, certifiable_margin(samples))


def _pair(result: TargetResult) -> Pairing:
    head, base = result.accuracy, result.baseline_accuracy
    _require_same_samples(result.target, head, base)
    classes = int(head.labels.max()) + 1
    return Pairing.of(result.target, head.labels, base.predictions, head.predictions, classes)


def _require_same_samples(target: str, head: AccuracyResult, base: AccuracyResult) -> None:
    if not head.ids:
        raise DataError(
            f"target {target}: there are no test samples", "give the test split at least one sample"
        )
    if head.ids != base.ids:
        differ = len(set(head.ids) ^ set(base.ids))
        what = f"{differ} samples are in one only" if differ else "their order or number differs"
        raise DataError(
            f"target {target}: the file and its baseline were not scored on the same samples ({what}); "
            "accuracies are compared in pairs",
            "score both on one test split",
        )
    if not np.array_equal(head.labels, base.labels):
        raise DataError(
            f"target {target}: {int((head.labels != base.labels).sum())} samples have one label in the "
            "file's result and another in its baseline's",
            "score both against one labelling",
        )


def _coverage(result: TargetResult, gate: Gate, on_purpose: Sequence[str]) -> Check:
    in_file, executed = result.artifact.coverage, result.runtime.mac_precision
    share, ran_share = checks.int8_shares(result.artifact, result.runtime, on_purpose)
    detail = (
        f"{in_file.int8_mac_ops} of {in_file.mac_ops} MAC ops are int8 in the file, "
        f"{executed.get('int8', 0)} of {sum(executed.values())} as executed; at least {gate.min_coverage:.0%}"
    )
    if in_file.float_ops:
        detail += f"; float in the file: {', '.join(in_file.float_ops[:5])}"
        detail += f" and {len(in_file.float_ops) - 5} more" if len(in_file.float_ops) > 5 else ""
    if on_purpose:
        detail += f"; float on purpose, and not counted: {', '.join(on_purpose)}"
    return checks.coverage(result.target, share, ran_share, gate.min_coverage, detail)


def _speed(result: TargetResult, ratio: RatioResult) -> Check:
    """Fail a file that is certainly slower than this runtime's fastest float: it would serve nobody."""
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
        outcome="pass" if ratio.low <= limit else "fail",
        detail=said,
        values={"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "limit": limit},
    )
