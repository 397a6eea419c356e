"""Networks that no library has under a name of its own; recipes name them as ``../networks.py:FUNCTION``."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from edgeft import extras


def mobilenet_v2_035(classes: int) -> nn.Module:
    """Return MobileNetV2 at width 0.35 (Sandler et al. 2018), the backbone of Teachable Machine."""
    models = extras.load("torchvision.models", "bench/networks.py")
    network: nn.Module = models.mobilenet_v2(width_mult=0.35, num_classes=classes)
    return network


def resnet56_cifar(classes: int) -> nn.Module:
    """Return the ResNet-56 for 32 x 32 pixels (He et al. 2016, section 4.2), with its shortcuts of no parameters."""
    return CifarResNet(classes, blocks=9)


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels, `blocks` blocks of two convolutions each."""

    def __init__(self, classes: int, *, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 3, 32, 32) to logits (N, classes)."""
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.linear(x.mean((2, 3), keepdim=True).flatten(1))
        return logits


class CifarBlock(nn.Module):
    """Two 3x3 convolutions beside the input; where the shape changes, beside every other pixel and zeros (option A)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.zeros = (outputs - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.zeros, self.zeros))
        return (x + y).relu()


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        CifarBlock(inputs, outputs), *(CifarBlock(outputs, outputs) for _ in range(blocks - 1))
    )
