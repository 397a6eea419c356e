"""Image folders: what is accepted, what is refused and how it is said, splits, manifests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeft import data, recipe
from edgeft.errors import DataError
from edgeft.preprocessing import ImagePreprocessing

PREPROCESSING = ImagePreprocessing(size=8, resize=10, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def write_images(folder: Path, count: int, start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        seed = [index, *folder.as_posix().encode()]
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    root = tmp_path / "flowers"
    write_images(root / "rose", 20)
    write_images(root / "daisy", 8)
    return root


def task(root: Path, **options) -> recipe.Task:
    return recipe.Task(data=root.name, **options)


def load(root: Path, seed: int = 0, **options):
    return data.load(task(root, **options), PREPROCESSING, base=root.parent, seed=seed)


def test_classes_and_counts_without_decoding(flowers: Path) -> None:
    (flowers / "rose" / "000.png").write_bytes(b"no image at all")
    found = data.scan(task(flowers), flowers.parent)
    assert found.classes == ("daisy", "rose")
    assert found.counts == {"all": {"daisy": 8, "rose": 20}}
    assert found.samples == 28


def test_the_listing_changes_with_the_files(flowers: Path) -> None:
    before = data.scan(task(flowers), flowers.parent).listing
    assert data.scan(task(flowers), flowers.parent).listing == before
    write_images(flowers / "rose", 1, start=90)
    assert data.scan(task(flowers), flowers.parent).listing != before


def test_splits_are_stratified_disjoint_and_complete(flowers: Path) -> None:
    splits = load(flowers)
    assert splits.classes == ("daisy", "rose")
    counts = {name: np.bincount(getattr(splits, name).labels).tolist() for name in ("train", "val", "test")}
    assert counts == {"train": [5, 12], "val": [1, 3], "test": [2, 5]}
    ids = [*splits.train.ids, *splits.val.ids, *splits.test.ids]
    assert len(set(ids)) == 28 and all(len(identity) == 64 for identity in ids)


def test_the_split_depends_on_the_seed_alone(flowers: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "flowers"
    shutil.copytree(flowers, copy)
    assert load(flowers).fingerprint == load(copy).fingerprint != load(flowers, seed=1).fingerprint


def test_every_split_has_every_class_however_small(tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    write_images(root / "a", 3)
    write_images(root / "b", 40)
    splits = load(root, test_fraction=0.6, val_fraction=0.2)
    assert [set(getattr(splits, name).labels) for name in ("train", "val", "test")] == [{0, 1}] * 3


def test_pixels_are_those_of_the_preprocessing(flowers: Path) -> None:
    splits = load(flowers)
    assert splits.train.image(0).shape == (10, 13, 3)
    name = data.to_manifest(splits)["splits"]["train"][0]["source"]
    assert np.array_equal(splits.train.pixels(0), PREPROCESSING.decode(flowers / name))


def test_folders_train_val_test_are_used_as_they_are(tmp_path: Path) -> None:
    root = tmp_path / "split"
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for name in ("a", "b"):
            write_images(root / split / name, count)
    splits = load(root)
    assert [len(getattr(splits, name)) for name in ("train", "val", "test")] == [8, 4, 6]
    assert splits.classes == ("a", "b")

    shutil.rmtree(root / "val")
    splits = load(root, val_fraction=0.25)
    assert [len(getattr(splits, name)) for name in ("train", "val", "test")] == [6, 2, 6]


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        write_images(tmp_path / "vehicles" / name, 3)
    assert data.scan(recipe.Task(data="vehicles"), tmp_path).classes == ("bus", "train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.write_text("x"), "is a file"),
        (lambda root: root.mkdir(), "is empty"),
        (lambda root: write_images(root / "only", 9), "1 class folder"),
        (
            lambda root: [write_images(root / "a", 5), write_images(root / "b", 1)],
            r"'b' has 1 image\(s\); at least 3",
        ),
        (
            lambda root: [
                write_images(root / s / c, 3)
                for s, c in zip(["train", "train", "test", "test"], "abac", strict=True)
            ],
            r"test/ and train/ have different classes.*b, c",
        ),
        (
            lambda root: [write_images(root / s / c, 3) for s in ("train", "valid") for c in "ab"],
            r"'valid' \(did you mean 'val'\?\) beside train/",
        ),
        (
            lambda root: [write_images(root / s / c, 1) for s in ("train", "test") for c in "ab"],
            "class 'a' in train/ has 1 image.*at least 2",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path: Path, make, message: str) -> None:
    root = tmp_path / "bad"
    make(root)
    for use in (lambda: data.scan(task(root), tmp_path), lambda: load(root)):
        with pytest.raises(DataError, match=message):
            use()


def test_a_text_file_among_the_images_is_named_or_skipped_and_counted(flowers: Path) -> None:
    (flowers / "rose" / "notes.txt").write_text("remember to weed")
    (flowers / "readme.md").write_text("flowers")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png"):
        (flowers / "rose" / name).write_bytes(b"\0")
    with pytest.raises(DataError, match=r"(?s)2 file.*readme.md.*rose/notes.txt") as error:
        data.scan(task(flowers), flowers.parent)
    assert "bad_samples" in error.value.hint
    assert len(data.scan(task(flowers, bad_samples="skip"), flowers.parent).bad) == 2
    splits = load(flowers, bad_samples="skip")
    assert [line.split(":")[0] for line in splits.skipped] == ["readme.md", "rose/notes.txt"]
    assert len(splits.train) + len(splits.val) + len(splits.test) == 28


def test_a_truncated_jpeg_is_named_or_skipped_and_counted(flowers: Path) -> None:
    path = flowers / "rose" / "broken.jpg"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"rose/broken\.jpg"):
        load(flowers)
    splits = load(flowers, bad_samples="skip")
    assert len(splits.skipped) == 1 and splits.skipped[0].startswith("rose/broken.jpg")


def test_skipping_may_not_empty_a_class(tmp_path: Path) -> None:
    root = tmp_path / "flowers"
    write_images(root / "rose", 5)
    write_images(root / "daisy", 3)
    (root / "daisy" / "000.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"'daisy' has 2 image"):
        load(root, bad_samples="skip")


def test_a_manifest_brings_the_same_split_back(flowers: Path) -> None:
    splits = load(flowers, seed=3)
    manifest = json.loads(json.dumps(data.to_manifest(splits)))
    again = data.from_manifest(manifest, task(flowers), PREPROCESSING, base=flowers.parent)
    assert again.fingerprint == splits.fingerprint and again.classes == splits.classes
    assert list(again.val.ids) == list(splits.val.ids)
    assert np.array_equal(again.test.pixels(1), splits.test.pixels(1))


@pytest.mark.parametrize("change", ["rewritten", "gone"])
def test_a_changed_file_is_noticed(flowers: Path, change: str) -> None:
    manifest = data.to_manifest(load(flowers))
    path = flowers / manifest["splits"]["val"][0]["source"]
    if change == "gone":
        path.unlink()
    else:
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match=f"{path.name} changed or is gone"):
        data.from_manifest(manifest, task(flowers), PREPROCESSING, base=flowers.parent)


def test_content_shared_by_train_and_test_is_reported(tmp_path: Path) -> None:
    root = tmp_path / "split"
    for split in ("train", "val", "test"):
        for name in "ab":
            write_images(root / split / name, 2)
    shutil.copy(root / "train" / "a" / "000.png", root / "test" / "a" / "copy.png")
    assert data.to_manifest(load(root))["leaks"] == ["test/a/copy.png"]


def test_images_beyond_the_cache_are_decoded_again(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgeft.data.loading as loading
    from edgeft.data.samples import PixelCache

    whole = load(flowers)
    cache = PixelCache(limit=10 * 13 * 3 * 5)  # five images
    monkeypatch.setattr(loading, "PixelCache", lambda: cache)
    bounded = load(flowers)
    assert len(cache.images) == 5
    assert all(np.array_equal(bounded.train.image(i), whole.train.image(i)) for i in range(len(whole.train)))
