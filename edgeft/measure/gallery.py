"""Collect what a classifier gets wrong, so that people can look at it. No torch."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from edgeft.measure import classification
from edgeft.types import Confusion, Exhibit, FloatArray, Gallery, IntArray, Samples


def collect(
    logits: FloatArray,
    labels: IntArray,
    samples: Samples,
    *,
    classes: Sequence[str],
    hardest: int = 12,
    pairs: int = 5,
    per_pair: int = 4,
) -> Gallery:
    """Collect the samples worth a look: those of highest loss, and examples of the most frequent confusions.

    Args:
        logits: Real-valued outputs for `samples`, (N, K).
        labels: Class indices, (N,).
        samples: Where names and previews come from, in the same order.
        classes: The K class names.
        hardest: How many samples of highest loss.
        pairs: How many pairs of label and prediction.
        per_pair: How many examples of each pair.
    """
    labels = np.asarray(labels, dtype=np.int64)
    shares, predictions = classification.probabilities(logits), np.argmax(logits, axis=1)
    matrix = classification.confusion_matrix(labels, predictions, len(classes))

    def exhibit(index: int) -> Exhibit:
        preview = samples.preview(index)
        return Exhibit(
            index=index,
            id=samples.ids[index],
            name=samples.name(index),
            label=classes[labels[index]],
            prediction=classes[predictions[index]],
            probability=float(shares[index].max()),
            label_probability=float(shares[index, labels[index]]),
            png=base64.b64encode(preview).decode("ascii") if isinstance(preview, bytes) else "",
            text=preview if isinstance(preview, str) else "",
        )

    def confusion(label: int, prediction: int) -> Confusion:
        mistaken = np.flatnonzero((labels == label) & (predictions == prediction))
        surest = mistaken[np.argsort(-shares[mistaken, prediction], kind="stable")][:per_pair]
        return Confusion(
            label=classes[label],
            prediction=classes[prediction],
            count=len(mistaken),
            support=int(matrix[label].sum()),
            exhibits=tuple(exhibit(int(index)) for index in surest),
        )

    return Gallery(
        hardest=tuple(exhibit(int(index)) for index in classification.hardest(logits, labels, hardest)),
        confusions=tuple(confusion(*pair) for pair in classification.confusions(matrix, pairs)),
    )
