"""The verbs that run a recipe up to one stage: `edgeft finetune`, `prune`, `quantize`, `export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from edgeft.cli import console, prune_plan
from edgeft.cli.run import (
    DeviceOption,
    ExplainOption,
    How,
    JsonOption,
    RecipeFile,
    WorkspaceOption,
    load,
    start,
)
from edgeft.errors import BudgetError, ConfigError, ExitCode

SensitivityOption = Annotated[
    bool,
    typer.Option(
        "--sensitivity",
        help="Instead of quantizing, measure what quantizing each layer alone does to the outputs.",
    ),
]

PlanOption = Annotated[
    bool,
    typer.Option("--explain", help="Instead of pruning, say what would be cut, and by what it is decided."),
]


def _up_to(stage: str, purpose: str) -> Callable[..., int]:
    """Return the verb that runs a recipe up to a stage, with the options that all these verbs share."""

    def run_up_to(
        recipe: RecipeFile,
        workspace: WorkspaceOption = None,
        device: DeviceOption = "cpu",
        explain: ExplainOption = False,
        as_json: JsonOption = False,
    ) -> int:
        how = How(workspace=workspace, until=stage, device=device, explain=explain, as_json=as_json)
        return start(load(recipe, until=stage), recipe.parent, how)

    run_up_to.__doc__ = purpose
    return run_up_to


def quantize(
    recipe: RecipeFile,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "cpu",
    sensitivity: SensitivityOption = False,
    explain: ExplainOption = False,
    as_json: JsonOption = False,
) -> int:
    """Run RECIPE up to the Q/DQ program, the one numeric truth.

    With --sensitivity up to the float model; sensitivity.json and .svg in the workspace then say of every layer what
    its quantization alone does, which is what quantize.float_layers is decided by.
    """
    how = How(workspace=workspace, until="quantize", device=device, explain=explain, as_json=as_json)
    loaded = load(recipe, until="quantize")
    if not sensitivity:
        return start(loaded, recipe.parent, how)
    if explain:
        raise ConfigError("--sensitivity and --explain exclude each other", "leave one out")
    folder = workspace or Path("runs") / loaded.name
    with console.StageLog(console.make(to_stderr=as_json)) as log:
        from edgeft import pipeline

        tables = pipeline.measure_sensitivity(
            loaded, base=recipe.parent, workspace=folder, device=device, progress=log
        )
    if as_json:
        print(json.dumps({"workspace": str(folder), "sensitivity": tables}, indent=2))
        return ExitCode.OK
    for table in tables:
        _print_sensitivity(table, folder)
    return ExitCode.OK


def prune(
    recipe: RecipeFile,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "cpu",
    explain: PlanOption = False,
    as_json: JsonOption = False,
) -> int:
    """Run RECIPE up to the pruned and recovered float model.

    With --explain up to the fine-tuned model; then say which channels are coupled and why, what they cost, how
    sensitive they are, and what would be cut, or that the budget is out of reach. prune-plan.json in the workspace
    holds all of it.
    """
    loaded = load(recipe, until="prune")
    if not explain:
        how = How(workspace=workspace, until="prune", device=device, explain=False, as_json=as_json)
        return start(loaded, recipe.parent, how)
    folder = workspace or Path("runs") / loaded.name
    with console.StageLog(console.make(to_stderr=as_json)) as log:
        from edgeft import pipeline

        plan = pipeline.plan_pruning(
            loaded, base=recipe.parent, workspace=folder, device=device, progress=log
        )
    if as_json:
        print(json.dumps({"workspace": str(folder), "plan": plan}, indent=2))
    else:
        prune_plan.show(plan, folder)
    if plan["missed"]:
        raise BudgetError(plan["missed"]["message"], plan["missed"]["hint"])
    return ExitCode.OK


VERBS: Final[dict[str, Callable[..., int]]] = {
    "finetune": _up_to("finetune", "Run RECIPE up to the fine-tuned float model."),
    "prune": prune,
    "quantize": quantize,
    "export": _up_to("export", "Run RECIPE up to the exported and checked files of every target."),
}


def _print_sensitivity(table: dict[str, Any], folder: Path) -> None:
    output = console.make()
    output.print()
    if table["numerics"]:
        output.print(f"numerics: {table['numerics']}")
    layers = sorted(table["layers"], key=lambda layer: -layer["kl"])
    console.print_table([_row(layer) for layer in layers], output)
    output.print("KL: of the outputs with this layer alone quantized; the most sensitive layer comes first.")
    name = f"sensitivity-{table['numerics']}".rstrip("-")
    for suffix in ("json", "svg"):
        output.print(f"written:  {console.shown(folder / f'{name}.{suffix}')}", soft_wrap=True)


def _row(layer: dict[str, Any]) -> dict[str, str]:
    return {
        "layer": layer["layer"],
        "KL, nats": f"{layer['kl']:.3g}",
        "MSE": f"{layer['mse']:.3g}",
        "SQNR, dB": "-" if layer["sqnr_db"] is None else f"{layer['sqnr_db']:.1f}",
        "MACs": f"{layer['mac_share']:.1%}",
        "range use": f"{layer['range_use']:.0%}",
    }
