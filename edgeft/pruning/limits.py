"""How far a network can be cut: the bounds of its groups' widths, and what is said of a budget below them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgeft.errors import BudgetError
from edgeft.pruning.allocation import FLOOR_SHARE, allowed_widths, settable
from edgeft.pruning.groups import ChannelGroup

if TYPE_CHECKING:
    from edgeft.pruning.analysis import Analysis


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a width has to be: the arguments of `analyse`, with the least share of single layers in `floors`."""

    channel_multiple: int
    min_channels: int
    depthwise_multiple: int = 1
    floors: Mapping[str, float] = field(default_factory=dict)

    def ladder(self, group: ChannelGroup) -> tuple[int, ...]:
        """Return the widths that a group may have, ascending."""
        return allowed_widths(
            group,
            channel_multiple=math.lcm(
                self.channel_multiple, self.depthwise_multiple if group.is_filtered else 1
            ),
            min_channels=self.min_channels,
            lowest_share=max((self.floors.get(layer, 0.0) for layer in group.layers), default=0.0),
        )

    def held_by(self, group: ChannelGroup) -> str:
        """Return what keeps a group whole that has no limit of its own."""
        return "prune.floor" if len(replace(self, floors={}).ladder(group)) > 1 else "too narrow"


def out_of_reach(
    analysis: Analysis, share: float, *, what: str = "MACs", full_macs: int | None = None
) -> BudgetError:
    """Return the error of a budget below what an analysis allows.

    Args:
        analysis: Of the network.
        share: The budget.
        what: What it is a share of; of MACs alone the best share is known without a trial.
        full_macs: MACs that shares are of; those of the analysed network by default.
    """
    full = full_macs or analysis.full_macs
    reasons = Counter(limit.partition(" after ")[0] for limit in analysis.limits)
    opened = reasons.pop("", 0)
    fixed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    if opened:
        best = settable(analysis.lowest_macs / full)
        why = f"with every group of channels at its lowest allowed width {best} of the MACs are left"
    else:
        why = f"nothing of this network can be cut ({settable(analysis.full_macs / full)} is left)"
    return BudgetError(
        f"a {what} budget of {share:.3f} cannot be met: {why}",
        f"raise the budget; the limits are {', '.join(_told(analysis))}; {opened} of {len(analysis.groups)} groups can "
        f"be cut" + (f" (not: {fixed})" if fixed else "") + ("" if opened else _widest(analysis)),
    )


def _widest(analysis: Analysis) -> str:
    """Return which of the groups that are only too narrow for the limits is the widest; nothing without any."""
    narrow = [group for group in analysis.groups if not group.limit]
    if not narrow:
        return ""
    widest = max(narrow, key=lambda group: group.width * group.size)
    return f"; the widest has {widest.width * widest.size} channels ({', '.join(widest.layers[:2])})"


def _told(analysis: Analysis) -> list[str]:
    """Return the bounds in words: those of all groups, and those of some where they hold these wider."""
    bounds = analysis.bounds
    told = [
        f"{FLOOR_SHARE:.0%} of each group",
        f"channel multiple {bounds.channel_multiple}",
        f"at least {bounds.min_channels} channels",
    ]
    if filtered := _held(analysis, replace(bounds, depthwise_multiple=1)):
        told.append(f"depthwise multiple {bounds.depthwise_multiple} (holds {filtered} of the groups wider)")
    if held := _held(analysis, replace(bounds, floors={})):
        told.append(f"prune.floor (holds {held} of the groups wider)")
    return told


def _held(analysis: Analysis, without: Bounds) -> int:
    """Return how many groups could be narrower with other bounds."""
    pairs = zip(analysis.groups, analysis.lowest, strict=True)
    return sum(without.ladder(group)[0] < lowest for group, lowest in pairs)
