"""`edgeft bench`: latency, throughput and accuracy of packages and of model files from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeft import files
from edgeft.cli import console
from edgeft.cli import timing_options as options
from edgeft.cli.timing_options import (
    HostOption,
    InputsOption,
    RandomOption,
    RuntimeDeviceOption,
    SettingOption,
    ShapeOption,
    ThreadsOption,
)
from edgeft.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from edgeft.target import TargetProfile

_MODELS = typer.Argument(
    help="Packages (folders or archives) and .onnx, .xml or .tflite files.", metavar="PACKAGE_OR_FILE..."
)

# Columns that are told in a line per file, so that the figures fit side by side.
_BELOW = ("runs", "precision", "runs on", "fed with")
_LAYERS = 8
"""Shown of a compiled file, those of most cycles; --json has all."""


def bench(
    models: Annotated[list[str], _MODELS],
    inputs: InputsOption = None,
    random: RandomOption = False,
    shape: ShapeOption = None,
    batch: Annotated[int, options.option("--batch", "N", "Samples per inference.", min=1)] = 1,
    threads: ThreadsOption = None,
    streams: Annotated[
        int, options.option("--streams", "N", "Measure throughput too, with N inferences at a time.", min=1)
    ] = 1,
    target: Annotated[
        str | None,
        options.option("--target", "NAME", "Target of files without a package; also the path of a profile."),
    ] = None,
    device: RuntimeDeviceOption = None,
    option: SettingOption = None,
    host: HostOption = "",
    processes: Annotated[int, options.option("--processes", "N", "Fresh processes per file.", min=1)] = 5,
    runs: Annotated[int, options.option("--runs", "N", "Least steady runs of each process.", min=1)] = 50,
    duration: Annotated[
        float,
        options.option("--duration", "SECONDS", "Least time over the steady runs of each process.", min=0.0),
    ] = 1.0,
    warm_up: Annotated[
        float | None,
        options.option("--warm-up", "SECONDS", "Warm-up before them; a tenth of --duration.", min=0.0),
    ] = None,
    data: Annotated[
        Path | None,
        options.option("--data", "DIR", "Labelled samples: measure the accuracy of packages too."),
    ] = None,
    html: Annotated[Path | None, options.option("--html", "FILE", "Write a page with figures.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record, raw samples included, as JSON on stdout.")
    ] = False,
) -> int:
    """Measure latency, memory, throughput and accuracy in fresh processes, several files in turns.

    A run is one inference, nothing else; the first one and the loading of the file are told apart. Packages are fed
    with their golden vectors unless --inputs or --random is given; a file without a package needs one of the two.

    On targets of microcontrollers and NPUs nothing is timed here: memory, what the NPU's compiler estimates, and the
    budgets of the target are shown instead; a budget that is missed ends with exit code 1.
    """
    from edgeft import benchmarking
    from edgeft import target as profiles
    from edgeft.reporting import bench_page

    fed = options.fed_with(inputs, random)
    settings: dict[str, Any] = {
        "threads": threads,
        "device": device,
        "options": options.options_of(option),
        "host": host,
        "inputs": fed,
        "batch": batch,
        "shapes": options.shapes_of(shape),
    }
    profile = profiles.load(target) if target else None
    clocks = {model: benchmarking.has_clock(model, profile) for model in models}
    if not any(clocks.values()):
        timing = {
            "--threads": threads,
            "--streams": streams > 1,
            "--batch": batch > 1,
            "--device": device,
            "--option": option,
            "--host": host,
            "--inputs": inputs,
            "--random": random,
            "--shape": shape,
            "--html": html,
        }
        if given := [name for name, value in timing.items() if value]:
            raise ConfigError(f"{given[0]}: nothing is timed on this target", "leave the option out")
        return _costs(models, profile, data, as_json)
    if not all(clocks.values()):
        raise ConfigError(
            f"{next(model for model, clock in clocks.items() if not clock)}: its time is not measured, that of other "
            "files is: such figures do not go into one table",
            "bench the two kinds one after the other",
        )
    if html is not None:
        files.require_writable(html)
    rule = benchmarking.StopRule(
        processes=processes, min_runs=runs, min_seconds=duration, warm_up_seconds=warm_up
    )
    output = console.make(to_stderr=as_json)
    with console.StageLog(output) as log:
        log.stage_started("bench", "opening the files")
        subjects = [benchmarking.subject(model, profile=profile, **settings) for model in models]
        done = benchmarking.benchmark_all(
            subjects, rule, streams=streams, data=data, progress=log.stage_progress
        )
    record = benchmarking.record(done)
    try:  # the figures first, for what keeps the page from being written now; the page also if nobody reads them
        if as_json:
            print(json.dumps(record, indent=1, allow_nan=False), flush=True)
        else:
            _print(record, bench_page.table(record))
    finally:
        if html is not None:
            bench_page.write_html(record, html)
            output.print(f"page: {console.shown(html)}", soft_wrap=True)
    return ExitCode.OK


def _costs(models: Sequence[str], profile: TargetProfile | None, data: Path | None, as_json: bool) -> int:
    """Show what files cost on devices that no clock reaches from here."""
    from edgeft import benchmarking

    output = console.make(to_stderr=as_json)
    with console.StageLog(output) as log:
        log.stage_started("bench", "compiling")
        costs = [
            benchmarking.device_cost(model, profile, data=data, progress=log.stage_progress)
            for model in models
        ]
    record = benchmarking.cost_record(costs)
    if as_json:
        print(json.dumps(record, indent=1, allow_nan=False))
    else:
        _print_costs(record)
    return ExitCode.OK if all(cost.fits for cost in costs) else ExitCode.CHECK_FAILED


def _print_costs(record: Mapping[str, Any]) -> None:
    from edgeft.reporting import device_costs

    output = console.make()
    console.print_table(device_costs.table(record), output)
    for line in device_costs.sources(record):
        output.print(line, soft_wrap=True)
    for met, line in device_costs.budgets(record):
        console.print_mark("ok" if met else "fail", line, output)
    if len(record["results"]) == 1:
        for line in device_costs.slowest_layers(record["results"][0], _LAYERS):
            output.print(line, soft_wrap=True)


def _print(record: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> None:
    output = console.make()
    console.print_table([{k: v for k, v in row.items() if k not in _BELOW} for row in rows], output)
    for row in rows:
        output.print(
            f"{row['file']}: {row['runs on']}; {row['precision']}; {row['runs']} runs on {row['fed with']}",
            soft_wrap=True,
        )
    output.print("measured on", console.machine(record["host"]), soft_wrap=True)
    for text in record["warnings"]:
        output.print("warning:", text, soft_wrap=True)
