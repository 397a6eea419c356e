"""The ATen ops that the annotator knows, by what quantization has to do about them (DESIGN: section 5).

In-place forms do not appear: `rewrites.make_functional` has replaced them at capture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten

CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default}
LINEARS = {aten.linear.default}
INTEGER_MACS = CONVOLUTIONS | LINEARS
# MAC ops that have no integer form here yet: they run in float, by name.
FLOAT_MACS = {
    aten.matmul.default,
    aten.bmm.default,
    aten.mm.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.einsum.default,
    aten.conv1d.padding,  # an even kernel's padding="same"; the others are spelled out at capture
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    # Given int8 weights and activations, ONNX Runtime, OpenVINO and LiteRT all ran these in float.
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    aten.scaled_dot_product_attention.default,
}
# What a kernel does to its result for free: the group's quantizer stands behind it.
CLAMPS = {
    aten.relu.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
}
ADDS = {aten.add.Tensor}
# Both operands and the result are quantized; a clamp is fused behind the additions.
ARITHMETIC = ADDS | {aten.sub.Tensor, aten.mul.Tensor}
CONCATS = {aten.cat.default}
# The output holds input values only: same range, observed where the values were made. Bilinear resizing stays inside
# its input's range, and no integer kernel requantizes on the way.
MOVES = {
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.adaptive_max_pool2d.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.narrow.default,
    aten.expand.default,
    aten.contiguous.default,
    aten.channel_shuffle.default,
    aten.pixel_shuffle.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default,
    aten.upsample_bilinear2d.vec,
    aten.upsample_bilinear2d.default,
}
PADS = {aten.pad.default, aten.constant_pad_nd.default}
# Averages live in a narrower range than their inputs: a scale of their own. Those over windows share their input's
# all the same, because TensorFlow Lite's pooling kernel does not requantize (seen 95 LSB wrong, without a word).
AVERAGES = {aten.mean.dim, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default}
WINDOWED_AVERAGES = {aten.avg_pool1d.default, aten.avg_pool2d.default}
# One value in, one value out, in a range of its own.
ACTIVATIONS = {
    aten.gelu.default,
    aten.leaky_relu.default,
    aten.elu.default,
    aten.mish.default,
    aten.prelu.default,
}
# Outputs whose range is known beforehand: scale 1/256 and zero point -128, or 1/128 and 0. LiteRT's kernels take
# no other.
FIXED_RANGES: dict[Any, tuple[float, float]] = {
    aten.sigmoid.default: (0.0, 255 / 256),
    aten.softmax.int: (0.0, 255 / 256),
    aten.tanh.default: (-1.0, 127 / 128),
}
# Do nothing outside training.
IDENTITIES = {aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default}

# Written over their input: the same op without that.
IN_PLACE = {
    aten.relu_.default: aten.relu.default,
    aten.relu6_.default: aten.relu6.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.clamp_.default: aten.clamp.default,
    aten.clamp_min_.default: aten.clamp_min.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardsigmoid_.default: aten.hardsigmoid.default,
    aten.silu_.default: aten.silu.default,
    aten.gelu_.default: aten.gelu.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.elu_.default: aten.elu.default,
    aten.mish_.default: aten.mish.default,
    aten.sigmoid_.default: aten.sigmoid.default,
    aten.tanh_.default: aten.tanh.default,
    aten.add_.Tensor: aten.add.Tensor,
    aten.sub_.Tensor: aten.sub.Tensor,
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.div_.Tensor: aten.div.Tensor,
    aten.dropout_.default: aten.dropout.default,
}


def keeps_range(node: Node) -> bool:
    """Return whether an op's output is represented in its input's range."""
    if node.target is aten.adaptive_avg_pool2d.default:
        size: Any = node.args[1]
        return any(edge != 1 for edge in size)
    if node.target in PADS:
        return _pads_with_zero(node)
    return node.target in MOVES | CONCATS | IDENTITIES | WINDOWED_AVERAGES


def fixed_range(node: Node) -> tuple[float, float] | None:
    """Return the range of an op's output where it is known beforehand, or None."""
    if node.target in CLAMPS and tuple(node.args[1:3]) == (0, 1):
        return 0.0, 1.0
    target: Any = node.target
    return FIXED_RANGES.get(target)


def group_tail(head: Node) -> Node:
    """Return the clamp that a kernel of `head` fuses, or `head` itself."""
    users = list(head.users)
    return users[0] if len(users) == 1 and users[0].target in CLAMPS else head


def is_group_tail(clamp: Node) -> bool:
    """Return whether `clamp` is fused into the op before it."""
    source = clamp.args[0]
    return (
        isinstance(source, Node)
        and source.target in INTEGER_MACS | ARITHMETIC
        and group_tail(source) is clamp
    )


def is_float(value: Any) -> bool:
    """Return whether a node's value is a float tensor with at least one dimension.

    Exported graphs also add indices and scalars; an observer on those crashes prepare_pt2e.
    """
    if not isinstance(value, Node):
        return False
    tensor = value.meta.get("val")
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dim() > 0


def _pads_with_zero(node: Node) -> bool:
    """Return whether a padding adds nothing but zeros, or copies of values (reflect, replicate)."""
    if node.target is aten.constant_pad_nd.default:
        return len(node.args) < 3 or not node.args[2]
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return mode != "constant" or not value
