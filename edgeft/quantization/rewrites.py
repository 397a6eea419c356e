"""Structural rewrites of a captured graph: the same function in ops that have integer kernels.

`make_functional` runs at capture, for float files too. The others run before the quantizers are inserted:
a float file keeps its hard-swish, the integer program has what the integer kernels are made of.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeft.errors import QuantizationError
from edgeft.quantization.operators import (
    ARITHMETIC,
    CLAMPS,
    CONCATS,
    IN_PLACE,
    INTEGER_MACS,
    aten,
    fixed_range,
    is_float,
    keeps_range,
)

_BATCH_NORMS = {aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default}
_CONVOLUTION_OF_RANK = {3: aten.conv1d.default, 4: aten.conv2d.default}


def make_functional(graph: GraphModule) -> None:
    """Replace ops that write over their input, in place; what read the input afterwards reads their result."""
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        if node.target not in IN_PLACE:
            continue
        node.target = IN_PLACE[node.target]
        source = node.args[0]
        for user in [u for u in source.users if order[u] > order[node]]:
            user.replace_input_with(source, node)
    graph.recompile()


def lower(graph: GraphModule, float_nodes: Collection[Node] = ()) -> None:
    """Rewrite a captured graph, in place, in ops that have integer kernels.

    Batch norms that could not be folded become convolutions of one tap, SiLU and hard-swish a gate and a product,
    hard-sigmoid a convolution and a clamp, averages over windows convolutions, numbers one-element tensors, splits
    slices, and means of channels pools (as means without their dimensions Vela leaves them on the CPU).

    Args:
        graph: Captured, in evaluation mode.
        float_nodes: Nodes that stay as they are.
    """
    for node in list(graph.graph.nodes):
        rewrite = _REWRITES.get(node.target) if node.op == "call_function" else None
        if rewrite is None or node in float_nodes:
            continue
        writer = _Writer(graph, node)
        with graph.graph.inserting_before(node):
            result = rewrite(writer, node)
        if result is not None:
            node.replace_all_uses_with(result)
            graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):
        if node.target in CONCATS and node not in float_nodes:
            _separate_parts(graph, node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def make_normalization_a_layer(graph: GraphModule) -> None:
    """Turn product and sum that normalise a captured graph's input into a depthwise convolution of one tap, in place.

    As an integer layer it is as good as exact: a channel's one weight is its largest, and so 127 of its steps.
    """
    source = next(node for node in graph.graph.nodes if node.op == "placeholder")
    (product,) = source.users
    (total,) = product.users
    with graph.graph.inserting_before(total):
        write = _Writer(graph, product)
        weight, bias = (write.tensor(node.args[1]) for node in (product, total))
        if weight is None or bias is None:
            raise QuantizationError("the graph does not begin with a normalisation")
        result = write.per_channel(source, weight.flatten(), bias.flatten(), trainable=False)
    total.replace_all_uses_with(result)
    graph.graph.erase_node(total)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def leave_saturation_to_quantizers(graph: GraphModule) -> None:
    """Turn clamps to [0, 1] into ReLUs in a frozen fake-quant graph: the quantizer behind saturates at 1 by itself.

    No kernel fuses the upper bound, and LiteRT's converter leaves a convolution before such a clamp in float.
    """
    for node in graph.graph.nodes:
        is_gate = node.target in CLAMPS and fixed_range(node) == (0.0, 1.0)
        if is_gate and all(user.op == "call_module" for user in node.users):
            node.target, node.args = aten.relu.default, node.args[:1]
    graph.recompile()


class _Writer:
    """Inserts ops in the place of one node; they carry its module path, and fake values for their shapes."""

    def __init__(self, graph: GraphModule, origin: Node) -> None:
        self._graph, self._origin = graph, origin

    def call(self, target: Any, *args: Any) -> Node:
        """Insert an op."""
        node: Node = self._graph.graph.call_function(target, args)
        self._describe(node, target(*_fake(args)))
        return node

    def constant(self, value: torch.Tensor, role: str, *, trainable: bool = False) -> Node:
        """Insert a tensor that belongs to the graph; training moves it only where it is `trainable`."""
        name = f"{self._origin.name}_{role}"
        self._graph.register_parameter(name, torch.nn.Parameter(value, requires_grad=trainable))
        node: Node = self._graph.graph.get_attr(name)
        self._describe(node, value)
        return node

    def tensor(self, node: Any) -> torch.Tensor | None:
        """Return the tensor behind a get_attr node, or None."""
        if not isinstance(node, Node):
            return None
        owner, _, name = str(node.target).rpartition(".")
        value: torch.Tensor = getattr(self._graph.get_submodule(owner), name)
        return value.detach()

    def replace_constant(self, reader: Node, index: int, value: torch.Tensor, role: str) -> None:
        """Give an op another parameter; it may have shared the old one."""
        name = f"{reader.name}_{role}"
        self._graph.register_parameter(name, torch.nn.Parameter(value))
        with self._graph.graph.inserting_before(reader):
            node: Node = self._graph.graph.get_attr(name)
        self._describe(node, value)
        reader.args = (*reader.args, None, None)[: max(len(reader.args), index + 1)]
        reader.update_arg(index, node)

    def per_channel(self, x: Node, weight: torch.Tensor, bias: torch.Tensor, *, trainable: bool) -> Node:
        """Insert weight * x + bias by channel, as a depthwise convolution of one tap. x is (N, C), (N, C, L) or 4-D."""
        rank = len(x.meta["val"].shape)
        value = self.call(aten.unsqueeze.default, x, -1) if rank == 2 else x
        convolution = _CONVOLUTION_OF_RANK[max(rank, 3)]
        spatial = 2 if rank == 4 else 1
        taps = self.constant(weight.reshape(-1, 1, *[1] * spatial), "weight", trainable=trainable)
        offset = self.constant(bias, "bias", trainable=trainable)
        ones, zeros = [1] * spatial, [0] * spatial
        value = self.call(convolution, value, taps, offset, ones, zeros, ones, len(weight))
        return self.call(aten.squeeze.dim, value, -1) if rank == 2 else value

    def _describe(self, node: Node, value: Any) -> None:
        stack = self._origin.meta.get("nn_module_stack")
        node.meta = {"val": value} | ({"nn_module_stack": stack} if stack else {})


def _fake(args: Any) -> Any:
    return [
        a.meta["val"] if isinstance(a, Node) else _fake(a) if isinstance(a, list | tuple) else a for a in args
    ]


def _batch_norm(write: _Writer, node: Node) -> Node | None:
    """DenseNet and pre-activation ResNets: nothing before it to fold it into."""
    x: Any = node.args[0]
    if len(x.meta["val"].shape) > 4:
        return None
    gamma, beta, mean, variance = (write.tensor(argument) for argument in node.args[1:5])
    epsilon: Any = node.args[7] if node.target is aten.batch_norm.default else node.args[6]
    if mean is None or variance is None:
        return None
    weight = torch.rsqrt(variance + epsilon) * (1 if gamma is None else gamma)
    return write.per_channel(x, weight, (0 if beta is None else beta) - mean * weight, trainable=True)


def _silu(write: _Writer, node: Node) -> Node:
    """X * sigmoid(x): both have integer kernels everywhere, SiLU nowhere."""
    return write.call(aten.mul.Tensor, node.args[0], write.call(aten.sigmoid.default, node.args[0]))


def _hard_swish(write: _Writer, node: Node) -> Node:
    """X * hard_sigmoid(x).

    Quantized as a unit it has no integer kernel in ONNX Runtime, and in LiteRT one outside the XNNPACK delegate, which
    then runs a MobileNetV3 in twenty pieces.
    """
    return write.call(aten.mul.Tensor, node.args[0], _gate(write, node.args[0]))


def _hard_sigmoid(write: _Writer, node: Node) -> Node:
    """clamp(x / 6 + 1/2, 0, 1), with the linear part inside the layer before where nothing else reads that."""
    x: Any = node.args[0]
    weight = write.tensor(x.args[1]) if x.target in INTEGER_MACS and len(x.users) == 1 else None
    if weight is None:
        return _gate(write, x)
    bias = write.tensor(x.args[2]) if len(x.args) > 2 else None
    channels = x.meta["val"].shape[-1 if x.target is aten.linear.default else 1]
    write.replace_constant(x, 1, weight / 6, "weight")
    write.replace_constant(x, 2, (torch.zeros(channels) if bias is None else bias) / 6 + 0.5, "bias")
    return write.call(aten.clamp.default, x, 0, 1)


def _gate(write: _Writer, x: Any) -> Node:
    """Insert clamp(x / 6 + 1/2, 0, 1); its linear part is one multiply-add by element, which an int8 layer does."""
    shape = x.meta["val"].shape
    if len(shape) == 4:
        weight = torch.full((int(shape[1]),), 1 / 6)
        value = write.per_channel(x, weight, torch.full_like(weight, 0.5), trainable=False)
    else:
        sixth = write.constant(torch.full([1] * len(shape), 1 / 6), "sixth")
        half = write.constant(torch.full([1] * len(shape), 0.5), "half")
        value = write.call(aten.add.Tensor, write.call(aten.mul.Tensor, x, sixth), half)
    return write.call(aten.clamp.default, value, 0, 1)


def _arithmetic(write: _Writer, node: Node) -> Node | None:
    """Turn numbers into tensors of one element; their subtraction becomes addition, division multiplication."""
    left, right = node.args[:2]
    if node.kwargs.get("alpha", 1) != 1 or not is_float(node):
        return None
    if not is_float(left) or isinstance(right, Node):
        return None
    number = float(right)  # type: ignore[arg-type]
    target: Any = node.target
    if target is aten.sub.Tensor:
        target, number = aten.add.Tensor, -number
    elif target is aten.div.Tensor:
        target, number = aten.mul.Tensor, 1 / number if number else math.nan
    if not math.isfinite(number):
        return None  # a mask
    shape = [1] * len(left.meta["val"].shape)  # type: ignore[union-attr]
    return write.call(target, left, write.constant(torch.full(shape, number), "number"))


def _split(write: _Writer, node: Node) -> None:
    """Turn the pieces of a split, chunk or unbind into slices, which share their input's range like any other."""
    x: Any = node.args[0]
    pieces = [user for user in node.users if user.target is operator.getitem]
    default = 1 if node.target in (aten.unbind.int,) else 2
    axis: Any = node.args[default] if len(node.args) > default else node.kwargs.get("dim", 0)
    start, starts = 0, []
    for piece in node.meta["val"]:
        starts.append(start)
        start += 1 if node.target is aten.unbind.int else piece.shape[axis]
    for piece in pieces:
        index: Any = piece.args[1]
        if node.target is aten.unbind.int:
            part = write.call(aten.select.int, x, axis, index % len(starts))
        else:
            begin = starts[index]
            part = write.call(aten.slice.Tensor, x, axis, begin, begin + node.meta["val"][index].shape[axis])
        piece.replace_all_uses_with(part)


def _stack(write: _Writer, node: Node) -> Node:
    parts: Any = node.args[0]
    axis: Any = node.args[1] if len(node.args) > 1 else 0
    return write.call(
        aten.cat.default, [write.call(aten.unsqueeze.default, part, axis) for part in parts], axis
    )


def _mean(write: _Writer, node: Node) -> Node | None:
    """Turn the mean of every channel into a pool: ONNX Runtime has an integer kernel for that, not for ReduceMean."""
    x: Any = node.args[0]
    axes: Any = node.args[1]
    keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    rank = len(x.meta["val"].shape)
    if rank != 4 or {axis % rank for axis in axes} != {2, 3} or node.kwargs.get("dtype") is not None:
        return None
    pooled = write.call(aten.adaptive_avg_pool2d.default, x, [1, 1])
    return pooled if keeps else write.call(aten.flatten.using_ints, pooled, 1)


def _windowed_average(write: _Writer, node: Node) -> Node | None:
    """Turn averages over windows into depthwise convolutions, whose results have a scale of their own.

    The pooling kernels keep the input's, where the mean of four integers lies half-way between two every fourth time,
    and each runtime rounds these ties its own way: without, ONNX Runtime's logits of a DenseNet-121 were 0.87 times as
    far from the program's as those from the float network's, with it 0.63 times (random weights, 64 px).
    """
    x: Any = node.args[0]
    height, width = x.meta["val"].shape[-2:]
    if len(x.meta["val"].shape) != 4 or not all(isinstance(edge, int) for edge in (height, width)):
        return None
    if node.target is aten.adaptive_avg_pool2d.default:
        rows, columns = (int(edge) for edge in node.args[1])  # type: ignore[union-attr, arg-type]
        if (rows, columns) == (1, 1) or height % rows or width % columns:
            return None
        kernel = stride = [height // rows, width // columns]
        padding = [0, 0]
    else:
        given: list[Any] = [*node.args[1:], *[None] * 6][:6]
        kernel, stride, padding = (_pair(given[0]), _pair(given[1] or given[0]), _pair(given[2] or 0))
        ceil, counts_padding, divisor = given[3] or False, given[4] is not False, given[5]
        if ceil or divisor is not None or (any(padding) and not counts_padding):
            return None
    channels = int(x.meta["val"].shape[1])
    taps = torch.full((channels, 1, *kernel), 1 / (kernel[0] * kernel[1]))
    weight = write.constant(taps, "weight")
    return write.call(aten.conv2d.default, x, weight, None, stride, padding, [1, 1], channels)


def _pair(value: Any) -> list[int]:
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    return numbers * (2 // len(numbers))


_REWRITES: dict[Any, Callable[[_Writer, Node], Node | None]] = {
    **dict.fromkeys(_BATCH_NORMS, _batch_norm),
    aten.silu.default: _silu,
    aten.hardswish.default: _hard_swish,
    aten.hardsigmoid.default: _hard_sigmoid,
    **dict.fromkeys([*ARITHMETIC, aten.div.Tensor], _arithmetic),
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.unbind.int: _split,
    aten.stack.default: _stack,
    aten.mean.dim: _mean,
    aten.avg_pool2d.default: _windowed_average,
    aten.adaptive_avg_pool2d.default: _windowed_average,
}


def _separate_parts(graph: GraphModule, concat: Node) -> None:
    """Put a product with 1, which requantizes, before the parts of a concat that must not take on its range.

    Those of a known range (a sigmoid), and results of a ReLU beside signed ones: the clamp would have to be computed,
    and ONNX Runtime runs a convolution with a clamp that its quantizer does not perform in float. LiteRT's converter
    sees through a mere copy, and has no concatenation of different scales.
    """
    parts: Any = concat.args[0]
    makers = [_maker(part) for part in parts]
    clamped = [maker.target in CLAMPS for maker in makers]
    replaced = list(parts)
    for index, part in enumerate(parts):
        if fixed_range(makers[index]) is None and (not clamped[index] or all(clamped)):
            continue
        with graph.graph.inserting_before(concat):
            write = _Writer(graph, part)
            one = write.constant(torch.ones([1] * len(part.meta["val"].shape)), f"one_{concat.name}")
            replaced[index] = write.call(aten.mul.Tensor, part, one)
    concat.args = (replaced, *concat.args[1:])


def _maker(value: Node) -> Node:
    """Return the op whose results `value` holds, behind ops that share its range."""
    while keeps_range(value) and value.target not in CONCATS:
        source: Any = value.args[0]
        value = source
    return value
