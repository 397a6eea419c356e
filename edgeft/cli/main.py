"""The entry point: dispatch, and the one place where failures become messages and exit codes."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Final

import typer

import edgeft
from edgeft import extras
from edgeft.cli import (
    bench,
    check,
    clean,
    compare,
    doctor,
    gate,
    inspect,
    pack,
    predict,
    report,
    run,
    stages,
    targets,
    verify,
)
from edgeft.errors import EdgeftError, ExitCode

_EPILOG: Final = (
    "Exit codes: 0 done or passed, 1 a check failed or a worker died, 2 usage, configuration or input, "
    "3 internal error, 4 inconclusive, 5 hardware or optional package missing, "
    "130 interrupted (a run keeps everything finished)."
)
# What is true of an interrupted verb. Those that are not here have nothing to keep, or write it all at their end.
_KEPT: Final = dict.fromkeys(
    ("run", *stages.VERBS), "; everything finished is kept: run the same command again to continue"
) | dict.fromkeys(("bench", "compare"), "; nothing is kept: a record is written when all of it is measured")
# What an operating system says when the user's disk or rights, not this program, are at fault.
_ENVIRONMENT_ERRORS: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}

app = typer.Typer(
    name="edgeft",
    help="From a pretrained model and a small data set to a verified, device-ready package.",
    epilog=_EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _edgeft(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (also: EDGEFT_DEBUG=1).")
    ] = False,
) -> None:
    if version:
        print(f"edgeft {edgeft.__version__}")
        raise typer.Exit
    if debug:
        os.environ["EDGEFT_DEBUG"] = "1"
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(ExitCode.USAGE)


app.command()(run.run)
for _name, _verb in stages.VERBS.items():
    app.command(name=_name)(_verb)
app.command()(bench.bench)
app.command()(compare.compare)
app.command()(gate.gate)
app.command()(check.check)
app.command()(verify.verify)
app.command()(predict.predict)
app.command()(pack.pack)
app.command()(inspect.inspect)
app.command()(targets.targets)
app.command()(doctor.doctor)
app.command()(report.report)
app.command()(clean.clean)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (`edgeft.errors.ExitCode`).

    Args:
        arguments: Without the program's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    interrupt = _Interrupt()
    _never_fail_on_encoding()
    # Deprecations inside libraries are for their maintainers; a user of this command can do nothing about them.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    as_json, unread = "--json" in arguments, False
    try:
        result = app(arguments, prog_name="edgeft", standalone_mode=False)
        code = result if isinstance(result, int) else ExitCode.OK
    except (KeyboardInterrupt, SystemExit) as error:
        # typer makes a SystemExit of a broken pipe, Lightning of an interrupt: both end the work half-way.
        if isinstance(error, SystemExit) and not (interrupt.received or _is_broken_pipe(error)):
            raise
        code, unread = ExitCode.INTERRUPTED, _is_broken_pipe(error)
    except Exception as error:  # noqa: BLE001 - the one place: whatever was not foreseen is an internal error
        # An interrupt inside an extension module's import comes out as ImportError("initialization failed").
        code = ExitCode.INTERRUPTED if interrupt.received else _report(error, as_json=as_json)
    try:
        if code == ExitCode.INTERRUPTED and not unread:
            verb = next((word for word in arguments if not word.startswith("-")), "")
            _print_error("Interrupted", f"interrupted{_KEPT.get(verb, '')}", "", code, as_json=as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return int(code)


class _Interrupt:
    """Makes SIGTERM what Ctrl-C is, and remembers both: a library may turn them into an exit of its own."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                signal.signal(number, self._receive)
            except ValueError:
                return  # not the main thread: whoever owns that one handles signals

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        raise KeyboardInterrupt


def _is_broken_pipe(error: BaseException) -> bool:
    return isinstance(error.__context__, BrokenPipeError)


def _is_short_write(error: OSError) -> bool:
    """Say whether numpy wrote less than it wanted, which it tells without an error number."""
    return error.errno is None and " requested and " in str(error)


def _report(error: Exception, *, as_json: bool) -> int:
    """Print an error for people or as JSON; return its exit code."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("edgeft"):
        error = extras.missing_error(error.name.partition(".")[0], "this command")
    kind, hint = type(error).__name__, ""
    if isinstance(error, EdgeftError):
        text, hint, code = error.message, error.hint, error.exit_code
    elif hasattr(error, "format_message"):  # a usage error; typer's own class, click's under an older typer
        text, hint, code = error.format_message(), "edgeft --help, edgeft COMMAND --help", ExitCode.USAGE
    elif isinstance(error, OSError) and (error.errno in _ENVIRONMENT_ERRORS or _is_short_write(error)):
        text, code = f"{error.filename or 'output'}: {error.strerror or error}", ExitCode.USAGE
        hint = "free some space, or choose a folder that you may read and write"
    else:
        text, code = f"internal error: {kind}: {error}", ExitCode.INTERNAL
        hint = "this is a fault of edgeft: run it again with EDGEFT_DEBUG=1 and report what it prints"
    if os.environ.get("EDGEFT_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    _print_error(kind, text, hint, code, as_json=as_json)
    return code


def _print_error(kind: str, text: str, hint: str, code: int, *, as_json: bool) -> None:
    if as_json:
        record = {"type": kind, "message": text, "hint": hint, "exit_code": int(code)}
        print(json.dumps({"error": record}, indent=2))
        return
    label = "" if kind == "Interrupted" else "error: "
    print(f"{label}{text}" + (f"\n  -> {hint}" if hint else ""), file=sys.stderr)


def _never_fail_on_encoding() -> None:
    """Let a terminal without Unicode show '?' instead of ending a finished run with an encoding error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
