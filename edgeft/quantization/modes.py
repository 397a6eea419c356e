"""Switch a captured graph between training and evaluation."""

from __future__ import annotations

import types

import torch
from torch.fx import GraphModule

aten = torch.ops.aten

DROPOUTS = {aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default}


def allow_modes(graph: GraphModule) -> None:
    """Give a captured graph `train()` and `eval()` that switch its dropouts, in place.

    torch.export writes the mode into every dropout op. torchao's function of this purpose also writes a rate of its own
    into them: networks that were trained with 0.1 would be trained on with 0.5. Batch norms are folded by now.
    """

    def train(self: GraphModule, mode: bool = True) -> GraphModule:
        _switch_dropouts(self, mode)
        return self

    def evaluate(self: GraphModule) -> GraphModule:
        return train(self, False)

    graph.train = types.MethodType(train, graph)  # type: ignore[method-assign]
    graph.eval = types.MethodType(evaluate, graph)  # type: ignore[method-assign]


def _switch_dropouts(graph: GraphModule, training: bool) -> None:
    changed = [n for n in graph.graph.nodes if n.target in DROPOUTS and n.args[2] is not training]
    for node in changed:
        node.update_arg(2, training)
    if changed:
        graph.recompile()
