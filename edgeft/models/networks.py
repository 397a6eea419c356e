"""The built-in networks: small enough for microcontrollers, made of what every integer kernel library has."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn


def _conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[tuple[str, nn.Module]]:
    padding = kernel // 2
    return [
        ("conv", nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)),
        ("bn", nn.BatchNorm2d(outputs)),
    ]


def _named(*parts: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


class ConvUnit(nn.Sequential):
    """Convolution, batch norm and, unless it is a linear bottleneck, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True
    ) -> None:
        parts = _conv_bn(inputs, outputs, kernel, stride, groups)
        super().__init__(OrderedDict(parts + ([("act", nn.ReLU6())] if activate else [])))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a skip connection (He et al. 2016); a 1x1 one where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvUnit(inputs, outputs, 3, stride), ConvUnit(outputs, outputs, 3, activate=False)
        )
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else ConvUnit(inputs, outputs, 1, stride, activate=False)
        self.act = nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        out: torch.Tensor = self.act(self.body(x) + self.skip(x))
        return out


class InvertedResidual(nn.Module):
    """Expand, filter per channel, project; added to the input where shapes agree (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, expansion: int = 4) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.body = nn.Sequential(
            ConvUnit(inputs, hidden, 1),
            ConvUnit(hidden, hidden, 3, stride, groups=hidden),
            ConvUnit(hidden, outputs, 1, activate=False),
        )
        self.adds = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        out: torch.Tensor = self.body(x)
        return x + out if self.adds else out


class Classifier(nn.Module):
    """Features, global average pooling, and a linear head called ``head``."""

    def __init__(self, features: nn.Sequential, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, 32, 32) to logits (N, classes)."""
        logits: torch.Tensor = self.head(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def digitsnet(classes: int) -> Classifier:
    """Return the embedded default: grey 32x32 input, 11 million MACs, 0.1 million parameters."""
    features = _named(
        ("stem", ConvUnit(1, 24, 3, stride=2)),
        ("block1", ResidualBlock(24, 32)),
        ("block2", ResidualBlock(32, 64, stride=2)),
        ("block3", InvertedResidual(64, 64, expansion=2)),
        ("block4", InvertedResidual(64, 64, expansion=2)),
        ("last", ConvUnit(64, 128, 1)),
    )
    return Classifier(features, 128, classes)


def resnet8(classes: int) -> Classifier:
    """Return a CIFAR-style ResNet-8 (RGB 32x32, 13 million MACs), the image network of MLPerf Tiny."""
    features = _named(
        ("stem", ConvUnit(3, 16, 3)),
        ("block1", ResidualBlock(16, 16)),
        ("block2", ResidualBlock(16, 32, stride=2)),
        ("block3", ResidualBlock(32, 64, stride=2)),
    )
    return Classifier(features, 64, classes)


class MLP(nn.Module):
    """A multi-layer perceptron for tables: linear, batch norm and ReLU per hidden layer, then ``head``."""

    def __init__(self, inputs: int, classes: int, hidden: tuple[int, ...] = (64, 32)) -> None:
        super().__init__()
        widths = (inputs, *hidden)
        self.features = nn.Sequential(
            *(
                _named(("linear", nn.Linear(i, o, bias=False)), ("bn", nn.BatchNorm1d(o)), ("act", nn.ReLU()))
                for i, o in pairwise(widths)
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map rows (N, inputs) to logits (N, classes)."""
        logits: torch.Tensor = self.head(self.features(x))
        return logits


NETWORKS = {"digitsnet": digitsnet, "resnet8": resnet8}
