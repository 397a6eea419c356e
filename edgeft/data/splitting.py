"""Cut validation and test samples out of what a data set has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeft import recipe
from edgeft.data.sources import SPLITS, S


def split(groups: Mapping[str, tuple[S, ...]], task: recipe.Task, seed: int) -> dict[str, tuple[S, ...]]:
    """Cut the missing splits from ``all`` or ``train``: class by class, seeded, at least one sample of each.

    Not scikit-learn's stratified split: that one may leave a small class without a sample in a small split.

    Args:
        groups: Samples by the splits that the data set comes with, enough of each class (`check_counts`).
        task: Names the fractions of val and test.
        seed: Of the draw, which depends on nothing else.
    """
    pool = groups.get("all") or groups["train"]
    fractions = {"val": task.val_fraction, "test": task.test_fraction}
    cut = {name: fraction for name, fraction in fractions.items() if name not in groups}
    parts: dict[str, list[int]] = {name: [] for name in ("train", *cut)}
    labels = np.array([source.label for source in pool])
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng((seed, label)).permutation(members)
        start = 0
        for position, (name, fraction) in enumerate(cut.items(), start=1):
            # Room is left for one sample in each split that follows, train included.
            room = len(order) - start - (len(cut) - position + 1)
            size = min(max(1, round(fraction * len(members))), room)
            parts[name] += order[start : start + size].tolist()
            start += size
        parts["train"] += order[start:].tolist()
    made = {name: tuple(pool[index] for index in sorted(indices)) for name, indices in parts.items()}
    return {name: made.get(name) or groups[name] for name in SPLITS}
