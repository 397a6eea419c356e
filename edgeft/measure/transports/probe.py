"""What a machine is and how busy it is, read where it is. Standard library only: a board runs this very file.

As a program it writes one line of JSON: `machine()` and `state()` under their names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm",
)  # fmt: skip
MODULES = (
    *("numpy", "onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime"),
    *("tflite_micro", "onnxruntime_qnn", "torch"),
)
_DISTRIBUTIONS = ("onnxruntime", "openvino", "ai-edge-litert", "tflite_runtime", "numpy")
_SPIN_SECONDS = 0.05
"""Long enough for a governor to leave the idle clock."""
_THERMAL_CAPS = 0b1110
"""Of a Raspberry Pi's `get_throttled`: clock capped, throttled, soft temperature limit; bit 0 is its supply."""


def machine(root: Path = Path("/")) -> dict[str, Any]:
    """Return what a latency depends on: CPU, flags, cores, governor, OS, Python and runtime versions.

    `cpu_flags` are all, `flags` those of `FLAGS`; `modules` are the importable ones of `MODULES`. Values that
    this machine does not tell are None.

    Args:
        root: Where /proc and /sys are.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    flags = cpu_flags(root)
    return {
        "cpu": _cpu_name(root),
        "machine": platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cpu_flags": sorted(flags),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "governor": _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "runtimes": _versions(),
        "modules": [name for name in MODULES if _is_importable(name)],
    }


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Return the CPU's flags under Linux' names; empty where they cannot be read."""
    listed = _cpuinfo(root, "flags") or _cpuinfo(root, "Features")  # x86, Arm
    if listed:
        return frozenset(listed.split())
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return frozenset({"asimd", "asimddp"})  # every Apple Arm core has both
    return frozenset()


def state(root: Path = Path("/"), *, spin_seconds: float = _SPIN_SECONDS) -> dict[str, Any]:
    """Return what changes from one moment to the next; counters only mean something as a difference of two.

    `clock_khz` and `clock_limit_khz` are the highest among the cores, read after spinning for a moment, because
    an idle core runs slowly on purpose. Values that this machine does not tell are None.

    Args:
        root: Where /proc and /sys are.
        spin_seconds: How long to keep a core busy before its clock is read.
    """
    ticks = _ticks(root)
    end = time.perf_counter() + spin_seconds
    while time.perf_counter() < end:
        pass
    cpus = root / "sys/devices/system/cpu"
    return {
        "cores": _cores(root),
        "load": _load(root),
        "total_ticks": sum(ticks) if ticks else None,
        "idle_ticks": ticks[3] + ticks[4] if len(ticks) > 4 else None,
        "steal_ticks": ticks[7] if len(ticks) > 7 else None,
        "governor": _read(cpus / "cpu0/cpufreq/scaling_governor") or None,
        "driver": _read(cpus / "cpu0/cpufreq/scaling_driver") or None,
        "clock_khz": _highest(cpus, "cpufreq/scaling_cur_freq"),
        "clock_limit_khz": _highest(cpus, "cpufreq/scaling_max_freq"),
        "clock_maximum_khz": _highest(cpus, "cpufreq/cpuinfo_max_freq"),
        "throttled": _throttled(root),
        "capped_by_heat": _is_capped_by_heat(root),
    }


def _cpu_name(root: Path) -> str | None:
    """Return the CPU's name; Arm boards seldom have one in /proc/cpuinfo, but in the device tree."""
    board = _read(root / "proc/device-tree/model").strip("\0")
    return _cpuinfo(root, "model name") or board or platform.processor() or None


def _versions() -> dict[str, str]:
    found = {}
    for distribution in _DISTRIBUTIONS:
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _cpuinfo(root: Path, key: str) -> str:
    """Return the first value of `key` in /proc/cpuinfo, or an empty string."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _ticks(root: Path) -> list[int]:
    """Return user, nice, system, idle, iowait, irq, softirq, steal of all cores (proc(5)); guests are in user."""
    first = _read(root / "proc/stat").partition("\n")[0].split()
    return [int(value) for value in first[1:9]] if first[:1] == ["cpu"] else []


def _cores(root: Path) -> int | None:
    """Return how many cores /proc/stat counts over."""
    lines = _read(root / "proc/stat").splitlines()
    return sum(line.startswith("cpu") and line[3:4].isdigit() for line in lines) or None


def _load(root: Path) -> float | None:
    text = _read(root / "proc/loadavg").split()
    return float(text[0]) if text else None


def _highest(cpus: Path, name: str) -> int | None:
    """Return the largest value of a file that every core has."""
    values = [_read(path) for path in cpus.glob(f"cpu[0-9]*/{name}")]
    return max((int(value) for value in values if value.isdigit()), default=None)


def _throttled(root: Path) -> int | None:
    """Return how often x86 cores were slowed down by heat since the start, all cores together."""
    counters = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    values = [int(value) for value in map(_read, counters) if value.isdigit()]
    return sum(values) if values else None


def _is_capped_by_heat(root: Path) -> bool | None:
    """Return whether heat (or a weak supply) limits the CPU's clock at this moment."""
    firmware = _read(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    known, capped = bool(firmware), bool(firmware) and bool(int(firmware, 16) & (_THERMAL_CAPS | 1))
    for device in (root / "sys/class/thermal").glob("cooling_device*"):
        kind, level = _read(device / "type").lower(), _read(device / "cur_state")
        if ("cpufreq" in kind or "processor" in kind) and level.isdigit():
            known, capped = True, capped or int(level) > 0
    return capped if known else None


def _read(path: Path) -> str:
    """Return a file's text without the white space around it, or an empty string."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"machine": machine(), "state": state()}) + "\n")
