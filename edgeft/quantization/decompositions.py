"""Spell out fused ops as the plain ones that every exporter and integer kernel knows, at capture, in float."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten


def spell_out_attention(graph: GraphModule) -> None:
    """Replace scaled-dot-product attention by two matrix products with a scale, a mask and a softmax between them.

    Softmax(Q K^T * scale + mask) V, Vaswani et al. 2017. The fused op has no counterpart in the exported formats, and
    its two products could not be told apart, where the annotator treats them differently. Heads that share keys and
    values (``enable_gqa``) stay fused: a float MAC op, by name.
    """
    for node in list(graph.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        arguments = _attention_arguments(node)
        if arguments["enable_gqa"]:
            continue
        with graph.graph.inserting_before(node):
            result = _attend(node, arguments)
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)
    graph.recompile()


def spell_out_products(graph: GraphModule) -> None:
    """Replace bmm, mm, baddbmm and two-operand einsum of matrix-product form by matmul, scale and add.

    A transposing ``mT`` becomes a transpose with numbers.
    """
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        with graph.graph.inserting_before(node):
            result = _product(node)
        if result is not None:
            node.replace_all_uses_with(result)
            graph.graph.erase_node(node)
    graph.recompile()


def _attention_arguments(node: Node) -> dict[str, Any]:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    return defaults | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _attend(origin: Node, arguments: dict[str, Any]) -> Node:
    """Insert the plain ops and return the last; every node gets the fake value that its shape is read from."""
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    scale = arguments["scale"] or 1 / math.sqrt(query.meta["val"].shape[-1])
    transposed = _call(origin, aten.transpose.int, key, -2, -1)
    logits = _call(origin, aten.mul.Tensor, _call(origin, aten.matmul.default, query, transposed), scale)
    mask = arguments["attn_mask"]
    if arguments["is_causal"]:
        mask = _causal_mask(origin, logits)
    if mask is not None:
        if mask.meta["val"].dtype == torch.bool:
            # Not -inf: a row that may see no key would become NaN. (The fused op gives zeros there, this an average.)
            lowest = torch.finfo(logits.meta["val"].dtype).min
            logits = _call(
                origin, aten.masked_fill.Scalar, logits, _call(origin, aten.logical_not.default, mask), lowest
            )
        else:
            logits = _call(origin, aten.add.Tensor, logits, mask)
    weights = _call(origin, aten.softmax.int, logits, -1)
    if arguments["dropout_p"]:
        weights = _call(origin, aten.dropout.default, weights, arguments["dropout_p"], False)
    return _call(origin, aten.matmul.default, weights, value)


def _causal_mask(origin: Node, logits: Node) -> Node:
    """Insert the lower triangle of ones as a (T, S) bool tensor."""
    rows, columns = logits.meta["val"].shape[-2:]
    ones = _call(origin, aten.ones.default, [int(rows), int(columns)], dtype=torch.bool)
    return _call(origin, aten.tril.default, ones)


def _product(origin: Node) -> Node | None:
    """Insert the matmul that `origin` amounts to, or return None."""
    if origin.target in (aten.bmm.default, aten.mm.default):
        return _call(origin, aten.matmul.default, *origin.args)
    if origin.target is aten.mT.default:
        return _call(origin, aten.transpose.int, origin.args[0], -2, -1)
    if origin.target is aten.baddbmm.default:
        added, left, right = origin.args[:3]
        product = _scaled(
            origin, _call(origin, aten.matmul.default, left, right), origin.kwargs.get("alpha", 1)
        )
        return _call(origin, aten.add.Tensor, product, _scaled(origin, added, origin.kwargs.get("beta", 1)))
    if origin.target is aten.einsum.default:
        equation, operands = origin.args[:2]
        turned = _einsum_transposes(str(equation), len(operands))  # type: ignore[arg-type]
        if turned is not None:
            parts = [
                _call(origin, aten.transpose.int, operand, -2, -1) if turn else operand
                for operand, turn in zip(operands, turned, strict=True)  # type: ignore[arg-type]
            ]
            return _call(origin, aten.matmul.default, *parts)
    return None


def _einsum_transposes(equation: str, operands: int) -> tuple[bool, bool] | None:
    """Return which operands to transpose so that a matmul gives the sum, or None where it is no plain matmul."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    if not arrow or operands != 2 or "." in equation:
        return None
    left, right = inputs.split(",")
    batch, row, column = output[:-2], output[-2:-1], output[-1:]
    if not left.startswith(batch) or not right.startswith(batch) or len(set(output)) != len(output):
        return None
    left, right = left[len(batch) :], right[len(batch) :]
    if len(output) < 2 or len(left) != 2 or len(right) != 2 or row not in left or column not in right:
        return None
    inner = (set(left) - {row}) & (set(right) - {column})
    if len(inner) != 1 or inner & set(output):
        return None
    return left[0] != row, right[1] != column


def _scaled(origin: Node, value: Any, factor: Any) -> Any:
    return value if factor == 1 else _call(origin, aten.mul.Tensor, value, factor)


def _call(origin: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """Insert an op with the module path of what it stands for, and a fake value, from which its shape is read."""
    node: Node = origin.graph.call_function(target, args, kwargs)
    values = [argument.meta["val"] if isinstance(argument, Node) else argument for argument in args]
    node.meta = {key: origin.meta[key] for key in ("nn_module_stack", "stack_trace") if key in origin.meta}
    node.meta["val"] = target(*values, **kwargs)
    return node
