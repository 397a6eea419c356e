"""What a timing is fed: shapes of files without a package, samples of folders, random numbers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeft.benchmarking import inputs, signatures
from edgeft.errors import ConfigError, DataError
from edgeft.preprocessing import ArrayPreprocessing, ImagePreprocessing
from edgeft.runtimes.base import batch_of
from edgeft.types import TensorSpec

IMAGES = ImagePreprocessing(size=4, resize=5, channels=1, mean=(0.5,), std=(0.25,))


def one(name: str = "x", shape: tuple = (None, 3, None), dtype: str = "float32", scale: float = 0.0) -> dict:
    return {"name": name, "shape": list(shape), "dtype": dtype, "scale": scale, "zero_point": 0}


def spec(shape: tuple[int, ...], dtype: str = "float32", scale: float = 0.0) -> TensorSpec:
    return TensorSpec(name="x", shape=shape, dtype=dtype, layout="native", scale=scale)


def test_free_dimensions_come_from_the_batch_the_user_and_the_samples():
    def resolve(batch=1, samples=None, **shapes):
        return signatures.resolve([one()], file="f", batch=batch, shapes=shapes, samples=samples)

    assert resolve(x=(2, 3, 9)) == [(2, 3, 9)]
    assert resolve(batch=4, samples=[np.zeros((7, 3, 5))]) == [(4, 3, 5)]
    assert resolve(samples=[np.zeros((3, 5))]) == [(1, 3, 5)]
    with pytest.raises(ConfigError, match=r"x \(\?, 3, \?\) float32|'x' is \(\?, 3, \?\)"):
        resolve()
    for wrong in ((2, 4, 9), (2, 3), (2, 3, 0)):
        with pytest.raises(ConfigError, match=r"f takes \(\?, 3, \?\)"):
            resolve(x=wrong)
    with pytest.raises(ConfigError, match="batch of 4 does not fit"):
        resolve(batch=4, x=(2, 3, 9))


def test_samples_become_whole_tensors():
    samples = np.arange(14, dtype=np.float32).reshape(7, 2)
    tensors = signatures.feeds(samples, spec((3, 2)), file="f")
    assert tensors.shape == (3, 3, 2)
    # Seven samples fill two tensors and a third of the next: it begins again with the first.
    np.testing.assert_array_equal(tensors.reshape(9, 2), samples[[0, 1, 2, 3, 4, 5, 6, 0, 1]])
    assert signatures.feeds(samples[0], spec((1, 2)), file="f").shape == (1, 1, 2)
    assert signatures.feeds(samples[None], spec((7, 2)), file="f").shape == (1, 7, 2)
    with pytest.raises(DataError, match=r"takes \(1, 3\), the samples are \(7, 2\)"):
        signatures.feeds(samples, spec((1, 3)), file="f")


@pytest.mark.parametrize(
    ("given", "dtype", "scale", "fed"),
    [
        ("float64", "float32", 0.0, "float32"),
        ("float32", "int8", 0.5, "float32"),  # the worker quantizes
        ("int8", "int8", 0.5, "int8"),
        ("int64", "int32", 0.0, "int32"),
        ("uint8", "float32", 0.0, None),
        ("float32", "int64", 0.0, None),
        ("uint8", "int8", 0.5, None),
    ],
)
def test_numbers_are_never_taken_for_other_ones(given, dtype, scale, fed):
    samples = np.ones((2, 3), given)
    if fed is None:
        with pytest.raises(DataError, match=f"takes {dtype}.*the samples are {given}"):
            signatures.feeds(samples, spec((1, 3), dtype, scale), file="f")
    else:
        assert signatures.feeds(samples, spec((1, 3), dtype, scale), file="f").dtype == fed


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="takes int32"):
        signatures.feeds(np.array([[2**40]]), spec((1, 1), "int32"), file="f")
    with pytest.raises(DataError, match="NaN"):
        signatures.feeds(np.array([[np.nan]]), spec((1, 1)), file="f")


def test_arrays_of_several_inputs_are_found_by_name(tmp_path: Path):
    for i in range(2):
        np.savez(tmp_path / f"{i}.npz", a=np.full((1, 2), i), b=np.full((1, 3), 10 * i))
    (a, b), origin = inputs.stored_arrays(tmp_path, ["a", "b"])
    assert (a.tolist(), b[:, 0].tolist()) == ([[0, 0], [1, 1]], [0, 10])
    assert origin == f"folder {tmp_path}"
    with pytest.raises(DataError, match="nothing for input 'c'"):
        inputs.stored_arrays(tmp_path, ["a", "c"])
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"broken\.npz: not an array file"):
        inputs.stored_arrays(tmp_path, ["a"])


def test_arrays_of_different_sizes_do_not_mix(tmp_path: Path):
    np.save(tmp_path / "1.npy", np.zeros((1, 2)))
    np.save(tmp_path / "2.npy", np.zeros((1, 3)))
    with pytest.raises(DataError, match="different shapes"):
        inputs.stored_arrays(tmp_path, ["x"])


def test_images_are_preprocessed_as_the_package_says(tmp_path: Path):
    for i in range(3):
        folder = tmp_path / f"class{i}"
        folder.mkdir()
        Image.fromarray(np.full((6, 8), 60 * i, np.uint8)).save(folder / "a.png")
    samples, origin = inputs.encoded_samples(tmp_path, IMAGES)
    assert samples.shape == (3, 1, 4, 4) and samples.dtype == np.float32
    np.testing.assert_allclose(samples[:, 0, 0, 0], (np.array([0, 60, 120]) / 255 - 0.5) / 0.25, rtol=1e-5)
    assert origin == f"folder {tmp_path} (3 images)"


def test_only_so_many_samples_are_taken_and_it_is_said(tmp_path: Path):
    many = inputs.MAX_SAMPLES + 5
    np.save(tmp_path / "x.npy", np.zeros((many, 1, 4, 4), np.float32))
    samples, origin = inputs.encoded_samples(tmp_path, IMAGES)
    assert len(samples) == inputs.MAX_SAMPLES
    assert origin.endswith(f"({inputs.MAX_SAMPLES} of {many} arrays)")


def test_a_folder_without_samples_is_an_error(tmp_path: Path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match="no samples in it"):
        inputs.encoded_samples(tmp_path, IMAGES)
    with pytest.raises(DataError, match=r"no \.npy or \.npz files"):
        inputs.stored_arrays(tmp_path, ["x"])
    with pytest.raises(DataError, match="no such file or folder"):
        inputs.stored_arrays(tmp_path / "absent", ["x"])


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (1, 0, 4, 4), (0,)])
def test_an_array_without_samples_is_named(tmp_path: Path, shape: tuple[int, ...]):
    file = tmp_path / "empty.npy"
    np.save(file, np.zeros(shape, np.float32))
    said = re.escape(f"{file}: an array of shape {shape} holds no sample")
    with pytest.raises(DataError, match=said):
        inputs.stored_arrays(file, ["x"])
    for preprocessing in (IMAGES, ArrayPreprocessing(shape=(1, 4, 4), dtype="float32")):
        with pytest.raises(DataError, match=said):
            inputs.encoded_samples(tmp_path, preprocessing)


def test_random_numbers_are_the_same_every_time_and_of_their_kind():
    tensors = [((1, 3), "float32"), ((1, 3), "int8"), ((1, 3), "int64"), ((1, 3), "bool")]
    made = inputs.random_samples(tensors, quantized=[False, True, False, False])
    again = inputs.random_samples(tensors, quantized=[False, True, False, False])
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
    assert [a.dtype.name for a in made] == ["float32", "int8", "int64", "bool"]
    assert np.abs(made[0]).max() <= 1 and np.ptp(made[1].astype(int)) > 100
    assert set(made[2].ravel()) <= {0, 1}


def test_feeds_follow_each_other_in_turn():
    described = [{"layout": "nk", "shape": [2, 1]}]
    samples = [np.arange(3)[:, None]]
    assert [batch_of(samples, i, described)[0].ravel().tolist() for i in range(3)] == [[0, 1], [2, 0], [1, 2]]
    whole = [{"layout": "native", "shape": [2, 1]}]
    assert batch_of([np.zeros((3, 2, 1))], 4, whole)[0].shape == (2, 1)
