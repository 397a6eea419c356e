"""Vela, Arm's compiler for Ethos-U NPUs, run as the command line that it is.

https://gitlab.arm.com/artificial-intelligence/ethos-u/ethos-u-vela. Its cycle model is an estimate: for the same file
it moves by a factor of several with the system configuration and the memory mode, which is why both stand beside
every figure.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from edgeft import extras
from edgeft.compilers import vela_report
from edgeft.errors import ConfigError, EdgeftError, ExportError, ModelError, nearest
from edgeft.target import Compiler
from edgeft.types import CompilerEstimate

_MODULE: Final = "ethosu"
_SYSTEMS: Final = "Arm/vela.ini"
"""Systems and memory modes that travel with Vela."""
_SECONDS: Final = 900


def compile_with(compiler: Compiler, file: Path, folder: Path) -> CompilerEstimate:
    """Compile `file` into `folder`. Arguments and errors are those of `edgeft.compilers.compile_for`."""
    extras.require(_MODULE, f"compiling {file.name}")
    operators = vela_report.operators(file)
    with tempfile.TemporaryDirectory(prefix="edgeft-vela-") as scratch:
        # Vela names what it writes after its input.
        source, output = Path(scratch) / "model.tflite", Path(scratch) / "output"
        shutil.copyfile(file, source)
        done = _run(
            str(source),
            "--output-dir",
            str(output),
            "--optimise",
            compiler.optimise.capitalize(),
            "--verbose-performance",  # writes the table of layers
            *_settings(compiler),
        )
        if done.returncode:
            raise _failure(done, compiler, file)
        compiled = folder / f"{file.stem}_vela.tflite"
        shutil.copyfile(output / "model_vela.tflite", compiled)
        return vela_report.read(
            output,
            file=file,
            compiled=compiled,
            operators=operators,
            log=done.stdout,
            version=version(),
            settings={
                "accelerator": compiler.accelerator,
                "system_config": compiler.system_config,
                "memory_mode": compiler.memory_mode,
                "optimise": compiler.optimise,
            },
        )


def check_settings(compiler: Compiler) -> None:
    """Raise `ConfigError` for a setting that the installed Vela does not know. As `edgeft.compilers.check_settings`."""
    known = _known_settings()
    for key, allowed in known.items():
        value = getattr(compiler, key)
        if value not in allowed:
            raise ConfigError(
                f"[compiler] {key} = {value!r}: Vela {version()} does not know it{nearest(value, allowed)}",
                f"allowed are {', '.join(allowed)}",
            )


@functools.cache
def version() -> str:
    """Return the version of the installed Vela. Raises `MissingDependencyError`."""
    extras.require(_MODULE, "compiling for Ethos-U")
    return _run("--version").stdout.strip()


@functools.cache
def _known_settings() -> dict[str, tuple[str, ...]]:
    """Return the accelerators, systems and memory modes of the installed Vela."""
    extras.require(_MODULE, "compiling for Ethos-U")
    listed = _run("--list-configs", _SYSTEMS).stdout
    accelerators = re.search(r"--accelerator-config \{([^}]+)\}", _run("--help").stdout)
    return {
        "accelerator": tuple(re.sub(r"\s", "", accelerators[1]).split(",")) if accelerators else (),
        "system_config": tuple(re.findall(r"System_Config\.(\S+)", listed)),
        "memory_mode": tuple(re.findall(r"Memory_Mode\.(\S+)", listed)),
    }


def _settings(compiler: Compiler) -> list[str]:
    return [
        *("--accelerator-config", compiler.accelerator),
        *("--config", _SYSTEMS),
        *("--system-config", compiler.system_config),
        *("--memory-mode", compiler.memory_mode),
    ]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ethosu.vela", *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"Vela did not end within {_SECONDS} s: {' '.join(arguments)}") from error


def _failure(done: subprocess.CompletedProcess[str], compiler: Compiler, file: Path) -> EdgeftError:
    """Return the error for a Vela that ended with anything but success."""
    check_settings(compiler)  # says more than a traceback does
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    said = next((line for line in lines if "Failed to load" in line), "")
    if said or "No networks defined" in done.stderr:  # of a damaged file it says so, and dies of SIGSEGV
        return ModelError(
            f"{file}: Vela {version()} cannot read it{': ' + said if said else ''}",
            "it may be damaged or truncated: copy or export it again",
        )
    end = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return ExportError(
        f"{file}: Vela {version()} failed with {end}: {lines[-1] if lines else 'no message'}",
        "try another version of ethos-u-vela, or report the file to its makers",
    )
