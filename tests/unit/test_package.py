"""The device package: complete, unchangeable without being noticed, and usable with numpy and one runtime."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgeft import package, target
from edgeft.errors import VerificationError, WorkspaceError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.types import (
    AccuracyResult,
    ExportedArtifact,
    LatencyResult,
    ParityResult,
    QuantCoverage,
    RatioResult,
    RuntimeReport,
    TargetResult,
    TensorSpec,
)

LABELS = ("cat", "dog", "élan")
PREPROCESSING = ImagePreprocessing(
    size=8, resize=9, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation="bicubic"
)
LSB = 0.05
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(0, 0.3, (3, 3, 8, 8)).astype(np.float32)
BIAS = np.float32([0.1, -0.2, 0.3])
INPUTS = RNG.normal(0, 1, (4, 3, 8, 8)).astype(np.float32)
LOGITS = (np.einsum("nchw,kchw->nk", INPUTS, WEIGHT) + BIAS).astype(np.float32)


def _write_onnx(path: Path, batch: int | str) -> None:
    nodes = [
        helper.make_node("Conv", ["input", "weight", "bias"], ["features"]),
        helper.make_node("Flatten", ["features"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(BIAS, "bias")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def _result(name: str, files: list[Path], batch: int = 1, fmt: str = "onnx") -> TargetResult:
    spec = TensorSpec(name="input", shape=(batch, 3, 8, 8), dtype="float32", layout="nchw")
    out = TensorSpec(name="logits", shape=(batch, 3), dtype="float32", layout="nk")
    artifact = ExportedArtifact(
        path=files[0],
        files=tuple(files),
        format=fmt,
        scheme="int8",
        sha256={f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
        size_bytes=sum(f.stat().st_size for f in files),
        coverage=QuantCoverage(mac_ops=1, int8_mac_ops=1),
        inputs=(spec,),
        outputs=(out,),
    )
    accuracy = AccuracyResult(
        accuracy=0.75,
        low=0.3,
        high=0.95,
        predictions=np.array([0, 1, 2, 0]),
        labels=np.array([0, 1, 2, 1]),
        ids=("a", "b", "c", "d"),
    )
    runtime = RuntimeReport(runtime=name, version="1.0", device="CPU", mac_precision={"int8": 1})
    latency = LatencyResult(
        label="int8",
        evidence="measured",
        threads=1,
        samples_ms=((1.0, 1.1), (1.2, 1.0)),
        load_ms=(3.0, 3.1),
        first_ms=(2.0, 2.1),
        peak_rss_bytes=10_000_000,
        runtime=runtime,
    )
    ratio = RatioResult(base="float", head="int8", ratio=0.5, low=0.45, high=0.55, pairs=6)
    parity = ParityResult(
        samples=4,
        agreement=1.0,
        flips=0,
        confident_flips=0,
        lsb=LSB,
        max_lsb=1,
        mean_lsb=0.1,
        within_2_lsb=1.0,
    )
    return TargetResult(
        target=f"cpu-{name}",
        artifact=artifact,
        baseline=artifact,
        accuracy=accuracy,
        baseline_accuracy=accuracy,
        parity=parity,
        latency=latency,
        baseline_latency=latency,
        other_float=(),
        ratio=ratio,
    )


def _write(folder: Path, result: TargetResult, profile: target.TargetProfile, **changes) -> Path:
    settings = {
        "preprocessing": PREPROCESSING,
        "labels": LABELS,
        "golden_inputs": INPUTS,
        "golden_outputs": LOGITS,
        "reference_outputs": LOGITS + np.float32(LSB / 2),
        "lsb": LSB,
        "recipe_hash": "r" * 64,
        "data_fingerprint": "d" * 64,
        "versions": {"edgeft": "0.1.0"},
        "host": {"cpu": "test"},
    }
    return package.write(folder, result=result, profile=profile, **{**settings, **changes})


@pytest.fixture
def profile() -> target.TargetProfile:
    # Any host can run the float stand-in, whatever its instruction set.
    return target.load("cpu-onnxruntime").model_copy(update={"isa_floor": []})


@pytest.fixture
def onnx_result(tmp_path: Path) -> TargetResult:
    model = tmp_path / "model.onnx"
    _write_onnx(model, 1)
    return _result("onnxruntime", [model])


@pytest.fixture
def folder(tmp_path: Path, onnx_result: TargetResult, profile: target.TargetProfile) -> Path:
    return _write(tmp_path / "packages" / "cpu-onnxruntime", onnx_result, profile)


def _run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, cwd="/", check=False
    )


def _rehash(folder: Path, *, manifest: bool) -> None:
    """Make the hashes fit again, as somebody who changes a package on purpose would."""
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    files = {name: digest for name, digest in files.items() if name not in ("manifest.json", "SHA256SUMS")}
    if manifest:
        content = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**content, "files": files}))
    files["manifest.json"] = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in files.items()))


def test_package_holds_and_answers_where_it_stands(folder: Path, tmp_path: Path):
    assert package.verify(folder).passed
    moved = tmp_path / "some device"
    shutil.copytree(folder, moved)
    done = _run(moved / "verify.py")
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
    seen = namespace["load_picture"](path, preprocessing.to_dict())
    expected = preprocessing.normalize(preprocessing.decode(path)[None])
    np.testing.assert_array_equal(seen, expected)


def test_example_classifies_a_picture(folder: Path, tmp_path: Path):
    path = tmp_path / "picture.jpg"
    Image.fromarray(np.full((20, 30, 3), 77, dtype=np.uint8)).save(path)
    done = _run(folder / "example.py", str(path), "--top", "1")
    inputs = PREPROCESSING.normalize(PREPROCESSING.decode(path)[None])
    logits = np.einsum("nchw,kchw->nk", inputs, WEIGHT)[0] + BIAS
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(LABELS[int(logits.argmax())]) and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "manifest.json", "golden.npz", "labels.txt", "preprocess.json", "example.py", "verify.py"],
)
def test_one_flipped_bit_is_noticed(folder: Path, name: str):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    result = package.verify(folder)
    assert not result.passed and result.problems[0].startswith(f"{name}: changed") and not result.figures
    with pytest.raises(VerificationError, match=name):
        result.require()
    if name not in ("verify.py", "example.py"):
        done = _run(folder / "verify.py")
        assert done.returncode == 1 and f"{name}: changed" in done.stdout


def test_a_missing_file_is_noticed(folder: Path):
    (folder / "model.onnx").unlink()
    assert package.verify(folder).problems == ("model.onnx: missing",)


def test_a_line_taken_out_of_the_sums_is_noticed(folder: Path):
    sums = folder / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if not line.endswith("golden.npz\n")))
    assert "list different files" in package.verify(folder).problems[0]
    sums.write_text("".join(line for line in lines if not line.endswith("manifest.json\n")))
    assert "no line for manifest.json" in package.verify(folder).problems[0]


def test_another_model_under_fitting_hashes_fails_the_golden_vectors(folder: Path):
    model = onnx.load(folder / "model.onnx")
    bias = BIAS + np.float32([0, 2.1 * LSB, 0])
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(bias, "bias"))
    onnx.save(model, folder / "model.onnx")
    _rehash(folder, manifest=True)
    result = package.verify(folder)
    assert len(result.problems) == 1 and "2.10 LSB off; allowed is 2" in result.problems[0]
    assert result.figures["max_lsb"] == pytest.approx(2.1, abs=0.01)


def test_a_model_that_gives_nan_fails(folder: Path):
    model = onnx.load(folder / "model.onnx")
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(BIAS * np.float32("nan"), "bias"))
    onnx.save(model, folder / "model.onnx")
    _rehash(folder, manifest=True)
    assert "nan LSB off" in package.verify(folder).problems[0]


def test_a_file_that_the_runtime_refuses_is_a_clear_error(folder: Path):
    (folder / "model.onnx").write_bytes(b"not a model")
    _rehash(folder, manifest=True)
    with pytest.raises(VerificationError, match=r"exit code 1.*model\.onnx"):
        package.verify(folder)


def test_refuses_a_cpu_below_the_floor(tmp_path: Path, onnx_result: TargetResult, profile):
    folder = _write(tmp_path / "p", onnx_result, profile.model_copy(update={"isa_floor": ["warp_drive"]}))
    (problem,) = package.verify(folder).problems
    assert "needs a CPU with one of: warp_drive" in problem
    assert _run(folder / "verify.py").returncode == 1


def test_float_files_have_no_floor(tmp_path: Path, onnx_result: TargetResult, profile):
    artifact = dataclasses.replace(onnx_result.artifact, scheme="float32")
    result = dataclasses.replace(onnx_result, artifact=artifact)
    folder = _write(tmp_path / "p", result, profile.model_copy(update={"isa_floor": ["warp_drive"]}))
    assert package.verify(folder).passed


def test_a_fixed_batch_is_filled_up(tmp_path: Path, profile):
    model = tmp_path / "batch3.onnx"
    _write_onnx(model, 3)
    folder = _write(tmp_path / "p", _result("onnxruntime", [model], batch=3), profile)
    result = package.verify(folder)
    assert result.passed and result.figures["samples"] == 4 and result.figures["max_lsb"] < 0.01


def test_openvino_package(tmp_path: Path):
    openvino = pytest.importorskip("openvino")
    _write_onnx(tmp_path / "source.onnx", "N")  # dynamic, as the target's profile asks
    openvino.save_model(openvino.convert_model(tmp_path / "source.onnx"), tmp_path / "model.xml", False)
    profile = target.load("cpu-openvino")
    options = {**profile.runtime.options, "INFERENCE_PRECISION_HINT": "f32"}
    runtime = profile.runtime.model_copy(update={"options": options})
    profile = profile.model_copy(update={"isa_floor": [], "runtime": runtime})
    files = [tmp_path / "model.xml", tmp_path / "model.bin"]
    folder = _write(tmp_path / "p", _result("openvino", files, fmt="openvino"), profile)
    result = package.verify(folder)
    assert result.passed, result.problems
    assert result.figures["max_lsb"] < 0.01
    assert _run(folder / "example.py").returncode == 0


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
    result = _result("litert", [model], fmt="tflite")
    result = dataclasses.replace(result, artifact=dataclasses.replace(result.artifact, **specs))
    preprocessing = ImagePreprocessing(size=32, resize=32, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    folder = _write(
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
    _rehash(folder, manifest=False)
    assert "allowed is kernels" in package.verify(folder).problems[0]
    manifest["runtime"]["options"] = {"kernels": "reference"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    _rehash(folder, manifest=False)
    assert package.verify(folder).figures["agreement"] == 1
    assert _run(folder / "example.py").returncode == 0


def test_same_inputs_give_the_same_bytes(tmp_path: Path, onnx_result: TargetResult, profile):
    first, second = (_write(tmp_path / name, onnx_result, profile) for name in ("a", "b"))
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {
        p.name: p.read_bytes() for p in second.iterdir()
    }


def test_replaces_an_older_package_and_what_a_killed_run_left(
    folder: Path, onnx_result: TargetResult, profile
):
    for leftover in (".cpu-onnxruntime.partial", ".cpu-onnxruntime.replaced"):
        (folder.parent / leftover).mkdir()
        (folder.parent / leftover / "junk").touch()
    _write(folder, onnx_result, profile, labels=("x", "y", "z"))
    assert (folder / "labels.txt").read_text() == "x\ny\nz\n"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert package.verify(folder).passed


def test_a_model_that_changed_since_export_is_refused(tmp_path: Path, onnx_result: TargetResult, profile):
    onnx_result.artifact.path.write_bytes(b"something else")
    with pytest.raises(VerificationError, match="differ from those that were exported"):
        _write(tmp_path / "p", onnx_result, profile)
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
        _write(tmp_path / "p", onnx_result, profile, **changes)


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path, onnx_result: TargetResult, profile):
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="cannot be written"):
        _write(tmp_path / "file" / "p", onnx_result, profile)


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
    assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json", "SHA256SUMS"}
