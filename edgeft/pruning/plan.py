"""What pruning decided and what came out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDecision:
    """The width of one group of coupled channels (or attention heads: `unit`), before and after.

    `layers` are the convolutions and linear layers whose outputs the group is, by dotted name; `coupled_by`
    says what ties them. `limit` says why the group was not open to cutting; empty if it was.
    """

    layers: tuple[str, ...]
    width_before: int
    width_after: int
    limit: str = ""
    coupled_by: tuple[str, ...] = ()
    unit: str = "channel"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDecision:
    """Outputs, inputs and MACs of one layer, each (before, after); a depthwise layer has 1 input per output."""

    layer: str
    outputs: tuple[int, int]
    inputs: tuple[int, int]
    macs: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningPlan:
    """Cost before and after (MACs of one sample, parameters), and what became of every group and every layer.

    `fixed` are the layers whose outputs, or some of them, could not be cut, and why: also those of no group, and
    attention in one kernel, whose MACs are not counted.
    """

    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    groups: tuple[GroupDecision, ...]
    layers: tuple[LayerDecision, ...]
    fixed: Mapping[str, str] = field(default_factory=dict)

    @property
    def macs_share(self) -> float:
        """Share of the unpruned network's MACs that is left, 0..1."""
        return self.macs_after / self.macs_before

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain dicts, lists and numbers, for the report."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    """Return `value` with its tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedModel:
    """A pruned network in evaluation mode, and how it came about."""

    module: nn.Module
    plan: PruningPlan
