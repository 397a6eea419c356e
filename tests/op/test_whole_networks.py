"""Whole networks from capture to the three runtimes: every MAC op int8, and parity inside a budget.

Weights are random and batch norms have seen noise: such a network amplifies every difference, where a trained one
damps it. The budget therefore is what quantization itself does to the logits. Mean difference between file and
program as a share of that, at 64 px (ONNX Runtime, OpenVINO): MobileNetV2 0.11, 0.15; MobileNetV3-small 0.18, 0.33;
EfficientNet-B0 0.75, 0.88; ResNet-18 0.26, 0.39; ResNet-50 0.44, 0.52; DenseNet-121 0.63, 0.66.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from deployment import RUNTIMES, Deployed, deploy_network
from torch import nn

from edgeft import extras

pytestmark = pytest.mark.slow

# MAC ops in the program: hard-swish gates, lone batch norms and averages over windows are convolutions there.
NETWORKS = {
    "mobilenetv2_100": 53,
    "mobilenetv3_small_100": 73,
    "efficientnet_b0": 82,
    "resnet18": 21,
    "resnet50": 54,
    "densenet121": 186,
}
SIZE = 64


def network(name: str) -> nn.Module:
    extras.declare_torchvision_ops()
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net: nn.Module = timm.create_model(name, pretrained=False, num_classes=16)
    with torch.no_grad():
        for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = None
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.3, 0.3)
        for _ in range(3):
            net.train()(torch.randn(16, 3, SIZE, SIZE))
    return net.eval()


@functools.cache
def deploy(name: str) -> Deployed:
    return deploy_network(network(name), name, size=SIZE)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_mac_op_is_executed_in_int8(name: str, runtime: str) -> None:
    deployed = deploy(name)
    coverage = deployed.artifacts[runtime].coverage
    assert len(deployed.program.layers) == coverage.int8_mac_ops == coverage.mac_ops == NETWORKS[name]
    assert deployed.reports[runtime]["mac_precision"] == {"int8": NETWORKS[name]}
    assert coverage.float_islands == ()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_files_stay_closer_to_the_program_than_the_program_to_the_float_network(
    name: str, runtime: str
) -> None:
    deployed = deploy(name)
    quantization = np.abs(deployed.logits["torch"] - deployed.floats).mean()
    assert np.abs(deployed.logits[runtime] - deployed.logits["torch"]).mean() < quantization
