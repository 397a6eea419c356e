"""Embedding tables on int8 grids (DESIGN: section 5, rule 6)."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch.fx import GraphModule, Node

from edgeft.quantization import contract

_EMBEDDING = torch.ops.aten.embedding.default


@torch.no_grad()
def bake_embeddings(graph: GraphModule) -> None:
    """Round every row of the embedding tables to 255 values of its own, in place.

    The tables stay float in the files: no runtime gathers int8 rows and dequantizes them by row. A file that stores
    them in 8 bits shall mean the same numbers. A table that another op reads too, as tied output layers do, is left.
    """
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            readers[str(node.target)] += node.users
    for name, users in readers.items():
        if not all(user.target is _EMBEDDING and user.args[0].target == name for user in users):  # type: ignore[union-attr]
            continue
        owner, _, attribute = name.rpartition(".")
        table: torch.Tensor = getattr(graph.get_submodule(owner), attribute)
        scales = contract.weight_scale(table).numpy()
        rounded = contract.dequantize_weight(contract.quantize_weight(table.detach().numpy(), scales), scales)
        table.copy_(torch.from_numpy(rounded))
