"""What a host is and how busy it is: a fingerprint for reports, CPU flags that int8 kernels need, warnings."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeft.errors import MeasurementError, MissingDependencyError
from edgeft.measure.transports import address, connect, probe
from edgeft.target import TargetProfile

FLAGS = probe.FLAGS
INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Any of these multiplies and adds four int8 products at once, without saturating on the way."""
_ARM_FLAGS = ("asimd", "asimddp", "i8mm")
PACKAGES = {
    "onnxruntime": ("numpy", "onnxruntime"),
    "openvino": ("numpy", "openvino"),
    "litert": ("numpy", "ai-edge-litert"),
    "tflm": ("numpy", "tflite_micro"),
    "qnn": ("numpy", "onnxruntime", "onnxruntime-qnn"),
    "torch-cuda": ("numpy", "torch"),
}
"""What a runtime's worker needs on a board, as pip knows it."""
_RUNTIME_MODULES = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "litert": ("ai_edge_litert", "tflite_runtime"),
    "tflm": ("tflite_micro",),
    "qnn": ("onnxruntime_qnn",),
    "torch-cuda": ("torch",),
}
"""Importable names; any one of them will do."""
_PROBE_SECONDS = 60.0
_BUSY_SHARE = 0.25
"""Of all cores: what other processes may take before it is said."""
_STEAL_SHARE = 0.01
_CLOCK_SHARE = 0.9
# Their `powersave` is the ordinary governor, which follows the load.
_SELF_GOVERNING = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")


def host_fingerprint(host: str = "") -> dict[str, Any]:
    """Return what a latency depends on: CPU, flags, cores, governor, OS, Python and runtime versions.

    Values that the host does not tell are None. A board's has its `host` first.

    Args:
        host: As in `[runtime] host`; empty for this machine.

    Raises:
        ConfigError: `host` is no address.
        MissingDependencyError: The host cannot be reached.
        MeasurementError: The connection was lost.
    """
    found = _probe(host)["machine"] if host else probe.machine()
    kept = {key: value for key, value in found.items() if key not in ("cpu_flags", "modules")}
    return {"host": host, **kept} if host else kept


def host_state(host: str = "") -> dict[str, Any]:
    """Return how busy, hot and fast a host is at this moment, for `host_warnings`; takes 50 ms of one core.

    Raises:
        ConfigError, MissingDependencyError, MeasurementError: As `host_fingerprint`.
    """
    found: dict[str, Any] = _probe(host)["state"] if host else probe.state()
    return found


def host_warnings(
    before: Mapping[str, Any], after: Mapping[str, Any], *, threads: int = 1
) -> tuple[str, ...]:
    """Return what disturbed a timing, for people; nothing where the host does not tell.

    Args:
        before: `host_state` before the timing.
        after: The same after it.
        threads: Threads that the timing itself kept busy.
    """
    found = [_load_warning(before), *_share_warnings(before, after, threads), *_clock_warnings(before, after)]
    return tuple(text for text in found if text)


def int8_warning(flags: Iterable[str]) -> str:
    """Return a warning if a CPU with these flags has no fast int8 arithmetic; empty if it has, or none is known.

    Args:
        flags: Under Linux' names, as in a fingerprint.
    """
    known = set(flags)
    if not known or known & set(INT8_FLAGS):
        return ""
    return (
        f"this CPU has none of {', '.join(INT8_FLAGS)}: int8 files run little faster than float or slower, and "
        "x86 kernels without these saturate (use a target whose id ends in -avx2)"
    )


def cpu_flags(host: str = "") -> frozenset[str]:
    """Return a CPU's flags under Linux' names; empty where they cannot be read. Raises as `host_fingerprint`."""
    return frozenset(_probe(host)["machine"]["cpu_flags"]) if host else probe.cpu_flags()


def check_isa_floor(profile: TargetProfile) -> None:
    """Raise `MissingDependencyError` if the CPU of the profile's host has none of the flags that it asks for.

    Raises as `host_fingerprint`, too.
    """
    host = profile.runtime.host
    if profile.isa_floor and not cpu_flags(host) & set(profile.isa_floor):
        whose = f"the CPU of {host}" if host else "this CPU"
        why, cure = (
            "without one its int8 kernels saturate and lose accuracy",
            "measure on a CPU with one of these flags, or take the target for older ones (cpu-onnxruntime-avx2, "
            "cpu-openvino-avx2)",
        )
        if set(profile.isa_floor) <= set(_ARM_FLAGS):
            why = "its files are laid out for the kernels of Arm CPUs"
            cure = f'edgeft targets new --from {profile.id} my-board.toml, and there [runtime] host = "user@board"'
        raise MissingDependencyError(
            f"target {profile.id}: {whose} has none of {', '.join(profile.isa_floor)}; {why}", cure
        )


def check_host(profile: TargetProfile) -> None:
    """Check that the profile's host, if it names one, can be reached and has numpy and the runtime.

    Raises:
        ConfigError, MissingDependencyError, MeasurementError: As `host_fingerprint`; also if a package is missing.
    """
    runtime = profile.runtime
    if not runtime.host:
        return
    modules = set(_probe(runtime.host)["machine"]["modules"])
    if "numpy" not in modules or not modules & set(_RUNTIME_MODULES[runtime.name]):
        missing = runtime.name if "numpy" in modules else "numpy"
        raise MissingDependencyError(
            f"target {profile.id}: the Python of host {runtime.host} has no {missing}",
            address.parse(runtime.host).pip_line(PACKAGES[runtime.name]),
        )


def _probe(host: str) -> dict[str, Any]:
    """Return what `transports.probe` says on a board."""
    with connect(host) as machine, tempfile.TemporaryDirectory(prefix="edgeft-probe-") as folder:
        process = machine.start(machine.keep(Path(probe.__file__)), {}, Path(folder))
        try:
            line = process.ask("", _PROBE_SECONDS, "reading what it is")
        except TimeoutError:
            raise MeasurementError(
                f"host {host}: said nothing about itself within {_PROBE_SECONDS:.0f} s"
            ) from None
        finally:
            process.close()
        if not line:
            raise MeasurementError(
                f"host {host}: cannot be examined: {process.ending().chatter.strip()[-500:]}"
            )
        found: dict[str, Any] = json.loads(line)
        return found


def _load_warning(before: Mapping[str, Any]) -> str:
    load, cores = before["load"], before["cores"]
    if load is None or cores is None or load <= max(0.5, _BUSY_SHARE * cores):
        return ""
    return f"load {load:.1f} on {cores} cores: other processes are at work"


def _share_warnings(before: Mapping[str, Any], after: Mapping[str, Any], threads: int) -> list[str]:
    """Return warnings about processor time that went elsewhere between two states."""
    total, idle, steal = (_difference(before, after, f"{name}_ticks") for name in ("total", "idle", "steal"))
    if not total:
        return []
    found = []
    if steal is not None and steal / total > _STEAL_SHARE:
        found.append(f"{steal / total:.0%} of the time was stolen: the host of this virtual machine is busy")
    if idle is not None and before["cores"]:
        others = before["cores"] * (1.0 - (idle + (steal or 0)) / total) - threads
        if others > _BUSY_SHARE * before["cores"]:
            found.append(
                f"other processes kept {others:.1f} of {before['cores']} cores busy during the timing"
            )
    return found


def _clock_warnings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return warnings about a clock that was not at its best or not the same all the time."""
    found = []
    if after["governor"] == "powersave" and after["driver"] not in _SELF_GOVERNING:
        found.append("the governor powersave holds the clock at its lowest: choose performance for timings")
    throttled = _difference(before, after, "throttled")
    if throttled:
        found.append(f"the CPU was throttled {throttled} times by its temperature during the timing")
    if before["capped_by_heat"] or after["capped_by_heat"]:
        found.append(
            "the clock is limited by temperature or supply: cool the board, and see its power supply"
        )
    for key, what in (("clock_khz", "clock"), ("clock_limit_khz", "highest allowed clock")):
        old, new = before[key], after[key]
        if old and new and new < _CLOCK_SHARE * old:
            found.append(f"the {what} fell from {old / 1000:.0f} to {new / 1000:.0f} MHz during the timing")
    return found


def _difference(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> int | None:
    if before[key] is None or after[key] is None:
        return None
    change: int = after[key] - before[key]
    return change
