"""Packages read back into records, and what is refused: foreign names, links, bombs, newer schemas."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_packages import (
    INPUTS,
    LABELS,
    LOGITS,
    LSB,
    PREPROCESSING,
    any_host,
    rehash,
    run,
    target_result,
    write,
    write_onnx,
    write_tiny,
)

from edgeft import package, resources, target
from edgeft.errors import ExitCode, PackageError, VerificationError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "packages" / "cpu-onnxruntime")


def _edit_manifest(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    rehash(folder, manifest=False)


def test_reads_back_what_was_written(tmp_path: Path):
    model = tmp_path / "model.onnx"
    write_onnx(model)
    result = target_result("onnxruntime", [model])
    folder = write(tmp_path / "p", result, any_host())
    found = package.read(folder)
    assert found.folder == found.source == folder
    moved = dataclasses.replace(result.artifact, path=folder / "model.onnx", files=(folder / "model.onnx",))
    assert found.artifact == moved and found.profile == any_host()
    assert found.preprocessing == PREPROCESSING and found.labels == LABELS and found.lsb == LSB
    np.testing.assert_array_equal(found.golden_inputs, INPUTS)
    np.testing.assert_array_equal(found.golden_outputs, LOGITS)
    np.testing.assert_array_equal(found.golden_reference, LOGITS + np.float32(LSB / 2))


@pytest.mark.parametrize("name", resources.names("targets"))
def test_every_shipped_profile_survives(tmp_path: Path, name: str):
    model = tmp_path / "model.onnx"
    write_onnx(model)
    profile = target.load(name)
    folder = write(tmp_path / "p", target_result("onnxruntime", [model]), profile)
    assert package.read(folder).profile == profile


def test_a_damaged_package_is_not_read(folder: Path):
    (folder / "labels.txt").write_text("cat\ndog\ncow\n")
    with pytest.raises(VerificationError, match=r"labels\.txt: changed"):
        package.read(folder)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "../model.onnx", "sub/model.onnx"])
def test_names_that_lead_out_are_refused(folder: Path, name: str):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder.parent / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    for model in ({"path": name}, {"files": [name]}):
        _edit_manifest(folder, model={**manifest["model"], **model})
        assert f"model file {name!r} is not part" in package.verify(folder).problems[0]
        assert run(folder / "verify.py").returncode == 1
        with pytest.raises(VerificationError, match="not part of the package"):
            package.read(folder)
    with (folder / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  {name}\n")
    verified = package.verify(folder)
    assert not verified.passed and verified.failed == "files"


def test_a_sum_for_a_file_outside_is_refused_before_it_is_opened(folder: Path):
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    lines = sorted([*lines, f"{'0' * 64}  ../secret"], key=lambda line: line[66:])
    (folder / "SHA256SUMS").write_text("".join(f"{line}\n" for line in lines))
    assert package.verify(folder).problems == ("SHA256SUMS: '../secret' is outside of the package",)


def test_links_are_refused(folder: Path):
    outside = folder.parent / "labels.txt"
    (folder / "labels.txt").rename(outside)
    (folder / "labels.txt").symlink_to(outside)
    assert package.verify(folder).problems == ("labels.txt: a link; packages hold plain files",)
    with pytest.raises(VerificationError, match="a link"):
        package.read(folder)


def test_extra_files_are_named(folder: Path):
    (folder / "numpy.py").write_text("raise SystemExit('not numpy')")
    (folder / "__pycache__").mkdir()
    assert [problem.split(":")[0] for problem in package.verify(folder).problems] == [
        "__pycache__",
        "numpy.py",
    ]


def test_a_newer_schema_is_refused_with_what_to_do(folder: Path):
    _edit_manifest(folder, schema=2, files="of another shape")
    for use in (package.read, package.verify):
        with pytest.raises(PackageError, match="newer schema; this edgeft reads schema 1") as caught:
            use(folder)
        assert caught.value.exit_code == ExitCode.USAGE and "update edgeft" in caught.value.hint
    done = run(folder / "verify.py")
    assert done.returncode == 1 and "schema 2" in done.stdout


def test_a_manifest_of_something_else_is_refused(folder: Path):
    (folder / "manifest.json").write_text("[]")
    rehash(folder, manifest=False)
    assert "not a package's manifest" in package.verify(folder).problems[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": {"schema": 1, "id": "x"}}, "profile: key 'title' is missing"),
        ({"tolerance": {}}, "'lsb'"),
        ({"golden": {"samples": 1, "classes": 3}}, r"not \(1, 3, 8, 8\)"),
        ({"inputs": [{"name": "x"}]}, "do not fit together"),
    ],
)
def test_a_manifest_that_does_not_fit_is_a_clear_error(folder: Path, changes, message):
    _edit_manifest(folder, **changes)
    with pytest.raises(VerificationError, match=message):
        package.read(folder)


def test_golden_vectors_that_grow_when_unpacked_are_not_unpacked(folder: Path):
    np.savez_compressed(
        folder / "golden.npz",
        inputs=np.zeros((4, 3, 2000, 2000), np.float32),
        outputs=LOGITS,
        reference=LOGITS,
    )
    rehash(folder)
    with pytest.raises(VerificationError, match="inputs is larger than"):
        package.read(folder)


def test_what_is_no_package_is_a_usage_error(tmp_path: Path):
    (tmp_path / "picture.jpg").write_bytes(os.urandom(100))
    wrong = {".": "no SHA256SUMS", "no": "no such", "picture.jpg": "neither a folder nor"}
    for name, text in wrong.items():
        with pytest.raises(PackageError, match=text):
            package.read(tmp_path / name)
