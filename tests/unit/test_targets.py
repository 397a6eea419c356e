"""Target profiles: those shipped, those of one's own, and what is wrong with bad ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeft import exporters, extras, resources, target
from edgeft.cli.main import main
from edgeft.errors import ConfigError, ExitCode

NAMES = resources.names("targets")


@pytest.mark.parametrize("name", NAMES)
def test_shipped_profiles(name: str):
    profile = target.load(name)
    assert profile.id.split("-")[0] == profile.kind
    assert profile.export.static_shapes or profile.runtime.device.lower() == "cpu"
    # An absent package must be one that the error can name, with the extra that brings it.
    assert set(profile.runtime.requires) <= {*extras.PACKAGES, "onnx"}
    for scheme in profile.precision.schemes:
        exporters.require_scheme(profile, scheme)


def test_a_profile_of_every_evidence_and_arm_s_own_layout():
    profiles = [target.load(name) for name in NAMES]
    assert {profile.evidence for profile in profiles} == {
        "measured",
        "executed",
        "estimated",
        "simulated",
        "hardware",
    }
    x86, arm = target.load("cpu-onnxruntime"), target.load("cpu-onnxruntime-arm")
    assert (x86.precision.activations, arm.precision.activations) == ("uint8", "int8")
    assert not set(x86.isa_floor) - {"asimddp"} & set(arm.isa_floor)


def test_a_new_one_is_a_copy_with_its_comments(tmp_path: Path, capsys):
    file = tmp_path / "my-board.toml"
    assert main(["targets", "new", "--from", "npu-ethos-u55-128", str(file)]) == ExitCode.OK
    assert "my-board" in capsys.readouterr().out
    shipped = resources.find("targets", "npu-ethos-u55-128").read_text(encoding="utf-8")
    assert file.read_text(encoding="utf-8") == shipped.replace('id = "npu-ethos-u55-128"', 'id = "my-board"')
    made, source = target.load(str(file)), target.load("npu-ethos-u55-128")
    assert made == source.model_copy(update={"id": "my-board"})
    again = tmp_path / "another.toml"
    assert main(["targets", "new", "--from", str(file), str(again)]) == ExitCode.OK
    assert target.load(str(again)).id == "another"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "--from", "cpu-litert"], "new needs a target to start from and a file"),
        (["new", "board.toml"], "new needs a target to start from and a file"),
        (["new", "--from", "cpu-lite", "board.toml"], "did you mean 'cpu-litert'"),
        (["new", "--from", "cpu-litert", "board"], "ends in .toml"),
        (["new", "--from", "cpu-litert", "there.toml"], "exists already"),
        (["new", "--from", "cpu-litert", "mcu-tflm.toml"], "mcu-tflm is a shipped target"),
        (["new", "--from", "cpu-litert", "no/such/folder/board.toml"], "cannot be written"),
        (["cpu-litert", "board.toml"], "go with `new` only"),
        (["cpu-litert", "--from", "mcu-tflm"], "go with `new` only"),
    ],
)
def test_a_new_one_that_cannot_be(arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.toml").write_text("mine")
    assert main(["targets", *arguments]) == ExitCode.USAGE
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["there.toml"]
    assert (tmp_path / "there.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("start", "old", "new", "message"),
    [
        ("mcu-tflm", "min_channels = 8", "min_channels = 8\n[memory]\nram = -1", "memory.ram: .*got -1"),
        ("cpu-litert", "threads = 1", "threads = 0", "runtime.threads: .* got 0"),
        ("cpu-litert", "threads = 1", "thread = 1", r"unknown key 'runtime.thread' \(did you mean 'threads'\?\)"),
        ("cpu-openvino", 'device = "CPU"', 'device = "AUTO:NPU,CPU"', "chooses devices by itself"),
        ("cpu-openvino", 'evidence = "measured"', 'evidence = "simulated"', "does not go with runtime 'openvino'"),
        ("gpu-cuda-onnxruntime", '["float16"]', '["half"]', "precision.schemes"),
        ("gpu-cuda-torch", 'layout = "nchw"', 'layout = "nhwc"', "pt2 files have layout 'nchw'"),
        ("mcu-tflm", 'id = "mcu-tflm"', 'id = "other"', "id is 'other', the file is named 'board'"),
    ],
)  # fmt: skip
def test_a_bad_profile_has_one_clear_message(start: str, old: str, new: str, message: str, tmp_path: Path):
    text = resources.find("targets", start).read_text(encoding="utf-8")
    assert old in text
    text = text.replace(f'id = "{start}"', 'id = "board"') if not old.startswith("id") else text
    (tmp_path / "board.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        target.load(str(tmp_path / "board.toml"))


@pytest.mark.parametrize(
    ("name", "scheme", "allowed"),
    [
        ("gpu-cuda-onnxruntime", "int8", "'fp16'"),
        ("gpu-cuda-torch", "int8", "targets of onnxruntime"),
        ("npu-qualcomm-htp-v73", "float16", "'int8'"),
        ("npu-intel-openvino", "int8-weights", "'int8' or 'fp16'"),
    ],
)
def test_a_scheme_that_the_device_gains_nothing_by_is_refused(name: str, scheme, allowed: str):
    profile = target.load(name)
    with pytest.raises(ConfigError, match=name) as caught:
        exporters.require_scheme(profile, scheme)
    assert allowed in caught.value.hint
    exporters.require_scheme(profile, "float32")  # every target's baseline
