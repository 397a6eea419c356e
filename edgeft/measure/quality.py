"""Predictions of an exported file, its accuracy, and its parity with the program that it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeft.errors import MeasurementError
from edgeft.measure.session import Session
from edgeft.measure.statistics import wilson_interval
from edgeft.target import TargetProfile
from edgeft.types import (
    AccuracyResult,
    ExportedArtifact,
    FloatArray,
    InputArray,
    IntArray,
    ParityResult,
    RuntimeReport,
)

# Quantized logits differ by whole steps; float32 arithmetic leaves them this share of a step beside, at most.
_HAIR = 1e-3


def predict(
    artifact: ExportedArtifact,
    profile: TargetProfile,
    inputs: InputArray,
    *,
    options: Mapping[str, str] | None = None,
) -> tuple[FloatArray, RuntimeReport]:
    """Run a file over samples, one at a time, in a fresh worker process.

    Args:
        artifact: The file; float32 and int8 alike.
        profile: Runtime, device, threads and options.
        inputs: Real model inputs, one row per sample.
        options: Runtime options over the profile's.

    Returns:
        Real-valued logits (N, K) and what the runtime said of itself.

    Raises:
        MissingDependencyError: The runtime is not installed.
        MeasurementError: There are no inputs, or the worker or its runtime failed.
    """
    if not len(inputs):
        raise MeasurementError(f"target {profile.id}: no inputs to predict")
    with Session(artifact, profile, options=options) as session:
        return session.predict(inputs), session.describe()


def accuracy(logits: FloatArray, labels: IntArray, ids: Sequence[str]) -> AccuracyResult:
    """Score logits (N, K) against labels (N,), with the Wilson 95 % interval and everything a pairing needs.

    Args:
        logits: Real-valued outputs, (N, K).
        labels: Class indices, (N,).
        ids: Content hashes of the samples, in the same order.

    Raises:
        MeasurementError: The lengths differ or are 0, or a logit is not finite.
    """
    require_scorable(logits, labels)
    if len(ids) != len(labels):
        raise MeasurementError(f"{len(labels)} labels and {len(ids)} ids; equal numbers are needed")
    predictions = np.argmax(logits, axis=1).astype(np.int64)
    right = int((predictions == labels).sum())
    low, high = wilson_interval(right, len(ids))
    return AccuracyResult(
        accuracy=right / len(ids),
        low=low,
        high=high,
        predictions=predictions,
        labels=np.asarray(labels, dtype=np.int64),
        ids=tuple(ids),
    )


def require_scorable(logits: FloatArray, labels: IntArray) -> None:
    """Check that logits (N, K) and labels (N,) belong together, N > 0, and that every logit is finite.

    Raises:
        MeasurementError: They do not, or one is not.
    """
    if len(logits) != len(labels) or not len(labels):
        raise MeasurementError(f"{len(logits)} logits, {len(labels)} labels; equal numbers are needed")
    if not np.isfinite(logits).all():
        raise MeasurementError(
            f"{int((~np.isfinite(logits)).any(axis=1).sum())} samples have a logit that is not finite"
        )


def parity(logits: FloatArray, reference: FloatArray, lsb: float) -> ParityResult:
    """Compare a file's logits with those of the program that it came from, both (N, K).

    Args:
        logits: Of the exported file.
        reference: Of the Q/DQ program, or of the float network for a float file.
        lsb: The unit of differences: the program's output scale. Float logits have none; give the step that
            an int8 output would have, (max - min) / 255 of the reference, so that results stay comparable.

    Raises:
        MeasurementError: Shapes differ, are empty, or `lsb` is not a positive number.
    """
    if logits.shape != reference.shape or logits.ndim != 2 or not logits.size:
        raise MeasurementError(
            f"logits of shape {logits.shape} against {reference.shape}; two equal (N, K) are needed"
        )
    if not (np.isfinite(lsb) and lsb > 0):
        raise MeasurementError(f"parity is counted in units of lsb; got {lsb}, a positive number is needed")
    difference = np.abs(logits.astype(np.float64) - reference.astype(np.float64)) / lsb
    flipped = np.argmax(logits, axis=1) != np.argmax(reference, axis=1)
    best = np.sort(reference.astype(np.float64), axis=1)
    margin = (best[:, -1] - best[:, -2]) / lsb if best.shape[1] > 1 else np.full(len(best), np.inf)
    flips = int(flipped.sum())
    return ParityResult(
        samples=len(logits),
        agreement=1.0 - flips / len(logits),
        flips=flips,
        confident_flips=int((flipped & (margin > 2.0 + _HAIR)).sum()),
        lsb=float(lsb),
        max_lsb=float(difference.max()),
        mean_lsb=float(difference.mean()),
        within_2_lsb=float((difference <= 2.0 + _HAIR).mean()),
    )
