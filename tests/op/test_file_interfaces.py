"""What files take and give, and what they say of it: types by profile, raw pixels, metadata of each format."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from torch import nn

from edgeft import calibration, exporters, measure, quantization, target
from edgeft.errors import ConfigError, QuantizationError
from edgeft.exporters.openvino_info import model_info
from edgeft.preprocessing import ImagePreprocessing
from edgeft.target import Numerics, TargetProfile
from edgeft.types import ExportedArtifact, FloatModel, QuantModel

PICTURE = ImagePreprocessing(
    size=16, resize=18, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
LABELS = ("ant", "big cat", "dög")
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)


@functools.cache
def float_model(*, embedded: bool = False) -> FloatModel:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 3, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model = FloatModel(module=network.eval(), preprocessing=PICTURE, labels=LABELS)
    return quantization.embed_normalization(model) if embedded else model


@functools.cache
def inputs(*, embedded: bool = False) -> np.ndarray[Any, Any]:
    return dataclasses.replace(PICTURE, embedded=embedded).normalize(PIXELS)


@functools.cache
def program(*, embedded: bool = False) -> QuantModel:
    model, x = float_model(embedded=embedded), torch.from_numpy(inputs(embedded=embedded))
    graph = quantization.prepare(model)
    quantization.calibrate(graph, [x], calibration.load("minmax"))
    return quantization.convert(graph, model, x)


def profile(name: str, **export: Any) -> TargetProfile:
    loaded = target.load(name)
    return loaded.model_copy(update={"export": loaded.export.model_copy(update=export)})


def answers(model: QuantModel, *, embedded: bool = False) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return model.program(torch.from_numpy(inputs(embedded=embedded))).numpy()


def export(model: QuantModel, folder: Path, name: str, **changes: Any) -> ExportedArtifact:
    return exporters.export(model, profile(name, **changes), folder)


# --- raw pixels ---


def test_normalisation_inside_changes_no_answer():
    with torch.inference_mode():
        separate = float_model().module(torch.from_numpy(inputs())).numpy()
        inside = float_model(embedded=True).module(torch.from_numpy(inputs(embedded=True))).numpy()
    np.testing.assert_allclose(inside, separate, rtol=0, atol=2e-6 * np.abs(separate).max())


def test_pixels_are_the_integers_of_the_input_and_the_layer_is_as_good_as_exact():
    layer, *others = program(embedded=True).layers
    assert layer.name == "normalization" and [each.name for each in others] == ["0", "2"]
    assert (layer.input.scale, layer.input.zero_point) == (1.0, -128)
    assert layer.weight.ravel().tolist() == [127] * 3
    real = layer.bias * layer.input.scale * layer.weight_scale
    np.testing.assert_allclose(real, -np.array(PICTURE.mean) / PICTURE.std, rtol=1e-4)
    # The normalised picture is on the very grid that is the input's without it: only ties may round otherwise.
    assert layer.output.scale == pytest.approx(program().layers[0].input.scale, rel=1e-5)
    step = program().output.scale
    apart = np.abs(answers(program(embedded=True), embedded=True) - answers(program())) / step
    assert apart.max() < 2 and apart.mean() < 0.2


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cpu-onnxruntime", {}),
        ("cpu-onnxruntime", {"layout": "nhwc", "static_shapes": False}),
        ("cpu-openvino", {}),
        ("cpu-openvino", {"layout": "nhwc"}),
        ("cpu-litert", {}),
    ],
)
def test_files_take_uint8_pixels_and_compute_in_integers(name: str, changes: dict[str, Any], tmp_path: Path):
    model, used = program(embedded=True), profile(name, **changes)
    artifact = exporters.export(model, used, tmp_path)
    (source,) = artifact.inputs
    assert (source.dtype, source.scale, source.zero_point) == ("uint8", 1.0, 0)
    assert source.layout == used.export.layout
    assert artifact.coverage.int8_mac_ops == artifact.coverage.mac_ops == 3
    assert not artifact.coverage.float_islands
    if artifact.format == "openvino":
        info = openvino.Core().read_model(artifact.path).get_rt_info(["model_info"]).value
        assert info == model_info(model)
    logits, report = measure.predict(artifact, used, inputs(embedded=True))
    assert np.abs(logits - answers(model, embedded=True)).max() <= 1.001 * model.output.scale
    assert report.mac_precision == {"int8": 3}


@pytest.mark.parametrize(
    "name",
    ["cpu-onnxruntime", *(pytest.param(n, marks=pytest.mark.slow) for n in ("cpu-openvino", "cpu-litert"))],
)
def test_float_files_take_pixels_too(name: str, tmp_path: Path):
    model = quantization.float_program(float_model(embedded=True))
    artifact = export(model, tmp_path, name)
    assert artifact.inputs[0].dtype == "uint8" and artifact.outputs[0].dtype == "float32"
    logits, _ = measure.predict(artifact, target.load(name), inputs(embedded=True))
    np.testing.assert_allclose(logits, answers(model, embedded=True), rtol=0, atol=1e-5)


def test_symmetric_activations_have_no_room_for_pixels():
    with pytest.raises(QuantizationError, match="raw pixels need 256 steps"):
        quantization.prepare(float_model(embedded=True), numerics=Numerics(symmetric_activations=True))


# --- types and shapes by profile ---


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_tflite_file_has_the_types_of_its_profile_and_ends_with_its_labels(dtype: str, tmp_path: Path):
    model, used = program(), profile("cpu-litert", io_dtype=dtype)
    artifact = exporters.export(model, used, tmp_path)
    (source,), (sink,) = artifact.inputs, artifact.outputs
    assert (source.name, source.dtype, sink.name, sink.dtype) == ("input", dtype, "logits", dtype)
    logits, report = measure.predict(artifact, used, inputs())
    np.testing.assert_array_equal(logits, answers(model))
    assert report.mac_precision == {"int8": 2}
    with zipfile.ZipFile(artifact.path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(LABELS)
    assert b"TFLITE_METADATA" in artifact.path.read_bytes()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cpu-litert", {"static_shapes": False}, "static_shapes = false is not to be had in tflite files"),
        ("cpu-onnxruntime", {"io_dtype": "uint8"}, 'io_dtype = "uint8" is not to be had in onnx files'),
        ("cpu-openvino", {"io_dtype": "int8"}, 'io_dtype = "int8" is not to be had in openvino files'),
    ],
)
def test_an_interface_that_a_format_lacks_is_refused(name: str, changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        exporters.require_scheme(profile(name, **changes), "int8")


def test_an_onnx_file_loads_without_a_word(tmp_path: Path):
    opset = 21
    artifact = export(program(), tmp_path, "cpu-onnxruntime", opset=opset, static_shapes=False)
    stored = onnx.load(artifact.path)
    onnx.checker.check_model(stored, full_check=True)
    assert [item.version for item in stored.opset_import] == [opset]
    assert artifact.inputs[0].shape == (-1, 3, 16, 16) and artifact.outputs[0].shape == (-1, 3)
    code = (
        f"import numpy, onnxruntime as o; s = o.InferenceSession({str(artifact.path)!r})\n"
        "print(s.get_inputs()[0].name, s.get_inputs()[0].shape, s.get_outputs()[0].name)\n"
        "print(*[s.run(None, {'input': numpy.zeros((n, 3, 16, 16), 'f')})[0].shape for n in (1, 5)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:2] == ["input ['batch', 3, 16, 16] logits", "(1, 3) (5, 3)"]


# --- metadata ---


@pytest.mark.parametrize("embedded", [False, True])
def test_openvino_tells_model_api_what_it_asks_for(embedded: bool):
    model = dataclasses.replace(program(), preprocessing=dataclasses.replace(PICTURE, embedded=embedded))
    statistics = {"mean_values": "123.675 116.28 103.53", "scale_values": "58.395 57.12 57.375"}
    assert model_info(model) == {
        "model_type": "Classification",
        "labels": "ant big_cat dög",
        "reverse_input_channels": "True",
        "resize_type": "crop",
        "interpolation_mode": "LINEAR",
        **({} if embedded else statistics),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu-onnxruntime", "cpu-openvino", "cpu-litert"])
def test_another_process_writes_the_same_bytes(name: str, tmp_path: Path):
    digests = []
    for folder in (tmp_path / "first", tmp_path / "a longer name"):
        folder.mkdir()
        code = (
            "import sys, pathlib, test_file_interfaces as t\n"
            "t.export(t.program(), pathlib.Path(sys.argv[1]), sys.argv[2])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder), name],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        digests.append({f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()})
    assert digests[0] == digests[1]
