"""Files for GPUs: float32 outside, fp16 inside. Their answers are looked at on the CPU; no GPU is needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from deployment import SIZE, float_model
from torch import nn

from edgeft import exporters, measure, quantization, stages, target
from edgeft.errors import ExportError, MissingDependencyError
from edgeft.measure.session import Session
from edgeft.runtimes.onnxruntime import _DeviceBinding
from edgeft.types import QuantModel


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.nn.functional.hardswish(self.norm(self.stem(x))).mean((2, 3)))


def program(scheme: str = "float16") -> QuantModel:
    torch.manual_seed(3)
    model = float_model(Network())
    return quantization.halve_weights(model) if scheme == "float16" else quantization.float_program(model)


def on_cpu(name: str) -> target.TargetProfile:
    profile = target.load(name)
    runtime = profile.runtime.model_copy(update={"device": "cpu", "options": {}})
    return profile.model_copy(update={"runtime": runtime})


@pytest.mark.parametrize("name", ["gpu-cuda-onnxruntime", "gpu-cuda-torch"])
@pytest.mark.parametrize("scheme", ["float16", pytest.param("float32", marks=pytest.mark.slow)])
def test_answers_and_bytes(name: str, scheme: str, tmp_path: Path):
    made, profile = program(scheme), target.load(name)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    one, two = (exporters.export(made, profile, tmp_path / folder) for folder in ("one", "two"))
    assert one.sha256 == two.sha256
    assert b"site-packages" not in one.path.read_bytes() and b"test_gpu_files" not in one.path.read_bytes()
    assert one.coverage.mac_ops == 2 and one.coverage.int8_mac_ops == 0
    assert [spec.dtype for spec in (*one.inputs, *one.outputs)] == ["float32", "float32"]
    inputs = np.random.default_rng(0).standard_normal((4, 3, SIZE, SIZE)).astype(np.float32)
    reference = stages.predict_program(made.program, inputs)
    logits, report = measure.predict(one, on_cpu(name), inputs)
    tolerance = 2e-3 if scheme == "float16" else 1e-5  # fp16 has 11 bits
    assert np.abs(logits - reference).max() < tolerance * np.abs(reference).max()
    if name == "gpu-cuda-torch":
        assert report.mac_precision == {scheme: 2}
        assert report.device == "cpu" and report.details["clock"] == "wall clock"
    elif scheme == "float16":
        kinds = {t.data_type for t in onnx.load(one.path).graph.initializer}
        assert onnx.TensorProto.FLOAT16 in kinds and onnx.TensorProto.FLOAT not in kinds


@pytest.mark.slow
def test_pixels_in_where_normalisation_is_embedded(tmp_path: Path):
    made = program()
    taking_pixels = dataclasses.replace(made.preprocessing, embedded=True)
    artifact = exporters.export(
        dataclasses.replace(made, preprocessing=taking_pixels), target.load("gpu-cuda-torch"), tmp_path
    )
    assert artifact.inputs[0].dtype == "uint8"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, SIZE, SIZE)).astype(np.float32)
    logits, _ = measure.predict(artifact, on_cpu("gpu-cuda-torch"), pixels)
    reference = stages.predict_program(made.program, pixels)
    assert np.abs(logits - reference).max() < 5e-3 * np.abs(reference).max()


def test_tensors_that_stay_on_a_device_are_overwritten_in_place(tmp_path: Path):
    """The CPU stands for the device here: the binding is the same, and no place may change between runs."""
    made = program()
    artifact = exporters.export(made, target.load("gpu-cuda-onnxruntime"), tmp_path)
    session = ort.InferenceSession(str(artifact.path), providers=["CPUExecutionProvider"])
    specs = [[dataclasses.asdict(spec) for spec in specs] for specs in (artifact.inputs, artifact.outputs)]
    lane = _DeviceBinding(session, *specs, ("cpu", 0))
    inputs = np.random.default_rng(0).standard_normal((3, 1, 3, SIZE, SIZE)).astype(np.float32)
    answers, places = [], set()
    for one in inputs:
        lane.place([one])
        lane.invoke()
        answers.append(lane.fetch()[0])
        places.add((lane._values[0].data_ptr(), lane._binding.get_outputs()[0].data_ptr()))
    reference = stages.predict_program(made.program, inputs[:, 0])
    assert np.abs(np.concatenate(answers) - reference).max() < 2e-3 * np.abs(reference).max()
    assert len(places) == 1


def test_what_fp16_cannot_hold_is_refused(tmp_path: Path):
    made = program()
    with torch.no_grad():
        dict(made.program.named_parameters())["head.bias"].fill_(1e6)
    with pytest.raises(ExportError, match=r"head\.bias.* does not fit fp16"):
        exporters.export(made, target.load("gpu-cuda-torch"), tmp_path)


@pytest.mark.slow
def test_torch_without_a_gpu_is_refused_with_the_cure(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("this host has an NVIDIA GPU")
    profile = target.load("gpu-cuda-torch")
    artifact = exporters.export(program(), profile, tmp_path)
    with (
        pytest.raises(MissingDependencyError, match=r"no device 'cuda' here.*\n.*torch with CUDA"),
        Session(artifact, profile),
    ):
        pass  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("graph", ["0", "1"])
@pytest.mark.parametrize(
    ("name", "option"), [("gpu-cuda-torch", "cuda_graph"), ("gpu-cuda-onnxruntime", "enable_cuda_graph")]
)
def test_on_the_gpu(name: str, option: str, graph: str, tmp_path: Path):
    made, profile = program(), target.load(name)
    measure.check_device(profile)
    artifact = exporters.export(made, profile, tmp_path)
    inputs = np.random.default_rng(0).standard_normal((4, 3, SIZE, SIZE)).astype(np.float32)
    reference = stages.predict_program(made.program, inputs)
    np.save(tmp_path / "inputs.npy", inputs)
    with Session(artifact, profile, options={option: graph}) as session:
        logits = session.predict(inputs)
        timed = session.time(tmp_path / "inputs.npy", min_runs=20, min_seconds=0.1)
        report = session.describe()
    assert np.abs(logits - reference).max() < 5e-3 * np.abs(reference).max()
    assert 0 < np.median(timed["samples_ms"]) < 100
    assert torch.cuda.get_device_name(0) in report.device
    assert set(report.mac_precision) == {"float16"}
