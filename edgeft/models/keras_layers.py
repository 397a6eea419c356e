"""One Keras layer to the torch layers that do the same, in NCHW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgeft.errors import ModelError
from edgeft.models.keras_files import Array, Variables

Named = list[tuple[str, nn.Module]]
"""Suffix of the layer's name and the torch layer, in the order in which they run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One use of a layer: its entry in the file, its weights, and the shape that it meets.

    `shape` is NCHW (1, C, H, W) or (1, F). `flattened` is the map (C, H, W) that a vector was flattened from in
    torch's order, where Keras has it in the order (H, W, C); empty for other inputs.
    """

    path: str
    kind: str
    config: dict[str, Any]
    variables: Variables
    shape: tuple[int, ...]
    flattened: tuple[int, ...] = ()
    keras_version: str

    def error(self, problem: str, hint: str = "") -> ModelError:
        """Return the error that names this layer and its class."""
        return ModelError(f"Keras layer {self.path!r} ({self.kind}): {problem}", hint)

    def variable(self, *names: str) -> Array:
        """Return the variable that is stored under one of `names`."""
        for name in names:
            if name in self.variables:
                return self.variables[name]
        raise self.error(
            f"the file has no {names[0]} for it; it has {', '.join(self.variables) or 'no weights'}",
            "give the whole model, or the weights of the same network",
        )


class Rescale(nn.Module):
    """Multiply by `scale` and add `offset` (Keras's Rescaling in the middle of a network)."""

    def __init__(self, scale: float, offset: float) -> None:
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x to x * scale + offset."""
        return x * self.scale + self.offset


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "swish": nn.SiLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "hard_swish": nn.Hardswish,
    "hard_silu": nn.Hardswish,
    "hard_sigmoid": nn.Hardsigmoid,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "softmax": lambda: nn.Softmax(1),
}


def activation_name(config: dict[str, Any]) -> str:
    """Return the activation of a layer's config: ``linear`` where it has none."""
    value = config.get("activation")
    if isinstance(value, dict):  # a serialized function or layer
        inner = value.get("config")
        value = inner if isinstance(inner, str) else value.get("class_name")
    return str(value or "linear")


def _activation(call: Call, name: str) -> Named:
    if name == "linear":
        return []
    if name not in _ACTIVATIONS:
        raise call.error(
            f"activation {name!r} is not known; allowed are linear, {', '.join(_ACTIVATIONS)}",
            "replace the activation in Keras, or rebuild the network in torch (model.source = 'file.py:build')",
        )
    if name == "hard_sigmoid" and call.keras_version.startswith("2"):
        raise call.error("Keras 2's hard_sigmoid has no counterpart in torch", "save the model with Keras 3")
    return [("_activation", _ACTIVATIONS[name]())]


def _same_padding(call: Call, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, int, int, int]:
    """Return (left, right, top, bottom) of Keras's "same": the odd pixel is added at the right and the bottom."""
    if call.config["padding"] == "valid":
        return (0, 0, 0, 0)
    if call.config["padding"] != "same":
        raise call.error(f"padding {call.config['padding']!r} is not known; allowed are valid and same")
    sides: list[int] = []
    strides = _pair(call.config.get("strides") or kernel)
    for size, k, s, d in zip(call.shape[2:], kernel, strides, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        sides = [total // 2, total - total // 2, *sides]
    return (sides[0], sides[1], sides[2], sides[3])


def _convolution(call: Call, suffix: str, weight: Array, bias: Array | None, groups: int) -> Named:
    """Return a padding layer where torch's own cannot do it, and the convolution."""
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    dilation = _pair(call.config.get("dilation_rate", 1))
    left, right, top, bottom = _same_padding(call, kernel, dilation)
    symmetric = left == right and top == bottom
    conv = nn.Conv2d(
        int(weight.shape[1]) * groups,
        int(weight.shape[0]),
        kernel,
        stride=_pair(call.config["strides"]),
        padding=(top, left) if symmetric else 0,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
    )
    _fill(call, conv, weight=weight, **({} if bias is None else {"bias": bias}))
    pad: Named = [] if symmetric else [(f"{suffix}_pad", nn.ZeroPad2d((left, right, top, bottom)))]
    return [*pad, (suffix, conv)]


def _conv(call: Call) -> Named:
    weight = call.variable("kernel").transpose(3, 2, 0, 1)
    convolution = _convolution(call, "", weight, _bias(call), int(call.config.get("groups", 1)))
    return [*convolution, *_activation(call, activation_name(call.config))]


def _depthwise(call: Call) -> Named:
    weight = _depthwise_weight(call.variable("depthwise_kernel", "kernel"))
    convolution = _convolution(call, "", weight, _bias(call), call.shape[1])
    return [*convolution, *_activation(call, activation_name(call.config))]


def _separable(call: Call) -> Named:
    depthwise = _depthwise_weight(call.variable("depthwise_kernel"))
    pointwise = call.variable("pointwise_kernel").transpose(3, 2, 0, 1)
    conv = nn.Conv2d(pointwise.shape[1], pointwise.shape[0], 1, bias=bool(call.config.get("use_bias", True)))
    bias = _bias(call)
    _fill(call, conv, weight=pointwise, **({} if bias is None else {"bias": bias}))
    return [
        *_convolution(call, "_depthwise", depthwise, None, call.shape[1]),
        ("_pointwise", conv),
        *_activation(call, activation_name(call.config)),
    ]


def _depthwise_weight(kernel: Array) -> Array:
    """Turn (H, W, C, multiplier) into (C * multiplier, 1, H, W)."""
    height, width, channels, multiplier = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)


def _bias(call: Call) -> Array | None:
    return call.variable("bias") if call.config.get("use_bias", True) else None


def _dense(call: Call) -> Named:
    if len(call.shape) != 2:
        raise call.error(
            f"it gets a map of {call.shape[1:]} (C, H, W); allowed are vectors",
            "flatten or pool before it, or use a 1x1 Conv2D",
        )
    kernel = call.variable("kernel")
    if kernel.shape[0] != call.shape[1]:
        raise call.error(
            f"its weights take {kernel.shape[0]} values and it gets {call.shape[1]}",
            "leave model.input_size out",
        )
    weight = kernel.T if not call.flattened else kernel[_torch_order(call.flattened)].T
    bias = _bias(call)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    _fill(call, linear, weight=weight, **({} if bias is None else {"bias": bias}))
    return [("", linear), *_activation(call, activation_name(call.config))]


def _torch_order(flattened: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Return, for each place of a map flattened as (C, H, W), its place when flattened as (H, W, C)."""
    channels, height, width = flattened
    places = np.arange(channels * height * width).reshape(height, width, channels)
    return places.transpose(2, 0, 1).reshape(-1)


def _batch_norm(call: Call) -> Named:
    axis = call.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) else axis
    if axis not in (-1, len(call.shape) - 1):
        raise call.error(f"it normalises axis {axis}; allowed is the last one, the channels")
    channels = call.shape[1]
    norm_class = nn.BatchNorm2d if len(call.shape) == 4 else nn.BatchNorm1d
    norm = norm_class(channels, eps=call.config["epsilon"], momentum=1 - call.config["momentum"])
    tensors = {"running_mean": call.variable("moving_mean"), "running_var": call.variable("moving_variance")}
    if call.config.get("scale", True):
        tensors["weight"] = call.variable("gamma")
    if call.config.get("center", True):
        tensors["bias"] = call.variable("beta")
    if call.flattened:
        tensors = {name: array[_torch_order(call.flattened)] for name, array in tensors.items()}
    _fill(call, norm, **tensors)
    return [("", norm)]


def _pool(call: Call) -> Named:
    kernel = _pair(call.config["pool_size"])
    strides = _pair(call.config.get("strides") or kernel)
    left, right, top, bottom = _same_padding(call, kernel, (1, 1))
    # torch pads both sides alike; with ceil_mode a window may reach over the right and bottom edge, which is
    # where "same" puts the odd pixel. Neither counts padding in an average.
    settings: dict[str, Any] = {"padding": (top, left), "ceil_mode": left != right or top != bottom}
    if call.kind == "MaxPooling2D":
        return [("", nn.MaxPool2d(kernel, strides, **settings))]
    return [("", nn.AvgPool2d(kernel, strides, count_include_pad=False, **settings))]


def _global_pool(call: Call) -> Named:
    pool = nn.AdaptiveMaxPool2d(1) if "Max" in call.kind else nn.AdaptiveAvgPool2d(1)
    return [("", pool)] if call.config.get("keepdims") else [("", pool), ("_flatten", nn.Flatten(1))]


def _relu(call: Call) -> Named:
    largest = call.config.get("max_value")
    slope = float(call.config.get("negative_slope") or 0)
    if call.config.get("threshold") or (slope and largest is not None):
        raise call.error("a threshold, or a slope beside a largest value, is not supported")
    if slope:
        return [("", nn.LeakyReLU(slope))]
    if largest is None:
        return [("", nn.ReLU())]
    return [("", nn.ReLU6() if float(largest) == 6 else nn.Hardtanh(0.0, float(largest)))]


def _leaky_relu(call: Call) -> Named:
    return [("", nn.LeakyReLU(float(call.config.get("negative_slope", call.config.get("alpha", 0.3)))))]


def _zero_pad(call: Call) -> Named:
    (top, bottom), (left, right) = call.config["padding"]
    return [("", nn.ZeroPad2d((left, right, top, bottom)))]


def _dropout(call: Call) -> Named:
    rate = float(call.config["rate"])
    return [("", nn.Dropout2d(rate) if call.kind == "SpatialDropout2D" else nn.Dropout(rate))]


def _rescaling(call: Call) -> Named:
    scale, offset = call.config["scale"], call.config["offset"]
    if isinstance(scale, list) or isinstance(offset, list):
        raise call.error("a scale per channel is supported right behind the input only")
    return [("", Rescale(float(scale), float(offset)))]


LAYERS: dict[str, Callable[[Call], Named]] = {
    "Activation": lambda call: [("", layer) for _, layer in _activation(call, activation_name(call.config))],
    "AveragePooling2D": _pool,
    "BatchNormalization": _batch_norm,
    "Conv2D": _conv,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "Dropout": _dropout,
    "GlobalAveragePooling2D": _global_pool,
    "GlobalMaxPooling2D": _global_pool,
    "LeakyReLU": _leaky_relu,
    "MaxPooling2D": _pool,
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "SeparableConv2D": _separable,
    "Softmax": lambda call: [("", nn.Softmax(1))],
    "SpatialDropout2D": _dropout,
    "ZeroPadding2D": _zero_pad,
}
"""Layers with one input, by Keras class."""


def _fill(call: Call, layer: nn.Module, **arrays: Array) -> None:
    """Copy arrays into a layer's tensors of the same names and shapes."""
    state = layer.state_dict()
    for name, array in arrays.items():
        if tuple(state[name].shape) != array.shape:
            raise call.error(
                f"its {name} has shape {array.shape} where {tuple(state[name].shape)} fits its settings",
                "give the weights of the same network",
            )
    tensors = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in arrays.items()}
    layer.load_state_dict({**state, **tensors})


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, list | tuple) else (value, value)
    return int(first), int(second)
