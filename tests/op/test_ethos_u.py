"""What Vela takes of the files that edgeft exports: operators on the NPU, and those that it leaves to the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deployment import SAMPLES, SIZE, float_model
from operator_networks import OPERATORS
from torch import nn

from edgeft import calibration, compilers, exporters, quantization, target
from edgeft.types import CompilerEstimate

# Vela 5.2.0, and why. None of them occurs in the classifiers of timm and torchvision that the README names.
ON_THE_CPU = {
    "conv_transpose2d": "Float32",  # LiteRT computes this in float, for want of an integer kernel that agrees
    "conv_transpose1d": "Float32",
    "elu": "Float32",
    "slice": "StridedSlice with unsupported stride axis",
    "expand": "BROADCAST_TO",
    "adaptive_avg_pool2d to 2": "Unsupported kernel stride",  # a depthwise convolution of stride 4; U85 takes it
    "mean one axis": "Unsupported depth-reduction",
}
IN_A_ROW = (
    "add", "mul broadcast", "hardswish", "squeeze-excite hardsigmoid", "pad with zeros", "max_pool2d",
    "resize nearest", "avg_pool2d", "adaptive_avg_pool2d to 1",
)  # fmt: skip


def compile_network(network: nn.Module, folder: Path, device: str = "npu-ethos-u55-128") -> CompilerEstimate:
    """Calibrate and export a network for the CPU, which takes floats too, and compile the file."""
    x = torch.rand(SAMPLES, 3, SIZE, SIZE) * 2 - 1
    model = float_model(network)
    graph = quantization.prepare(model)
    quantization.calibrate(graph, [x[:8], x[8:]], calibration.load("minmax"))
    program = quantization.convert(graph, model, x)
    artifact = exporters.export(program, target.load("cpu-litert"), folder)
    return compilers.compile_with(target.load(device).compiler, artifact.path, folder)


def deployed(*names: str) -> nn.Module:
    """Return a network of these operators between two layers."""
    torch.manual_seed(3)
    operators = [OPERATORS[name]() for name in names]
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *operators, nn.Flatten(), nn.LazyLinear(8))
    network(torch.zeros(2, 3, SIZE, SIZE))  # the linear layer finds its width
    return network


@pytest.mark.slow
def test_operators_of_usual_classifiers_run_on_the_npu(tmp_path: Path):
    network = deployed(*IN_A_ROW)
    for device in ("npu-ethos-u55-128", "npu-ethos-u85-256"):
        estimate = compile_network(network, tmp_path, device)
        assert not estimate.fallback_ops and estimate.npu_ops > len(IN_A_ROW)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_THE_CPU)
def test_operators_that_vela_leaves_to_the_cpu(name: str, tmp_path: Path):
    estimate = compile_network(deployed(name), tmp_path)
    assert any(ON_THE_CPU[name] in op for op in estimate.fallback_ops)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_classifier_with_an_integer_interface_runs_on_the_npu_whole(dtype: str, tmp_path: Path):
    """Through the target's own profile, which allows no operator on the CPU and none in float."""
    profile = target.load("npu-ethos-u55-128")
    export = profile.export.model_copy(update={"io_dtype": dtype})
    profile = profile.model_copy(update={"export": export})
    layers = (nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU6())
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    x = torch.rand(SAMPLES, 3, SIZE, SIZE) * 2 - 1
    model = float_model(network)
    graph = quantization.prepare(model)
    quantization.calibrate(graph, [x[:8], x[8:]], calibration.load("minmax"))
    artifact = exporters.export(quantization.convert(graph, model, x), profile, tmp_path)
    assert artifact.inputs[0].dtype == dtype
    estimate = compilers.compile_for(profile, artifact.path, tmp_path)
    assert not estimate.fallback_ops and estimate.cycles > 0
