"""Compilers of devices: a model file in; out comes what the device runs, and what the compiler thinks it costs there.

Needs no torch: files that edgeft did not make are compiled just so.
"""

from __future__ import annotations

from pathlib import Path

from edgeft.compilers import vela
from edgeft.errors import ConfigError, ExportError
from edgeft.target import Compiler, TargetProfile
from edgeft.types import CompilerEstimate

__all__ = ["check_settings", "compile_for", "compile_with", "require_device_ops"]

_NAMED = 12


def compile_for(profile: TargetProfile, file: Path, folder: Path) -> CompilerEstimate:
    """Compile a file for a target and require that its device runs it.

    Args:
        profile: A target with a compiler.
        file: A .tflite file with integer ops.
        folder: Existing folder for the compiled file, ``<stem>_vela.tflite``.

    Raises:
        ExportError: The compiler failed, or leaves more operators to the CPU than the target allows.
        ModelError: The file is no model that the compiler takes.
        ConfigError: The target has no compiler, or settings that its compiler does not know.
        MissingDependencyError: The compiler is not installed.
    """
    if profile.compiler is None:
        raise ConfigError(
            f"target {profile.id}: its profile has no section [compiler]",
            "name a target of an NPU, e.g. npu-ethos-u55-128",
        )
    estimate = compile_with(profile.compiler, file, folder)
    require_device_ops(estimate, profile, file=file)
    return estimate


def compile_with(compiler: Compiler, file: Path, folder: Path) -> CompilerEstimate:
    """Compile a file; operators that are left to the CPU are named in the result, at least one is not.

    Arguments and errors are those of `compile_for`.
    """
    return vela.compile_with(compiler, file, folder)


def check_settings(compiler: Compiler) -> None:
    """Raise `ConfigError` for settings that the compiler does not know; `MissingDependencyError` if it is absent."""
    vela.check_settings(compiler)


def require_device_ops(estimate: CompilerEstimate, profile: TargetProfile, *, file: Path) -> None:
    """Raise `ExportError`, which names them, if more operators are left to the CPU than a target allows.

    What they take there is in none of the compiler's figures.
    """
    left, allowed = estimate.fallback_ops, profile.ops.max_fallback_ops
    if len(left) <= allowed:
        return
    named = "".join(f"\n    {op}" for op in left[:_NAMED])
    more = f"\n    and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    count = f"{len(left)} operator{'' if len(left) == 1 else 's'}"
    raise ExportError(
        f"{file.name}: {estimate.source} leaves {count} to the CPU, target {profile.id} allows {allowed}; what "
        f"they take there is in no estimate:{named}{more}",
        "replace them in the network, choose a target whose NPU has them, or allow them in the profile "
        f"([ops] max_fallback_ops = {len(left)})",
    )
