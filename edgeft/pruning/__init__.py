"""Structured pruning: cut whole channels and attention heads until a budget holds.

`torch-pruning`'s dependency graph says which channels belong together; how much is cut and where is decided
here, by arithmetic on the layer widths, before the network is touched:

- `tracing`, `attention`, `groups`: the coupled channels and the heads of a network,
- `importance`: what a channel is worth,
- `costs`, `macs`: what it costs,
- `allocation`, `limits`: the widths that meet a budget, and how far they can go,
- `analysis`: all of this together, once per network, for a search to ask,
- `compensation`: what the weights that stay take over from those that go,
- `survey`: which layers run, in evaluation and in training,
- `surgery`, `proof`, `trials`: the cut, its proof, which groups do not survive it, and giving a new network the
  shapes of a pruned one.
"""

from __future__ import annotations

from edgeft.pruning.analysis import Allocation, Analysis, analyse
from edgeft.pruning.groups import ChannelGroup
from edgeft.pruning.importance import Criterion
from edgeft.pruning.macs import count_macs
from edgeft.pruning.plan import GroupDecision, LayerDecision, PrunedModel, PruningPlan
from edgeft.pruning.pruner import prune
from edgeft.pruning.surgery import restore

__all__ = [
    "Allocation",
    "Analysis",
    "ChannelGroup",
    "Criterion",
    "GroupDecision",
    "LayerDecision",
    "PrunedModel",
    "PruningPlan",
    "analyse",
    "count_macs",
    "prune",
    "restore",
]
