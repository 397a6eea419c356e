"""Choose the widths of a pruned network: by arithmetic for a budget of MACs, by trying for what must be measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeft import records
from edgeft.errors import WorkspaceError
from edgeft.pruning import Analysis
from edgeft.pruning.search import MOST_CANDIDATES, Candidate, Found, Search, Widths
from edgeft.recipe import Measure, Prune, Quantize
from edgeft.stages import weighing
from edgeft.stages.candidates import Trials, few_inputs
from edgeft.stages.common import digest
from edgeft.target import TargetProfile
from edgeft.training import Batches
from edgeft.types import ExportedArtifact, FloatModel, Progress, silent

SEARCH = "search.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where and how a candidate is tried: target, scheme of the files, real inputs (N, ...), rounds of the clock.

    `embedded` files normalise by themselves.
    """

    profile: TargetProfile
    quantize: Quantize
    inputs: torch.Tensor
    timing: Measure
    embedded: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What the cost of a candidate depends on, as JSON values; how long the clock runs is not among it."""
        return {
            "profile": self.profile.model_dump(mode="json", by_alias=True),
            "scheme": self.quantize.scheme,
            "float_layers": self.quantize.float_layers,
            "embedded": self.embedded,
        }


def trial_device(
    profile: TargetProfile | None,
    quantize: Quantize | None,
    val: Batches,
    timing: Measure | None,
    *,
    embedded: bool,
) -> Device | None:
    """Return where candidates are tried; None for a budget that needs no target. Defaults as in `pruning.prune`.

    Raises:
        DataError: Inputs are needed, and `val` has none.
    """
    if profile is None:
        return None
    return Device(
        profile=profile,
        quantize=quantize or Quantize(),
        inputs=few_inputs(val),
        timing=timing or Measure(),
        embedded=embedded,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The chosen widths; how they were found, for the report; and the unpruned network's file on the target.

    `search` is empty and `unpruned` None where nothing had to be tried.
    """

    widths: Widths
    search: Mapping[str, Any]
    unpruned: ExportedArtifact | None = None


def choose(
    analysis: Analysis,
    model: FloatModel,
    source: nn.Module,
    config: Prune,
    device: Device | None,
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Selection:
    """Return the widths that meet the budget of `config`.

    A search leaves search.json in `folder`, which is read when the same stage is resumed: another search would find
    slightly other widths, as clocks do, and the half-trained network would not fit them.

    Args:
        analysis: Of `source`.
        model: The network that a share is a share of.
        source: The network that is cut: that of `model`, or its rewritten copy.
        config: Budget and allocation.
        device: Needed for all budgets but that of MACs.
        folder: For search.json and the unpruned network's file.
        seed: That of `analysis`.
        progress: Told which candidate is tried.

    Raises:
        BudgetError: The budget is out of reach; the message names the best that is not.
        ExportError: A candidate cannot be exported.
        MeasurementError: A candidate cannot be timed.
    """
    budget = config.budget
    if device is None:
        return Selection(widths=weighing.widths_within(analysis, model, config), search={})
    identity = {
        "config": config.model_dump(mode="json"),
        "groups": [list(g.layers) for g in analysis.groups],
        "bounds": dataclasses.asdict(analysis.bounds),
        "seed": seed,
        "weights": digest(model.module),
        "device": device.identity,
    }
    stored = _stored(folder, identity)
    if stored is not None:
        return stored
    trials = Trials(
        model,
        budget.kind,
        device.profile,
        device.quantize,
        device.inputs,
        device.timing,
        folder,
        embedded=device.embedded,
        progress=progress,
    )
    found = _search(analysis, model, source, config, trials, progress)
    # A rewrite alone saves MACs, too.
    share = analysis.full_macs / weighing.unpruned_macs(analysis, model, config)
    search = {
        "kind": budget.kind,
        "budget": budget.share,
        "target": device.profile.id,
        "scheme": device.quantize.artifact_scheme,
        "exports": trials.exports,
        "lowest_macs": share * found.lowest,
        "chosen": found.tried.index(found.chosen),
        "candidates": [{**_row(each), "macs": share * each.macs} for each in found.tried],
    }
    selection = Selection(widths=found.chosen.widths, search=search, unpruned=trials.unpruned)
    _store(folder, identity, selection)
    return selection


def _search(
    analysis: Analysis,
    model: FloatModel,
    source: nn.Module,
    config: Prune,
    trials: Trials,
    progress: Progress,
) -> Found:
    """Try candidates; a rewritten network is tried uncut first, since it has another latency than the unpruned one."""
    budget, full = config.budget, analysis.full_macs
    # Half a MAC more, so that rounding does not put the narrowest widths out of reach.
    lowest = (analysis.lowest_macs + 0.5) / full
    uncut: tuple[Candidate, ...] = ()
    if source is not model.module:
        progress("candidate: rewritten, uncut")
        uncut = (Candidate(widths=analysis.full, macs=1.0, cost=trials.cost(source)),)
        if uncut[0].cost.value <= budget.share:
            return Found(chosen=uncut[0], tried=uncut, lowest=lowest)
    found = Search(
        lambda share: analysis.widths(macs=share, allocation=config.allocation),
        lambda widths: analysis.macs(widths) / full,
        lambda widths: trials.cost(analysis.apply(widths).module),
        budget=budget.share,
        lowest=lowest,
        full_cost=uncut[0].cost.value if uncut else 1.0,
        what=budget.kind,
        most=MOST_CANDIDATES - len(uncut),
        progress=progress,
    ).run()
    return Found(chosen=found.chosen, tried=(*uncut, *found.tried), lowest=lowest)


def _row(candidate: Candidate) -> dict[str, Any]:
    cost = candidate.cost
    return {
        "value": cost.value,
        "low": cost.low,
        "high": cost.high,
        **cost.figures,
    }


def _store(folder: Path, identity: Mapping[str, Any], selection: Selection) -> None:
    """Write a finished search: complete, or not at all."""
    value = {"identity": identity, "selection": records.encode(selection, folder)}
    part = folder / f".{SEARCH}.part"
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / SEARCH)


def _stored(folder: Path, identity: Mapping[str, Any]) -> Selection | None:
    try:
        value = json.loads((folder / SEARCH).read_text(encoding="utf-8"))
        if value["identity"] != json.loads(json.dumps(identity)):
            return None
        return records.decode(Selection, value["selection"], folder)
    except (OSError, ValueError, KeyError, WorkspaceError):
        return None


def unpruned_file(folder: Path) -> ExportedArtifact | None:
    """Return the unpruned network's file that a finished search has left in a folder; None without a search."""
    try:
        value = json.loads((folder / SEARCH).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise WorkspaceError(
            f"{folder / SEARCH} cannot be read: {error}", "remove the folder and run again"
        ) from error
    return records.decode(Selection, value["selection"], folder).unpruned
