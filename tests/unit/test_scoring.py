"""Accuracy of a package on labelled data: the same figures whatever the workers, and clear refusals."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from color_packages import COLORS, paint, paint_all, write_color_package, write_linear_package
from PIL import Image
from tiny_packages import rehash

from edgeft import data, measure, package, recipe
from edgeft.benchmarking import labelled, scoring
from edgeft.benchmarking.labelled import Columns
from edgeft.errors import DataError, MeasurementError
from edgeft.preprocessing import TabularPreprocessing, TextPreprocessing


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> package.Package:
    return package.read(write_color_package(tmp_path_factory.mktemp("package") / "colors"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return paint_all(tmp_path / "pictures", mistakes=1)


def score(opened, path, *, only=None, columns=None, **settings):
    samples = labelled.read(opened, path, columns=columns)
    if only is not None:
        samples = labelled.select(samples, only, str(path))
    return scoring.score(opened, samples, **settings)[0]


def test_every_sample_is_kept_whatever_the_number_of_workers(colors, pictures):
    seen = []
    one = score(colors, pictures, workers=1)
    many = score(
        colors, pictures, workers=3, progress=lambda text, *, done, total: seen.append((done, total))
    )
    files = [file for color in sorted(COLORS) for file in sorted((pictures / color).iterdir())]
    assert one.ids == many.ids == tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert one.labels.tolist() == [COLORS.index(file.parent.name) for file in files]
    wrong = [file.name == "000.png" for file in files]
    assert (one.predictions != one.labels).tolist() == wrong
    assert np.array_equal(one.predictions, many.predictions)
    assert one.accuracy == 0.75 and one.low < 0.75 < one.high
    assert seen[-1] == (12, 12)


def test_it_equals_predicting_all_samples_in_one_worker(colors, pictures):
    samples = labelled.read(colors, pictures)
    logits, _ = measure.predict(colors.artifact, colors.profile, samples.inputs(range(len(samples))))
    expected = measure.accuracy(logits, samples.labels, samples.ids)
    assert np.array_equal(score(colors, pictures).predictions, expected.predictions)


def test_samples_of_an_earlier_split_are_found_again(colors, pictures):
    task = recipe.Task(data=str(pictures))
    splits = data.load(task, colors.preprocessing, base=Path(), seed=3)
    again = score(colors, pictures, only=splits.test.ids)
    assert again.ids == tuple(splits.test.ids)
    # The data set sorts its classes by name, the package lists them in its own order.
    assert [COLORS[i] for i in again.labels] == [splits.classes[i] for i in splits.test.labels]


def test_of_two_samples_with_one_content_each_is_scored(colors, pictures):
    shutil.copyfile(pictures / "red" / "001.png", pictures / "green" / "copy.png")
    identity = hashlib.sha256((pictures / "red" / "001.png").read_bytes()).hexdigest()
    twice = score(colors, pictures, only=[identity, identity])
    assert sorted(twice.labels) == [0, 1] and twice.accuracy == 0.5
    with pytest.raises(DataError, match=f"1 of the 1 samples .* SHA-256 {identity}"):
        score(colors, pictures, only=[identity] * 3)
    with pytest.raises(DataError, match="zero samples"):
        score(colors, pictures, only=[])


def test_beginnings_of_ids_are_enough_unless_they_fit_two_samples(colors, pictures):
    ids = score(colors, pictures).ids
    assert score(colors, pictures, only=[ids[3][:9], ids[0][:9]]).ids == (ids[3], ids[0])
    shared = next(digit for digit in "0123456789abcdef" if sum(name[0] == digit for name in ids) > 1)
    with pytest.raises(DataError, match=f"different samples have a SHA-256 that begins with {shared}"):
        score(colors, pictures, only=[shared])


def test_of_a_data_set_with_splits_the_test_is_scored(colors, tmp_path):
    paint_all(tmp_path / "set" / "train", 2)
    with pytest.raises(DataError, match="has train and no test"):
        score(colors, tmp_path / "set")
    paint_all(tmp_path / "set" / "test", 1)
    assert len(score(colors, tmp_path / "set").ids) == 3


def test_a_table_of_pictures_with_columns_of_other_names(colors, pictures, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("file,color\npictures/red/001.png,red\npictures/blue/002.png,blue\n")
    result = score(colors, table, columns=Columns(path="file", label="color"))
    assert result.labels.tolist() == result.predictions.tolist() == [0, 2]
    with pytest.raises(DataError, match="there is no column 'path'") as error:
        score(colors, table)
    assert "task." not in str(error.value)


def test_rows_and_texts_have_the_ids_and_inputs_of_training(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"[UNK]": 0, "cold": 1, "warm": 2, "day": 3}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    text = TextPreprocessing(tokenizer=tokenizer.to_str(), max_length=4, pad_id=0)
    rows = [{"t": str(n), "sky": "clear" if n % 2 else "grey", "text": f"warm day {n}"} for n in range(9)]
    table = tmp_path / "days.csv"
    lines = [f"{n},{row['sky']},{row['text']},{'hot' if n > 4 else 'cold'}" for n, row in enumerate(rows)]
    table.write_text("\n".join(["t,sky,text,label", *lines]))
    tabular = TabularPreprocessing.fitted(rows, ["t", "sky"], ["t"])
    for kind, preprocessing, columns in (
        ("text-classification", text, {}),
        ("tabular-classification", tabular, {"numeric_columns": ["t"], "categorical_columns": ["sky"]}),
    ):
        made = package.read(write_linear_package(tmp_path / kind, preprocessing, ("cold", "hot")))
        result = score(made, table)
        task = recipe.Task(kind=kind, data=str(table), val_fraction=0.3, test_fraction=0.3, **columns)
        splits = data.load(task, text if "text" in kind else None, base=Path(), seed=0)
        trained = {*splits.train.ids, *splits.val.ids, *splits.test.ids}
        assert set(result.ids) == trained and len(result.ids) == 9
        assert result.labels.tolist() == [0] * 5 + [1] * 4
        weight = np.random.default_rng(0).normal(size=(preprocessing.input_shape[0], 2)).astype(np.float32)
        encoded = text.encode([row["text"] for row in rows]) if "text" in kind else tabular.encode(rows)
        assert result.predictions.tolist() == (encoded @ weight).argmax(axis=1).tolist()


def test_classes_of_another_task_are_refused(colors, pictures):
    paint(pictures / "gren" / "0.png", "green", 0)
    with pytest.raises(DataError, match=r"class 'gren' \(did you mean 'green'\?\) is none of the package's"):
        score(colors, pictures)


def test_a_class_without_samples_is_no_mistake(colors, pictures):
    shutil.rmtree(pictures / "red")
    assert set(score(colors, pictures).labels) == {1, 2}


@pytest.mark.parametrize("place", ["missing", "empty", "empty-classes", "stray"])
def test_data_without_samples_is_refused(colors, tmp_path, place):
    folder = tmp_path / place
    expected = {
        "missing": "does not exist",
        "empty": "is empty",
        "empty-classes": "is empty",
        "stray": "1 file.s. or row.s. that are no samples",
    }
    if place != "missing":
        folder.mkdir()
    if place == "empty-classes":
        for color in COLORS:
            (folder / color).mkdir()
    if place == "stray":
        paint_all(folder)
        (folder / "red" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=expected[place]) as error:
        score(colors, folder)
    assert "task." not in str(error.value)


def test_a_broken_picture_is_named(colors, pictures):
    broken = pictures / "blue" / "002.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"blue/002\.png: cannot be read as an image") as error:
        score(colors, pictures, workers=2)
    assert error.value.hint == "remove or replace it"


def test_outputs_that_are_not_finite_name_their_sample(colors, pictures):
    Image.new("RGB", (8, 8)).save(pictures / "green" / "003.png")
    with pytest.raises(MeasurementError, match=r"green/003.png are not finite numbers \(1 of 12 samples\)"):
        score(colors, pictures)


def test_labels_that_the_model_does_not_have_are_refused(tmp_path, pictures):
    made = package.read(write_color_package(tmp_path / "p", (*COLORS, "infrared")))
    with pytest.raises(MeasurementError, match=r"\(1, 3\), the artifact says \(1, 4\)"):
        score(made, pictures)


def test_a_model_that_the_runtime_refuses_is_one_error(colors, pictures, tmp_path):
    folder = shutil.copytree(colors.folder, tmp_path / "p")
    colors_model = folder / colors.artifact.path.name
    colors_model.write_bytes(b"not a model")
    rehash(folder)
    with pytest.raises(MeasurementError, match="onnxruntime failed to open"):
        score(package.read(folder), pictures, workers=2)


def workers() -> list[str]:
    """Return the command lines of the measuring workers that this process has started and that still run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = process.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            command = process.joinpath("cmdline").read_text()
            found += [command] if parent == str(os.getpid()) and "worker.pyz" in command else []
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_an_interrupt_leaves_no_worker_behind(colors, pictures):
    seen = []

    def interrupt(message: str, *, done: int = 0, total: int = 0) -> None:
        seen.append((done, workers()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(colors, pictures, workers=2, progress=interrupt)
    ((done, running),) = seen
    assert 0 < done < 12 and running
    assert workers() == []
