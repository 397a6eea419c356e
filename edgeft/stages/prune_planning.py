"""What pruning would do, and what it would do it by: coupled groups, their shares, their sensitivity, the widths."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from edgeft import measure, training
from edgeft.errors import BudgetError
from edgeft.pruning import Analysis, PruningPlan
from edgeft.pruning.groups import ChannelGroup
from edgeft.recipe import Measure, Prune, Quantize
from edgeft.stages import weighing
from edgeft.stages.budgeting import choose, trial_device
from edgeft.stages.candidates import few_inputs, quick_program
from edgeft.stages.common import parse_config
from edgeft.stages.deploying import export
from edgeft.stages.pruning import find_profile, rewrite
from edgeft.target import PruneLimits, TargetProfile
from edgeft.training import Batches
from edgeft.types import FloatModel, Progress, QuantModel, silent

SENSITIVITY_SHARE = 0.5
"""Share of its channels that a group keeps when its sensitivity is measured; more, where the limits want more."""
_MEASURED = ("samples", "accuracy", "loss", "times")
"""What a plan tells of the uncut network."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """One group of coupled channels, or of attention heads.

    `members` maps each layer to its parts in the group, `coupled_by` says what ties them. `macs_share` and
    `time_share` are what writing the channels takes of the whole network's, 0..1; the time is None where it is not
    known. `accuracy` and `loss` are those of the network with this group alone cut to `tried_width`, untrained; all
    three are None where it cannot be cut. `planned_width` is None where the budget is out of reach.
    """

    layers: tuple[str, ...]
    members: Mapping[str, str]
    coupled_by: tuple[str, ...]
    unit: str
    limit: str
    width: int
    macs_share: float
    time_share: float | None
    tried_width: int | None
    accuracy: float | None
    loss: float | None
    planned_width: int | None = None


def plan_pruning(
    model: FloatModel,
    train: Batches,
    val: Batches,
    config: Prune | None = None,
    *,
    limits: PruneLimits | None = None,
    profile: TargetProfile | None = None,
    timed: TargetProfile | None = None,
    quantize: Quantize | None = None,
    timing: Measure | None = None,
    embedded: bool = False,
    known: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress = silent,
    **settings: Any,
) -> dict[str, Any]:
    """Return what `prune` would do to a model; nothing is trained, and the model stays as it is.

    Args:
        model: As in `prune`.
        train: Unaugmented training batches in mixed order, the `statistics` of `prune`; for gradients and after a
            rewrite only.
        val: Batches that sensitivities are measured on.
        config: As in `prune`.
        limits: As in `prune`.
        profile: As in `prune`.
        timed: Target that shares of time are measured on; none are without one, or where its runtime does not tell.
        quantize: As in `prune`.
        timing: As in `prune`.
        embedded: As in `prune`.
        known: What this returned, as JSON holds it, for the same arguments but `profile` and the fields `budget`,
            `target` and `allocation` of the settings: what was measured of the groups is taken from there.
        seed: As in `prune`.
        progress: Told which group is tried.
        **settings: Fields of `recipe.Prune`.

    Returns:
        ``samples``, ``accuracy`` and ``loss`` (of the uncut network), ``times`` (where the shares of time come from,
        or why there are none), ``groups`` (`GroupReport`), ``fixed`` (layers of no group, and why), ``rewrite``,
        ``plan`` (shares of MACs and parameters), ``search`` (as `prune` reports it) and ``missed``: message and hint
        where the budget is out of reach and there is no plan, else None.

    Raises:
        EdgeftError: As `prune`, save for the budget.
    """
    config = parse_config(Prune, config, settings)
    profile = find_profile(config, profile)
    quantize = quantize or Quantize()
    source, rewritten = rewrite(model, config, train, seed=seed)
    limits = limits or (profile.prune if profile else PruneLimits())
    analysis = weighing.analyse(source, config, limits, train, seed=seed, progress=progress)
    measured = known or _measure(analysis, source, timed, quantize, val, progress)
    groups = [GroupReport(**group) for group in measured["groups"]] if known else measured["groups"]
    device = trial_device(profile, quantize, val, timing, embedded=embedded)
    missed, search, shares = None, {}, None
    widths: Sequence[int | None] = [None] * len(groups)
    with tempfile.TemporaryDirectory(prefix="edgeft-plan-") as folder:
        try:
            selection = choose(
                analysis, model, source.module, config, device, Path(folder), seed=seed, progress=progress
            )
        except BudgetError as error:
            missed = {"message": error.message, "hint": error.hint}
        else:
            widths, search = selection.widths, dict(selection.search)
            plan = analysis.apply(selection.widths).plan
            shares = _shares(weighing.from_unpruned(plan, analysis, model, config))
    return {
        **{key: measured[key] for key in _MEASURED},
        "groups": [
            dataclasses.replace(group, planned_width=width)
            for group, width in zip(groups, widths, strict=True)
        ],
        "fixed": _outside(analysis),
        "rewrite": rewritten,
        "plan": shares,
        "search": search,
        "missed": missed,
    }


def _measure(
    analysis: Analysis,
    source: FloatModel,
    timed: TargetProfile | None,
    quantize: Quantize,
    val: Batches,
    progress: Progress,
) -> dict[str, Any]:
    """Return what is measured of the uncut network and of its groups, whatever the budget."""
    with tempfile.TemporaryDirectory(prefix="edgeft-plan-") as folder:
        times, origin = _time_shares(source, timed, quantize, val, Path(folder))
    accuracy, loss, samples = _score(source.module, val)
    groups = _groups(analysis, times, val, progress)
    return dict(zip((*_MEASURED, "groups"), (samples, accuracy, loss, origin, groups), strict=True))


def _shares(plan: PruningPlan) -> dict[str, Any]:
    return {
        "macs_share": plan.macs_share,
        "params_share": plan.params_after / plan.params_before,
        "macs_before": plan.macs_before,
        "macs_after": plan.macs_after,
    }


def _outside(analysis: Analysis) -> dict[str, str]:
    """Return the layers that are in no group, and why."""
    followed = {layer for group in analysis.groups for layer in group.layers}
    return {layer: reason for layer, reason in analysis.fixed.items() if layer not in followed}


def _groups(
    analysis: Analysis, times: Mapping[str, float], val: Batches, progress: Progress
) -> list[GroupReport]:
    macs, shares_of_time = analysis.costs.written(), analysis.costs.shared_out(times)
    reports = []
    for number, (group, ladder) in enumerate(zip(analysis.groups, analysis.ladders, strict=True)):
        progress(f"sensitivity of {', '.join(group.layers[:2])}", done=number, total=len(analysis.groups))
        tried, accuracy, loss = None, None, None
        if len(ladder) > 1:
            tried = min(width for width in ladder if width >= SENSITIVITY_SHARE * group.width)
            alone = [*analysis.full[:number], tried, *analysis.full[number + 1 :]]
            accuracy, loss, _ = _score(analysis.apply(tuple(alone)).module, val)
        reports.append(
            GroupReport(
                layers=group.layers,
                members=_parts(group),
                coupled_by=group.coupled_by,
                unit=group.unit,
                limit=analysis.limits[number],
                width=group.width,
                macs_share=macs[number] / analysis.full_macs,
                time_share=shares_of_time[number] if times else None,
                tried_width=tried,
                accuracy=accuracy,
                loss=loss,
            )
        )
    return reports


def _parts(group: ChannelGroup) -> dict[str, str]:
    """Return layer -> its parts in the group, in the order of the network."""
    parts: dict[str, list[str]] = {}
    for member in group.members:
        parts.setdefault(member.layer, []).append(member.role)
    return {layer: ", ".join(dict.fromkeys(roles)) for layer, roles in parts.items()}


def _score(module: torch.nn.Module, val: Batches) -> tuple[float, float, int]:
    """Return accuracy, mean cross-entropy in nats, and the number of samples."""
    logits, labels = training.predict(module.eval(), val)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    return float((logits.argmax(axis=1) == labels).mean()), float(loss), len(labels)


def _time_shares(
    source: FloatModel, timed: TargetProfile | None, quantize: Quantize, val: Batches, folder: Path
) -> tuple[dict[str, float], str]:
    """Return each layer's share of the uncut network's time, and where it comes from or why there is none."""
    if timed is None or timed.runtime.name != "onnxruntime" or timed.runtime.device != "cpu":
        return {}, "no times: layers are told apart in the files of ONNX Runtime on the CPU"
    if timed.runtime.host:
        return {}, "no times: layers are not timed on another machine"
    if quantize.scheme != "int8":
        return {}, "no times: only layers with integer weights are told apart in the file"
    inputs = few_inputs(val)
    program = quick_program(source, quantize, timed, inputs)
    artifact = export(program, timed, folder, name="uncut")
    nodes = measure.operation_times(artifact, timed, np.asarray(inputs.numpy()))
    layers, total = _layers_of_nodes(artifact.path, program), sum(nodes.values())
    shares: defaultdict[str, float] = defaultdict(float)
    for node, ms in nodes.items():
        if node in layers:
            shares[layers[node]] += ms / total
    return shares, (
        f"ONNX Runtime's profile of the uncut int8 file on {timed.id}; {1 - sum(shares.values()):.0%} went to "
        "operations that are no convolution or linear layer with integer weights"
    )


def _layers_of_nodes(path: Path, program: QuantModel) -> dict[str, str]:
    """Return node name -> layer of the program, told by the integer weights."""
    layers = {layer.weight.tobytes(): layer.name for layer in program.layers}
    graph = onnx.load(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    dequantized = {
        node.output[0]: stored[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }
    found = {}
    for node in graph.node:
        if len(node.input) < 2 or node.input[1] not in dequantized:
            continue
        values = numpy_helper.to_array(dequantized[node.input[1]])
        for each in (values, values.T):
            if each.tobytes() in layers:
                found[node.name] = layers[each.tobytes()]
    return found
