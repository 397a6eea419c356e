"""The samples that releases are compared on, and predictions for them, as text that is small and diffs well.

Everything per sample is in the order of the samples' content ids, whatever order they were scored in, and broken into
lines of 64 samples: a changed prediction changes one line, and another order of files changes none.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeft.errors import ConfigError
from edgeft.schema import Strict
from edgeft.types import IntArray

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_PER_LINE: Final = 64
_IDS_PER_LINE: Final = 10
# With six, one sample in 170 shared its digits with another one of 100,000.
_ID_DIGITS: Final = 10
_REPLACE: Final = (
    "to start over with this data: remove the file, then `edgeft gate REPORT --baseline FILE --update`"
)


class SampleSet(Strict):
    """The test samples: which they are, what they are, and how they become inputs.

    `ids` holds the first ten hex digits of every sample's SHA-256, to tell which samples differ; `sha256` is over
    all the whole ids and decides. `labels` are class indices. The order is that of ids, then labels.
    """

    count: int
    sha256: str
    classes: list[str]
    preprocessing: dict[str, Any] | None
    """As far as it does not depend on training data; null if the release does not tell."""
    ids: list[str]
    labels: list[str]

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        labels: IntArray,
        classes: Sequence[str],
        preprocessing: Mapping[str, Any] | None,
    ) -> tuple[SampleSet, npt.NDArray[np.intp]]:
        """Describe samples with content ids (N) and labels (N,); also return the order that they are stored in."""
        names = np.asarray(ids, dtype=np.str_)
        order = np.lexsort((labels, names))
        in_order = names[order].tolist()
        short = [name[:_ID_DIGITS] for name in in_order]
        sample_set = cls(
            count=len(in_order),
            sha256=hashlib.sha256("\n".join(in_order).encode()).hexdigest(),
            classes=list(classes),
            preprocessing=None if preprocessing is None else _without_statistics(preprocessing),
            ids=[
                " ".join(short[start : start + _IDS_PER_LINE])
                for start in range(0, len(short), _IDS_PER_LINE)
            ],
            labels=encode(labels[order], len(classes)),
        )
        return sample_set, order

    def label_indices(self, where: str) -> IntArray:
        """Return class indices (N,). Raises `ConfigError` if the text is damaged; `where` names its origin."""
        return decode(self.labels, len(self.classes), self.count, f"{where}: labels")

    def require_same(self, head: SampleSet, where: str) -> None:
        """Check that `head` can be paired with this set, sample by sample.

        Args:
            head: Samples of the release that is judged.
            where: What this set was read from, for messages.

        Raises:
            ConfigError: Classes, samples, labels or preprocessing differ; the message says by how much.
        """
        if head.classes != self.classes:
            raise ConfigError(
                f"{where}: made for the classes {_listed(self.classes)}, the report is about "
                f"{_listed(head.classes)}: their predictions cannot be paired",
                _REPLACE,
            )
        if head.sha256 != self.sha256:
            ours, theirs = Counter(_words(self.ids)), Counter(_words(head.ids))
            gone, new = (ours - theirs).total(), (theirs - ours).total()
            raise ConfigError(
                f"{where}: made with other test samples: of its {self.count}, {gone} are not in the report, "
                f"which has {new} others ({head.count} in all): accuracies are compared on the same samples",
                f"evaluate on the baseline's test split; {_REPLACE}",
            )
        relabelled = int((head.label_indices("the report") != self.label_indices(where)).sum())
        if relabelled:
            raise ConfigError(
                f"{where}: {relabelled} of {self.count} test samples have another label there than in the report",
                _REPLACE,
            )
        if head.preprocessing and self.preprocessing and head.preprocessing != self.preprocessing:
            keys = sorted(head.preprocessing.keys() | self.preprocessing.keys())
            changed = [
                f"{key} {self.preprocessing.get(key)!r} -> {head.preprocessing.get(key)!r}"
                for key in keys
                if head.preprocessing.get(key) != self.preprocessing.get(key)
            ]
            raise ConfigError(f"{where}: made with other preprocessing: {'; '.join(changed)}", _REPLACE)


def encode(indices: IntArray, classes: int) -> list[str]:
    """Return class indices (N,) as lines of 64, each index in as many base-36 digits as `classes` needs."""
    width = _width(classes)
    digits = np.array(list(_DIGITS))
    places = 36 ** np.arange(width - 1, -1, -1)
    text = "".join(digits[(indices[:, None] // places) % 36].ravel().tolist())
    step = _PER_LINE * width
    return [text[start : start + step] for start in range(0, len(text), step)]


def decode(lines: Sequence[str], classes: int, count: int, where: str) -> IntArray:
    """Return what `encode` wrote: class indices (count,).

    Raises:
        ConfigError: It is not that many class indices; `where` names its origin.
    """
    width = _width(classes)
    text = "".join(lines)
    value = {digit: i for i, digit in enumerate(_DIGITS)}
    if len(text) == count * width and set(text) <= value.keys():
        digits = np.array([value[digit] for digit in text], dtype=np.int64).reshape(count, width)
        indices: IntArray = digits @ 36 ** np.arange(width - 1, -1, -1)
        if not count or indices.max() < classes:
            return indices
    raise ConfigError(
        f"{where}: not {count} indices of {classes} classes: the file is damaged",
        "take it from version control",
    )


def _width(classes: int) -> int:
    width = 1
    while 36**width < classes:
        width += 1
    return width


def _words(lines: Sequence[str]) -> list[str]:
    return " ".join(lines).split()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _without_statistics(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what does not change the samples, so that releases stay comparable.

    That is what a table's preprocessing learns from training data, and who normalises a picture, device or network.
    """
    plain: dict[str, Any] = json.loads(json.dumps(preprocessing))  # tuples become what they are in a file
    plain.pop("embedded", None)
    if plain.get("kind") == "table":
        plain["columns"] = [{key: column[key] for key in ("type", "name")} for column in plain["columns"]]
    return plain
