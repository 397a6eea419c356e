"""`edgeft run`, and what the verbs for single stages share with it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeft.cli import console
from edgeft.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from edgeft.recipe import Recipe


def _option(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=text)


_RECIPE_ARGUMENT = typer.Argument(
    help="A recipe file; without one, give the options below.", metavar="RECIPE"
)
RecipeFile = Annotated[Path, typer.Argument(help="A recipe file.", metavar="RECIPE")]
WorkspaceOption = Annotated[
    Path | None, typer.Option("--workspace", metavar="DIR", help="Where to work; runs/<name> by default.")
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="NAME", help="Where to train: cpu, cuda or cuda:N.")
]
ExplainOption = Annotated[
    bool, typer.Option("--explain", help="Say what would be loaded, frozen and trained, and do nothing.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the report as JSON on stdout, progress on stderr.")
]


def run(
    recipe: Annotated[Path | None, _RECIPE_ARGUMENT] = None,
    data: Annotated[str | None, _option("DIR", "Folder of class folders, a table, or builtin:NAME.")] = None,
    model: Annotated[
        str | None,
        _option(
            "SOURCE", "timm:NAME, torchvision:NAME, hf:PATH, keras:FILE, builtin:NAME, FILE.py:FUNCTION, ..."
        ),
    ] = None,
    target: Annotated[list[str] | None, _option("NAME", "A target; may be given several times.")] = None,
    weights: Annotated[str | None, _option("FILE", "Pretrained weights, .safetensors or .pth.")] = None,
    name: Annotated[str | None, _option("NAME", "Name of the run; by default the data folder's.")] = None,
    epochs: Annotated[int | None, _option("N", "Epochs of fine-tuning.")] = None,
    input_size: Annotated[int | None, _option("PIXELS", "Height and width of the model's input.")] = None,
    seed: Annotated[int | None, _option("N", "Seed of splits, shuffling and fresh weights.")] = None,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "cpu",
    explain: ExplainOption = False,
    as_json: JsonOption = False,
) -> int:
    """Fine-tune, prune, quantize, export, measure, package and report: all that RECIPE says.

    A run that was interrupted or killed continues when the same command is given again.
    """
    how = How(workspace=workspace, device=device, explain=explain, as_json=as_json)
    task = {"data": data}
    network = {"source": model, "weights": weights, "input_size": input_size}
    top = {"targets": target or None, "name": name, "seed": seed}
    given = {"task": task, "model": network, "finetune": {"epochs": epochs}, **top}
    if recipe is None:
        return start(_recipe_from_options(given), Path(), how)
    if extra := _options_in_use(given):
        raise ConfigError(
            f"{recipe} and {', '.join(extra)}: a recipe and options that describe one exclude each other",
            "write it into the recipe, or leave RECIPE out and give --data, --model and --target",
        )
    return start(load(recipe), recipe.parent, how)


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What the options say that every one of these verbs has."""

    workspace: Path | None
    device: str
    explain: bool
    as_json: bool
    until: str | None = None


def load(path: Path, *, until: str | None = None) -> Recipe:
    """Read a recipe file. Raises `ConfigError`, also where it has no section for the stage `until`."""
    from edgeft import recipe as recipes

    loaded = recipes.load(path)
    if until in ("prune", "quantize") and getattr(loaded, until) is None:
        raise ConfigError(
            f"{path} has no section [{until}]: there is nothing to do up to that stage",
            f"add [{until}] to the recipe",
        )
    return loaded


def start(recipe: Recipe, base: Path, how: How) -> int:
    """Run a recipe, whose paths are relative to `base`, or explain it; print what comes of it."""
    return _explain(recipe, base, how) if how.explain else _execute(recipe, base, how)


def _explain(recipe: Recipe, base: Path, how: How) -> int:
    from edgeft import pipeline

    lines = pipeline.explain(recipe, base=base)
    if how.as_json:
        print(json.dumps({"explanation": lines}, indent=2))
    else:
        output = console.make()
        for line in lines:
            output.print(line, soft_wrap=True, markup=False, highlight=False)
    return ExitCode.OK


def _execute(recipe: Recipe, base: Path, how: How) -> int:
    folder = how.workspace or Path("runs") / recipe.name
    output = console.make(to_stderr=how.as_json)
    with console.StageLog(output) as log:
        from edgeft import pipeline

        summary = pipeline.run(
            recipe, base=base, workspace=folder, until=how.until, device=how.device, progress=log
        )
    if how.as_json:
        print(json.dumps({"workspace": str(summary.workspace), "report": summary.report}, indent=2))
    elif summary.report is not None:
        _print_report(summary.report, summary.workspace)
    elif not summary.joined:
        output.print(f"workspace: {console.shown(summary.workspace)}", soft_wrap=True)
    # The verdict against the run's own float model is information; only a gate with a baseline decides. What does not
    # fit its device is of no use to anybody.
    report = summary.report or {"targets": []}
    missed = any(not budget["met"] for target in report["targets"] for budget in target["budgets"])
    return ExitCode.CHECK_FAILED if missed else ExitCode.OK


def _print_report(report: dict[str, Any], folder: Path) -> None:
    from edgeft import reporting

    output = console.make()
    output.print()
    headings = reporting.headings(report)
    rows = [{headings[key]: text for key, text in row.items()} for row in reporting.table(report)]
    console.print_table(rows, output)
    console.print_verdict(report["verdict"], output)
    output.print()
    output.print(f"report:   {console.shown(folder / 'report.html')}", soft_wrap=True)
    for package in sorted((folder / "packages").glob("*/")):
        output.print(f"package:  {console.shown(package)}", soft_wrap=True)


def _recipe_from_options(given: dict[str, Any]) -> Recipe:
    from edgeft import schema
    from edgeft.recipe import Recipe

    data, source = given["task"]["data"], given["model"]["source"]
    needed = {"--data": data, "--model": source, "--target": given["targets"]}
    if missing := [option for option, value in needed.items() if not value]:
        raise ConfigError(
            f"edgeft run without a recipe needs --data, --model and --target; missing: {', '.join(missing)}",
            "edgeft run RECIPE, or edgeft run --data DIR --model SOURCE --target NAME (see edgeft targets)",
        )
    defaults = {"name": _name_of(data), "prune": {}, "quantize": {}}
    return schema.validate(defaults | _without_none(given), Recipe, "command line")


def _name_of(data: str) -> str:
    """Return a folder-safe name for a run on `data`."""
    last = data.removeprefix("builtin:") if data.startswith("builtin:") else Path(data).resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._") or "run"


def _options_in_use(given: dict[str, Any]) -> list[str]:
    names = {"source": "model", "targets": "target"}
    flat: dict[str, Any] = {}
    for key, value in given.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return [f"--{names.get(key, key).replace('_', '-')}" for key, value in flat.items() if value is not None]


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    kept = {key: _without_none(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value is not None}
