"""Try a package on samples of one's own, through the runtime that it was measured with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgeft import measure
from edgeft.data.folders import IMAGE_SUFFIXES
from edgeft.data.tables import TABLE_SUFFIXES, read_table
from edgeft.errors import DataError
from edgeft.measure.session import Session
from edgeft.package.reading import Package
from edgeft.preprocessing import (
    ArrayPreprocessing,
    ImagePreprocessing,
    Preprocessing,
    TabularPreprocessing,
    TextPreprocessing,
)
from edgeft.types import FloatArray, InputArray

_CHUNK: Final = 128
"""Samples that are in memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a package takes a sample for: labels and their probabilities (0..1), the likeliest first."""

    sample: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(package: Package, samples: Sequence[str], *, top: int = 5) -> Iterator[Prediction]:
    """Classify samples, in the order given.

    Args:
        package: What `read` returned.
        samples: Pictures or folders of pictures (at any depth); texts or .txt files of one text per line; rows as
            ``column=cell,column=cell`` or tables of them; .npy files for a package of a file made elsewhere, whose
            outputs are then told as they are.
        top: How many classes to tell of each.

    Raises:
        DataError: A sample is missing, damaged or not what the package takes.
        MissingDependencyError: The runtime is not installed, or this CPU is below the package's ISA floor.
        MeasurementError: The runtime failed.
    """
    if package.manifest["isa_floor"]:
        measure.check_isa_floor(package.profile)
    found = list(_listed(samples, package.preprocessing))
    with Session(package.artifact, package.profile) as session:
        for start in range(0, len(found), _CHUNK):
            chunk = found[start : start + _CHUNK]
            chances = session.predict(_encoded(chunk, package.preprocessing))
            if not isinstance(package.preprocessing, ArrayPreprocessing):
                chances = _softmax(chances)
            for (name, _), row in zip(chunk, chances, strict=True):
                best = np.argsort(-row, kind="stable")[:top]
                yield Prediction(
                    sample=name,
                    labels=tuple(package.labels[index] for index in best),
                    probabilities=tuple(float(row[index]) for index in best),
                )


_Sample = tuple[str, Path | str | dict[str, str]]
"""What to call it, and the picture's path, the text or the row."""


def _listed(samples: Sequence[str], preprocessing: Preprocessing | ArrayPreprocessing) -> Iterator[_Sample]:
    each: Callable[[str], Iterator[_Sample]]
    if isinstance(preprocessing, ImagePreprocessing):
        each = _pictures
    elif isinstance(preprocessing, ArrayPreprocessing):
        each = _arrays
    elif isinstance(preprocessing, TextPreprocessing):
        each = _texts
    else:
        each = _rows
    for sample in samples:
        yield from each(sample)


def _pictures(sample: str) -> Iterator[_Sample]:
    path = Path(sample)
    if not path.exists():
        raise DataError(f"{sample}: no such file or folder", "this package takes pictures")
    if not path.is_dir():
        yield sample, path
        return
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"{sample}: no pictures in it", f"allowed are {', '.join(sorted(IMAGE_SUFFIXES))}")
    yield from ((str(file), file) for file in files)


def _arrays(sample: str) -> Iterator[_Sample]:
    if Path(sample).suffix.lower() != ".npy" or not Path(sample).is_file():
        raise DataError(
            f"{sample}: not an .npy file",
            "this package's file was made elsewhere and takes arrays: store one sample with numpy.save",
        )
    yield sample, Path(sample)


def _texts(sample: str) -> Iterator[_Sample]:
    path = Path(sample)
    if path.suffix.lower() != ".txt":
        yield sample, sample
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{sample}: cannot be read ({error})", "texts are UTF-8, one per line") from error
    yield from ((f"{sample}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip())


def _rows(sample: str) -> Iterator[_Sample]:
    if Path(sample).suffix.lower() in TABLE_SUFFIXES:
        table = read_table(Path(sample), sample)
        yield from ((f"{sample}:{line}", dict(row)) for line, row in table.rows.items())
        return
    cells = [cell.partition("=") for cell in sample.split(",")]
    if not all(separator for _, separator, _ in cells):
        raise DataError(
            f"{sample!r}: not a row of a table",
            f"write column=cell,column=cell, or give a table ({', '.join(TABLE_SUFFIXES)})",
        )
    yield sample, {name.strip(): cell for name, _, cell in cells}


def _encoded(chunk: Sequence[_Sample], preprocessing: Preprocessing | ArrayPreprocessing) -> InputArray:
    names = [name for name, _ in chunk]
    if isinstance(preprocessing, ArrayPreprocessing):
        return np.concatenate([_one_array(name, preprocessing) for name in names])
    if isinstance(preprocessing, ImagePreprocessing):
        try:
            pixels = [preprocessing.decode(Path(str(path)), name=name) for name, path in chunk]
        except DataError as error:
            raise DataError(error.message, "remove or replace it") from error
        return preprocessing.normalize(np.stack(pixels))
    if isinstance(preprocessing, TabularPreprocessing):
        return preprocessing.encode([row for _, row in chunk if isinstance(row, dict)], names=names)
    return preprocessing.encode([str(text) for _, text in chunk])


def _one_array(name: str, preprocessing: ArrayPreprocessing) -> InputArray:
    array: InputArray = preprocessing.load([Path(name)])
    if len(array) != 1:
        raise DataError(f"{name}: holds {len(array)} samples", "store each in a file of its own")
    return array


def _softmax(logits: FloatArray) -> FloatArray:
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), dtype=np.float32)
