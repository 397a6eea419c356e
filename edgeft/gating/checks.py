"""The single checks of a verdict, from plain figures; what is compared with what is for their callers to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeft.errors import DataError
from edgeft.measure import noninferiority
from edgeft.measure.statistics import mcnemar_exact
from edgeft.types import BudgetResult, Check, ExportedArtifact, IntArray, Outcome, RuntimeReport

DEFAULT_MARGIN: Final = 0.01
SEED_NOTE: Final = (
    "paired tests do not see seed variance: these weights were trained anew, and another run of the "
    "same recipe would give others with another accuracy"
)
_NAMED_CLASSES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Two models on the same n samples, as counts; `edgeft.measure.statistics` says what the drop is.

    `flips` are samples that the two take for different classes; `lost` and `gained` count those that became wrong and
    right, by label.
    """

    target: str
    n: int
    only_base_right: int
    only_head_right: int
    flips: int
    lost: IntArray
    gained: IntArray

    @classmethod
    def of(cls, target: str, labels: IntArray, base: IntArray, head: IntArray, classes: int) -> Pairing:
        """Pair predictions (N,) of base and head for the same samples with labels (N,), 0..classes - 1."""
        base_right, head_right = base == labels, head == labels
        lost = np.bincount(labels[base_right & ~head_right], minlength=classes)
        gained = np.bincount(labels[head_right & ~base_right], minlength=classes)
        return cls(
            target=target,
            n=len(labels),
            only_base_right=int(lost.sum()),
            only_head_right=int(gained.sum()),
            flips=int((base != head).sum()),
            lost=lost,
            gained=gained,
        )

    @property
    def drop(self) -> float:
        """Share of samples by which head is worse, -1..1."""
        return (self.only_base_right - self.only_head_right) / self.n


def accuracy(
    pairings: Sequence[Pairing],
    margin: float,
    *,
    names: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> list[Check]:
    """Judge non-inferiority of all comparisons that one verdict makes: failing is adjusted over them.

    Args:
        pairings: On the same number of samples each.
        margin: Largest acceptable drop, 0..1.
        names: Of the checks; ``accuracy`` for all by default.
        classes: Names of the classes, to tell flips by class.

    Raises:
        DataError: There are no samples, or not equally many.
    """
    sizes = {pairing.n for pairing in pairings}
    if sizes == {0}:
        raise DataError("there are no test samples", "give the test split at least one sample")
    if len(sizes) != 1:
        raise DataError(
            f"targets were scored on different numbers of samples: {sorted(sizes)}",
            "score all on one test split",
        )
    (n,) = sizes
    b = np.array([pairing.only_base_right for pairing in pairings], dtype=np.int64)
    c = np.array([pairing.only_head_right for pairing in pairings], dtype=np.int64)
    lows, highs = noninferiority.bounds(b, c, n, margin)
    discordant = _expected_discordance(pairings)
    facts = {
        "margin": margin,
        "certifiable_margin": noninferiority.certifiable_margin(n, discordant),
        "samples": n,
        "samples_needed": noninferiority.samples_needed(margin, discordant, comparisons=len(pairings)),
    }
    decided = noninferiority.decide(b, c, n, margin).tolist()
    return [
        _accuracy(pairing, decision, {"drop": pairing.drop, "low": low, "high": high, **facts}, name, classes)
        for pairing, decision, low, high, name in zip(
            pairings, decided, lows, highs, names or ["accuracy"] * len(pairings), strict=True
        )
    ]


def at_most(
    name: str, target: str, value: int, reference: int, limit: float, *, of: str, unit: str = "bytes"
) -> Check:
    """Check exactly that `value` is at most `limit` times `reference`, which `of` describes."""
    ratio = value / reference if reference else float("inf") if value else 1.0
    return Check(
        name=name,
        target=target,
        outcome=_limit(value <= limit * reference),
        detail=f"{value:,} {unit}, {ratio:.2f} of {of} {reference:,}; at most {limit:g}",
        values={"value": value, "reference": reference, "ratio": ratio, "limit": limit},
    )


def int8_shares(
    artifact: ExportedArtifact, report: RuntimeReport, on_purpose: Sequence[str]
) -> tuple[float, float]:
    """Return the int8 share of MAC ops, 0..1, in the file and as the runtime executes it.

    Args:
        artifact: The file.
        report: What the runtime says of itself; one that does not tell counts as executing all.
        on_purpose: Layers that are in float on purpose, and do not count.
    """
    found, executed = artifact.coverage, report.mac_precision
    wanted = max(found.mac_ops - len(on_purpose), 1)
    in_file = min(found.int8_mac_ops / wanted, 1.0) if found.mac_ops else 1.0
    ran = max(sum(executed.values()) - len(on_purpose), 1)
    return in_file, min(executed.get("int8", 0) / ran, 1.0) if executed else 1.0


def coverage(target: str, in_file: float, executed: float, limit: float, detail: str) -> Check:
    """Check the int8 share of MAC ops, 0..1, twice: as the file says, and as the runtime executes it."""
    return Check(
        name="coverage",
        target=target,
        outcome=_limit(min(in_file, executed) >= limit),
        detail=detail,
        values={"file": in_file, "executed": executed, "limit": limit},
    )


def budget(target: str, result: BudgetResult) -> Check:
    """Check exactly that a device's budget is met; a miss names the layer that takes most of it."""
    unit = {"bytes": "bytes", "ms": "ms", "ops": "operators on the CPU"}[result.unit]
    value, limit = (f"{x:.3g}" if result.unit == "ms" else f"{x:,.0f}" for x in (result.value, result.limit))
    used = f" ({result.value / result.limit:.0%} of it)" if result.limit else ""
    detail = f"{value} {unit}, the profile's budget is {limit}{used}"
    if result.culprit and not result.met:
        detail += f": {'' if result.unit == 'ops' else 'most of it takes '}{result.culprit}"
    return Check(
        name=f"{result.name} budget",
        target=target,
        outcome=_limit(result.met),
        detail=detail,
        values={"value": result.value, "limit": result.limit},
    )


def parity(
    target: str, samples: int, flips: int, confident_flips: int, limit: float, rest: str = ""
) -> Check:
    """Check that the file answers as the program that it came from does, wherever that one is sure."""
    agreement = 1.0 - flips / samples
    return Check(
        name="parity",
        target=target,
        outcome=_limit(confident_flips / samples <= limit),
        detail=f"agrees with the program it came from on {agreement:.2%} of {samples} samples; "
        f"{flips} flips, {confident_flips} of them against a clear margin (at most "
        f"{100 * limit:.3g}% of the samples){rest}",
        values={"agreement": agreement, "confident_flips": confident_flips, "limit": limit},
    )


def overall(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the worst of the outcomes: fail, else inconclusive, else pass."""
    ranking: tuple[Outcome, ...] = ("fail", "inconclusive")
    return next((worst for worst in ranking if worst in outcomes), "pass")


def _accuracy(
    pairing: Pairing, decision: int, figures: dict[str, float], name: str, classes: Sequence[str]
) -> Check:
    outcomes: dict[int, Outcome] = {1: "pass", 0: "inconclusive", -1: "fail"}
    b, c = pairing.only_base_right, pairing.only_head_right
    mcnemar = mcnemar_exact(b, c)
    low, high, margin = figures["low"], figures["high"], figures["margin"]
    detail = (
        f"drop {_points(pairing.drop)} [{_points(low)}, {_points(high)}] points (one-sided 95 % bounds), "
        f"margin {_points(margin)}; {pairing.flips} predictions differ ({b} became wrong, {c} became right"
        f"{_by_class(pairing, classes)}), McNemar p = {mcnemar:.2g}; {pairing.n} samples that differ as often can "
        f"certify {_points(figures['certifiable_margin'])}, to decide this margin takes about "
        f"{figures['samples_needed']:,.0f}"
    )
    outcome = outcomes[decision]
    if outcome == "fail":
        detail = f"certainly worse than the margin: {detail}"
    if outcome == "inconclusive" and noninferiority.too_few(pairing.n, margin):
        detail = f"too few samples for this margin, not even equal predictions would pass: {detail}"
    elif outcome == "inconclusive":
        detail = f"neither below nor above the margin with certainty: {detail}"
    values = {
        **figures,
        "only_base_right": b,
        "only_head_right": c,
        "flips": pairing.flips,
        "mcnemar_p": mcnemar,
    }
    return Check(name=name, target=pairing.target, outcome=outcome, detail=detail, values=values)


def _by_class(pairing: Pairing, classes: Sequence[str]) -> str:
    """Tell which classes the changes belong to, the most concerned first."""
    if not classes:
        return ""
    changed = pairing.lost + pairing.gained
    concerned = [int(i) for i in np.argsort(-changed, kind="stable") if changed[i]]
    if not concerned:
        return ""
    told = [f"{classes[i]} -{pairing.lost[i]} +{pairing.gained[i]}" for i in concerned[:_NAMED_CLASSES]]
    rest = len(concerned) - len(told)
    return "; by class: " + ", ".join(told) + (f" and {rest} more" if rest else "")


def _expected_discordance(pairings: Sequence[Pairing]) -> float:
    """Return the share of discordant pairs to reckon with, by the most discordant of the comparisons."""
    discordant = max(
        noninferiority.expected_discordance(p.only_base_right, p.only_head_right, p.n) for p in pairings
    )
    # Two digits are all that such an estimate is good for, and let repeated questions share the answer.
    return float(f"{discordant:.2g}")


def _limit(holds: bool) -> Outcome:
    return "pass" if holds else "fail"


def _points(share: float) -> str:
    return f"{100 * share:.2f}"
