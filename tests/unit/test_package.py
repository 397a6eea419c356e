"""The device package: complete, unchangeable without being noticed, and usable with numpy and one runtime."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from tiny_packages import (
    BIAS,
    INPUTS,
    LABELS,
    LOGITS,
    LSB,
    PREPROCESSING,
    WEIGHT,
    any_host,
    rehash,
    run,
    target_result,
    write,
    write_onnx,
)

from edgeft import package, target
from edgeft.errors import VerificationError, WorkspaceError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.types import TargetResult, TensorSpec


@pytest.fixture
def profile() -> target.TargetProfile:
    return any_host()


@pytest.fixture
def onnx_result(tmp_path: Path) -> TargetResult:
    model = tmp_path / "model.onnx"
    write_onnx(model, 1)
    return target_result("onnxruntime", [model])


@pytest.fixture
def folder(tmp_path: Path, onnx_result: TargetResult, profile: target.TargetProfile) -> Path:
    return write(tmp_path / "packages" / "cpu-onnxruntime", onnx_result, profile)


def test_package_holds_and_answers_where_it_stands(folder: Path, tmp_path: Path):
    assert package.verify(folder).passed
    moved = tmp_path / "some device"
    shutil.copytree(folder, moved)
    done = run(moved / "verify.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 golden samples within 0.00 LSB" in done.stdout and "(0.50 from the Q/DQ program" in done.stdout
    assert {p.name for p in moved.iterdir()} == {p.name for p in folder.iterdir()}, (
        "verify left something behind"
    )
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=moved, capture_output=True, check=False)
    assert sums.returncode == 0 and len(sums.stdout.splitlines()) == len(list(moved.iterdir())) - 1


def test_example_needs_numpy_and_the_runtime_only(folder: Path):
    code = (
        "import runpy, sys; sys.argv = ['example.py'];"
        "sys.modules.update(dict.fromkeys(['edgeft', 'PIL', 'onnx', 'scipy', 'pydantic']));"
        f"runpy.run_path({str(folder / 'example.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    raised = np.exp(LOGITS[0] - LOGITS[0].max())
    best = int(LOGITS[0].argmax())
    assert lines[0] == f"{(raised / raised.sum())[best]:7.2%}  {LABELS[best]}" and len(lines) == 3


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("channels", "size"), [(1, (23, 14)), (3, (14, 23)), (3, (9, 9))])
def test_example_sees_pictures_as_the_model_was_trained(folder, tmp_path, channels, size, interpolation):
    preprocessing = ImagePreprocessing(
        size=8,
        resize=9,
        channels=channels,
        mean=(0.4, 0.5, 0.6)[:channels],
        std=(0.2, 0.25, 0.3)[:channels],
        interpolation=interpolation,
    )
    path = tmp_path / "picture.png"
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # rotated by a phone
    picture.save(path, exif=exif)
    namespace: dict = {"__name__": "example"}
    exec(compile((folder / "example.py").read_text(), "example.py", "exec"), namespace)
    for each in (preprocessing, dataclasses.replace(preprocessing, embedded=True)):
        seen = namespace["load_picture"](path, each.to_dict())
        expected = each.normalize(each.decode(path)[None])
        np.testing.assert_array_equal(seen, expected)


def test_example_classifies_a_picture(folder: Path, tmp_path: Path):
    path = tmp_path / "picture.jpg"
    Image.fromarray(np.full((20, 30, 3), 77, dtype=np.uint8)).save(path)
    done = run(folder / "example.py", str(path), "--top", "1")
    inputs = PREPROCESSING.normalize(PREPROCESSING.decode(path)[None])
    logits = np.einsum("nchw,kchw->nk", inputs, WEIGHT)[0] + BIAS
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(LABELS[int(logits.argmax())]) and len(done.stdout.splitlines()) == 1


def test_a_missing_file_is_noticed(folder: Path):
    (folder / "model.onnx").unlink()
    assert package.verify(folder).problems == ("model.onnx: missing",)


def test_a_line_taken_out_of_the_sums_is_noticed(folder: Path):
    sums = folder / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    (folder / "golden.npz").rename(folder.parent / "golden.npz")
    sums.write_text("".join(line for line in lines if not line.endswith("golden.npz\n")))
    assert "list different files" in package.verify(folder).problems[0]
    sums.write_text("".join(line for line in lines if not line.endswith("manifest.json\n")))
    assert "no line for manifest.json" in package.verify(folder).problems[0]


def test_another_model_under_fitting_hashes_fails_the_golden_vectors(folder: Path):
    model = onnx.load(folder / "model.onnx")
    bias = BIAS + np.float32([0, 2.1 * LSB, 0])
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(bias, "bias"))
    onnx.save(model, folder / "model.onnx")
    rehash(folder, manifest=True)
    verified = package.verify(folder)
    assert len(verified.problems) == 1 and "2.10 LSB off; allowed is 2" in verified.problems[0]
    assert verified.figures["max_lsb"] == pytest.approx(2.1, abs=0.01)


def test_a_model_that_gives_nan_fails(folder: Path):
    model = onnx.load(folder / "model.onnx")
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(BIAS * np.float32("nan"), "bias"))
    onnx.save(model, folder / "model.onnx")
    rehash(folder, manifest=True)
    assert "nan LSB off" in package.verify(folder).problems[0]


def test_a_file_that_the_runtime_refuses_is_a_clear_error(folder: Path):
    (folder / "model.onnx").write_bytes(b"not a model")
    rehash(folder, manifest=True)
    with pytest.raises(VerificationError, match=r"exit code 1.*model\.onnx"):
        package.verify(folder)


def test_refuses_a_cpu_below_the_floor(tmp_path: Path, onnx_result: TargetResult, profile):
    folder = write(tmp_path / "p", onnx_result, profile.model_copy(update={"isa_floor": ["warp_drive"]}))
    verified = package.verify(folder)
    assert "needs a CPU with one of: warp_drive" in verified.problems[0] and verified.failed == "host"
    assert run(folder / "verify.py").returncode == 5


def test_float_files_have_no_floor(tmp_path: Path, onnx_result: TargetResult, profile):
    artifact = dataclasses.replace(onnx_result.artifact, scheme="float32")
    result = dataclasses.replace(onnx_result, artifact=artifact)
    folder = write(tmp_path / "p", result, profile.model_copy(update={"isa_floor": ["warp_drive"]}))
    assert package.verify(folder).passed


def test_a_fixed_batch_is_filled_up(tmp_path: Path, profile):
    model = tmp_path / "batch3.onnx"
    write_onnx(model, 3)
    folder = write(tmp_path / "p", target_result("onnxruntime", [model], batch=3), profile)
    verified = package.verify(folder)
    assert verified.passed and verified.figures["samples"] == 4 and verified.figures["max_lsb"] < 0.01


def test_openvino_package(tmp_path: Path):
    openvino = pytest.importorskip("openvino")
    write_onnx(tmp_path / "source.onnx", "N")  # dynamic, as the target's profile asks
    openvino.save_model(openvino.convert_model(tmp_path / "source.onnx"), tmp_path / "model.xml", False)
    profile = target.load("cpu-openvino")
    options = {**profile.runtime.options, "INFERENCE_PRECISION_HINT": "f32"}
    runtime = profile.runtime.model_copy(update={"options": options})
    profile = profile.model_copy(update={"isa_floor": [], "runtime": runtime})
    files = [tmp_path / "model.xml", tmp_path / "model.bin"]
    folder = write(tmp_path / "p", target_result("openvino", files, fmt="openvino"), profile)
    verified = package.verify(folder)
    assert verified.passed, verified.problems
    assert verified.figures["max_lsb"] < 0.01
    assert run(folder / "example.py").returncode == 0


@pytest.mark.data
@pytest.mark.skipif("EDGEFT_TEST_DATA" not in os.environ, reason="EDGEFT_TEST_DATA names no data folder")
def test_litert_package_with_integer_tensors(tmp_path: Path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model = Path(os.environ["EDGEFT_TEST_DATA"]) / "mlperf_tiny" / "ic_resnet8_int8.tflite"
    runtime = interpreter.Interpreter(model_path=str(model), num_threads=1)
    runtime.allocate_tensors()
    source, output = runtime.get_input_details()[0], runtime.get_output_details()[0]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    logits = []
    for picture in pixels:
        runtime.set_tensor(source["index"], (picture.astype(np.int16) - 128).astype(np.int8)[None])
        runtime.invoke()
        steps = runtime.get_tensor(output["index"]).astype(np.float32) - output["quantization"][1]
        logits.append(steps[0] * np.float32(output["quantization"][0]))

    # This file takes pixels 0..255; the contract's pictures are 0..1, which only moves the scale.
    scale, zero_point = source["quantization"]
    specs = {
        "inputs": (
            TensorSpec(
                name="in",
                shape=(1, 32, 32, 3),
                dtype="int8",
                layout="nhwc",
                scale=scale / 255,
                zero_point=zero_point,
            ),
        ),
        "outputs": (
            TensorSpec(
                name="out",
                shape=(1, 10),
                dtype="int8",
                layout="nk",
                scale=output["quantization"][0],
                zero_point=output["quantization"][1],
            ),
        ),
    }
    result = target_result("litert", [model], fmt="tflite")
    result = dataclasses.replace(result, artifact=dataclasses.replace(result.artifact, **specs))
    preprocessing = ImagePreprocessing(size=32, resize=32, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    folder = write(
        tmp_path / "p",
        result,
        target.load("cpu-litert"),
        preprocessing=preprocessing,
        labels=[f"class {i}" for i in range(10)],
        golden_inputs=preprocessing.normalize(pixels),
        golden_outputs=np.stack(logits),
        reference_outputs=np.stack(logits),
        lsb=output["quantization"][0],
    )
    verified = package.verify(folder)
    assert verified.passed and verified.figures["max_lsb"] == 0, verified
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["runtime"]["options"] = {"kernel": "reference"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rehash(folder, manifest=False)
    assert "allowed is kernels" in package.verify(folder).problems[0]
    manifest["runtime"]["options"] = {"kernels": "reference"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rehash(folder, manifest=False)
    assert package.verify(folder).figures["agreement"] == 1
    assert run(folder / "example.py").returncode == 0


def test_same_inputs_give_the_same_bytes(tmp_path: Path, onnx_result: TargetResult, profile):
    first, second = (write(tmp_path / name, onnx_result, profile) for name in ("a", "b"))
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {
        p.name: p.read_bytes() for p in second.iterdir()
    }


def test_replaces_an_older_package_and_what_a_killed_run_left(
    folder: Path, onnx_result: TargetResult, profile
):
    for leftover in (".cpu-onnxruntime.partial", ".cpu-onnxruntime.replaced"):
        (folder.parent / leftover).mkdir()
        (folder.parent / leftover / "junk").touch()
    write(folder, onnx_result, profile, labels=("x", "y", "z"))
    assert (folder / "labels.txt").read_text() == "x\ny\nz\n"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert package.verify(folder).passed


def test_a_model_that_changed_since_export_is_refused(tmp_path: Path, onnx_result: TargetResult, profile):
    onnx_result.artifact.path.write_bytes(b"something else")
    with pytest.raises(VerificationError, match="differ from those that were exported"):
        write(tmp_path / "p", onnx_result, profile)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"golden_inputs": INPUTS[:0]}, "golden inputs: got shape"),
        ({"golden_inputs": INPUTS[:, :1]}, "golden inputs: got shape"),
        ({"golden_outputs": LOGITS[:2]}, "golden outputs: got shape"),
        ({"reference_outputs": LOGITS * np.float32("nan")}, "golden reference: .* finite"),
        ({"lsb": 0.0}, "LSB must be above 0"),
        ({"labels": ("a", "b\nc", "d")}, "cannot be one line"),
    ],
)
def test_refuses_what_does_not_fit_together(tmp_path: Path, onnx_result, profile, changes, message):
    with pytest.raises(VerificationError, match=message):
        write(tmp_path / "p", onnx_result, profile, **changes)


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path, onnx_result: TargetResult, profile):
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="cannot be written"):
        write(tmp_path / "file" / "p", onnx_result, profile)


def test_layers_in_float_on_purpose_are_in_the_manifest(tmp_path, onnx_result, profile):
    written = write(tmp_path / "p", onnx_result, profile, float_layers=["head.fc"])
    assert json.loads((written / "manifest.json").read_text())["float_layers"] == ["head.fc"]
    assert package.verify(written).passed


def test_a_folder_that_is_no_package_is_a_clear_error(tmp_path: Path):
    with pytest.raises(VerificationError, match="not a package"):
        package.verify(tmp_path)


def test_manifest_tells_the_whole_story_in_canonical_form(folder: Path):
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ": "), indent=1, ensure_ascii=False)
    assert text == canonical + "\n"
    assert manifest["schema"] == 1 and manifest["recipe_hash"] == "r" * 64
    assert manifest["metrics"]["accuracy"] == {"value": 0.75, "low": 0.3, "high": 0.95, "samples": 4}
    assert manifest["metrics"]["latency_ratio"]["high"] == 0.55
    assert manifest["runtime"]["threads"] == 1 and manifest["evidence"] == "measured"
    assert manifest["runtime"]["mac_precision"] == {"int8": 1}
    assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json", "SHA256SUMS"}
