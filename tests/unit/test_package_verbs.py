"""`edgeft verify`, `predict` and `pack`: what they print, and their exit codes."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny_packages import (
    BIAS,
    LABELS,
    PREPROCESSING,
    WEIGHT,
    any_host,
    target_result,
    write,
    write_onnx,
    write_tiny,
)

from edgeft import package
from edgeft.cli.main import main
from edgeft.errors import ExitCode
from edgeft.preprocessing import CategoricalColumn, NumericColumn, TabularPreprocessing, TextPreprocessing

COLUMNS = (
    NumericColumn(name="age", mean=30.0, std=10.0),
    CategoricalColumn(name="colour", categories=("blue", "red")),
)
MATRIX = np.float32([[1, 0, -1], [0, 2, 0], [0, 0, 3]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("packages") / "cpu-onnxruntime")


def _linear_package(folder: Path, preprocessing, *, features: int, integers: bool = False) -> Path:
    """A package whose logits are the inputs times a matrix: of rows, or of token ids."""
    matrix = np.resize(MATRIX, (features, 3))
    nodes = [helper.make_node("Cast", ["input"], ["real"], to=TensorProto.FLOAT)] if integers else []
    nodes.append(helper.make_node("MatMul", ["real" if integers else "input", "matrix"], ["logits"]))
    dtype = TensorProto.INT32 if integers else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", dtype, [1, features])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = folder.with_suffix(".onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), model)
    inputs = np.ones((2, features), np.int32 if integers else np.float32)
    logits = (inputs @ matrix).astype(np.float32)
    result = target_result(
        "onnxruntime", [model], shape=(features,), dtype="int32" if integers else "float32"
    )
    golden = {"golden_inputs": inputs, "golden_outputs": logits, "reference_outputs": logits}
    return write(folder, result, any_host(), preprocessing=preprocessing, **golden)


def test_verify(folder: Path, tmp_path: Path, capsys):
    assert main(["verify", str(folder)]) == ExitCode.OK
    assert "every byte as written; 4 golden samples within 0.00 LSB" in capsys.readouterr().out
    archive = package.pack(folder, tmp_path / "p.zip")
    assert main(["verify", str(archive), "--json"]) == ExitCode.OK
    record = json.loads(capsys.readouterr().out)
    assert record["passed"] and record["failed"] == "" and record["figures"]["samples"] == 4


def test_verify_says_what_is_wrong(folder: Path, tmp_path: Path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "labels.txt").write_text("")
    (damaged / "notes.txt").write_text("")
    assert main(["verify", str(damaged)]) == ExitCode.CHECK_FAILED
    assert "notes.txt: not part of the package" in capsys.readouterr().out
    (damaged / "notes.txt").unlink()
    assert main(["verify", str(damaged), "--json"]) == ExitCode.CHECK_FAILED
    record = json.loads(capsys.readouterr().out)
    assert record["failed"] == "files" and record["problems"][0].startswith("labels.txt: changed")
    assert main(["verify", str(tmp_path / "nothing")]) == ExitCode.USAGE
    assert "no such file or folder" in capsys.readouterr().err


def test_a_host_that_cannot_run_a_package(tmp_path: Path, capsys):
    write_onnx(tmp_path / "m.onnx")
    profile = any_host().model_copy(update={"isa_floor": ["warp_drive"]})
    folder = write(tmp_path / "p", target_result("onnxruntime", [tmp_path / "m.onnx"]), profile)
    assert main(["verify", str(folder)]) == ExitCode.MISSING
    assert "warp_drive" in capsys.readouterr().out
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    assert main(["predict", str(folder), str(tmp_path / "x.png")]) == ExitCode.MISSING
    assert "warp_drive" in capsys.readouterr().err


def test_predict_pictures(folder: Path, tmp_path: Path, capsys):
    generator, expected = np.random.default_rng(2), {}
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("a.png", "deep/b.jpg", "deep/er/c.png"):
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / name)
        inputs = PREPROCESSING.normalize(PREPROCESSING.decode(tmp_path / name)[None])
        logits = np.einsum("nchw,kchw->nk", inputs, WEIGHT)[0] + BIAS
        expected[name] = np.exp(logits) / np.exp(logits).sum()
    archive = package.pack(folder, tmp_path / "p.zip")
    arguments = ["predict", str(archive), str(tmp_path / "a.png"), str(tmp_path / "deep"), "--top", "2"]
    assert main([*arguments, "--json"]) == ExitCode.OK
    record = json.loads(capsys.readouterr().out)
    assert [each["input"] for each in record["predictions"]] == [str(tmp_path / name) for name in expected]
    for each, chances in zip(record["predictions"], expected.values(), strict=True):
        best = np.argsort(-chances)[:2]
        assert [c["label"] for c in each["classes"]] == [LABELS[i] for i in best]
        np.testing.assert_allclose([c["probability"] for c in each["classes"]], chances[best], rtol=1e-5)
    assert main(arguments) == ExitCode.OK
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_predict_refuses_what_is_no_picture(folder: Path, tmp_path: Path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    for name, text in {
        "none.png": "no such file",
        "empty": "no pictures in it",
        "bad.png": "cannot be read",
    }.items():
        assert main(["predict", str(folder), str(tmp_path / name)]) == ExitCode.USAGE
        assert text in (message := capsys.readouterr().err) and "task." not in message


def test_predict_rows(tmp_path: Path, capsys):
    folder = _linear_package(tmp_path / "p", TabularPreprocessing(columns=COLUMNS), features=3)
    (tmp_path / "people.csv").write_text("colour,age\nred,20\nblue,60\n")
    assert main(["predict", str(folder), "age=20,colour=red", str(tmp_path / "people.csv")]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].startswith(f"age=20,colour=red: {LABELS[2]} ")
        and lines[1].split(": ")[1] == lines[0].split(": ")[1]
    )
    assert len(lines) == 3
    for wrong, text in {
        "red": "not a row",
        "age=20": "'colour' is missing",
        "age=x,colour=red": "finite number",
    }.items():
        assert main(["predict", str(folder), wrong]) == ExitCode.USAGE
        assert text in capsys.readouterr().err


def test_predict_texts(tmp_path: Path, capsys):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}, "[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    preprocessing = TextPreprocessing(tokenizer=words.to_str(), max_length=4, pad_id=0)
    folder = _linear_package(tmp_path / "p", preprocessing, features=4, integers=True)
    (tmp_path / "lines.txt").write_text("good bad\n\nbad\n")
    assert main(["predict", str(folder), "good bad", str(tmp_path / "lines.txt"), "--json"]) == ExitCode.OK
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [each["input"] for each in found] == [
        "good bad",
        f"{tmp_path}/lines.txt:1",
        f"{tmp_path}/lines.txt:3",
    ]
    assert found[0]["classes"] == found[1]["classes"] != found[2]["classes"]
    assert package.verify(folder).passed
    assert main(["predict", str(folder), str(tmp_path / "none.txt")]) == ExitCode.USAGE


def test_pack(folder: Path, tmp_path: Path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert main(["pack", str(copy)]) == ExitCode.OK
    assert "copy.zip" in capsys.readouterr().out
    assert main(["pack", str(folder), "-o", str(tmp_path / "other.zip"), "--json"]) == ExitCode.OK
    record = json.loads(capsys.readouterr().out)
    assert (tmp_path / "other.zip").read_bytes() == (tmp_path / "copy.zip").read_bytes()
    assert record["size_bytes"] == (tmp_path / "copy.zip").stat().st_size and len(record["sha256"]) == 64
    assert main(["pack", str(folder), "-o", str(tmp_path / "no" / "folder.zip")]) == ExitCode.USAGE
    assert "cannot be written" in capsys.readouterr().err
