"""The operators that the op tests and the op table take through the runtimes, each on (N, 8, 8, 8) features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from deployment import Lambda
from torch import nn
from torch.nn import functional as F


def _norm() -> nn.Module:
    """A batch norm that has seen something."""
    norm = nn.BatchNorm2d(8)
    for values, low, high in (
        (norm.weight, 0.5, 2), (norm.bias, -0.5, 0.5), (norm.running_mean, -0.3, 0.3), (norm.running_var, 0.2, 1),
    ):  # fmt: skip
        nn.init.uniform_(values, low, high)
    return norm


def _squeeze_excite(gate: nn.Module) -> nn.Module:
    inner = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), gate)
    return Lambda(lambda m, x: x * m.gate(x.mean([2, 3], keepdim=True)), gate=inner)


def _two(forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> nn.Module:
    """An op of two results: that of a layer, and the features themselves."""
    return Lambda(lambda m, x: forward(m.layer(x), x), layer=nn.Conv2d(8, 8, 1))


def _one(forward: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    return Lambda(lambda _, x: forward(x))


def _scaled() -> nn.Module:
    net = Lambda(lambda m, x: x * m.scale.weight.reshape(1, 8, 1, 1), scale=nn.Linear(8, 1, bias=False))
    nn.init.uniform_(net.scale.weight, 0.5, 1.5)
    return net


OPERATORS: dict[str, Callable[[], nn.Module]] = {
    "conv2d": lambda: nn.Conv2d(8, 8, 3),
    "conv2d depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "conv2d dilated": lambda: nn.Conv2d(8, 8, 3, dilation=2),
    "conv1d": lambda: Lambda(lambda m, x: m.layer(x.flatten(2)), layer=nn.Conv1d(8, 8, 3)),
    "conv_transpose2d": lambda: nn.ConvTranspose2d(8, 6, 3, stride=2),
    "conv_transpose1d": lambda: Lambda(
        lambda m, x: m.layer(x.flatten(2)), layer=nn.ConvTranspose1d(8, 6, 2, stride=2)
    ),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(512, 10)),
    "batch_norm alone": lambda: nn.Sequential(nn.MaxPool2d(2), _norm()),
    "add": lambda: _two(lambda a, b: a + b),
    "add broadcast": lambda: _two(lambda a, b: a + b[:, :, :1, :1]),
    "add a number": lambda: _one(lambda x: x + 0.7),
    "sub": lambda: _two(lambda a, b: a - b),
    "sub a number": lambda: _one(lambda x: x - 0.4),
    "mul": lambda: _two(lambda a, b: a * b),
    "mul broadcast": lambda: _two(lambda a, b: a * b[:, :, :1, :1]),
    "mul by a number": lambda: _one(lambda x: x * 0.8),
    "mul by a parameter": _scaled,
    "div by a number": lambda: _one(lambda x: x / 1.3),
    "cat": lambda: _two(lambda a, b: torch.cat([a, b], 1)),
    "cat with a sigmoid": lambda: _two(lambda a, b: torch.cat([torch.sigmoid(a), b], 1)),
    "cat of relu and signed": lambda: _two(lambda a, b: torch.cat([torch.relu(a), b], 1)),
    "stack": lambda: _two(lambda a, b: torch.stack([a, b], 1)),
    "pad with zeros": lambda: _one(lambda x: F.pad(x, (1, 2, 0, 1))),
    "pad with a number": lambda: _one(lambda x: F.pad(x, (1, 1, 1, 1), value=0.5)),
    "slice": lambda: _one(lambda x: x[:, 1:7:2, 2:]),
    "split": lambda: _one(lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1)),
    "chunk": lambda: _one(lambda x: x.chunk(2, 1)[1]),
    "narrow": lambda: _one(lambda x: x.narrow(2, 1, 4)),
    "select": lambda: _one(lambda x: x[:, :, 3]),
    "expand": lambda: _one(lambda x: x[:, :, :1].expand(-1, -1, 4, -1)),
    "reshape permute": lambda: _one(lambda x: x.reshape(-1, 2, 4, 64).permute(0, 2, 1, 3)),
    "pixel_shuffle": lambda: nn.PixelShuffle(2),
    "channel shuffle": lambda: _one(lambda x: x.reshape(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)),
    "max_pool2d": lambda: nn.MaxPool2d(3, 2, 1),
    "avg_pool2d": lambda: nn.AvgPool2d(2),
    "adaptive_avg_pool2d to 1": lambda: nn.AdaptiveAvgPool2d(1),
    "adaptive_avg_pool2d to 2": lambda: nn.AdaptiveAvgPool2d(2),
    "mean of channels": lambda: _one(lambda x: x.mean([2, 3])),
    "mean one axis": lambda: _one(lambda x: x.mean(3)),
    "resize nearest": lambda: nn.Upsample(scale_factor=2),
    "resize bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softmax": lambda: nn.Softmax(1),
    "squeeze-excite sigmoid": lambda: _squeeze_excite(nn.Sigmoid()),
    "squeeze-excite hardsigmoid": lambda: _squeeze_excite(nn.Hardsigmoid()),
}
"""By name: what makes a module that maps (N, 8, 8, 8) features to any shape."""
