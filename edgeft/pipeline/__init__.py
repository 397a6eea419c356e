"""The pipeline: the only place that knows the order of things.

- `run`, `check` and `measure_sensitivity` are what the CLI calls,
- `preflight`: cross-checks before any work,
- `explanation`: what would be done,
- `walk`: stages, their keys, reuse and commit,
- `inputs`: the objects that stages read, loaded when needed; `deployed`: the same for networks of raw pixels,
- `steps`: the stages themselves,
- `exporting`: the files of a target,
- `evaluation`: what is measured for a target,
- `conclusion`: packages and report,
- `budgets`: what the pruned network may cost, and whether it does,
- `sensitivity`: the table of how sensitive layers are to quantization,
- `pruning_plans`: what pruning would do,
- `processes`: what the others do where torchrun started several.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import gating, records
from edgeft.pipeline import budgets, conclusion, explanation, preflight, processes, pruning_plans
from edgeft.pipeline import sensitivity as sensitivity_tables
from edgeft.pipeline.inputs import RunInputs, quantize_stage
from edgeft.pipeline.preflight import Finding
from edgeft.pipeline.progress import RunProgress, SilentProgress
from edgeft.pipeline.steps import STEPS
from edgeft.pipeline.walk import STAGES, Walk, read_json
from edgeft.recipe import Recipe
from edgeft.types import TargetResult, Verdict
from edgeft.workspace import Workspace

__all__ = [
    "STAGES",
    "Finding",
    "RunProgress",
    "RunSummary",
    "check",
    "explain",
    "measure_sensitivity",
    "plan_pruning",
    "run",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run leaves: report and verdict, absent if it was told to stop before them."""

    workspace: Path
    report: dict[str, Any] | None = None
    verdict: Verdict | None = None
    joined: bool = False
    """Whether this process only helped another one to train (`processes`)."""


def check(recipe: Recipe, *, base: Path | None = None) -> list[Finding]:
    """Return the findings of `edgeft check`, errors included; nothing is trained or written."""
    return preflight.check(recipe, base=base or Path(), thorough=True)


def explain(recipe: Recipe, *, base: Path | None = None) -> list[str]:
    """Return lines that say what `run` would load, freeze and train; nothing is trained or written.

    Raises:
        EdgeftError: Whatever `check` finds wrong.
    """
    return explanation.explain(recipe, base=base or Path())


def run(
    recipe: Recipe,
    *,
    base: Path | None = None,
    workspace: Path | None = None,
    until: str | None = None,
    device: str = "cpu",
    progress: RunProgress | None = None,
) -> RunSummary:
    """Do all that a recipe says, continuing where an earlier run of the same recipe stopped.

    Args:
        recipe: A parsed recipe.
        base: Folder that its paths are relative to; the working directory by default.
        workspace: Folder to work in; ``runs/<name>`` by default.
        until: Last stage to do, one of `STAGES`; everything by default.
        device: Where networks are trained: ``cpu``, ``cuda`` or ``cuda:N``. Finished stages are reused whatever device
            they were trained on.
        progress: Told about stages.

    Raises:
        EdgeftError: Whatever is wrong with the recipe, its files, the workspace or the host; everything
            finished is kept.
    """
    base = base or Path()
    progress = progress or SilentProgress()
    workspace = workspace or Path("runs") / recipe.name
    if processes.count() > 1:
        processes.require_finetune(until)
    if processes.rank() > 0:
        processes.follow(recipe, base, workspace, device)
        return RunSummary(workspace=workspace, joined=True)
    for finding in preflight.check(recipe, base=base):
        if finding.error is not None:
            raise finding.error
        if finding.level == "warning":
            progress.note(f"{finding.text}; {finding.hint}".rstrip("; "))
    preflight.require_device(device)
    with Workspace.open(workspace, note=progress.note) as opened:
        opened.write_text("recipe.toml", recipe.to_toml())
        walk = Walk(opened, progress, until=until)
        inputs = RunInputs(recipe, base, walk.folders, device=device, progress=walk.tell)
        for name, step in STEPS.items():
            step(inputs, walk)
            if name == "finetune":
                processes.release(opened.path)
            if name == until:
                return RunSummary(workspace=opened.path)
        walk.record_keys(only_used=True)
        return _conclude(inputs, walk)


def measure_sensitivity(
    recipe: Recipe,
    *,
    base: Path | None = None,
    workspace: Path | None = None,
    device: str = "cpu",
    progress: RunProgress | None = None,
) -> list[dict[str, Any]]:
    """Run a recipe up to its float network, and measure what quantizing each layer alone does to the outputs.

    Args:
        recipe: As in `run`; its quantize section says how to calibrate.
        base: As in `run`.
        workspace: As in `run`.
        device: As in `run`.
        progress: As in `run`.

    Returns:
        A table for every numerics among the targets, as sensitivity.json in the workspace holds it.

    Raises:
        EdgeftError: As `run`.
    """
    last = "finetune" if recipe.prune is None else "prune"
    base, progress = base or Path(), progress or SilentProgress()
    folder = run(
        recipe, base=base, workspace=workspace, until=last, device=device, progress=progress
    ).workspace
    with Workspace.open(folder, note=progress.note) as opened:
        inputs, walk = _finished(recipe, base, opened, last, device)
        return sensitivity_tables.measure(inputs.deployed, walk, progress)


def plan_pruning(
    recipe: Recipe,
    *,
    base: Path | None = None,
    workspace: Path | None = None,
    device: str = "cpu",
    progress: RunProgress | None = None,
) -> dict[str, Any]:
    """Run a recipe up to its fine-tuned network, and find out what its prune section would do to that.

    Args:
        recipe: As in `run`.
        base: As in `run`.
        workspace: As in `run`.
        device: As in `run`.
        progress: As in `run`.

    Returns:
        The plan, as prune-plan.json in the workspace holds it; where the budget is out of reach, `missed` says so.

    Raises:
        EdgeftError: As `run`, save for the budget.
    """
    base, progress = base or Path(), progress or SilentProgress()
    folder = run(
        recipe, base=base, workspace=workspace, until="finetune", device=device, progress=progress
    ).workspace
    with Workspace.open(folder, note=progress.note) as opened:
        inputs, walk = _finished(recipe, base, opened, "finetune", device)
        return pruning_plans.explain(inputs, walk, progress)


def _finished(
    recipe: Recipe, base: Path, opened: Workspace, last: str, device: str
) -> tuple[RunInputs, Walk]:
    """Return inputs and walk of a workspace in which everything up to a stage is finished."""
    walk = Walk(opened, SilentProgress())
    inputs = RunInputs(recipe, base, walk.folders, device=device)
    for name, step in STEPS.items():
        step(inputs, walk)
        if name == last:
            break
    return inputs, walk


def _conclude(inputs: RunInputs, walk: Walk) -> RunSummary:
    """Write packages and report, and judge."""
    root = walk.workspace.path
    results = [
        records.decode(TargetResult, read_json(walk.folders[f"measure-{p.id}"] / "measured.json"), root)
        for p in inputs.profiles
    ]
    facts = conclusion.Facts(
        recipe=inputs.recipe,
        workspace=root,
        preprocessing=inputs.deployed.preprocessing,
        profiles=inputs.profiles,
        folders=walk.folders,
        data=inputs.data_facts,
        network=walk.keys.get("prune", walk.keys["finetune"]),
    )
    walk.progress.stage_started("package", "package and verify")
    started = time.monotonic()
    in_float = {
        p.id: facts.results(quantize_stage(p.precision.numerics)).get("results", {}).get("float_layers", ())
        for p in inputs.profiles
    }
    conclusion.write_packages(facts, results, float_layers=in_float, progress=walk.tell)
    summary = f"{len(results)} packages, hashes and golden vectors verified"
    walk.progress.stage_finished("package", time.monotonic() - started, summary)
    verdict = gating.judge(
        results, inputs.recipe.gate, reference="the float fine-tuned model", float_layers=in_float
    )
    offers = budgets.offers(inputs.recipe, facts.results("finetune"), results)
    missed = budgets.missed(inputs, facts.results)
    verdict = dataclasses.replace(verdict, notes=(*verdict.notes, *missed, *offers))
    report = conclusion.write_report(facts, results, verdict)
    return RunSummary(workspace=root, report=report, verdict=verdict)
