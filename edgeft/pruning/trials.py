"""Cut on trial: which groups of channels a network survives without."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgeft.pruning.proof import CutError, check_cut, check_training
from edgeft.pruning.surgery import Removal, cut, removals

if TYPE_CHECKING:
    from edgeft.pruning.analysis import Analysis


def find_impossible(analysis: Analysis) -> dict[int, str]:
    """Return the groups that do not survive a cut to their lowest width, by number, and why.

    All are tried together first: for most networks that is all there is to do.
    """
    analysis = roused(analysis)
    try:
        check_widths(analysis, analysis.lowest)
    except CutError:
        pass
    else:
        return {}
    found = {}
    for number, ladder in enumerate(analysis.ladders):
        if len(ladder) > 1:
            try:
                check_widths(analysis, [*analysis.full[:number], ladder[0], *analysis.full[number + 1 :]])
            except CutError as error:
                found[number] = error.limit
    return found


def check_widths(analysis: Analysis, widths: Sequence[int]) -> None:
    """Raise `CutError` unless the network survives a cut to `widths`, in training mode too if it runs there."""
    pruned, losses = cut_copy(analysis, widths)
    check_cut(analysis.module, pruned, losses, analysis.example)
    if analysis.survey.trains:
        check_training(pruned, analysis.example, analysis.survey.idle)


def cut_copy(analysis: Analysis, widths: Sequence[int]) -> tuple[nn.Module, dict[str, Removal]]:
    """Return a copy of the network without the least important channels, and what every layer lost."""
    removed = [
        scores.argsort(descending=True, stable=True)[width:].tolist()
        for scores, width in zip(analysis.importances, widths, strict=True)
    ]
    losses = removals(analysis.groups, removed)
    pruned = copy.deepcopy(analysis.module)
    cut(pruned, losses)
    return pruned, losses


def roused(analysis: Analysis) -> Analysis:
    """Return `analysis` of a copy of its network with small noise in the place of parameters that are all zero.

    A head or the end of a residual branch that begins at zero (so they are often initialized) hides whatever is
    before it from a comparison of outputs.
    """
    network = copy.deepcopy(analysis.module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.2 - 0.1)
    return replace(analysis, module=network)
