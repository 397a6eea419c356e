"""Decide what of a transformer's graph computes in integers (DESIGN: section 5, rules 4 and 6).

Products of two activations do. Logits, mask and softmax are one group that is float inside; a residual sum and the
layer norm that reads it are another. Masks are never observed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeft.quantization.modes import DROPOUTS

aten = torch.ops.aten

PRODUCTS = {aten.matmul.default}
SOFTMAXES = {aten.softmax.int, aten._softmax.default}
LAYER_NORMS = {aten.layer_norm.default}
# More keys than this share a softmax's 1 that finely that most weights lie below half a step of 1/256: 14 % error at
# 197 keys.
MOST_KEYS = 64

_SUMS = {aten.add.Tensor, aten.add_.Tensor}
# What stands between a product and the softmax that reads it; the first argument is the product's side.
_LOGIT_OPS = {
    aten.mul.Tensor,
    aten.mul_.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div_.Tensor,
    aten.div.Scalar,
    aten.add.Tensor,
    aten.add_.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.where.self,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Scalar,
    aten.clamp.default,
    aten.to.dtype,
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
}
# Hand on what they are given: a residual sum may reach its layer norm through them.
_TRANSPARENT = DROPOUTS | {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.transpose.int,
    aten.permute.default,
    aten.contiguous.default,
    aten.slice.Tensor,
    aten.select.int,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """Nodes of one graph: which multiply activations in integers, and which nobody may quantize.

    `logits` are the products whose result stays float, because a softmax reads it.
    """

    products: frozenset[Node]
    logits: frozenset[Node]
    floats: frozenset[Node]


def plan(graph: GraphModule) -> AttentionPlan:
    """Return what the annotator shall do with a captured graph's attention layers and layer norms."""
    nodes = list(graph.graph.nodes)
    data = _data_nodes(graph)
    floats = {n for n in nodes if n.op == "call_function" and n not in data}
    logits: set[Node] = set()
    for softmax in (n for n in nodes if n.target in SOFTMAXES):
        group = _logits_group(softmax, data)
        floats |= group
        logits |= {n for n in group if n.target in PRODUCTS}
    floats |= {n for n in nodes if n.target in LAYER_NORMS or (n.target in _SUMS and _feeds_layer_norm(n))}
    floats |= {n for n in nodes if n.target in DROPOUTS and n.args[0] in floats}
    products = {
        n
        for n in nodes
        if n.target in PRODUCTS
        and all(_is_activation(a, data) for a in n.args[:2])
        and not _is_wide_average(n)
    }
    return AttentionPlan(
        products=frozenset(products), logits=frozenset(logits & products), floats=frozenset(floats - products)
    )


def _data_nodes(graph: GraphModule) -> set[Node]:
    """Return the nodes whose values come from a float input or a weight; the others are masks, counts and indices."""
    data: set[Node] = set()
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        if node.op in ("placeholder", "get_attr"):
            # A float without dimensions is a constant of the code (a mask's lowest number).
            if (is_float and value.dim() > 0) or (node.op == "get_attr" and value is None):
                data.add(node)
        # What splits a tensor gives a tuple of them.
        elif (is_float or not isinstance(value, torch.Tensor)) and any(
            s in data for s in node.all_input_nodes
        ):
            data.add(node)
    return data


def _logits_group(softmax: Node, data: set[Node]) -> set[Node]:
    """Return a softmax, the product that it reads, what is between them, and what makes the mask alone."""
    group: set[Node] = set()
    masks: set[Node] = set()
    node: Any = softmax.args[0]
    while isinstance(node, Node) and node.target in _LOGIT_OPS:
        group.add(node)
        operands = [a for a in node.args if isinstance(a, Node) and a in data]
        main = next((a for a in operands if _reaches_product(a)), None)
        if main is None:
            break
        masks |= {a for a in operands if a is not main}
        node = main
    if not isinstance(node, Node) or node.target not in PRODUCTS:
        return set()  # a softmax of something else
    return {softmax, node} | group | (_with_ancestors(masks) - _with_ancestors([node]))


def _reaches_product(node: Node) -> bool:
    while node.target in _LOGIT_OPS:
        sources = [a for a in node.args if isinstance(a, Node)]
        if not sources:
            return False
        if len(sources) > 1:
            return any(_reaches_product(source) for source in sources)
        node = sources[0]
    return node.target in PRODUCTS


def _with_ancestors(nodes: Iterable[Node]) -> set[Node]:
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _feeds_layer_norm(node: Node) -> bool:
    return any(
        user.target in LAYER_NORMS or (user.target in _TRANSPARENT | _SUMS and _feeds_layer_norm(user))
        for user in node.users
    )


def _is_activation(operand: Any, data: set[Node]) -> bool:
    return isinstance(operand, Node) and operand in data and operand.op == "call_function"


def _is_wide_average(product: Node) -> bool:
    """Return whether `product` averages values with the weights of a softmax over many keys."""
    weights: Any = product.args[0]
    while isinstance(weights, Node) and weights.target in _TRANSPARENT:
        weights = weights.args[0]
    if not isinstance(weights, Node) or weights.target not in SOFTMAXES:
        return False
    return int(weights.meta["val"].shape[-1]) > MOST_KEYS
