"""The pipeline: the only place that knows the order of things.

- `run` and `check` are what the CLI calls,
- `preflight`: cross-checks before any work,
- `walk`: stages, their keys, reuse and commit,
- `inputs`: the objects that stages read, loaded when needed,
- `steps`: the stages themselves,
- `evaluation`: what is measured for a target,
- `conclusion`: packages and report.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft import gating, records
from edgeft.pipeline import conclusion, preflight
from edgeft.pipeline.inputs import RunInputs
from edgeft.pipeline.preflight import Finding
from edgeft.pipeline.progress import RunProgress, SilentProgress
from edgeft.pipeline.steps import STEPS
from edgeft.pipeline.walk import STAGES, Walk, read_json
from edgeft.recipe import Recipe
from edgeft.types import TargetResult, Verdict
from edgeft.workspace import Workspace

__all__ = ["STAGES", "Finding", "RunProgress", "RunSummary", "check", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run leaves: report and verdict, absent if it was told to stop before them."""

    workspace: Path
    report: dict[str, Any] | None = None
    verdict: Verdict | None = None


def check(recipe: Recipe, *, base: Path | None = None) -> list[Finding]:
    """Return the findings of `edgeft check`, errors included; nothing is trained or written."""
    return preflight.check(recipe, base=base or Path())


def run(
    recipe: Recipe,
    *,
    base: Path | None = None,
    workspace: Path | None = None,
    until: str | None = None,
    progress: RunProgress | None = None,
) -> RunSummary:
    """Do all that a recipe says, continuing where an earlier run of the same recipe stopped.

    Args:
        recipe: A parsed recipe.
        base: Folder that its paths are relative to; the working directory by default.
        workspace: Folder to work in; ``runs/<name>`` by default.
        until: Last stage to do, one of `STAGES`; everything by default.
        progress: Told about stages.

    Raises:
        EdgeftError: Whatever is wrong with the recipe, its files, the workspace or the host; everything
            finished is kept.
    """
    base = base or Path()
    progress = progress or SilentProgress()
    for finding in preflight.check(recipe, base=base):
        if finding.error is not None:
            raise finding.error
        if finding.level == "warning":
            progress.note(f"{finding.text}; {finding.hint}".rstrip("; "))
    with Workspace.open(workspace or Path("runs") / recipe.name, note=progress.note) as opened:
        opened.write_text("recipe.toml", recipe.to_toml())
        walk = Walk(opened, progress)
        inputs = RunInputs(recipe, base, walk)
        for name, step in STEPS.items():
            step(inputs, walk)
            if name == until:
                return RunSummary(workspace=opened.path)
        walk.record_keys(only_used=True)
        return _conclude(inputs, walk)


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
        preprocessing=inputs.preprocessing,
        profiles=inputs.profiles,
        folders=walk.folders,
        data=inputs.data_facts,
    )
    walk.progress.stage_started("package", "package and verify")
    started = time.monotonic()
    conclusion.write_packages(facts, results, progress=walk.tell)
    summary = f"{len(results)} packages, hashes and golden vectors verified"
    walk.progress.stage_finished("package", time.monotonic() - started, summary)
    verdict = gating.judge(results, inputs.recipe.gate, reference="the float fine-tuned model")
    report = conclusion.write_report(facts, results, verdict)
    return RunSummary(workspace=root, report=report, verdict=verdict)
