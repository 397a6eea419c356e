"""Look into captured graphs: constants and who reads them, and the values that flow."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node


def constant(graph: GraphModule, node: Any) -> torch.Tensor | None:
    """Return the weight or buffer that `node` reads, or None if it is no such node."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value = operator.attrgetter(str(node.target))(graph)
    return value if isinstance(value, torch.Tensor) else None


def add_constant(graph: GraphModule, name: str, value: torch.Tensor, *, before: Node) -> Node:
    """Register `value` as a parameter of that name and return a node, inserted in front of `before`, that reads it."""
    graph.register_parameter(name, torch.nn.Parameter(value))
    with graph.graph.inserting_before(before):
        node: Node = graph.graph.get_attr(name)
    node.meta["val"] = value
    return node


def count_readers(graph: GraphModule) -> Counter[int]:
    """Return how many ops read each constant, by `storage`: tied weights have one, under whatever names."""
    readers: Counter[int] = Counter()
    for node in graph.graph.nodes:
        value = constant(graph, node)
        if value is not None:
            readers[storage(value)] += len(node.users)
    return readers


def storage(value: torch.Tensor) -> int:
    """Return the address of a tensor's memory."""
    return value.untyped_storage().data_ptr()


def watch(
    graph: GraphModule,
    batches: Iterable[torch.Tensor],
    nodes: Collection[Node],
    see: Callable[[Node, torch.Tensor], None],
) -> None:
    """Run the graph on every batch, without gradients, and hand the values of `nodes` to `see` as they are made."""

    class Watcher(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n in nodes:
                see(n, value)
            return value

    watcher = Watcher(graph)
    with torch.inference_mode():
        for batch in batches:
            watcher.run(batch)
