"""`edgeft compare`: is head slower than base? Exit code 0 no, 1 yes or an error, 4 if time was too short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

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
    from edgeft.benchmarking import Comparison
    from edgeft.types import Estimate

_EXIT_CODES: Final = {
    "pass": ExitCode.OK,
    "fail": ExitCode.CHECK_FAILED,
    "inconclusive": ExitCode.INCONCLUSIVE,
}


def _model(metavar: str, text: str) -> Any:
    return typer.Argument(metavar=metavar, help=f"A package, or an .onnx, .xml or .tflite file: {text}")


def compare(
    base: Annotated[str, _model("BASE", "what is released.")],
    head: Annotated[str, _model("HEAD", "what is to be released.")],
    limit: Annotated[
        float, options.option("--limit", "RATIO", "Largest acceptable ratio of head's p50 latency to base's.")
    ] = 1.05,
    time_limit: Annotated[
        float, options.option("--time-limit", "SECONDS", "When to give up on an answer that is not clear.")
    ] = 60.0,
    inputs: InputsOption = None,
    random: RandomOption = False,
    shape: ShapeOption = None,
    threads: ThreadsOption = None,
    device: RuntimeDeviceOption = None,
    option: SettingOption = None,
    host: HostOption = "",
    output: Annotated[
        Path | None,
        options.option("--output", "FILE", "Write the record, which `edgeft gate --compare` reads."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record, raw samples included, as JSON on stdout.")
    ] = False,
) -> int:
    """Compare the latency of two models side by side, until it is clear whether HEAD is slower than allowed.

    Fresh processes of both take turns; intervals are over pairs of processes and hold although they are looked at
    several times. Measuring stops as soon as the interval lies on one side of --limit.
    """
    from edgeft import benchmarking

    fed = options.fed_with(inputs, random)
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}", "create it first")
    if output is not None:
        files.require_writable(output)
    with console.StageLog(console.make(to_stderr=as_json)) as log:
        log.stage_started("compare", "opening the files")
        found = benchmarking.compare(
            base,
            head,
            limit=limit,
            time_limit_seconds=time_limit,
            threads=threads,
            device=device,
            options=options.options_of(option),
            host=host,
            inputs=fed,
            shapes=options.shapes_of(shape),
            progress=log.stage_progress,
        )
    record = json.dumps(found.record(), allow_nan=False)
    try:  # the figures first, for what keeps the file from being written now; the file also if nobody reads them
        if as_json:
            print(record, flush=True)
        else:
            _print(found)
    finally:
        if output is not None:
            files.write_text(output, record + "\n")
            console.make(to_stderr=as_json).print(f"record: {console.shown(output)}", soft_wrap=True)
    return _EXIT_CODES[found.outcome]


def _print(found: Comparison) -> None:
    screen, decision = console.make(), found.decision
    rows = [
        {"": side, "p50": f"{timed.p50_ms:.4g} ms", "p95": f"{timed.p95_ms:.4g} ms"}
        for side, timed in (("base", found.base), ("head", found.head))
    ]
    rows += [
        {"": "head / base", "p50": _interval(decision.p50), "p95": _interval(decision.p95)},
        {"": "base / itself (noise)", "p50": _interval(decision.noise), "p95": ""},
    ]
    for side, timed in (("base", found.base), ("head", found.head)):
        screen.print(f"{side}: {timed.subject.name}, fed with {timed.subject.inputs_origin}", soft_wrap=True)
    screen.print("measured on", console.machine(found.host), soft_wrap=True)
    console.print_table(rows, screen)
    check = {"outcome": found.outcome, "target": "", "name": "latency", "detail": found.stopped}
    console.print_verdict(
        {"outcome": found.outcome, "reference": "", "checks": [check], "notes": found.warnings}, screen
    )


def _interval(ratio: Estimate) -> str:
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
