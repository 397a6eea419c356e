"""Networks that no library has under a name of its own; recipes name them as ``../networks.py:FUNCTION``."""

from __future__ import annotations

from torch import nn

from edgeft import extras


def mobilenet_v2_035(classes: int) -> nn.Module:
    """Return MobileNetV2 at width 0.35 (Sandler et al. 2018), the backbone of Teachable Machine."""
    models = extras.load("torchvision.models", "bench/networks.py")
    network: nn.Module = models.mobilenet_v2(width_mult=0.35, num_classes=classes)
    return network
