"""Look at a network once; decide, cost and cut as often as a search wants."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import nn

from edgeft.errors import EdgeftError
from edgeft.pruning.allocation import COST_EXPONENT, allocate, quantiles
from edgeft.pruning.compensation import compensate, second_moments
from edgeft.pruning.costs import CostModel, cost_model
from edgeft.pruning.groups import ChannelGroup, find_groups
from edgeft.pruning.importance import NO_SCALE, Criterion, has_scale, importances
from edgeft.pruning.limits import Bounds, out_of_reach
from edgeft.pruning.macs import count_macs
from edgeft.pruning.plan import GroupDecision, LayerDecision, PrunedModel, PruningPlan
from edgeft.pruning.proof import check_cut
from edgeft.pruning.survey import Survey, limit_shared, survey, uncut
from edgeft.pruning.tracing import check_prunable
from edgeft.pruning.trials import check_widths, cut_copy, find_impossible, roused

Allocation = Literal["global", "uniform"]
"""Cut where it costs the least importance, or the same share everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Analysis:
    """A network's groups of coupled channels, what they are worth, what they cost and how far they can be cut.

    Entries of `groups`, `ladders` (the widths that a group may have, ascending) and `importances` (shape
    (width,) each) belong together; so do those of all `widths` here.
    """

    module: nn.Module
    example: torch.Tensor
    groups: tuple[ChannelGroup, ...]
    ladders: tuple[tuple[int, ...], ...]
    importances: tuple[torch.Tensor, ...]
    costs: CostModel
    criterion: Criterion
    bounds: Bounds
    survey: Survey

    @property
    def full(self) -> tuple[int, ...]:
        """Widths of the unpruned network."""
        return self.costs.full

    @property
    def lowest(self) -> tuple[int, ...]:
        """The narrowest widths that the limits allow."""
        return tuple(ladder[0] for ladder in self.ladders)

    @property
    def full_macs(self) -> int:
        """MACs of one sample in the unpruned network."""
        return self.macs(self.full)

    @property
    def lowest_macs(self) -> int:
        """MACs of one sample at `lowest`."""
        return self.macs(self.lowest)

    @property
    def limits(self) -> tuple[str, ...]:
        """Why each group cannot be cut; empty for those that can."""
        return tuple(
            group.limit or ("" if len(ladder) > 1 else self.bounds.held_by(group))
            for group, ladder in zip(self.groups, self.ladders, strict=True)
        )

    @property
    def fixed(self) -> dict[str, str]:
        """Layers whose outputs, or some of them, cannot be cut, by dotted name, and why."""
        followed = {layer for group in self.groups for layer in group.layers}
        reasons = uncut(self.module, self.survey, followed)
        for group, limit in zip(self.groups, self.limits, strict=True):
            reasons.update({layer: limit for layer in group.layers if limit})
        return reasons

    def macs(self, widths: Sequence[int]) -> int:
        """Return the MACs of one sample if group g is `widths[g]` wide."""
        return self.costs.macs(widths)

    def widths(self, *, macs: float, allocation: Allocation = "global") -> tuple[int, ...]:
        """Return the widths that keep the most importance within a share of the MACs.

        Args:
            macs: Share of the MACs that may be left, above 0 and up to 1.
            allocation: ``global`` cuts where it costs the least importance, ``uniform`` the same share of every
                group that can be cut (the control).

        Raises:
            BudgetError: The budget is below what the limits allow; the message names the best reachable.
            ValueError: A value is out of its range.
        """
        if not 0 < macs <= 1 or allocation not in get_args(Allocation):
            raise ValueError(f"out of range: {macs=}, {allocation=}")
        # Rounded first: 0.29 * 100 is a little less than 29 in floating point.
        budget = math.floor(round(macs * self.full_macs, 3))
        if self.lowest_macs > budget:
            raise out_of_reach(self, macs)
        if allocation == "uniform":
            ranks = [quantiles(width) for width in self.full]
            return allocate(ranks, self.ladders, self.costs, budget=budget, cost_exponent=0.0)
        # Scores that compare groups by themselves are taken as they are.
        exponent = 0.0 if self.criterion in ("bn-scale", "taylor") else COST_EXPONENT
        return allocate(self.importances, self.ladders, self.costs, budget=budget, cost_exponent=exponent)

    def moments(self, inputs: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the second moments of what is read from channels that can be cut (`compensation`), by layer."""
        cuttable = (g for g, ladder in zip(self.groups, self.ladders, strict=True) if len(ladder) > 1)
        return second_moments(self.module, {layer for group in cuttable for layer in group.readers}, inputs)

    def apply(
        self, widths: Sequence[int], *, moments: Mapping[str, torch.Tensor] | None = None
    ) -> PrunedModel:
        """Return a copy of the network with group g `widths[g]` wide, its least important channels cut.

        The result is checked: its MACs are counted again on the cut network, and it computes what the unpruned
        one computes when nothing reads the removed channels.

        Args:
            widths: One of its ladder for every group.
            moments: With them the weights that stay make up for those that go, as far as these can be predicted.

        Raises:
            ModelError: The network does not survive the cut.
            ValueError: A width is none of its group's ladder.
        """
        if len(widths) != len(self.groups) or any(
            w not in ladder for w, ladder in zip(widths, self.ladders, strict=True)
        ):
            raise ValueError(f"one allowed width per group is needed (see `ladders`), got {tuple(widths)}")
        pruned, losses = cut_copy(self, widths)
        check_cut(self.module, pruned, losses, self.example)
        counted = count_macs(pruned, self.example)
        if counted != self.macs(widths):
            raise EdgeftError(
                f"the pruned network has {counted:,} MACs; planned were {self.macs(widths):,}",
                "this is a defect of edgeft: please report the architecture",
            )
        compensate(pruned, self.module, losses, moments or {})
        return PrunedModel(module=pruned, plan=self.plan(widths, _parameters(pruned)))

    def plan(self, widths: Sequence[int], params_after: int) -> PruningPlan:
        """Return what cutting to `widths` does to every group and layer.

        Args:
            widths: Width of every group.
            params_after: Parameters that are left then.
        """
        gone = self.costs.cut(widths)
        uncut = self.costs.cut(self.full)
        return PruningPlan(
            macs_before=self.full_macs,
            macs_after=self.macs(widths),
            params_before=_parameters(self.module),
            params_after=params_after,
            groups=tuple(
                GroupDecision(
                    layers=group.layers,
                    width_before=group.width,
                    width_after=width,
                    limit=limit,
                    coupled_by=group.coupled_by,
                    unit=group.unit,
                )
                for group, width, limit in zip(self.groups, widths, self.limits, strict=True)
            ),
            layers=tuple(
                LayerDecision(
                    layer=cost.layer,
                    outputs=(cost.outputs, cost.widths(gone)[0]),
                    inputs=(cost.inputs, cost.widths(gone)[1]),
                    macs=(cost.macs(uncut), cost.macs(gone)),
                )
                for cost in self.costs.layers
            ),
            fixed=self.fixed,
        )


def analyse(
    module: nn.Module,
    example: torch.Tensor,
    *,
    criterion: Criterion = "magnitude",
    channel_multiple: int,
    min_channels: int,
    depthwise_multiple: int = 1,
    keep: Collection[str] = (),
    gradients: Iterable[Mapping[str, torch.Tensor]] | None = None,
    sensitivity: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Analysis:
    """Find out what of `module` can be cut, what it is worth and what it costs.

    Groups that the network's own code ties to a fixed shape, or that it mixes in a way that the dependency graph
    does not follow, are left whole and carry a limit that says so: each is cut on trial.

    Args:
        module: Network from one tensor to one tensor; not changed.
        example: One input with a batch of 1: images (1, C, H, W) or token ids (1, T).
        criterion: How channels are judged, see `Criterion`.
        channel_multiple: Every width that is cut becomes a multiple of this.
        min_channels: A group of channels keeps at least this many; one that has no more is left alone.
        depthwise_multiple: Every width that a depthwise convolution filters and that is cut becomes a multiple of
            this, too.
        keep: Dotted names of layers whose outputs are not cut.
        gradients: For ``taylor``: per batch, the gradient of the loss by parameter name.
        sensitivity: Lowest share of a layer's outputs that has to stay, by dotted name, each 0..1.
        seed: Of ``random``.

    Raises:
        ModelError: The network does not run on `example`, its architecture cannot be pruned at all, `keep` or
            `sensitivity` names no layer of it, or gradients are missing.
        ValueError: A number is out of its range.
    """
    floors = dict(sensitivity or {})
    if min(channel_multiple, depthwise_multiple, min_channels) < 1 or criterion not in get_args(Criterion):
        raise ValueError(
            f"out of range: {channel_multiple=}, {depthwise_multiple=}, {min_channels=}, {criterion=}"
        )
    if any(not 0 <= share <= 1 for share in floors.values()):
        raise ValueError(f"shares of `sensitivity` are between 0 and 1: {floors}")
    check_prunable(module, {"keep": keep, "sensitivity": floors})
    network = copy.deepcopy(module).eval()
    layers = dict(network.named_modules())
    seen = survey(network, example)
    groups = tuple(limit_shared(find_groups(network, example, keep=keep), seen.shared))
    if criterion == "bn-scale":
        groups = tuple(g if g.limit or has_scale(g, layers) else replace(g, limit=NO_SCALE) for g in groups)
    worths = importances(groups, layers, criterion, gradients=gradients, seed=seed)

    bounds = Bounds(
        channel_multiple=channel_multiple,
        min_channels=min_channels,
        depthwise_multiple=depthwise_multiple,
        floors=floors,
    )

    def analysis(of: Sequence[ChannelGroup]) -> Analysis:
        return Analysis(
            module=network,
            example=example,
            groups=tuple(of),
            ladders=tuple(map(bounds.ladder, of)),
            importances=worths,
            costs=cost_model(of, layers, seen.positions),
            criterion=criterion,
            bounds=bounds,
            survey=seen,
        )

    first = analysis(groups)
    impossible = find_impossible(first)
    if not impossible:
        return first
    limited = [replace(g, limit=impossible[i]) if i in impossible else g for i, g in enumerate(groups)]
    second = analysis(limited)
    check_widths(roused(second), second.lowest)
    return second


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
