"""Schemes and numerics other than the usual int8, through the three runtimes, and what the checks of the files see."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import integer_reference
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgeft import calibration, exporters, measure, quantization, target
from edgeft.errors import ConfigError, ExportError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.target import Numerics, TargetProfile
from edgeft.types import ExportedArtifact, FloatModel, QuantModel

RUNTIMES = ("cpu-onnxruntime", "cpu-openvino", "cpu-litert")
VARIANTS = {
    "half-range": Numerics(weight_range="half"),
    "per-tensor": Numerics(granularity="per-tensor"),
    "symmetric": Numerics(symmetric_activations=True),
    "all-three": Numerics(weight_range="half", granularity="per-tensor", symmetric_activations=True),
}
SIZE, SAMPLES = 8, 16


class Net(nn.Module):
    """Convolutions of every kind, an addition, a layer norm, linear layers on tokens and on vectors."""

    def __init__(self, *, tokens: bool) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16 * SIZE * SIZE, 10)
        self.tokens = tokens
        if tokens:
            self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
            self.sequence = nn.Conv1d(16, 16, 3, padding=1)
            self.norm = nn.LayerNorm(SIZE * SIZE)
            nn.init.uniform_(
                self.norm.weight, 0.5, 1.5
            )  # a converter may want to multiply it into what follows
            nn.init.uniform_(self.norm.bias, -0.5, 0.5)
            self.mix = nn.Sequential(nn.Linear(SIZE * SIZE, 32), nn.GELU(), nn.Linear(32, SIZE * SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.plain(x))
        x = x + self.pointwise(nn.functional.relu6(self.depthwise(x)))
        x = x.flatten(2)
        if self.tokens:
            x = self.sequence(self.grouped(x.unflatten(2, (SIZE, SIZE))).flatten(2))
            x = x + self.mix(self.norm(x))
        return self.head(x.flatten(1))


def float_model(*, tokens: bool) -> FloatModel:
    torch.manual_seed(0)
    picture = ImagePreprocessing(size=SIZE, resize=SIZE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    labels = tuple(f"class {index}" for index in range(10))
    return FloatModel(module=Net(tokens=tokens).eval(), preprocessing=picture, labels=labels)


def pictures() -> Any:
    return np.random.default_rng(0).normal(size=(SAMPLES, 3, SIZE, SIZE)).astype(np.float32)


def profile(name: str, numerics: Numerics | None = None) -> TargetProfile:
    shipped = target.load(name)
    if numerics is None:
        return shipped
    precision = shipped.precision.model_copy(update=numerics.model_dump())
    return shipped.model_copy(update={"precision": precision})


@functools.cache
def variant(name: str) -> QuantModel:
    model, batch = float_model(tokens=False), torch.from_numpy(pictures())
    graph = quantization.prepare(model, numerics=VARIANTS[name])
    quantization.calibrate(graph, [batch], calibration.load("minmax"))
    return quantization.convert(graph, model, batch)


@functools.cache
def scheme(name: str) -> QuantModel:
    model = float_model(tokens=True)
    makers = {
        "float32": quantization.float_program,
        "float16": quantization.halve_weights,
        "int8-weights": quantization.quantize_weights,
        "int8-dynamic": functools.partial(quantization.quantize_weights, dynamic=True),
    }
    return makers[name](model)


@functools.cache
def exported(name: str, runtime: str) -> tuple[ExportedArtifact, bytes]:
    """Return a scheme's artifact; its file is gone, its main file's bytes are kept."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = exporters.export(scheme(name), target.load(runtime), Path(folder))
        return artifact, artifact.path.read_bytes()


# -- numerics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_keeps_to_its_numbers(name: str):
    numerics, model = VARIANTS[name], variant(name)
    largest = max(int(np.abs(layer.weight.astype(int)).max()) for layer in model.layers)
    assert largest == (63 if numerics.weight_range == "half" else 127)
    assert all(len(set(layer.weight_scale)) == 1 for layer in model.layers) == (
        numerics.granularity == "per-tensor"
    )
    assert (not any(a.zero_point for a in model.activations)) == numerics.symmetric_activations


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "name",
    [
        "half-range",
        "all-three",
        pytest.param("per-tensor", marks=pytest.mark.slow),
        pytest.param("symmetric", marks=pytest.mark.slow),
    ],
)
def test_a_variant_computes_what_integers_say(name: str, runtime: str, tmp_path: Path):
    model, inputs = variant(name), pictures()
    wanted = profile(runtime, VARIANTS[name])
    artifact = exporters.export(model, wanted, tmp_path)
    logits, report = measure.predict(artifact, wanted, inputs)
    expected = integer_reference.run(model.program, inputs)
    assert model.output is not None
    assert np.abs(logits - expected).max() <= 1.001 * model.output.scale
    # ONNX Runtime fuses a ReLU into a convolution only where the zero point cuts off what is negative.
    floats = 2 if VARIANTS[name].symmetric_activations and runtime == "cpu-onnxruntime" else 0
    assert report.mac_precision.get("float32", 0) == floats


def test_a_per_tensor_file_stores_one_scale_for_each_weight(tmp_path: Path):
    exporters.export(variant("per-tensor"), profile("cpu-onnxruntime", VARIANTS["per-tensor"]), tmp_path)
    proto = onnx.load(tmp_path / "model.onnx")
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    decoders = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert decoders
    assert all(constants[node.input[1]].ndim == 0 for node in decoders)


@pytest.mark.parametrize("wanted", ["half-range", "per-tensor", "symmetric"])
def test_a_program_with_other_numbers_is_refused(wanted: str, tmp_path: Path):
    other = "per-tensor" if wanted != "per-tensor" else "half-range"
    with pytest.raises(ExportError, match=f"takes {wanted} numbers only"):
        exporters.export(variant(other), profile("cpu-onnxruntime", VARIANTS[wanted]), tmp_path)


# -- schemes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("name", "share"), [("float16", 0.68), ("int8-weights", 0.52)])
def test_weights_are_stored_small_and_computed_in_float(
    name: str, share: float, runtime: str, tmp_path: Path
):
    model, inputs = scheme(name), pictures()
    wanted = target.load(runtime)
    artifact = exporters.export(model, wanted, tmp_path)
    logits, report = measure.predict(artifact, wanted, inputs)
    with torch.inference_mode():
        expected = model.program(torch.from_numpy(inputs)).numpy()
    assert np.abs(logits - expected).max() <= 1e-5
    assert report.mac_precision == {"float32": 8}
    assert artifact.scheme == name
    assert artifact.coverage.int8_mac_ops == 0
    whole, _ = exported("float32", runtime)
    weights = [path for path in artifact.files if path.suffix != ".xml"]  # the graph itself is text there
    floats = whole.size_bytes - (len(exported("float32", runtime)[1]) if runtime == "cpu-openvino" else 0)
    assert sum(path.stat().st_size for path in weights) <= share * floats


def test_dynamic_products_follow_the_program(tmp_path: Path):
    model, inputs = scheme("int8-dynamic"), pictures()
    wanted = target.load("cpu-onnxruntime")
    artifact = exporters.export(model, wanted, tmp_path)
    logits, report = measure.predict(artifact, wanted, inputs)
    with torch.inference_mode():
        expected = model.program(torch.from_numpy(inputs)).numpy()
        floats = scheme("float32").program(torch.from_numpy(inputs)).numpy()
    assert report.mac_precision == {"float32": 5, "int8-dynamic": 3}
    assert (artifact.coverage.int8_mac_ops, artifact.coverage.mac_ops) == (3, 8)
    # A value half-way between two steps may round to either; the error of int8 itself is several times as large.
    assert np.abs(logits - expected).max() < 0.5 * np.abs(floats - expected).max()


@pytest.mark.parametrize("runtime", ["cpu-openvino", "cpu-litert"])
def test_dynamic_int8_is_for_onnx_runtime_alone(runtime: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=f"{runtime}.*int8-dynamic"):
        exporters.export(scheme("int8-dynamic"), target.load(runtime), tmp_path)


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("float16", "cpu-onnxruntime"),
        ("int8-weights", "cpu-onnxruntime"),
        ("int8-dynamic", "cpu-onnxruntime"),
        *(
            pytest.param(name, runtime, marks=pytest.mark.slow)
            for name in ("float16", "int8-weights")
            for runtime in ("cpu-openvino", "cpu-litert")
        ),
    ],
)
def test_a_file_with_another_weight_is_refused(name: str, runtime: str, tmp_path: Path):
    wanted = target.load(runtime)
    exporter = __import__(f"edgeft.exporters.{wanted.export.format}", fromlist=["check"])
    artifact = exporters.export(scheme(name), wanted, tmp_path)
    exporter.check(scheme(name), artifact.path)
    other = float_model(tokens=True)
    other.module.pointwise.weight.data[3, 5] += 0.3
    other.module.head.weight.data[3, 5] += 0.3
    make = quantization.halve_weights if name == "float16" else quantization.quantize_weights
    changed = make(other) if name != "int8-dynamic" else quantization.quantize_weights(other, dynamic=True)
    with pytest.raises(ExportError, match="weights"):
        exporter.check(changed, artifact.path)


def test_a_file_with_another_scale_is_refused(tmp_path: Path):
    model = scheme("int8-weights")
    artifact = exporters.export(model, target.load("cpu-onnxruntime"), tmp_path)
    first = model.layers[0]
    twisted = dataclasses.replace(first, weight_scale=first.weight_scale * np.float32(1.001))
    from edgeft.exporters import onnx as exporter

    with pytest.raises(ExportError, match=f"layer {first.name!r}: weight scales differ"):
        exporter.check(dataclasses.replace(model, layers=(twisted, *model.layers[1:])), artifact.path)
