"""Sensitivity: what each layer's quantization alone does to the outputs of the network.

Everything runs in float but the quantizers of one layer: its weights, the activation that it reads and the one that
it writes. Of the two ways to ask (one layer quantized in a float network, or one layer in float in a quantized
network) this one has a clean zero to compare with. The other shows a small difference between two noisy outputs, and
a network whose outputs are ruined by one layer hides all others behind it. A range that suits its values badly shows at
the layer that writes and at those that read it, which is as it should be: only float on both sides gets rid of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule, Interpreter, Node

from edgeft.errors import DataError, QuantizationError
from edgeft.quantization.calibrating import rounding_off
from edgeft.quantization.fake_quant import ActivationFakeQuant, WeightFakeQuant
from edgeft.quantization.mixed import quantized_layers
from edgeft.quantization.operators import group_tail
from edgeft.types import Progress, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What quantizing one layer alone does.

    Args:
        layer: Dotted name.
        kl: Kullback-Leibler divergence of the classes' probabilities from those of the float network, in nats,
            mean over the samples.
        mse: Mean squared error of the logits.
        sqnr_db: Signal to quantization noise of the logits in dB: 10 log10(sum of squares of the float logits over
            sum of squared errors); infinite where nothing changes.
        mac_share: Share of the network's multiply-accumulates, 0..1, of those in quantized layers.
        range_use: Width of a sample's own values over the width that the quantized input can represent, 0..1, mean over
            the samples. A low one means that a few samples stretch the range and the others get few of its 256
            steps.
    """

    layer: str
    kl: float
    mse: float
    sqnr_db: float
    mac_share: float
    range_use: float


@dataclass(slots=True)
class _Layer:
    """A layer's quantizers as nodes of the graph, and the sums over batches."""

    name: str
    macs: tuple[Node, ...]
    quantizers: frozenset[Node]
    inputs: tuple[Node, ...]
    start: int
    """Index of the first node whose value depends on one of the activation quantizers."""
    kl: float = 0.0
    squared_error: float = 0.0
    range_use: float = 0.0
    mac_count: float = 0.0


@dataclass(slots=True)
class _Totals:
    samples: int = 0
    logits: int = 0
    squares: float = 0.0
    layers: list[_Layer] = field(default_factory=list)


def sensitivities(
    graph: GraphModule, batches: Iterable[torch.Tensor], *, progress: Progress = silent
) -> tuple[Sensitivity, ...]:
    """Return what quantizing each layer alone does to the outputs, in graph order.

    What the float network computes before a layer is computed once and kept for the time of one batch, so a layer
    costs the rest of a forward pass: half of one on average. Memory follows the batch size.

    Args:
        graph: A prepared and calibrated (or trained) fake-quant graph; left as it was.
        batches: Inputs (N, ...), from any split but the test split.
        progress: Told about every layer of every batch.

    Raises:
        QuantizationError: The graph has no quantized layer, or was not calibrated.
        DataError: There is no batch.
    """
    nodes = list(graph.graph.nodes)
    totals = _Totals(layers=_layers(graph, nodes))
    if not totals.layers:
        raise QuantizationError("there is no quantized layer whose sensitivity could be measured")
    batches = list(batches)
    if not batches:
        raise DataError("sensitivity needs at least one batch of inputs")
    total = len(batches) * len(totals.layers)
    with torch.inference_mode(), rounding_off(graph):
        for index, batch in enumerate(batches):
            values = _run(graph, batch, {})
            reference = _output(nodes, values)
            totals.samples += len(batch)
            totals.logits += reference.numel()
            totals.squares += float(reference.double().square().sum())
            for number, layer in enumerate(totals.layers):
                done = index * len(totals.layers) + number
                progress(f"sensitivity of {layer.name}", done=done, total=total)
                _add_inputs(graph, layer, values)
                _add_errors(layer, reference, _quantized_output(graph, nodes, layer, batch, values))
    return tuple(_record(layer, totals) for layer in totals.layers)


def _layers(graph: GraphModule, nodes: Sequence[Node]) -> list[_Layer]:
    position = {node: index for index, node in enumerate(nodes)}
    layers = []
    for name, macs in quantized_layers(graph).items():
        inputs = tuple(dict.fromkeys(n for mac in macs for n in mac.args[:2] if _site(graph, n)))
        outputs = [user for mac in macs for user in group_tail(mac).users if _site(graph, user)]
        weights = [n for mac in macs for n in mac.all_input_nodes if _weight(graph, n)]
        start = min(position[node] for node in (*inputs, *outputs))  # type: ignore[index]
        quantizers = frozenset([*inputs, *outputs, *weights])
        layers.append(
            _Layer(name=name, macs=macs, quantizers=quantizers, inputs=inputs, start=start)  # type: ignore[arg-type]
        )
    return layers


def _run(graph: GraphModule, batch: torch.Tensor, known: dict[Node, object]) -> dict[Node, object]:
    """Run the graph from the values that are known already; return the values of all nodes."""
    interpreter = Interpreter(graph, garbage_collect_values=False)
    interpreter.run(batch, initial_env=known)
    values: dict[Node, object] = interpreter.env
    return values


def _quantized_output(
    graph: GraphModule,
    nodes: Sequence[Node],
    layer: _Layer,
    batch: torch.Tensor,
    values: dict[Node, object],
) -> torch.Tensor:
    """Return the logits with the quantizers of one layer alone."""
    quantizers = [graph.get_submodule(str(node.target)) for node in layer.quantizers]
    known = {n: values[n] for n in nodes[: layer.start] if n in values and n not in layer.quantizers}
    for quantizer in quantizers:
        quantizer.enabled = True  # type: ignore[assignment]
    try:
        return _output(nodes, _run(graph, batch, known))
    finally:
        for quantizer in quantizers:
            quantizer.enabled = False  # type: ignore[assignment]


def _output(nodes: Sequence[Node], values: dict[Node, object]) -> torch.Tensor:
    result = values[nodes[-1]]
    logits = result[0] if isinstance(result, tuple | list) else result
    if not isinstance(logits, torch.Tensor):
        raise QuantizationError(f"the graph returns a {type(logits).__name__}, not logits")
    return logits


def _add_inputs(graph: GraphModule, layer: _Layer, values: dict[Node, object]) -> None:
    """Add up how much of the input's range the samples use, and the layer's multiply-accumulates."""
    for node in layer.inputs:
        site = graph.get_submodule(str(node.target))
        scale, _ = site.calculate_qparams()  # type: ignore[operator]
        value = values[node]
        if isinstance(value, torch.Tensor):
            lows, highs = torch.aminmax(value.flatten(1), dim=1)
            spans = highs.clamp(min=0) - lows.clamp(max=0)
            width = float(scale) * (site.quant_max - site.quant_min)  # type: ignore[operator]
            layer.range_use += float((spans / width).clamp(max=1).sum()) / len(layer.inputs)
    layer.mac_count = sum(_count(mac, values) for mac in layer.macs)


def _count(mac: Node, values: dict[Node, object]) -> float:
    """Return the multiply-accumulates of one call for one sample."""
    out, first, second = values[mac], values[mac.args[0]], values[mac.args[1]]  # type: ignore[index]
    if not (
        isinstance(out, torch.Tensor) and isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    ):
        return 0.0
    if "conv_transpose" in str(mac.target):
        return first.numel() / len(first) * second[0].numel()
    return out.numel() / len(out) * second[0].numel()


def _add_errors(layer: _Layer, reference: torch.Tensor, logits: torch.Tensor) -> None:
    expected, got = (torch.log_softmax(x.double(), dim=-1) for x in (reference, logits))
    layer.kl += float((expected.exp() * (expected - got)).sum())
    layer.squared_error += float((logits.double() - reference.double()).square().sum())


def _record(layer: _Layer, totals: _Totals) -> Sensitivity:
    error = layer.squared_error
    all_macs = sum(each.mac_count for each in totals.layers)
    return Sensitivity(
        layer=layer.name,
        kl=max(0.0, layer.kl / totals.samples),
        mse=error / totals.logits,
        sqnr_db=10 * math.log10(totals.squares / error) if error and totals.squares else math.inf,
        mac_share=layer.mac_count / all_macs,
        range_use=layer.range_use / totals.samples,
    )


def _site(graph: GraphModule, node: object) -> bool:
    return _calls(graph, node, ActivationFakeQuant)


def _weight(graph: GraphModule, node: object) -> bool:
    return _calls(graph, node, WeightFakeQuant)


def _calls(graph: GraphModule, node: object, kind: type) -> bool:
    if not isinstance(node, Node) or node.op != "call_module":
        return False
    return isinstance(graph.get_submodule(str(node.target)), kind)
