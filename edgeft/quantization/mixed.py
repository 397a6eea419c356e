"""Mixed precision: take the quantizers of some layers out of a fake-quant graph again.

A layer goes back to float with everything that was there for its sake. What stays is what other integer kernels
need: the activation that an integer layer writes or reads keeps its quantizer, even where a float layer is on the
other side of it. Additions, pools and the like follow what they read: they compute in integers if any of their inputs
comes from an integer layer, and else in float, up to the quantizer that the next integer layer has in front of it.
"""

from __future__ import annotations

import copy
import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from torch.fx import GraphModule, Node

from edgeft.errors import ConfigError, nearest
from edgeft.quantization.capture import module_path
from edgeft.quantization.fake_quant import ActivationFakeQuant, WeightFakeQuant
from edgeft.quantization.modes import allow_modes
from edgeft.quantization.operators import INTEGER_MACS, keeps_range
from edgeft.quantization.prepare import activation_sites

_ANNOTATION = "quantization_annotation"
_SHOWN = 8


def quantized_layers(graph: GraphModule) -> dict[str, tuple[Node, ...]]:
    """Return the quantized layers of a prepared graph as their MAC ops, by dotted name and in graph order.

    A layer that is called twice has two ops. Products of two activations are not layers: attention has rules of
    its own.
    """
    found: dict[str, list[Node]] = defaultdict(list)
    for node in graph.graph.nodes:
        if _is_quantized_layer(graph, node):
            found[module_path(node)].append(node)
    return {name: tuple(nodes) for name, nodes in found.items()}


def matching_layers(patterns: Iterable[str], layers: Sequence[str]) -> tuple[str, ...]:
    """Return those of `layers` that a pattern names, in their own order; ``*`` stands for any part of a name.

    Raises:
        ConfigError: A pattern names no layer, or the patterns name all.
    """
    patterns = list(patterns)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(layer, pattern) for layer in layers):
            shown = ", ".join(layers[:_SHOWN]) + (", ..." if len(layers) > _SHOWN else "")
            raise ConfigError(
                f"quantize.float_layers: no int8 layer is called {pattern!r}{nearest(pattern, layers)}",
                f"the layers are {shown} (all: edgeft quantize RECIPE --sensitivity)",
            )
    named = tuple(layer for layer in layers if any(fnmatch.fnmatchcase(layer, each) for each in patterns))
    if named and len(named) == len(layers):
        raise ConfigError(
            f"quantize.float_layers = {patterns}: that leaves no layer in int8",
            'name fewer layers, or set quantize.scheme = "none"',
        )
    return named


def copy_graph(graph: GraphModule) -> GraphModule:
    """Return an independent copy of a fake-quant graph in evaluation mode; a plain deep copy loses its modes."""
    graph = copy.deepcopy(graph)
    allow_modes(graph)
    graph.eval()
    return graph


def restore_float(graph: GraphModule, layers: Iterable[str]) -> GraphModule:
    """Return a copy of a fake-quant graph in which the named layers compute in float.

    Args:
        graph: From `prepare`, calibrated and trained or not; it is not changed.
        layers: Dotted names, as in `quantized_layers`; ``*`` stands for any part of a name.

    Raises:
        ConfigError: A name fits no quantized layer, or no layer would be left in int8.
    """
    graph = copy_graph(graph)
    known = quantized_layers(graph)
    named = matching_layers(layers, list(known))
    if not named:
        return graph
    before = _integer_ops(graph)
    for node in (node for name in named for node in known[name]):
        node.meta.pop(_ANNOTATION)
        weight = node.args[1]
        node.update_arg(1, weight.all_input_nodes[0])  # type: ignore[union-attr]
        if not weight.users:  # type: ignore[union-attr]
            graph.graph.erase_node(weight)  # type: ignore[arg-type]
    for node in before - _integer_ops(graph):
        node.meta.pop(_ANNOTATION, None)
    for node in list(graph.graph.nodes):
        if _is_site(graph, node):
            served = {_source(graph, node), *_readers(graph, node)}
            # Other sites without an annotated op around them do not exist.
            if not any(_ANNOTATION in op.meta for op in served):
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph.graph.erase_node(node)
    sites = activation_sites(graph)
    for site in sites:
        site.share_range(tuple(peer for peer in site.group if peer in sites))
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _integer_ops(graph: GraphModule) -> set[Node]:
    """Return the ops that compute in integers: the layers left, and what works on their results.

    An op that only moves values also does where a layer reads what it moved: rounding commutes with it, and the
    quantizer in front of it is the one that has observed the range.
    """
    ops = [node for node in graph.graph.nodes if _ANNOTATION in node.meta]
    integer = {node for node in ops if _is_quantized_layer(graph, node)}
    known = -1
    while known < len(integer):
        known = len(integer)
        for node in ops:
            if integer & {_source(graph, value) for value in node.all_input_nodes}:
                integer.add(node)
        for node in reversed(ops):
            if keeps_range(node) and integer & set(_readers(graph, node)):
                integer.add(node)
    return integer


def _source(graph: GraphModule, node: Node) -> Node:
    """Return the op whose value `node` is or rounds."""
    while _is_site(graph, node):
        node = node.all_input_nodes[0]
    return node


def _readers(graph: GraphModule, node: Node) -> Iterator[Node]:
    """Yield the ops that read a value, as it is or rounded."""
    for user in node.users:
        if _is_site(graph, user):
            yield from _readers(graph, user)
        else:
            yield user


def _is_quantized_layer(graph: GraphModule, node: Node) -> bool:
    if node.target not in INTEGER_MACS:
        return False
    return _is_site(graph, node.args[0]) and isinstance(_quantizer(graph, node.args[1]), WeightFakeQuant)


def _is_site(graph: GraphModule, node: object) -> bool:
    return isinstance(_quantizer(graph, node), ActivationFakeQuant)


def _quantizer(graph: GraphModule, node: object) -> ActivationFakeQuant | WeightFakeQuant | None:
    """Return the quantizer that a node calls, or None if it does something else."""
    if not isinstance(node, Node) or node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    return module if isinstance(module, ActivationFakeQuant | WeightFakeQuant) else None
