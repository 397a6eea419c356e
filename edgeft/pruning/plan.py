"""What pruning decided and what came out of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDecision:
    """The width of one group of coupled channels, before and after.

    `layers` are the convolutions and linear layers whose outputs the group is, by dotted name.
    `limit` says why the group was not open to cutting; empty if it was.
    """

    layers: tuple[str, ...]
    width_before: int
    width_after: int
    limit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningPlan:
    """Cost before and after (MACs of one sample, parameters) and every group's decision."""

    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    groups: tuple[GroupDecision, ...]

    @property
    def macs_share(self) -> float:
        """Share of the unpruned network's MACs that is left, 0..1."""
        return self.macs_after / self.macs_before

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain dicts, lists and numbers, for the report."""
        return {**asdict(self), "groups": [asdict(g) | {"layers": list(g.layers)} for g in self.groups]}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedModel:
    """A pruned network in evaluation mode, and how it came about."""

    module: nn.Module
    plan: PruningPlan
