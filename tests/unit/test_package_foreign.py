"""Packages of model files that edgeft did not make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_packages
import tiny_tflite

from edgeft import benchmarking, package, target
from edgeft.errors import ConfigError, DataError

TARGET = target.load("mcu-tflm")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tflite.write_tflite(tmp_path_factory.mktemp("foreign") / "tiny.tflite")


def expected(samples: np.ndarray) -> np.ndarray:
    """What the integers of the layer make of real values."""
    q = np.clip(np.rint(samples / tiny_tflite.SCALE), -128, 127)
    sums = q @ tiny_tflite.WEIGHT.T.astype(float) + np.arange(tiny_tflite.OUTPUTS)
    return np.clip(np.rint(sums * tiny_tflite.SCALE * 0.25 / 4.0), -128, 127) * 4.0


@pytest.fixture(scope="module")
def packed(file: Path) -> Path:
    rng = np.random.default_rng(0)
    np.save(file.with_name("samples.npy"), rng.normal(0, 20, (3, tiny_tflite.INPUTS)).astype(np.float32))
    file.with_name("labels.txt").write_text("a\nb\nc\nd\n")
    return benchmarking.pack_file(
        file,
        TARGET,
        file.with_name("tiny.zip"),
        inputs=file.with_name("samples.npy"),
        labels=file.with_name("labels.txt"),
    )


def test_the_package_answers_as_the_file_does(packed: Path):
    read = package.read(packed)
    assert read.labels == ("a", "b", "c", "d") and read.preprocessing.input_shape == (8,)
    samples = np.load(packed.with_name("samples.npy"))
    np.testing.assert_array_equal(read.golden_inputs, samples)
    np.testing.assert_allclose(read.golden_outputs, expected(samples), atol=4.0)  # one LSB
    assert read.lsb == 4.0 and package.verify(packed).passed
    assert read.manifest["metrics"]["memory"]["ram_bytes"] > 32
    assert read.manifest["firmware"]["sources"] == ["model_data.h", "example.cc"]


def test_its_outputs_are_told_as_they_are(packed: Path, edgeft):
    samples = np.load(packed.with_name("samples.npy"))
    sample = packed.with_name("one.npy")
    np.save(sample, samples[0])
    (prediction,) = package.predict(package.read(packed), [str(sample)], top=4)
    scores = dict(zip(prediction.labels, prediction.probabilities, strict=True))
    np.testing.assert_allclose([scores[name] for name in "abcd"], expected(samples[:1])[0], atol=4.0)
    with pytest.raises(DataError, match="holds 3 samples"):
        list(package.predict(package.read(packed), [str(packed.with_name("samples.npy"))]))


def test_equal_files_make_equal_archives(file: Path, tmp_path: Path):
    first = benchmarking.pack_file(file, TARGET, tmp_path / "a.zip")
    second = benchmarking.pack_file(file, TARGET, tmp_path / "b.zip")
    assert first.read_bytes() == second.read_bytes()
    assert package.read(first).labels == ("class 0", "class 1", "class 2", "class 3")


def test_through_the_command_line_with_a_compiler(edgeft, file: Path, tmp_path: Path):
    done = edgeft("pack", str(file), "--target", "npu-ethos-u55-128", "--output", "out.zip", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["archive"] == "out.zip"
    read = package.read(tmp_path / "out.zip")
    compiled = read.folder / read.manifest["firmware"]["compiled"]
    assert compiled.name == "tiny_vela.tflite"
    assert compiled.stat().st_size == read.manifest["metrics"]["estimate"]["flash_bytes"]
    assert "Shared_Sram" in read.manifest["metrics"]["estimate"]["source"]
    cost = benchmarking.device_cost(tmp_path / "out.zip")
    assert cost.estimate is not None and cost.estimate.cycles > 0
    refused = edgeft("pack", str(file), "--labels", "x.txt")
    assert refused.returncode == 2 and "--target" in refused.stderr


def test_onnx_files_too(tmp_path: Path):
    tiny_packages.write_onnx(tmp_path / "net.onnx")
    profile = tiny_packages.any_host()
    packed = benchmarking.pack_file(tmp_path / "net.onnx", profile, tmp_path / "net.zip")
    read = package.read(packed)
    assert read.golden_inputs.shape == (8, 3, 8, 8) and read.manifest["firmware"] is None
    subject = benchmarking.subject(packed)
    assert subject.inputs_origin == "golden vectors"


def test_what_cannot_be_packed(file: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="takes onnx files, not tflite"):
        benchmarking.pack_file(file, tiny_packages.any_host(), tmp_path / "x.zip")
    (tmp_path / "labels.txt").write_text("one\n")
    with pytest.raises(DataError, match="1 labels, the model has 4 outputs"):
        benchmarking.pack_file(file, TARGET, tmp_path / "x.zip", labels=tmp_path / "labels.txt")
