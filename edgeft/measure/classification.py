"""How well a classifier answers, every figure with an interval, and which samples it gets wrong. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from edgeft.errors import MeasurementError
from edgeft.measure.quality import require_scorable
from edgeft.measure.statistics import auc_interval, score_interval, wilson_interval
from edgeft.types import (
    ClassificationMetrics,
    ClassMetrics,
    Estimate,
    FloatArray,
    IntArray,
    ReliabilityBin,
)

BINS = 15
RESAMPLES = 1000
_CHUNK = 2_000_000
"""Samples drawn at a time: bounds the memory of the resampling."""
_TOP = 5
_UNKNOWN = Estimate(value=0.0, low=0.0, high=1.0)
"""Where nothing was counted: any value is possible."""

Doubles = npt.NDArray[np.float64]


def metrics(
    logits: FloatArray, labels: IntArray, *, classes: Sequence[str], seed: int = 0
) -> ClassificationMetrics:
    """Score logits (N, K) against labels (N,).

    Proportions (accuracy, top 5, and a class's precision and recall) have Wilson's interval, the area under the ROC
    curve Newcombe's. Macro figures and F1 have Wilson's at the effective sample size that a bootstrap stratified
    by class finds, so that nothing collapses to a point where no sample is wrong; a class of few samples still
    makes them optimistic. The expected calibration error (Guo et al. 2017, 15 equally wide bins) rises under
    resampling; its interval is the basic bootstrap's, which takes that off.

    Args:
        logits: Real-valued outputs, (N, K).
        labels: Class indices 0..K-1, (N,).
        classes: The K class names.
        seed: Of the resampling.

    Raises:
        MeasurementError: Lengths differ or are 0, a label or the number of classes does not fit, or a logit is
            not finite.
    """
    labels = np.asarray(labels, dtype=np.int64)
    require_scorable(logits, labels)
    if logits.shape[1] != len(classes) or labels.min() < 0 or labels.max() >= len(classes):
        raise MeasurementError(
            f"logits of {logits.shape[1]} classes and labels {labels.min()}..{labels.max()} for "
            f"{len(classes)} class names; all must speak of the same classes"
        )
    answers = _answers(logits, labels)
    resampled = _resample(answers, len(classes), seed)
    counts = _Counts.of(answers, len(classes))
    support = counts.support[counts.support > 0]
    # The sample size of a mean over classes whose errors are alike: K^2 / sum(1 / n_k).
    size = len(support) ** 2 / float((1.0 / support).sum())

    def macro(values: Doubles, draws: Doubles, over: npt.NDArray[np.bool_]) -> Estimate:
        return _resampled(float(values[over].mean()), draws[:, over].mean(axis=1), size)

    occurring, labelled = counts.support + counts.predicted > 0, counts.support > 0
    return ClassificationMetrics(
        samples=len(labels),
        accuracy=_proportion(int(answers.right.sum()), len(labels)),
        balanced_accuracy=macro(counts.recall, resampled.counts.recall, labelled),
        macro_precision=macro(counts.precision, resampled.counts.precision, occurring),
        macro_recall=macro(counts.recall, resampled.counts.recall, occurring),
        macro_f1=macro(counts.f1, resampled.counts.f1, occurring),
        calibration_error=_calibration(answers, resampled.calibration_errors),
        top5_accuracy=_top(logits, labels) if len(classes) > _TOP else None,
        roc_auc=_roc_auc(logits, labels) if len(classes) == 2 and len(support) == 2 else None,
        per_class=tuple(_class(name, k, counts, resampled.counts.f1[:, k]) for k, name in enumerate(classes)),
        confusion=confusion_matrix(labels, answers.predictions, len(classes)),
        reliability=_reliability(answers),
    )


def probabilities(logits: FloatArray) -> Doubles:
    """Return the softmax of logits (N, K), in double precision."""
    shares: Doubles = special.softmax(np.asarray(logits, dtype=np.float64), axis=1)
    return shares


def confusion_matrix(labels: IntArray, predictions: IntArray, classes: int) -> IntArray:
    """Return how many samples of each label (rows) got each prediction (columns), (K, K)."""
    cells = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)


def hardest(logits: FloatArray, labels: IntArray, count: int = 12) -> IntArray:
    """Return the indices of the `count` samples with the highest cross-entropy, the worst first."""
    losses = -special.log_softmax(np.asarray(logits, dtype=np.float64), axis=1)[
        np.arange(len(labels)), labels
    ]
    return np.argsort(-losses, kind="stable")[:count].astype(np.int64)


def confusions(matrix: IntArray, count: int = 5) -> tuple[tuple[int, int], ...]:
    """Return the `count` most frequent mistakes of a confusion matrix (K, K) as (label, prediction), worst first."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:count]
    pairs = (divmod(int(cell), len(matrix)) for cell in order if errors.flat[cell])
    return tuple(pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """What a classifier said, per sample (N,): `bins` are those of `confidence`, the highest probability."""

    labels: IntArray
    predictions: IntArray
    right: npt.NDArray[np.bool_]
    confidence: Doubles
    bins: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """Samples per class, (K,) or (resamples, K), and the figures made of them; 0/0 is 0."""

    support: IntArray
    predicted: IntArray
    hits: IntArray

    @classmethod
    def of(cls, answers: _Answers, classes: int) -> _Counts:
        labels, predictions = answers.labels, answers.predictions
        return cls(
            support=np.bincount(labels, minlength=classes),
            predicted=np.bincount(predictions, minlength=classes),
            hits=np.bincount(labels[answers.right], minlength=classes),
        )

    @property
    def recall(self) -> Doubles:
        shares: Doubles = self.hits / np.maximum(self.support, 1)
        return shares

    @property
    def precision(self) -> Doubles:
        shares: Doubles = self.hits / np.maximum(self.predicted, 1)
        return shares

    @property
    def f1(self) -> Doubles:
        shares: Doubles = 2.0 * self.hits / np.maximum(self.support + self.predicted, 1)
        return shares


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resampled:
    """Counts (resamples, K) and calibration errors (resamples,) of data sets drawn from the given one."""

    counts: _Counts
    calibration_errors: Doubles


def _answers(logits: FloatArray, labels: IntArray) -> _Answers:
    predictions = np.argmax(logits, axis=1).astype(np.int64)
    confidence = probabilities(logits).max(axis=1)
    # Bin m of M holds ((m-1)/M, m/M], as in the paper.
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(np.int64)
    return _Answers(
        labels=labels, predictions=predictions, right=predictions == labels, confidence=confidence, bins=bins
    )


def _resample(answers: _Answers, classes: int, seed: int) -> _Resampled:
    """Draw samples with replacement within each class, so that the classes keep their sizes."""
    order = np.argsort(answers.labels, kind="stable")
    support = np.bincount(answers.labels, minlength=classes)
    size = np.repeat(support, support)
    start = np.repeat(np.cumsum(support) - support, support)
    # A sample counts for its prediction, in the upper half of the codes if that is right.
    codes = (answers.predictions + classes * answers.right)[order]
    bins, gaps = answers.bins[order], (answers.confidence - answers.right)[order]
    rng = np.random.default_rng(seed)
    counted, errors = [], []
    chunk = max(1, _CHUNK // len(order))
    for done in range(0, RESAMPLES, chunk):
        rows = min(chunk, RESAMPLES - done)
        drawn = start + rng.integers(0, size, (rows, len(order)))
        row = np.arange(rows)[:, None]
        codes_drawn = (codes[drawn] + 2 * classes * row).ravel()
        counted.append(np.bincount(codes_drawn, minlength=rows * 2 * classes).reshape(rows, 2, classes))
        bins_drawn = (bins[drawn] + BINS * row).ravel()
        sums = np.bincount(bins_drawn, weights=gaps[drawn].ravel(), minlength=rows * BINS)
        errors.append(np.abs(sums.reshape(rows, BINS)).sum(axis=1) / len(order))
    counts = np.concatenate(counted)
    return _Resampled(
        counts=_Counts(support=support, predicted=counts.sum(axis=1), hits=counts[:, 1]),
        calibration_errors=np.concatenate(errors),
    )


def _proportion(k: int, n: int) -> Estimate:
    low, high = wilson_interval(k, n)
    return Estimate(value=k / n, low=low, high=high)


def _resampled(value: float, draws: Doubles, size: float) -> Estimate:
    """Return Wilson's interval at the sample size at which a proportion would vary as `draws` do, else `size`."""
    variance = float(draws.var())
    if variance > 0 and 0 < value < 1:
        size = value * (1.0 - value) / variance
    low, high = score_interval(value, size)
    return Estimate(value=value, low=low, high=high)


def _calibration(answers: _Answers, draws: Doubles) -> Estimate:
    gaps = np.bincount(answers.bins, weights=answers.confidence - answers.right, minlength=BINS)
    error = float(np.abs(gaps).sum()) / len(answers.labels)
    low, high = 2.0 * error - np.quantile(draws, [0.975, 0.025])
    # A well calibrated model's error lies below almost all of its resamples: the estimate itself is then the bound.
    return Estimate(value=error, low=max(0.0, float(low)), high=max(error, float(high)))


def _top(logits: FloatArray, labels: IntArray) -> Estimate:
    """Count labels among the five highest logits; among equal logits the lower index wins, as in argmax."""
    best = np.argsort(-np.asarray(logits, dtype=np.float64), axis=1, kind="stable")[:, :_TOP]
    return _proportion(int((best == labels[:, None]).any(axis=1).sum()), len(labels))


def _roc_auc(logits: FloatArray, labels: IntArray) -> Estimate:
    """Return the share of pairs that are in order (Mann-Whitney), ties counting half."""
    from scipy import stats  # takes a second to import, and nothing else here needs it

    scores = np.asarray(logits, dtype=np.float64)
    ranks = stats.rankdata(scores[:, 1] - scores[:, 0])
    positive = labels == 1
    m, n = int(positive.sum()), int((~positive).sum())
    area = float((ranks[positive].sum() - m * (m + 1) / 2) / (m * n))
    low, high = auc_interval(area, m, n)
    return Estimate(value=area, low=low, high=high)


def _class(name: str, k: int, counts: _Counts, f1_draws: Doubles) -> ClassMetrics:
    support, predicted, hits = int(counts.support[k]), int(counts.predicted[k]), int(counts.hits[k])
    either = support + predicted
    bases = {"precision": predicted, "recall": support, "f1": either}
    return ClassMetrics(
        name=name,
        support=support,
        predicted=predicted,
        precision=_proportion(hits, predicted) if predicted else _UNKNOWN,
        recall=_proportion(hits, support) if support else _UNKNOWN,
        f1=_resampled(float(counts.f1[k]), f1_draws, either / 2) if either else _UNKNOWN,
        undefined=tuple(figure for figure, base in bases.items() if not base),
    )


def _reliability(answers: _Answers) -> tuple[ReliabilityBin, ...]:
    samples = np.bincount(answers.bins, minlength=BINS)
    confidence = np.bincount(answers.bins, weights=answers.confidence, minlength=BINS)
    right = np.bincount(answers.bins, weights=answers.right, minlength=BINS)
    return tuple(
        ReliabilityBin(samples=int(n), confidence=float(c / max(n, 1)), accuracy=float(r / max(n, 1)))
        for n, c, r in zip(samples, confidence, right, strict=True)
    )
