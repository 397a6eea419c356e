"""What a model is fed while it is timed: samples from a folder, or random numbers where they are asked for."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeft.benchmarking import labelled
from edgeft.data.folders import IMAGE_SUFFIXES
from edgeft.data.tables import read_table
from edgeft.errors import DataError
from edgeft.preprocessing import ArrayPreprocessing, ImagePreprocessing, Preprocessing, TextPreprocessing

Array = npt.NDArray[Any]

MAX_SAMPLES = 64
"""Samples of a folder that are read, in the order of their names; a timing feeds them in turn, over and over."""
_RANDOM_SAMPLES = 8
_ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
_TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})


def encoded_samples(source: Path, preprocessing: Preprocessing | ArrayPreprocessing) -> tuple[Array, str]:
    """Read samples for a package and make model inputs of them as the package itself does.

    Args:
        source: A folder of images at any depth, a text file with one text per line, a table, or one such file; also
            .npy files of inputs that are preprocessed already.
        preprocessing: The package's.

    Returns:
        Inputs (N, *input_shape), at most `MAX_SAMPLES`, and what they are, for people.

    Raises:
        DataError: There is nothing of the kind that the package takes, or a file is damaged or holds no sample.
    """
    if isinstance(preprocessing, ArrayPreprocessing):
        ready = _ready_inputs(source, preprocessing, frozenset())[:MAX_SAMPLES]
        return ready, f"{'folder' if source.is_dir() else 'file'} {source} ({len(ready)} arrays)"
    if isinstance(preprocessing, ImagePreprocessing):
        suffixes, what = IMAGE_SUFFIXES, "images"
    elif isinstance(preprocessing, TextPreprocessing):
        suffixes, what = frozenset({".txt"}), "lines"
    else:
        suffixes, what = _TABLE_SUFFIXES, "rows"
    files = _files(source, suffixes)
    samples: Array
    if not files:
        what, samples = "arrays", _ready_inputs(source, preprocessing, suffixes)
        found = len(samples)
    elif isinstance(preprocessing, ImagePreprocessing):
        found = len(files)
        with labelled.plainly():
            pixels = [preprocessing.decode(file) for file in files[:MAX_SAMPLES]]
        samples = preprocessing.normalize(np.stack(pixels))
    elif isinstance(preprocessing, TextPreprocessing):
        lines = [line for file in files for line in _lines(file)]
        found, samples = len(lines), preprocessing.encode(lines[:MAX_SAMPLES])
    else:
        tables = [read_table(file, str(file)) for file in files]
        rows = [(f"{t.name}:{line}", row) for t in tables for line, row in t.rows.items()]
        names, cells = zip(*rows[:MAX_SAMPLES], strict=True) if rows else ((), ())
        found, samples = len(rows), preprocessing.encode(cells, names=names)
    samples = samples[:MAX_SAMPLES]
    if not len(samples):
        raise DataError(f"{source}: no {what} in it", "give at least one sample")
    count = f"{found} {what}" if found == len(samples) else f"{len(samples)} of {found} {what}"
    return samples, f"{'folder' if source.is_dir() else 'file'} {source} ({count})"


def _ready_inputs(
    source: Path, preprocessing: Preprocessing | ArrayPreprocessing, suffixes: frozenset[str]
) -> Array:
    """Return .npy files of inputs that are preprocessed already."""
    files = _files(source, frozenset({".npy"}))
    if not files:
        raise DataError(
            f"{source}: no samples in it; the package takes {', '.join([*sorted(suffixes), '.npy of ready inputs'])}",
            "give a folder of such files, or leave --inputs out: the golden vectors are real samples too",
        )
    whole = _joined([_filled(_load(file), file) for file in files], source)
    shape, dtype = preprocessing.input_shape, np.dtype(preprocessing.input_dtype)
    if whole.shape[1:] != shape or whole.dtype.kind != dtype.kind:
        raise DataError(
            f"{source}: arrays {whole.shape} {whole.dtype}; the package takes {dtype} (N, "
            + ", ".join(map(str, shape))
            + ")"
        )
    return whole.astype(dtype)


def stored_arrays(source: Path, names: Sequence[str]) -> tuple[list[Array], str]:
    """Read samples for a file without a package: .npz files with one array per input, or .npy for a single input.

    With several inputs, ``<input>.npy`` holds the samples of one. Samples are along the first axis; an array
    without that axis is one sample (`edgeft.benchmarking.signatures.feeds` tells them apart).

    Returns:
        One array per name, and what they are, for people.

    Raises:
        DataError: There is no such file, one of the inputs is missing in it, or an array holds no sample.
    """
    files = _files(source, _ARRAY_SUFFIXES)
    if not files:
        raise DataError(
            f"{source}: no .npy or .npz files in it",
            "a file without a package says nothing of preprocessing: store arrays as the model takes them "
            f"(inputs: {', '.join(names)})",
        )
    archives = [file for file in files if file.suffix.lower() == ".npz"]
    parts: dict[str, list[Array]] = {name: [] for name in names}
    for file in archives or files:
        for name, array in _members(file, names).items():
            parts[name].append(_filled(array, file))
    if missing := [name for name, arrays in parts.items() if not arrays]:
        raise DataError(
            f"{source}: nothing for input {missing[0]!r}; the model's inputs are {', '.join(names)}",
            "store .npz files with one array per input, under these names",
        )
    joined = [_joined(parts[name], source) for name in names]
    return joined, f"folder {source}" if source.is_dir() else f"file {source}"


RANDOM: Final = "random (floats in [-1, 1), quantized integers over their range, other integers 0 or 1)"


def random_samples(
    tensors: Sequence[tuple[Sequence[int], str]], *, quantized: Sequence[bool] = ()
) -> list[Array]:
    """Return numbers without meaning, the same every time, as `RANDOM` says.

    Args:
        tensors: Shape of one sample, and dtype, of each input.
        quantized: Which of them hold quantized integers.

    Returns:
        One array (N, *shape) per input.
    """
    generator, made = np.random.default_rng(0), []
    for index, (shape, name) in enumerate(tensors):
        size, dtype = (_RANDOM_SAMPLES, *shape), np.dtype(name)
        if dtype.kind == "f":
            made.append(generator.uniform(-1, 1, size).astype(dtype))
        elif quantized and quantized[index]:
            limits = np.iinfo(name)
            made.append(generator.integers(limits.min, limits.max, size, dtype, endpoint=True))
        else:
            made.append(generator.integers(0, 2, size).astype(dtype))
    return made


def _files(source: Path, suffixes: frozenset[str]) -> list[Path]:
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    found = sorted(source.rglob("*")) if source.is_dir() else [source]
    return [path for path in found if path.suffix.lower() in suffixes and path.is_file()]


def _members(file: Path, names: Sequence[str]) -> Mapping[str, Array]:
    """Return input name -> array of one file."""
    loaded = _load(file)
    if isinstance(loaded, dict):
        return {name: loaded[name] for name in names if name in loaded}
    if len(names) == 1:
        return {names[0]: loaded}
    return {file.stem: loaded} if file.stem in names else {}


def _load(file: Path) -> Any:
    """Return the array of an .npy file, or name -> array of an .npz."""
    try:
        loaded = np.load(file, allow_pickle=False)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file}: not an array file ({error})", "write it with numpy.save or numpy.savez"
        ) from error


def _filled(array: Array, file: Path) -> Array:
    if not array.size:
        raise DataError(
            f"{file}: an array of shape {array.shape} holds no sample",
            "give at least one, along the first axis",
        )
    return array


def _joined(arrays: Sequence[Array], source: Path) -> Array:
    """Return arrays one after another along the first axis."""
    shapes = sorted({array.shape[1:] for array in arrays})
    if len(shapes) > 1 or not arrays[0].shape:
        raise DataError(
            f"{source}: arrays of different shapes: {', '.join(map(str, shapes))}",
            "a timing runs at one size: give samples of equal shape",
        )
    return np.concatenate(arrays)


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})", "texts are UTF-8, one per line") from error
