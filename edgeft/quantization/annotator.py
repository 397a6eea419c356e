"""Decide where a deployed kernel quantizes: at the ends of fused groups, and nowhere else (DESIGN: section 5).

convolution or linear (+ folded batch norm) (+ clamp) is one group, add (+ clamp) another. Ops that only move
values share their input's range. Everything that is not named here stays float, and coverage says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from edgeft.quantization import contract
from edgeft.quantization.fake_quant import ActivationFakeQuant, WeightFakeQuant
from edgeft.target import Numerics

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
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.scaled_dot_product_attention.default,
}
CLAMPS = {
    aten.relu.default,
    aten.relu_.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.clamp.default,
    aten.clamp_.default,
}
ADDS = {aten.add.Tensor, aten.add_.Tensor}
CONCATS = {aten.cat.default}
# The output holds input values only: same range, observed where the values were made.
MOVES = {
    aten.max_pool2d.default,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.contiguous.default,
    aten.upsample_nearest2d.vec,
}
# Averages live in a narrower range than their inputs: a scale of their own. Those over windows share their input's
# all the same, because TensorFlow Lite's pooling kernel does not requantize (seen 95 LSB wrong, without a word).
AVERAGES = {aten.mean.dim, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default}
# Outputs whose range is known beforehand: scale 1/256 and zero point -128, or 1/128 and 0. LiteRT's kernels take
# no other.
FIXED_RANGES = {
    aten.sigmoid.default: (0.0, 255 / 256),
    aten.sigmoid_.default: (0.0, 255 / 256),
    aten.softmax.int: (0.0, 255 / 256),
    aten.tanh.default: (-1.0, 127 / 128),
    aten.tanh_.default: (-1.0, 127 / 128),
}
# Do nothing outside training.
IDENTITIES = {aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default}

_ACTIVATION = QuantizationSpec(
    dtype=torch.int8,
    observer_or_fake_quant_ctr=ActivationFakeQuant.with_args(),
    quant_min=contract.ACTIVATION_MIN,
    quant_max=contract.ACTIVATION_MAX,
    qscheme=torch.per_tensor_affine,
    is_dynamic=False,
)
_WEIGHT = QuantizationSpec(
    dtype=torch.int8,
    observer_or_fake_quant_ctr=WeightFakeQuant.with_args(),
    quant_min=contract.WEIGHT_MIN,
    quant_max=contract.WEIGHT_MAX,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    is_dynamic=False,
)


class FusedGroupAnnotator(Quantizer):  # type: ignore[misc]
    """Mark the fused groups of a captured graph whose batch norms are folded already."""

    def __init__(self, numerics: Numerics | None = None) -> None:
        super().__init__()
        self.numerics = numerics or Numerics()

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write the quantization annotations into the nodes' metadata and return the model."""
        for node in model.graph.nodes:
            if node.op == "call_function" and _is_float(node):
                _annotate_node(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to validate: what is not annotated is float by design and reported as such."""


def _annotate_node(node: Node) -> None:
    if node.target in INTEGER_MACS:
        _annotate_group(node, {node.args[0]: _ACTIVATION, node.args[1]: _WEIGHT})
    elif node.target in ADDS and all(_is_float(arg) for arg in node.args[:2]):
        _annotate_group(node, dict.fromkeys(node.args[:2], _ACTIVATION))
    elif keeps_range(node) and node.target not in CONCATS and _is_float(node.args[0]):
        source = node.args[0]
        _mark(node, {source: _ACTIVATION}, SharedQuantizationSpec((source, node)))
    elif node.target in AVERAGES or (node.target in CLAMPS and not is_group_tail(node)):
        _mark(node, {node.args[0]: _ACTIVATION}, _ACTIVATION)
    elif node.target in CONCATS:
        parts: Any = node.args[0]
        shared = SharedQuantizationSpec((parts[0], node))
        _mark(node, dict.fromkeys(parts, shared) | {parts[0]: _ACTIVATION}, shared)


def keeps_range(node: Node) -> bool:
    """Return whether an op's output is represented in its input's range."""
    if node.target is aten.adaptive_avg_pool2d.default:
        size: Any = node.args[1]
        return any(edge != 1 for edge in size)
    return node.target in MOVES | CONCATS | IDENTITIES or node.target is aten.avg_pool2d.default


def _annotate_group(head: Node, inputs: dict[Any, QuantizationSpec]) -> None:
    """Quantize the group's inputs, and its output where the group ends."""
    tail = group_tail(head)
    _mark(head, inputs, _ACTIVATION if tail is head else None)
    if tail is not head:
        _mark(tail, {}, _ACTIVATION)


def group_tail(head: Node) -> Node:
    """Return the clamp that a kernel of `head` fuses, or `head` itself."""
    users = list(head.users)
    return users[0] if len(users) == 1 and users[0].target in CLAMPS else head


def is_group_tail(clamp: Node) -> bool:
    """Return whether `clamp` is fused into the op before it."""
    source = clamp.args[0]
    return isinstance(source, Node) and source.target in INTEGER_MACS | ADDS and group_tail(source) is clamp


def _mark(node: Node, inputs: dict[Any, Any], output: Any) -> None:
    node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=inputs, output_qspec=output, _annotated=True
    )


def _is_float(value: Any) -> bool:
    """Return whether a node's value is a float tensor with at least one dimension.

    Exported graphs also add indices and scalars; an observer on those crashes prepare_pt2e.
    """
    if not isinstance(value, Node):
        return False
    tensor = value.meta.get("val")
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dim() > 0
