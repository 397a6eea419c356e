"""Files on Qualcomm's HTP, in the simulator that onnxruntime-qnn brings for x86."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from deployment import SIZE, Lambda, deploy_network
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeft import exporters, measure, target
from edgeft.errors import RefusedError
from edgeft.measure.session import Session
from edgeft.types import ExportedArtifact, QuantCoverage, RuntimeReport, TensorSpec

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None, reason="needs onnxruntime-qnn"
)
PROFILES = ("npu-qualcomm-htp-v73", "npu-qualcomm-htp-v75")


@dataclasses.dataclass
class Simulated:
    """How far a network's file is from its program on the HTP, in steps of the logits, and what ran."""

    steps: np.ndarray
    report: RuntimeReport


def simulate(network: nn.Module, name: str) -> Simulated:
    torch.manual_seed(3)
    network(torch.zeros(2, 3, SIZE, SIZE))  # lazy layers find their width
    made = deploy_network(network, runtimes=())
    profile = target.load(name)
    with tempfile.TemporaryDirectory() as folder:
        artifact = exporters.export(made.program, profile, Path(folder))
        with Session(artifact, profile) as session:
            logits, report = session.predict(made.inputs), session.describe()
    return Simulated(steps=np.abs(logits - made.logits["torch"]) / made.step, report=report)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.LazyLinear(8)),
    ],
    ids=["conv2d", "linear"],
)
def test_one_layer_is_within_one_step(network: nn.Module):
    found = simulate(network, PROFILES[0])
    assert found.steps.max() < 1.01
    assert found.report.mac_precision == {"int8": 1}


@pytest.mark.parametrize("name", [PROFILES[0], pytest.param(PROFILES[1], marks=pytest.mark.slow)])
def test_a_network_runs_there_as_a_whole(name: str):
    def forward(self, x):
        stem = torch.relu(self.stem(x))
        return self.head((torch.nn.functional.hardtanh(self.depthwise(stem), 0, 6) + stem).mean((2, 3)))

    network = Lambda(
        forward,
        stem=nn.Conv2d(3, 8, 3, padding=1),
        depthwise=nn.Conv2d(8, 8, 3, padding=1, groups=8),
        head=nn.Linear(8, 5),
    )
    found = simulate(network, name)
    assert found.steps.max() < 3.01
    assert found.report.mac_precision == {"int8": 3} and found.report.partitions == 1
    assert found.report.details["float_other_ops"] == 0
    assert found.report.details["options"]["htp_arch"] == name[-2:]
    assert found.report.device.startswith("HTP")


def unsupported(folder: Path) -> ExportedArtifact:
    """A convolution, which the HTP takes, and a CELU, which it does not."""
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Celu", ["c"], ["y"], name="bend"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, folder / "celu.onnx")
    return ExportedArtifact(
        path=folder / "celu.onnx",
        files=(folder / "celu.onnx",),
        format="onnx",
        scheme="unknown",
        sha256={},
        size_bytes=1,
        coverage=QuantCoverage(mac_ops=1, int8_mac_ops=0),
        inputs=(TensorSpec(name="x", shape=(1, 3, 8, 8), dtype="float32", layout="nchw"),),
        outputs=(TensorSpec(name="y", shape=(1, 4, 6, 6), dtype="float32", layout="nchw"),),
    )


def test_what_it_would_leave_to_the_cpu_is_refused_by_name(tmp_path: Path):
    with (
        pytest.raises(RefusedError, match=r"leaves nodes to the CPU.*bend \(Celu\)"),
        Session(unsupported(tmp_path), target.load(PROFILES[0])),
    ):
        pass


def test_an_option_that_the_provider_would_ignore_is_refused(tmp_path: Path):
    with (
        pytest.raises(
            RefusedError, match=r"unknown options .*'htp_architecture'.*; allowed are .*'htp_arch'"
        ),
        Session(unsupported(tmp_path), target.load(PROFILES[0]), options={"htp_architecture": "73"}),
    ):
        pass


def test_the_device_says_what_it_is():
    assert measure.check_device(target.load(PROFILES[0])).startswith("HTP")
