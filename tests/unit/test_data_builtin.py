"""The builtin digits, calibration draws and subsets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeft import data, recipe
from edgeft.calibration import CalibrationRecipe
from edgeft.errors import DataError
from edgeft.preprocessing import ImagePreprocessing

GREY = ImagePreprocessing(size=32, resize=32, channels=1, mean=(0.5,), std=(0.5,))
DIGITS = recipe.Task(data="builtin:digits")


@pytest.fixture(scope="module")
def splits():
    return data.load(DIGITS, GREY, base=Path(), seed=0)


def calibration(samples: int, sampling: str) -> CalibrationRecipe:
    return CalibrationRecipe(schema=1, id="c", title="t", samples=samples, sampling=sampling)


def test_digits_are_five_to_nine_and_the_source_the_others(splits) -> None:
    assert splits.classes == ("5", "6", "7", "8", "9")
    assert len(splits.train) + len(splits.val) + len(splits.test) == 896
    source = data.scan(recipe.Task(data="builtin:digits-source"), Path())
    assert source.classes == ("0", "1", "2", "3", "4") and source.samples == 901
    assert data.scan(DIGITS, Path()).samples == 896


def test_pixels_are_the_grey_values_of_the_data_set(splits) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    entry = data.to_manifest(splits)["splits"]["train"][0]
    original = digits.images[int(entry["source"])]
    assert digits.target[int(entry["source"])] == entry["label"] + 5
    expected = Image.fromarray(np.rint(original * 255 / 16).astype(np.uint8)).resize(
        (32, 32), Image.Resampling.BILINEAR
    )
    assert np.array_equal(splits.train.pixels(0)[:, :, 0], np.asarray(expected))


def test_a_manifest_brings_the_digits_back(splits) -> None:
    manifest = json.loads(json.dumps(data.to_manifest(splits)))
    again = data.from_manifest(manifest, DIGITS, GREY, base=Path())
    assert again.fingerprint == splits.fingerprint
    assert np.array_equal(again.test.pixels(5), splits.test.pixels(5))


def test_an_unknown_builtin_names_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'builtin:digits'"):
        data.scan(recipe.Task(data="builtin:digit"), Path())


def test_stratified_calibration_keeps_the_class_shares(splits) -> None:
    drawn = data.calibration_samples(splits.train, calibration(101, "stratified"), seed=1)
    shares = np.bincount(drawn.labels) / 101 - np.bincount(splits.train.labels) / len(splits.train)
    assert len(drawn) == 101 and np.abs(shares).max() < 1 / 101
    assert set(drawn.ids) <= set(splits.train.ids)


@pytest.mark.parametrize("sampling", ["random", "stratified"])
def test_calibration_is_seeded_and_without_repetition(splits, sampling: str) -> None:
    first, again, other = (
        data.calibration_samples(splits.train, calibration(64, sampling), seed=s).indices for s in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) == 64


def test_asking_for_more_calibration_samples_than_there_are_is_an_error(splits) -> None:
    with pytest.raises(DataError, match=f"asks for 5000 samples; the training split has {len(splits.train)}"):
        data.calibration_samples(splits.train, calibration(5000, "random"), seed=0)


def test_a_subset_is_a_view_in_its_own_order(splits) -> None:
    some = data.subset(splits.train, [5, 2])
    assert len(some) == 2
    assert list(some.ids) == [splits.train.ids[5], splits.train.ids[2]]
    assert some.labels.tolist() == splits.train.labels[[5, 2]].tolist()
    assert np.array_equal(some.pixels(1), splits.train.pixels(2))


def test_data_is_free_of_torch() -> None:
    code = "import sys, edgeft.data; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
