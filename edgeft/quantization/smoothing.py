"""SmoothQuant: move activation outliers behind a LayerNorm into the next weights (Xiao et al. 2023, arXiv:2211.10438).

A few channels of a transformer's activations are far larger than the rest and take the steps of the one scale that
all share. A norm's weight and bias can divide channel j by s_j, and the linear layers behind it multiply input j by it:

    s_j = max|x_j|^strength / max|w_j|^(1 - strength)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import GraphModule, Node

from edgeft.errors import QuantizationError
from edgeft.quantization.inspection import add_constant, constant, count_readers, storage, watch

aten = torch.ops.aten


def smooth_activations(graph: GraphModule, batches: Iterable[torch.Tensor], strength: float) -> int:
    """Even out the channels between LayerNorms and linear layers, in place; the graph's function stays the same.

    The linear layers get a norm of their own: whoever else reads the old one (the residual of a post-norm
    transformer) keeps it. Layers whose weights are used elsewhere too are left alone.

    Args:
        graph: Captured float graph.
        batches: Calibration inputs (N, ...), read once; one batch is held at a time.
        strength: Of the migration, 0..1: higher moves more from activations to weights.

    Returns:
        The number of norms.

    Raises:
        QuantizationError: No LayerNorm feeds a linear layer, or a norm's output is not finite.
    """
    found = _find_norms(graph)
    if not found:
        raise QuantizationError(
            "smooth_quant: no LayerNorm of this network feeds a linear layer directly",
            "it is for transformers; use a calibration recipe without it",
        )
    largest: dict[Node, torch.Tensor] = {}

    def see(norm: Node, value: torch.Tensor) -> None:
        seen = value.abs().flatten(0, -2).amax(0)
        largest[norm] = torch.maximum(largest[norm], seen) if norm in largest else seen

    watch(graph, batches, found, see)
    for norm, linears in found.items():
        if norm not in largest:
            raise QuantizationError("smooth_quant saw no batch", "give at least one")
        if not bool(torch.isfinite(largest[norm]).all()):
            raise QuantizationError(
                f"values of {norm.name!r} are not finite",
                "look for infinities or NaN in the weights and inputs",
            )
        _migrate(graph, norm, linears, largest[norm], strength)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return len(found)


def _find_norms(graph: GraphModule) -> dict[Node, list[Node]]:
    """Return the norms over the last dimension with the linear layers that read them and share no weight."""
    readers = count_readers(graph)
    found: dict[Node, list[Node]] = {}
    for norm in graph.graph.nodes:
        if norm.target is not aten.layer_norm.default or len(norm.args[1]) != 1:
            continue
        linears = [user for user in norm.users if user.target is aten.linear.default and user.args[0] is norm]
        weights = [constant(graph, linear.args[1]) for linear in linears]
        if linears and all(weight is not None and readers[storage(weight)] == 1 for weight in weights):
            found[norm] = linears
    return found


def _migrate(
    graph: GraphModule, norm: Node, linears: list[Node], activations: torch.Tensor, strength: float
) -> None:
    """Give `linears` a copy of `norm` with smoother outputs, and take that back in their weights.

    Args:
        graph: Holds the nodes.
        norm: A layer_norm.
        linears: Readers of it.
        activations: Largest absolute output of each channel, (F,).
        strength: Of the migration.
    """
    weights = [weight for linear in linears if (weight := constant(graph, linear.args[1])) is not None]
    with torch.no_grad():
        largest_weight = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
        alive = (activations > 0) & (largest_weight > 0)
        factor = activations.pow(strength) / largest_weight.pow(1 - strength)
        factor = torch.where(alive, factor, 1.0)
        for weight in weights:
            weight.mul_(factor)
        with graph.graph.inserting_after(norm):
            smooth = graph.graph.node_copy(norm)
        old_weight, old_bias = (constant(graph, norm.args[i]) if len(norm.args) > i else None for i in (2, 3))
        scaled = {2: (torch.ones_like(factor) if old_weight is None else old_weight.detach()) / factor}
        if old_bias is not None:
            scaled[3] = old_bias.detach() / factor
    for index, value in scaled.items():
        name = f"{norm.name}_smooth_{'weight' if index == 2 else 'bias'}"
        args = [*smooth.args, None][: max(len(smooth.args), index + 1)]
        args[index] = add_constant(graph, name, value, before=smooth)
        smooth.args = tuple(args)
    for linear in linears:
        linear.replace_input_with(norm, smooth)
