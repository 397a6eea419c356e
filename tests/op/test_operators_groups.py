"""Operators beside convolutions through annotation, conversion, export and the runtimes, against integers."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from deployment import RUNTIMES, Branches, Deployed, deploy_network
from operator_networks import OPERATORS
from torch import nn

from edgeft import exporters, stages, target
from edgeft.errors import EdgeftError, ExportError

GROUPS = {
    "arithmetic": [
        "batch_norm alone", "add broadcast", "add a number", "sub", "sub a number", "mul", "mul broadcast",
        "mul by a number", "mul by a parameter", "div by a number", "squeeze-excite sigmoid",
        "squeeze-excite hardsigmoid", "hardsigmoid",
    ],
    "moves": [
        "cat", "cat with a sigmoid", "cat of relu and signed", "stack", "pad with zeros", "pad with a number", "slice",
        "split", "chunk", "narrow", "select", "expand", "reshape permute", "channel shuffle", "mean of channels",
        "mean one axis", "adaptive_avg_pool2d to 2", "resize nearest", "resize bilinear",
    ],
    "curves": [
        "leaky_relu", "sigmoid", "tanh", "hardswish", "silu", "gelu", "softmax",
    ],
    "transposed": ["conv_transpose2d", "conv_transpose1d"],
}  # fmt: skip
SLOW = {"moves": pytest.mark.slow}
CASES = [
    pytest.param(group, name, marks=SLOW.get(group, ())) for group, names in GROUPS.items() for name in names
]
# Between the requantizations of several ops an integer may move by one at each.
TOLERANCE = 2


@functools.cache
def attempt(group: str) -> Deployed | EdgeftError:
    torch.manual_seed(3)
    branches = {name: OPERATORS[name]() for name in GROUPS[group]}
    try:
        return deploy_network(Branches(branches, nn.Conv2d(3, 8, 3, padding=1)), group)
    except EdgeftError as error:
        return error


def deploy(group: str) -> Deployed:
    """Return the deployed group; what failed once is not tried again for every operator."""
    deployed = attempt(group)
    if isinstance(deployed, EdgeftError):
        raise deployed
    return deployed


@pytest.mark.parametrize("where", ["torch", *RUNTIMES])
@pytest.mark.parametrize(("group", "name"), CASES)
def test_integers_are_those_of_the_reference(group: str, name: str, where: str) -> None:
    deployed = deploy(group)
    part = deployed.columns[name]
    steps = np.abs(deployed.logits[where][:, part] - deployed.expected[:, part]) / deployed.step
    assert steps.max() <= TOLERANCE + 1e-3
    assert steps.mean() <= 0.2


@pytest.mark.parametrize(("group", "name"), CASES)
def test_the_program_means_the_float_network(group: str, name: str) -> None:
    deployed = deploy(group)
    part = deployed.columns[name]
    steps = np.abs(deployed.expected[:, part] - deployed.floats[:, part]) / deployed.step
    assert steps.max() <= 8
    assert np.sqrt((steps**2).mean()) <= 2
    assert np.ptp(deployed.expected[:, part]) > 8 * deployed.step, "the branch says too little to be a test"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("group", [pytest.param(g, marks=SLOW.get(g, ())) for g in GROUPS])
def test_transposed_convolutions_alone_are_float_and_named(group: str, runtime: str) -> None:
    deployed = deploy(group)
    floats = len(GROUPS[group]) if group == "transposed" else 0
    assert len(deployed.program.float_ops) == len(deployed.artifacts[runtime].coverage.float_ops) == floats
    executed = deployed.reports[runtime]["mac_precision"]
    assert executed.pop("float32", 0) == floats
    assert set(executed) == {"int8"}


def test_a_target_that_runs_integers_only_refuses_a_float_layer(tmp_path: Path) -> None:
    profile = target.load("cpu-onnxruntime")
    strict = profile.model_copy(
        update={"precision": profile.precision.model_copy(update={"full_integer": True})}
    )
    with pytest.raises(ExportError, match=r"runs integers only; .* computes in float: ConvTranspose_"):
        exporters.export(deploy("transposed").program, strict, tmp_path)


def test_a_file_lists_what_its_target_leaves_out(tmp_path: Path) -> None:
    profile = target.load("cpu-onnxruntime")
    fusing = profile.model_copy(
        update={"precision": profile.precision.model_copy(update={"fused": ["activation-mul"]})}
    )
    artifact = stages.export(deploy("curves").program, fusing, tmp_path)
    assert len(artifact.deviations) == 2, "the gates of SiLU and hard-swish"
    assert stages.export(deploy("curves").program, profile, tmp_path).deviations == ()
