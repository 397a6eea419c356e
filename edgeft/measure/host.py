"""What this host is: a fingerprint for reports, and the CPU flags that int8 kernels need."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from edgeft import extras
from edgeft.errors import MissingDependencyError
from edgeft.target import TargetProfile

FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def host_fingerprint() -> dict[str, Any]:
    """Return what a latency depends on: CPU, flags, cores, governor, OS, Python and runtime versions.

    Values that this host does not tell are None.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpuinfo_value("model name") or platform.processor() or None,
        "machine": platform.machine(),
        "flags": [flag for flag in FLAGS if flag in cpu_flags()],
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "governor": _read(_GOVERNOR).strip() or None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "runtimes": extras.versions("onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime", "numpy"),
    }


def cpu_flags() -> frozenset[str]:
    """Return the CPU's flags under Linux' names; empty where they cannot be read."""
    listed = _cpuinfo_value("flags") or _cpuinfo_value("Features")  # x86, Arm
    if listed:
        return frozenset(listed.split())
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return frozenset({"asimd", "asimddp"})  # every Apple Arm core has both
    return frozenset()


def check_isa_floor(profile: TargetProfile) -> None:
    """Raise `MissingDependencyError` if this CPU has none of the flags that the profile asks for."""
    if profile.isa_floor and not cpu_flags() & set(profile.isa_floor):
        raise MissingDependencyError(
            f"target {profile.id}: this CPU has none of {', '.join(profile.isa_floor)}; without one its "
            "int8 kernels saturate and lose accuracy",
            "measure on a CPU with one of these flags, or use a target without an isa_floor",
        )


def _cpuinfo_value(key: str) -> str:
    """Return the first value of `key` in /proc/cpuinfo, or an empty string."""
    for line in _read(_CPUINFO).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
