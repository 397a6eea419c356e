"""`edgeft check`: every finding of a recipe before any work, each said once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgeft
from edgeft import recipe as recipes
from edgeft import resources
from edgeft.errors import ConfigError, DataError, MissingDependencyError, ModelError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes with 10 tiny pictures each; check decodes none of them."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.full((8, 8, 3), index, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def recipe(**changes) -> recipes.Recipe:
    sections = {
        "targets": ["cpu-onnxruntime"],
        "task": {"data": "photos"},
        "model": {"source": "builtin:resnet8"},
        "finetune": {"method": "retrain"},
    }
    return recipes.Recipe.model_validate({**sections, **changes})


def digits(**changes) -> recipes.Recipe:
    sections = {"task": {"data": "builtin:digits"}, "model": {"source": "builtin:digitsnet"}, "finetune": {}}
    return recipe(**{**sections, **changes})


def errors(findings: list) -> list:
    return [finding.error for finding in findings if finding.level == "error"]


def model_findings(findings) -> str:
    return "\n".join(finding.text for finding in findings if finding.topic == "model")


def test_a_good_recipe_has_a_finding_per_topic(tmp_path: Path):
    findings = edgeft.check(digits(quantize={}), base=tmp_path)
    topics = list(dict.fromkeys(finding.topic for finding in findings))
    assert topics == ["targets", "data", "model", "calibration", "gate"]
    assert not errors(findings)
    told = {finding.topic: finding.text for finding in findings}
    model = model_findings(findings)
    assert "2 fresh" in model and "5 classes" in model
    assert "128" in told["calibration"]
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_the_file_s_tensors_are_accounted_for(tmp_path: Path):
    model = model_findings(edgeft.check(digits(), base=tmp_path))
    fresh = model_findings(edgeft.check(digits(finetune={"method": "retrain"}), base=tmp_path))
    assert "84 tensors loaded" in model and " 0 tensors loaded" in fresh


def test_bad_data_are_told_once_and_end_the_look(tmp_path: Path):
    findings = edgeft.check(recipe(model={"source": "builtin:resnet8"}, quantize={}), base=tmp_path)
    (error,) = errors(findings)
    assert isinstance(error, DataError)
    assert [finding.topic for finding in findings] == ["targets", "data"]


def test_everything_else_is_told_together(photos: Path):
    bad = recipe(targets=["cpu-litter", "npu-none"], model={"source": "builtin:resnet9"}, quantize={})
    found = errors(edgeft.check(bad, base=photos.parent))
    assert [type(error) for error in found] == [ConfigError, ConfigError, ModelError, DataError]
    told = "\n".join(error.message for error in found)
    for expected in (
        "did you mean 'cpu-litert'",
        "npu-none",
        "did you mean 'resnet8'",
        "asks for 128 samples",
    ):
        assert expected in told


def test_a_missing_package_is_an_error_of_its_target(photos: Path):
    own = photos.parent / "board.toml"
    own.write_text("""
schema = 1
id = "board"
title = "A board"
kind = "cpu"
evidence = "measured"
[runtime]
name = "onnxruntime"
requires = ["onnxruntime", "a_package_that_nobody_has"]
[export]
format = "onnx"
""")
    found = errors(edgeft.check(recipe(targets=["./board.toml"]), base=photos.parent))
    assert [type(error) for error in found] == [MissingDependencyError]
    assert "target board" in found[0].message and "pip install a_package_that_nobody_has" in found[0].hint


def test_expected_split_sizes(photos: Path):
    """20 samples less 15 % and 25 %: 12 remain for training, 5 for the test."""
    (photos.parent / "few.toml").write_text(
        'schema = 1\nid = "few"\ntitle = "t"\nobserver = "minmax"\nsamples = 12\nsampling = "random"\n'
    )
    fits = recipe(quantize={"calibration": "./few.toml"})
    findings = edgeft.check(fits, base=photos.parent)
    assert not errors(findings)
    assert "5 test samples" in next(f.text for f in findings if f.topic == "gate")
    (photos.parent / "few.toml").write_text((photos.parent / "few.toml").read_text().replace("12", "13"))
    (error,) = errors(edgeft.check(fits, base=photos.parent))
    assert "asks for 13 samples, the training split has about 12" in error.message


def test_splits_that_the_folder_has_are_counted_as_they_are(photos: Path):
    for split, count in (("train", 10), ("test", 7)):
        for name in ("cat", "dog"):
            (photos / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8), (index, 0, 0)).save(photos / split / name / f"{index}.png")
    for name in ("cat", "dog"):
        for picture in (photos / name).iterdir():
            picture.unlink()
        (photos / name).rmdir()
    findings = edgeft.check(recipe(), base=photos.parent)
    told = {finding.topic: finding.text for finding in findings}
    assert "train 20" in told["data"] and "test 14" in told["data"]
    assert "14 test samples" in told["gate"]


def test_a_margin_that_cannot_be_certified_is_a_warning_with_a_way_out(tmp_path: Path):
    findings = edgeft.check(digits(gate={"accuracy_margin": 0.01}), base=tmp_path)
    (gate,) = [finding for finding in findings if finding.topic == "gate"]
    assert gate.level == "warning" and "inconclusive" in gate.text
    assert "test samples are needed" in gate.hint


def test_a_budget_that_shapes_cannot_meet_is_an_error(tmp_path: Path):
    (error,) = errors(edgeft.check(digits(prune={"budget": {"macs": 0.01}}), base=tmp_path))
    assert "0.010 cannot be met" in error.message
    assert not errors(edgeft.check(digits(prune={"budget": {"macs": 0.6}}), base=tmp_path))


def test_the_margin_between_releases_is_told_apart_from_the_runs_own(tmp_path: Path):
    run, release = [f for f in edgeft.check(digits(), base=tmp_path) if f.topic == "gate"]
    assert (run.level, release.level) == ("ok", "warning")
    assert "keeps to 1.0%" in release.text and "test samples are needed" in release.hint
    wide = float(release.hint.rpartition(" ")[2])
    (both,) = [
        f for f in edgeft.check(digits(gate={"accuracy_margin": wide}), base=tmp_path) if f.topic == "gate"
    ][:1]
    assert both.level == "ok"


def test_skipped_files_are_a_warning_before_the_run(photos: Path):
    (photos / "cat/notes.txt").write_text("no picture")
    skipping = recipe(task={"data": "photos", "bad_samples": "skip"})
    warnings = [
        f for f in edgeft.check(skipping, base=photos.parent) if f.level == "warning" and f.topic == "data"
    ]
    assert len(warnings) == 1 and "1 file" in warnings[0].text


def test_no_quantization_needs_no_calibration(photos: Path):
    findings = edgeft.check(recipe(quantize={"scheme": "none"}), base=photos.parent)
    assert "calibration" not in {finding.topic for finding in findings} and not errors(findings)


@pytest.mark.parametrize(
    ("quantize", "levels"),
    [
        ({"method": "ptq", "calibration": "minmax"}, ["ok", "warning"]),
        ({"method": "ptq", "calibration": "percentile"}, ["ok"]),
        ({"method": "qat", "calibration": "minmax"}, ["ok"]),
    ],
)
def test_coarse_weights_without_bias_correction_are_warned_about(tmp_path: Path, quantize, levels):
    findings = edgeft.check(digits(targets=["cpu-onnxruntime-avx2"], quantize=quantize), base=tmp_path)
    found = [finding for finding in findings if finding.topic == "calibration"]
    assert [finding.level for finding in found] == levels
    assert ("half-range" in found[-1].text) == (levels[-1] == "warning")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (["gelu"], None, ""),
        (
            ["conv2d", "softmax"],
            ModelError,
            "target board denies the operator 'conv2d'; the network has it in",
        ),
        (["convolution2d"], ConfigError, "'convolution2d' is no operator of torch"),
    ],
)
def test_a_denied_operator_is_told_before_training(tmp_path: Path, changes, error, message):
    text = resources.find("targets", "cpu-onnxruntime").read_text(encoding="utf-8")
    text = text.replace('id = "cpu-onnxruntime"', 'id = "board"')
    (tmp_path / "board.toml").write_text(f"{text}\n[ops]\ndeny = {changes}\n".replace("'", '"'))
    found = errors(edgeft.check(digits(targets=["./board.toml"]), base=tmp_path))
    assert [type(each) for each in found] == ([error] if error else [])
    assert not found or message in found[0].message


def test_a_device_that_is_not_here_is_told_before_training(tmp_path: Path):
    recipe = digits(targets=["gpu-cuda-onnxruntime"], quantize={"scheme": "fp16"})
    found = errors(edgeft.check(recipe, base=tmp_path))
    if not found:
        pytest.skip("this host has an NVIDIA GPU")
    assert [type(error) for error in found] == [MissingDependencyError]
    assert "target gpu-cuda-onnxruntime: onnxruntime sees no device 'cuda' here" in found[0].message
    with pytest.raises(MissingDependencyError, match="cuda"):
        edgeft.run(recipe, base=tmp_path, workspace=tmp_path / "run")
    assert not (tmp_path / "run").exists()
