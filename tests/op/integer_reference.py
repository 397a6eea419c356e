"""A Q/DQ program executed in integers, with numpy alone: what every runtime is held against.

Convolutions and linear layers add products of integers in 64 bits and prove that 32 would have done; what a
fused group hands on is requantized once, by round-half-even. Ops without an integer form run in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torch.nn import functional as F

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Integers:
    """Integers less their zero point, and the step they count: per tensor, or per channel of a weight."""

    values: Array
    step: Array

    def real(self) -> Array:
        """Return the real values, float64."""
        return self.values * self.step


def run(program: GraphModule, inputs: Array) -> Array:
    """Return the real-valued outputs of a Q/DQ program for inputs (N, C, H, W)."""
    values: dict[Node, Any] = {}

    def value(argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [value(item) for item in argument]
        return values[argument] if isinstance(argument, Node) else argument

    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = inputs.astype(np.float64)
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            tensor: torch.Tensor = getattr(program.get_submodule(owner), name)
            values[node] = tensor.detach().double().numpy()
        elif node.op == "output":
            return real(value(node.args[0])[0])
        elif node.op == "call_function":
            name = str(node.target)
            operation = OPERATIONS.get(name) or OPERATIONS[name.rsplit(".", 1)[0]]
            values[node] = operation(*value(node.args), **{k: value(v) for k, v in node.kwargs.items()})
    raise ValueError("the program has no output")


def real(x: Any) -> Array:
    return x.real() if isinstance(x, Integers) else np.asarray(x)


def quantize(x: Any, scale: float, zero_point: int, low: int, high: int, _: Any) -> Integers:
    q = np.rint(real(x) / np.float64(np.float32(scale))) + zero_point
    return Integers(np.clip(q, low, high).astype(np.int64) - zero_point, np.float64(np.float32(scale)))


def quantize_weight(
    w: Array, scales: Array, zeros: Array, axis: int, low: int, high: int, _: Any
) -> Integers:
    assert axis == 0 and not zeros.any()
    step = np.float32(scales).astype(np.float64).reshape(-1, *([1] * (w.ndim - 1)))
    integers = w / step
    # The program's weights lie on their grid already: rounding decides nothing.
    assert np.abs(integers - np.rint(integers)).max() < 1e-4
    assert np.abs(np.rint(integers)).max() <= 127
    return Integers(np.rint(integers).astype(np.int64), step)


def as_is(x: Any, *_: Any, **__: Any) -> Any:
    return x


def biased(total: Array, x: Integers, w: Integers, bias: Array | None) -> Array:
    """Add the int32 bias to accumulators whose channels are axis 1; return real values."""
    shape = (1, -1, *([1] * (total.ndim - 2)))
    step = (x.step * w.step).reshape(-1)
    if bias is not None:
        integers = bias / step
        off_grid = np.abs(integers - np.rint(integers))
        assert (off_grid <= np.maximum(1e-3, np.abs(integers) * 2.0**-22)).all(), "a bias is not on its grid"
        total = total + np.rint(integers).astype(np.int64).reshape(shape)
    assert np.abs(total).max() < 2**31, "an accumulator leaves 32 bits"
    return total * step.reshape(shape)


def convolution(
    x: Integers,
    w: Integers,
    bias: Array | None = None,
    stride: Any = (1,),
    padding: Any = (0,),
    dilation: Any = (1,),
    groups: int = 1,
) -> Array:
    spatial = x.values.ndim - 2
    stride, padding, dilation = (tuple(v) * (spatial // len(v)) for v in (stride, padding, dilation))
    padded = np.pad(x.values, [(0, 0), (0, 0), *((p, p) for p in padding)])
    kernel = w.values.shape[2:]
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + spatial)))
    steps = tuple(slice(None, None, s) for s in stride)
    holes = tuple(slice(None, None, d) for d in dilation)
    windows = windows[(slice(None), slice(None), *steps, *holes)]
    totals = []
    per_group = w.values.shape[1]
    for group, part in enumerate(np.split(w.values, groups)):
        seen = windows[:, group * per_group : (group + 1) * per_group]
        axes = [1, *range(2 + spatial, 2 + 2 * spatial)]
        totals.append(np.moveaxis(np.tensordot(seen, part, (axes, list(range(1, part.ndim)))), -1, 1))
    return biased(np.concatenate(totals, axis=1), x, w, bias)


def linear(x: Integers, w: Integers, bias: Array | None = None) -> Array:
    total = np.moveaxis(x.values @ w.values.T, -1, 1)
    return np.moveaxis(biased(total, x, w, bias), 1, -1)


def transposed_convolution(x: Any, w: Array, bias: Array, stride: Any = (1,)) -> Array:
    """Compute in float, as every runtime does."""
    convolve = F.conv_transpose2d if w.ndim == 4 else F.conv_transpose1d
    return convolve(torch.from_numpy(real(x)), torch.from_numpy(w), torch.from_numpy(bias), stride).numpy()


def clamp(x: Any, low: float | None = None, high: float | None = None) -> Array:
    return np.clip(real(x), low, high)


def max_pool(x: Integers, size: Any, stride: Any = (), padding: Any = (0,)) -> Integers:
    (kh, kw), (sh, sw) = (tuple(v) * (2 // len(v)) for v in (size, stride or size))
    ph, pw = tuple(padding) * (2 // len(padding))
    padded = np.pad(x.values, [(0, 0), (0, 0), (ph, ph), (pw, pw)], constant_values=-(2**30))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kh, kw), axis=(2, 3))
    return Integers(windows[:, :, ::sh, ::sw].max((4, 5)), x.step)


def average_pool(x: Integers, size: Any, stride: Any = ()) -> Array:
    (kh, kw), (sh, sw) = (tuple(v) * (2 // len(v)) for v in (size, stride or size))
    windows = np.lib.stride_tricks.sliding_window_view(x.values, (kh, kw), axis=(2, 3))
    return windows[:, :, ::sh, ::sw].sum((4, 5)) * x.step / (kh * kw)


def adaptive_average(x: Integers, size: Any) -> Array:
    """Average over windows that divide the input evenly."""
    return average_pool(x, [full // wanted for full, wanted in zip(x.values.shape[2:], size, strict=True)])


def mean(x: Integers, axes: Any, keepdim: bool = False) -> Array:
    axes = tuple(axes)
    count = int(np.prod([x.values.shape[axis] for axis in axes]))
    return x.values.sum(axes, keepdims=keepdim) * x.step / count


def concat(parts: list[Integers], axis: int = 0) -> Integers:
    assert len({float(part.step) for part in parts}) == 1, "concat of different scales"
    return Integers(np.concatenate([part.values for part in parts], axis), parts[0].step)


def moved(change: Callable[..., Array]) -> Callable[..., Any]:
    """Apply a rearrangement to integers or to real values."""

    def apply(x: Any, *arguments: Any) -> Any:
        if isinstance(x, Integers):
            return Integers(change(x.values, *arguments), x.step)
        return change(x, *arguments)

    return apply


def flatten(x: Array, start: int = 0, end: int = -1) -> Array:
    end = end % x.ndim
    return x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :])


def cut(x: Array, axis: int = 0, start: int = 0, end: int | None = None, step: int = 1) -> Array:
    return x[(slice(None),) * axis + (slice(start, end, step),)]


def padded(x: Any, sizes: Any, mode: str = "constant", value: float | None = None) -> Any:
    widths = [(0, 0)] * (real(x).ndim - len(sizes) // 2)
    widths += [(sizes[i], sizes[i + 1]) for i in range(len(sizes) - 2, -1, -2)]
    assert mode == "constant"
    if not value and isinstance(x, Integers):
        return Integers(np.pad(x.values, widths), x.step)
    return np.pad(real(x), widths, constant_values=value or 0)


def bilinear(x: Any, size: Any, align_corners: bool, factors: Any = None) -> Array:
    assert not align_corners
    return F.interpolate(torch.from_numpy(real(x)), size, factors, mode="bilinear").numpy()


def nearest(x: Integers, size: Any, factors: Any = None) -> Integers:
    rows, columns = (int(factor) for factor in factors)
    return Integers(x.values.repeat(rows, 2).repeat(columns, 3), x.step)


def expanded(x: Array, shape: Any) -> Array:
    return np.broadcast_to(x, [a if b < 0 else b for a, b in zip(x.shape, shape, strict=True)])


def soft_max(x: Any, axis: int, *_: Any) -> Array:
    shifted = np.exp(real(x) - real(x).max(axis, keepdims=True))
    return shifted / shifted.sum(axis, keepdims=True)


def leaky(x: Any, slope: float = 0.01) -> Array:
    return np.where(real(x) < 0, slope * real(x), real(x))


def hard_swish(x: Any) -> Array:
    x = real(x)
    return x * np.clip(x + 3, 0, 6) / 6


OPERATIONS: dict[str, Callable[..., Any]] = {
    "quantized_decomposed.quantize_per_tensor": quantize,
    "quantized_decomposed.dequantize_per_tensor": as_is,
    "quantized_decomposed.quantize_per_channel": quantize_weight,
    "quantized_decomposed.dequantize_per_channel": as_is,
    "aten.conv1d": convolution,
    "aten.conv2d": convolution,
    "aten.conv_transpose1d": transposed_convolution,
    "aten.conv_transpose2d": transposed_convolution,
    "aten.linear": linear,
    "aten.relu": lambda x: clamp(x, 0),
    "aten.relu_": lambda x: clamp(x, 0),
    "aten.relu6": lambda x: clamp(x, 0, 6),
    "aten.hardtanh": clamp,
    "aten.hardtanh_": clamp,
    "aten.clamp": clamp,
    "aten.add": lambda a, b: real(a) + real(b),
    "aten.add_": lambda a, b: real(a) + real(b),
    "aten.sub": lambda a, b: real(a) - real(b),
    "aten.mul": lambda a, b: real(a) * real(b),
    "aten.clone": as_is,
    "aten.pad": padded,
    "aten.cat": concat,
    "aten.narrow": moved(lambda x, axis, start, length: cut(x, axis, start, start + length)),
    "aten.select": moved(lambda x, axis, index: np.take(x, index, axis)),
    "aten.unsqueeze": moved(np.expand_dims),
    "aten.squeeze": moved(lambda x, axis: np.squeeze(x, axis)),
    "aten.expand": moved(
        lambda x, shape: np.broadcast_to(x, [a if b < 0 else b for a, b in zip(x.shape, shape, strict=True)])
    ),
    "aten.reshape": moved(lambda x, shape: x.reshape(shape)),
    "aten.view": moved(lambda x, shape: x.reshape(shape)),
    "aten.pixel_shuffle": moved(lambda x, factor: F.pixel_shuffle(torch.from_numpy(x), factor).numpy()),
    "aten.permute": moved(lambda x, order: x.transpose(order)),
    "aten.upsample_nearest2d": nearest,
    "aten.upsample_bilinear2d": bilinear,
    "aten.tanh": lambda x: np.tanh(real(x)),
    "aten.leaky_relu": leaky,
    "aten.elu": lambda x, *_: np.where(real(x) < 0, np.expm1(real(x)), real(x)),
    "aten.gelu": lambda x, *_, **__: F.gelu(torch.from_numpy(real(x))).numpy(),
    "aten.softmax": soft_max,
    "aten.max_pool2d": max_pool,
    "aten.avg_pool2d": average_pool,
    "aten.adaptive_avg_pool2d": adaptive_average,
    "aten.mean": mean,
    "aten.flatten": moved(flatten),
    "aten.slice": moved(cut),
    "aten.transpose": moved(lambda x, a, b: np.swapaxes(x, a, b)),
    "aten.dropout": as_is,
    "aten.sigmoid": lambda x: 1 / (1 + np.exp(-real(x))),
    "aten.hardswish": hard_swish,
    "aten.matmul": lambda a, b: real(a) @ real(b),
}
