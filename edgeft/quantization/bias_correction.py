"""Bias correction: take the mean error that rounded weights make out of the biases (Nagel et al. 2019, section 4.2).

Rounding errors of a channel's weights do not average out over inputs that are not centred at zero: E[(W' - W) x] shifts
every output of the channel. The shift is measured on calibration inputs (the paper's empirical variant, appendix D).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeft.errors import QuantizationError
from edgeft.quantization.calibrating import rounding_off
from edgeft.quantization.fake_quant import WeightFakeQuant
from edgeft.quantization.inspection import add_constant, constant, count_readers, storage, watch
from edgeft.types import Progress, silent

aten = torch.ops.aten


def correct_biases(
    graph: GraphModule, batches: Iterable[torch.Tensor], *, progress: Progress = silent
) -> None:
    """Subtract from every layer's bias the mean error that its rounded weights make, in place.

    One pass serves all layers. Each is given the inputs of the float network, whose means the corrections restore;
    and as a layer is linear, its mean error is the error at its mean input: that is all that is kept, whatever the
    number of samples. A layer without a bias gets one, and a bias that several layers read is parted.

    Args:
        graph: A prepared and calibrated fake-quant graph, before it is trained or converted.
        batches: Calibration inputs (N, ...), read once.
        progress: Told about every batch.

    Raises:
        QuantizationError: There is no batch.
    """
    layers = [node for node in graph.graph.nodes if _weight_site(graph, node) is not None]
    flat = {layer.args[0]: layer.target is aten.linear.default for layer in layers}
    totals: dict[Node, torch.Tensor] = {}
    counts = dict.fromkeys(flat, 0)

    def see(source: Node, value: torch.Tensor) -> None:
        rows = value.flatten(0, -2) if flat[source] else value
        total = rows.sum(0)
        totals[source] = totals[source] + total if source in totals else total
        counts[source] += len(rows)

    def told() -> Iterator[torch.Tensor]:
        for index, batch in enumerate(batches, 1):
            progress(f"correcting biases, batch {index}")
            yield batch

    with rounding_off(graph):
        watch(graph, told(), flat, see)
    if layers and not totals:
        raise QuantizationError("bias correction saw no batch", "give at least one")
    with torch.no_grad():
        for layer in layers:
            source = layer.args[0]
            _subtract(graph, layer, _mean_error(graph, layer, totals[source] / counts[source]))
    graph.recompile()


def _mean_error(graph: GraphModule, layer: Node, mean: torch.Tensor) -> torch.Tensor:
    """Return the mean error of each output channel, (O,), at a mean input: (C, *spatial), or (F,) of a linear layer."""
    operation: Any = layer.target
    site, quantized = _weight_site(graph, layer), layer.all_input_nodes[1]
    weight = constant(graph, quantized.args[0])
    if site is None or weight is None:
        raise QuantizationError(f"the weight of {layer.name!r} is not a constant")
    error: torch.Tensor = operation(mean[None], site(weight) - weight, None, *layer.args[3:])
    return error.transpose(0, 1).flatten(1).mean(1)


def _subtract(graph: GraphModule, layer: Node, error: torch.Tensor) -> None:
    bias_node = layer.args[2] if len(layer.args) > 2 else None
    bias = constant(graph, bias_node)
    if bias is not None and count_readers(graph)[storage(bias)] == 1:
        bias.sub_(error)
        return
    own = -error if bias is None else bias.detach() - error
    node = add_constant(graph, f"corrected_bias_of_{layer.name}", own, before=layer)
    layer.args = (*layer.args[:2], node, *layer.args[3:])


def _weight_site(graph: GraphModule, node: Node) -> WeightFakeQuant | None:
    """Return the quantizer of a layer's weight, or None for any other op."""
    weight = node.args[1] if node.op == "call_function" and len(node.args) > 1 else None
    if not isinstance(weight, Node) or weight.op != "call_module":
        return None
    module = graph.get_submodule(str(weight.target))
    return module if isinstance(module, WeightFakeQuant) else None
