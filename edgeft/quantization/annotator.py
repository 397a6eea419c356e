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

from edgeft.quantization import attention, contract, rewrites
from edgeft.quantization.fake_quant import ActivationFakeQuant, WeightFakeQuant
from edgeft.quantization.operators import (
    ACTIVATIONS,
    ARITHMETIC,
    AVERAGES,
    CLAMPS,
    CONCATS,
    FIXED_RANGES,
    INTEGER_MACS,
    PADS,
    group_tail,
    is_float,
    is_group_tail,
    keeps_range,
)
from edgeft.target import Numerics

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

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Rewrite the graph in ops that have integer kernels and return it."""
        rewrites.lower(model, attention.plan(model).floats)
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write the quantization annotations into the nodes' metadata and return the model."""
        plan = attention.plan(model)
        for node in model.graph.nodes:
            if node in plan.products:
                output = None if node in plan.logits else _ACTIVATION
                _mark(node, dict.fromkeys(node.args[:2], _ACTIVATION), output)
            elif node.op == "call_function" and is_float(node) and node not in plan.floats:
                _annotate_node(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to validate: what is not annotated is float by design and reported as such."""


def _annotate_node(node: Node) -> None:
    if node.target in INTEGER_MACS:
        _annotate_group(node, {node.args[0]: _ACTIVATION, node.args[1]: _WEIGHT})
    elif node.target in ARITHMETIC and all(is_float(arg) for arg in node.args[:2]):
        _annotate_group(node, dict.fromkeys(node.args[:2], _ACTIVATION))
    elif node.target in CONCATS:
        parts: Any = node.args[0]
        shared = SharedQuantizationSpec((parts[0], node))
        _mark(node, dict.fromkeys(parts, shared) | {parts[0]: _ACTIVATION}, shared)
    elif keeps_range(node) and is_float(node.args[0]):
        source = node.args[0]
        _mark(node, {source: _ACTIVATION}, SharedQuantizationSpec((source, node)))
    elif _has_own_range(node):
        _mark(node, {node.args[0]: _ACTIVATION}, _ACTIVATION)


def _has_own_range(node: Node) -> bool:
    """Return whether an op of one input ends a group of its own."""
    if node.target in CLAMPS:
        return not is_group_tail(node)
    return node.target in AVERAGES | PADS | ACTIVATIONS or node.target in FIXED_RANGES


def _annotate_group(head: Node, inputs: dict[Any, QuantizationSpec]) -> None:
    """Quantize the group's inputs, and its output where the group ends."""
    tail = group_tail(head)
    _mark(head, inputs, _ACTIVATION if tail is head else None)
    if tail is not head:
        _mark(tail, {}, _ACTIVATION)


def _mark(node: Node, inputs: dict[Any, Any], output: Any) -> None:
    node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=inputs, output_qspec=output, _annotated=True
    )
