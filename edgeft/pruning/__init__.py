"""Structured pruning: cut whole channels until a share of the MACs is left.

`torch-pruning`'s dependency graph says which channels belong together; how much is cut and where is decided
here, by arithmetic on the layer widths, before the network is touched:

- `groups`: the coupled channels of a network,
- `importance`: what a channel is worth,
- `allocation`: the widths that meet the budget,
- `surgery`: the cut, its proof, and giving a new network the shapes of a pruned one,
- `macs`: counting.
"""

from __future__ import annotations

from edgeft.pruning.macs import count_macs
from edgeft.pruning.plan import GroupDecision, PrunedModel, PruningPlan
from edgeft.pruning.pruner import prune
from edgeft.pruning.surgery import restore

__all__ = ["GroupDecision", "PrunedModel", "PruningPlan", "count_macs", "prune", "restore"]
