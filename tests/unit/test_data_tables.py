"""Tables of features and of image paths: what is read, what is refused and how it is said."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeft import data, recipe
from edgeft.errors import ConfigError, DataError
from edgeft.preprocessing import CategoricalColumn, ImagePreprocessing, NumericColumn

PICTURE = ImagePreprocessing(size=8, resize=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def flower_rows(count: int, seed: int = 0) -> list[list[str]]:
    draw = random.Random(seed)
    rows = [["petal", "soil", "label"]]
    for index in range(count):
        kind = ("rose", "daisy")[index % 2]
        rows.append([f"{draw.gauss(3 * (index % 2), 1):.3f}", draw.choice(["sand", "clay"]), kind])
    return rows


def write_csv(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(",".join(row) + "\n" for row in rows), encoding="utf-8")


def task(name: str = "flowers.csv", **options) -> recipe.Task:
    return recipe.Task(kind="tabular-classification", data=name, **options)


def load(base: Path, seed: int = 0, **options):
    return data.load(task(**options), None, base=base, seed=seed)


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    write_csv(tmp_path / "flowers.csv", flower_rows(40))
    return tmp_path


def test_columns_are_told_apart_and_fitted_on_train_only(flowers: Path) -> None:
    splits = load(flowers)
    petal, soil = splits.preprocessing.columns
    assert isinstance(petal, NumericColumn) and soil == CategoricalColumn(
        name="soil", categories=("clay", "sand")
    )
    values = [float(source.cells["petal"]) for source in splits.train.sources]
    assert petal.mean == pytest.approx(np.mean(values)) and petal.std == pytest.approx(np.std(values))
    inputs = splits.train.inputs(range(len(splits.train)))
    assert inputs.shape == (24, 3) and inputs.dtype == np.float32
    assert inputs[:, 0].mean() == pytest.approx(0, abs=1e-6)
    assert splits.classes == ("daisy", "rose")


def test_a_sample_is_called_by_its_table_and_line(flowers: Path) -> None:
    train = load(flowers).train
    lines = (flowers / "flowers.csv").read_text().splitlines()
    name, line = train.name(3).split(":")
    petal, soil, label = lines[int(line) - 1].split(",")
    assert name == "flowers.csv" and train.preview(3) == f"petal = {petal}\nsoil = {soil}"
    assert ("daisy", "rose")[train.labels[3]] == label


def test_given_column_lists_decide(flowers: Path) -> None:
    columns = load(flowers, categorical_columns=["soil", "petal"]).preprocessing.columns
    assert [column.name for column in columns if isinstance(column, CategoricalColumn)] == ["petal", "soil"]
    (only,) = load(flowers, numeric_columns=["petal"], categorical_columns=[]).preprocessing.columns
    assert only.name == "petal"
    with pytest.raises(DataError, match=r"no column 'petals' \(did you mean 'petal'\?\)"):
        load(flowers, numeric_columns=["petals"])
    with pytest.raises(DataError, match="both name petal"):
        load(flowers, numeric_columns=["petal"], categorical_columns=["petal"])


def test_the_scan_counts_and_changes_with_a_cell(flowers: Path) -> None:
    found = data.scan(task(), flowers)
    assert found.counts == {"all": {"daisy": 20, "rose": 20}} and found.samples == 40
    path = flowers / "flowers.csv"
    path.write_text(path.read_text().replace("sand", "peat", 1))
    assert data.scan(task(), flowers).listing != found.listing


@pytest.mark.parametrize("form", ["folder", "keys"])
def test_tables_of_their_own_for_each_split(tmp_path: Path, form: str) -> None:
    for seed, (split, count) in enumerate({"train": 20, "val": 6, "test": 8}.items()):
        write_csv(tmp_path / "set" / f"{split}.csv", flower_rows(count, seed))
    options = {"name": "set"}
    if form == "keys":
        options = {"name": "set/train.csv", "val_data": "set/val.csv", "test_data": "set/test.csv"}
    splits = data.load(task(**options), None, base=tmp_path, seed=0)
    assert [len(getattr(splits, name)) for name in ("train", "val", "test")] == [20, 6, 8]
    assert splits.test.name(0) == {"folder": "test.csv:2", "keys": "set/test.csv:2"}[form]


def test_a_missing_validation_table_is_cut_from_train(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", flower_rows(40))
    write_csv(tmp_path / "test.csv", flower_rows(8, seed=1))
    splits = load(tmp_path, name="train.csv", test_data="test.csv", val_fraction=0.2)
    assert [len(getattr(splits, name)) for name in ("train", "val", "test")] == [32, 8, 8]


def test_a_manifest_brings_the_rows_back(flowers: Path) -> None:
    splits = load(flowers, seed=4)
    manifest = json.loads(json.dumps(data.to_manifest(splits)))
    again = data.from_manifest(manifest, task(), splits.preprocessing, base=flowers)
    assert again.fingerprint == splits.fingerprint and again.classes == splits.classes
    assert np.array_equal(again.test.inputs([2, 0]), splits.test.inputs([2, 0]))


@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_changed_cell_or_label_is_noticed(flowers: Path, column: int) -> None:
    splits = load(flowers)
    manifest = data.to_manifest(splits)
    rows = flower_rows(40)
    line = int(splits.val.name(0).split(":")[1])
    rows[line - 1][column] = {0: "9.5", 1: "peat", 2: "daisy"}[column]
    if flower_rows(40)[line - 1][column] == "daisy":
        rows[line - 1][column] = "rose"
    write_csv(flowers / "flowers.csv", rows)
    with pytest.raises(DataError, match=rf"flowers\.csv:{line} changed or is gone"):
        data.from_manifest(manifest, task(), splits.preprocessing, base=flowers)


def test_a_manifest_wants_the_preprocessing_it_was_made_with(flowers: Path) -> None:
    manifest = data.to_manifest(load(flowers, seed=1))
    with pytest.raises(DataError, match="another preprocessing"):
        data.from_manifest(manifest, task(), load(flowers, seed=2).preprocessing, base=flowers)


def test_rows_shared_by_train_and_test_are_reported(tmp_path: Path) -> None:
    rows, others = flower_rows(20), flower_rows(6, seed=1)
    write_csv(tmp_path / "set" / "train.csv", rows)
    shared = [rows[5][0], rows[5][1], others[2][2]]  # the label does not matter
    write_csv(tmp_path / "set" / "test.csv", [*others, shared])
    manifest = data.to_manifest(load(tmp_path, name="set"))
    assert manifest["leaks"] == ["test.csv:8"]


def test_one_file_is_not_two_splits(flowers: Path) -> None:
    with pytest.raises(DataError, match="train and test are the same file"):
        load(flowers, test_data="../" + flowers.name + "/flowers.csv")


def replaced(line: int, column: int, cell: str) -> list[list[str]]:
    rows = flower_rows(40)
    rows[line - 1][column] = cell
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["petal", "soil", "labels"], ["1", "sand", "rose"]], r"no column 'label' \(did you mean 'labels'"),
        (replaced(7, 2, " "), r"flowers\.csv:7: column 'label': the label is empty"),
        (replaced(9, 0, "NaN"), r"flowers\.csv:9: column 'petal' holds 'NaN'; a finite number"),
        (replaced(9, 0, ""), r"flowers\.csv:9: column 'petal' is empty"),
        (
            replaced(9, 0, "wide"),
            r"flowers\.csv:9: column 'petal' holds 'wide', but numbers in 39 of 40 rows",
        ),
        (replaced(9, 1, ""), r"flowers\.csv:9: column 'soil' is empty"),
        ([*flower_rows(8), ["1.0", "sand"]], r"flowers\.csv:10: 2 cell\(s\); the header has 3"),
        ([["petal", "soil", "label"]], "the table has no rows"),
        ([], "the table is empty"),
        ([["petal", "petal", "label"], ["1", "2", "a"]], "two columns are called 'petal'"),
        ([["", "petal", "label"], ["1", "2", "a"]], "column 1 has no name"),
        (
            [["petal", "label"], *[[str(n), "rose"] for n in range(9)]],
            r"1 class\(es\) in column 'label' \('rose'",
        ),
        ([*flower_rows(20), ["1.0", "sand", "tulip"]], r"class 'tulip' has 1 sample\(s\); at least 3"),
        (
            [["key", "label"], *[[f"plant {n}", "ab"[n % 2]] for n in range(150)]],
            "'key' holds 150 different words in 150 rows",
        ),
        ([["label"], ["a"], ["b"]], "no column to learn from"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path: Path, rows, message: str) -> None:
    write_csv(tmp_path / "flowers.csv", rows)
    for use in (lambda: data.scan(task(), tmp_path), lambda: load(tmp_path)):
        with pytest.raises(DataError, match=message):
            use()


def test_bad_rows_are_left_out_and_counted_on_demand(flowers: Path) -> None:
    rows = flower_rows(40)
    rows[4][0], rows[9][2] = "nan", ""
    write_csv(flowers / "flowers.csv", rows)
    splits = load(flowers, bad_samples="skip")
    assert [line.split(": ")[0] for line in splits.skipped] == ["flowers.csv:5", "flowers.csv:10"]
    assert len(splits.train) + len(splits.val) + len(splits.test) == 38


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["petal", "label"], "lacks soil"),
        (["petal", "soil", "label", "weather"], "has also weather"),
    ],
)
def test_splits_with_other_columns_are_refused(tmp_path: Path, header: list[str], message: str) -> None:
    write_csv(tmp_path / "set" / "train.csv", flower_rows(20))
    row = {"petal": "1", "soil": "sand", "weather": "dry"}
    rows = [[{**row, "label": name}[column] for column in header] for name in ("rose", "daisy")]
    write_csv(tmp_path / "set" / "test.csv", [header, *rows])
    with pytest.raises(DataError, match=rf"test\.csv: other columns than train\.csv: {message}"):
        load(tmp_path, name="set")


def test_the_order_of_columns_does_not_matter(tmp_path: Path) -> None:
    write_csv(tmp_path / "set" / "train.csv", flower_rows(20))
    write_csv(tmp_path / "set" / "test.csv", [row[::-1] for row in flower_rows(20)])
    assert len(data.to_manifest(load(tmp_path, name="set"))["leaks"]) == 20


def test_a_class_that_train_does_not_have_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "set" / "train.csv", flower_rows(20))
    write_csv(tmp_path / "set" / "test.csv", [*flower_rows(4), ["1.0", "sand", "Rose"]])
    with pytest.raises(
        DataError, match=r"test\.csv:6: class 'Rose' \(did you mean 'rose'\?\) is not in train"
    ):
        load(tmp_path, name="set")


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (["train.csv", "train.tsv"], {}, r"has both train\.csv and train\.tsv"),
        (["train.csv", "tests.csv"], {}, r"'tests\.csv' \(did you mean 'test'\?\)"),
        (["other.csv"], {}, "holds no table named train"),
        (
            ["train.csv"],
            {"test_data": "set/train.csv"},
            r"task\.test_data: only for task\.data that is a file",
        ),
        (
            ["train.csv"],
            {"name": "set/train.csv", "val_data": "set/v.csv"},
            r"task\.val_data: .*v\.csv does not",
        ),
        (["train.xlsx"], {"name": "set/train.xlsx"}, r"unknown kind; allowed is \.csv, \.tsv or \.jsonl"),
    ],
)
def test_which_tables_are_meant_is_never_guessed(tmp_path: Path, files, options, message: str) -> None:
    for name in files:
        write_csv(tmp_path / "set" / name, flower_rows(20))
    with pytest.raises(DataError, match=message):
        data.scan(task(**{"name": "set", **options}), tmp_path)


def test_quoted_cells_may_hold_commas_and_lines(tmp_path: Path) -> None:
    text = 'n,"soil, kind",label\r\n' + '1,"a\r\nb",x\r\n2,c,y\r\n' * 8
    (tmp_path / "flowers.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    splits = load(tmp_path)
    names = sorted(int(split.name(i).split(":")[1]) for split in (splits.train,) for i in range(len(split)))
    assert splits.preprocessing.columns[1].categories == ("a\r\nb", "c")
    assert set(names) <= {2 + 3 * n for n in range(8)} | {4 + 3 * n for n in range(8)}


def test_jsonl_rows_are_cells(tmp_path: Path) -> None:
    records = [{"n": index / 4, "wet": index % 3 == 0, "label": index % 2} for index in range(20)]
    path = tmp_path / "flowers.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    splits = load(tmp_path, name="flowers.jsonl")
    assert splits.classes == ("0", "1")
    assert splits.preprocessing.columns[1].categories == ("false", "true")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]", r"flowers\.jsonl:3: holds a list; each line is one JSON object"),
        ('{"n": 1', r"flowers\.jsonl:3: not JSON"),
        ('{"n": 1}', r"flowers\.jsonl:3: other keys than in the first object: label"),
        ('{"n": {"a": 1}, "label": 0}', r"flowers\.jsonl:3: key 'n' holds a dict"),
        ('{"n": null, "label": 0}', r"flowers\.jsonl:3: column 'n' is empty"),
        ('{"n": NaN, "label": 0}', r"flowers\.jsonl:3: column 'n' holds 'nan'"),
        ('{"n": "\\ud800", "label": 0}', r"flowers\.jsonl:3: key 'n' holds half of a surrogate pair"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path: Path, line: str, message: str) -> None:
    good = [json.dumps({"n": index, "label": index % 2}) for index in range(12)]
    (tmp_path / "flowers.jsonl").write_text("\n".join([good[0], "", line, *good[1:]]))
    with pytest.raises(DataError, match=message):
        data.scan(task("flowers.jsonl"), tmp_path)


def test_breast_cancer_is_embedded() -> None:
    cancer = task("builtin:breast-cancer")
    found = data.scan(cancer, Path())
    assert found.counts == {"all": {"benign": 357, "malignant": 212}}
    splits = data.load(cancer, None, base=Path(), seed=0)
    assert splits.preprocessing.input_shape == (30,)
    manifest = data.to_manifest(splits)
    again = data.from_manifest(manifest, cancer, splits.preprocessing, base=Path())
    assert again.fingerprint == splits.fingerprint and manifest["leaks"] == []
    with pytest.raises(DataError, match="breast-cancer is for tabular-classification"):
        data.scan(recipe.Task(data="builtin:breast-cancer"), Path())


def test_a_model_of_another_kind_is_refused(flowers: Path) -> None:
    with pytest.raises(ConfigError, match=r"tabular-classification', but the model takes images"):
        data.load(task(), PICTURE, base=flowers, seed=0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A table of paths and labels beside a folder of images."""
    rows = [["path", "label"]]
    (tmp_path / "set" / "img").mkdir(parents=True)
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / "img" / f"{index}.png")
        rows.append([f"img/{index}.png", "ab"[index % 2]])
    write_csv(tmp_path / "set" / "list.csv", rows)
    return tmp_path


def test_images_out_of_a_table(pictures: Path) -> None:
    listed = recipe.Task(data="set/list.csv")
    assert data.scan(listed, pictures).counts == {"all": {"a": 6, "b": 6}}
    splits = data.load(listed, PICTURE, base=pictures, seed=0)
    name = splits.train.name(0)
    assert np.array_equal(splits.train.pixels(0), PICTURE.decode(pictures / name))
    assert int(Path(name).stem) % 2 == splits.train.labels[0]
    assert splits.train.inputs([0, 1]).shape == (2, 3, 8, 8)
    again = data.from_manifest(
        json.loads(json.dumps(data.to_manifest(splits))), listed, PICTURE, base=pictures
    )
    assert again.fingerprint == splits.fingerprint


def test_a_folder_of_image_tables(pictures: Path) -> None:
    root = pictures / "set"
    lines = (root / "list.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join(lines[:9]))
    (root / "test.csv").write_text("\n".join([lines[0], *lines[9:]]))
    (root / "list.csv").unlink()
    splits = data.load(recipe.Task(data="set"), PICTURE, base=pictures, seed=0)
    assert len(splits.test) == 4 and splits.test.name(0) == "img/8.png"
    manifest = data.to_manifest(splits)
    assert data.from_manifest(manifest, recipe.Task(data="set"), PICTURE, base=pictures).classes == ("a", "b")


def test_a_missing_image_is_named_by_its_row(pictures: Path) -> None:
    (pictures / "set" / "img" / "3.png").unlink()
    listed = recipe.Task(data="set/list.csv")
    with pytest.raises(DataError, match=r"list\.csv:5: there is no file 'img/3\.png'"):
        data.scan(listed, pictures)
    splits = data.load(recipe.Task(data="set/list.csv", bad_samples="skip"), PICTURE, base=pictures, seed=0)
    assert len(splits.skipped) == 1 and len(splits.train) + len(splits.val) + len(splits.test) == 11


def test_the_same_picture_in_other_bytes_is_a_leak(pictures: Path) -> None:
    root = pictures / "set"
    with Image.open(root / "img" / "0.png") as picture:
        picture.save(root / "img" / "copy.bmp")
    lines = (root / "list.csv").read_text().splitlines()
    (root / "test.csv").write_text("path,label\nimg/copy.bmp,a\nimg/fresh.png,b\n")
    shutil.copy(root / "img" / "11.png", root / "img" / "fresh.png")
    (root / "train.csv").write_text("\n".join(lines[:-1]))
    split = recipe.Task(data="set/train.csv", test_data="set/test.csv")
    manifest = data.to_manifest(data.load(split, PICTURE, base=pictures, seed=0))
    assert manifest["leaks"] == ["set/img/copy.bmp"]


def test_an_image_previews_as_a_small_png(pictures: Path) -> None:
    import io

    splits = data.load(recipe.Task(data="set/list.csv"), PICTURE, base=pictures, seed=0)
    with Image.open(io.BytesIO(splits.val.preview(0))) as picture:
        assert picture.format == "PNG" and np.array_equal(np.asarray(picture), splits.val.image(0))
