"""What this host is, what is installed on it, which targets it can run, and what stands in the way. No torch.

Nothing is guessed: a runtime counts as installed if a fresh process can import it, and a device as present if the
runtime says so there.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeft import extras, measure, resources, target
from edgeft.errors import EdgeftError
from edgeft.measure import host as hosts
from edgeft.target import TargetProfile

_AT_ONCE: Final = 4
"""Runtimes that are imported at a time."""
_MEMORY: Final = Path("/proc/meminfo")
_LITTLE_MEMORY: Final = 2 * 1024**3

_ENABLES: Final = {
    "": "measuring ONNX files, always installed",
    "train": "training, pruning and quantization",
    "openvino": "targets of OpenVINO",
    "tflite": "targets of LiteRT, reading .tflite files",
    "vision": "model sources timm: and torchvision:",
    "text": "texts, model source hf:",
    "keras": "model source keras:",
    "onnx": "model source onnx:",
    "neural-compressor": 'quantize.engine = "neural-compressor"',
    "npu": "targets of TensorFlow Lite Micro and Ethos-U",
    "qnn": "targets of Qualcomm's HTP, in its simulator (under Qualcomm's licence, so not in edgeft[all])",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Something that is in the way of a target here, and what to do about it."""

    reason: str
    cure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetDiagnosis:
    """Whether this host runs the packages of a target, whether it can make them, and if not, why."""

    profile: TargetProfile
    device: str
    """What the runtime says that the device is; empty if it is not there."""
    runs: bool
    makes: bool
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """An optional package: `version` is empty if it is absent, `extra` that of edgeft which brings it."""

    distribution: str
    version: str
    extra: str
    enables: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything that `diagnose` found; `notes` are traps that this installation is in, and their cures."""

    host: Mapping[str, Any]
    packages: tuple[Installed, ...]
    targets: tuple[TargetDiagnosis, ...]
    notes: tuple[Obstacle, ...]


def diagnose() -> Diagnosis:
    """Look at this host, its packages and every shipped target; takes a few seconds, for importing the runtimes."""
    memory = _memory()
    host = {
        **measure.host_fingerprint(),
        "memory_bytes": memory["MemTotal"],
        "free_bytes": memory["MemAvailable"],
    }
    packages = _packages()
    return Diagnosis(
        host=host,
        packages=packages,
        targets=diagnose_targets([target.load(name) for name in resources.names("targets")]),
        notes=tuple(_notes(host, {each.distribution: each.version for each in packages})),
    )


def diagnose_targets(profiles: Sequence[TargetProfile]) -> tuple[TargetDiagnosis, ...]:
    """Say of each target whether its host runs its packages and this one makes them, and why not."""
    asked = {_key(profile): profile for profile in profiles}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        states = dict(zip(asked, pool.map(_probe, asked.values()), strict=True))
    return tuple(_diagnose(profile, states[_key(profile)]) for profile in profiles)


@dataclass(frozen=True, slots=True)
class _Runtime:
    """What a fresh process said of a runtime: its devices, or why it could not be imported."""

    devices: Mapping[str, str]
    obstacle: Obstacle | None


def _key(profile: TargetProfile) -> tuple[str, str, str]:
    return profile.runtime.name, profile.runtime.requires[0], profile.runtime.host


def _diagnose(profile: TargetProfile, runtime: _Runtime) -> TargetDiagnosis:
    running = [runtime.obstacle] if runtime.obstacle else []
    device = measure.find_device(profile.runtime.device, runtime.devices)
    if not running and device is None:
        running.append(_obstacle(measure.missing_device(profile, runtime.devices), profile))
    try:
        hosts.check_isa_floor(profile)
    except EdgeftError as error:
        running.append(_obstacle(error, profile))
    making = [_missing(name) for name in profile.runtime.requires[1:] if not extras.is_installed(name)]
    return TargetDiagnosis(
        profile=profile,
        device=device or "",
        runs=not running,
        makes=not running and not making,
        obstacles=(*running, *making),
    )


def _probe(profile: TargetProfile) -> _Runtime:
    runtime = profile.runtime
    if not runtime.host and not extras.is_installed(runtime.requires[0]):
        return _Runtime({}, _missing(runtime.requires[0], "running"))
    try:
        return _Runtime(measure.devices(runtime), None)
    except EdgeftError as error:
        return _Runtime({}, _obstacle(error, profile))


def _obstacle(error: EdgeftError, profile: TargetProfile) -> Obstacle:
    return Obstacle(reason=error.message.removeprefix(f"target {profile.id}: "), cure=error.hint)


def _missing(module: str, what: str = "making") -> Obstacle:
    error = extras.missing_error(module, f"{what} packages of this target")
    return Obstacle(reason=error.message, cure=error.hint)


def _packages() -> tuple[Installed, ...]:
    found = []
    for module, (distribution, extra) in extras.PACKAGES.items():
        version = extras.versions(module).get(distribution, "")
        found.append(
            Installed(
                distribution=distribution, version=version, extra=extra, enables=_ENABLES.get(extra, "")
            )
        )
    return tuple(found)


def _notes(host: Mapping[str, Any], versions: Mapping[str, str]) -> list[Obstacle]:
    """Return the known traps that this installation is in."""
    notes = [
        Obstacle(reason=text, cure="")
        for text in (hosts.int8_warning(host["flags"]), *_speed_notes(host))
        if text
    ]
    torch, torchvision = versions.get("torch", ""), versions.get("torchvision", "")
    if torchvision and torch.endswith("+cpu") != torchvision.endswith("+cpu"):
        notes.append(
            Obstacle(
                reason=f"torchvision {torchvision} was built for another torch than {torch}: it fails at import with "
                "'operator torchvision::nms does not exist', except inside edgeft, which declares that operator",
                cure="for programs of your own, install both from the same index",
            )
        )
    old = extras.versions("tflite_runtime")
    if old and int((extras.versions("numpy").get("numpy") or "0").partition(".")[0]) >= 2:
        notes.append(
            Obstacle(
                reason=f"tflite-runtime {old['tflite_runtime']} breaks with NumPy 2",
                cure="pip install ai-edge-litert",
            )
        )
    gpu = extras.versions("onnxruntime-gpu")
    if gpu and versions.get("onnxruntime"):
        notes.append(
            Obstacle(
                reason="onnxruntime and onnxruntime-gpu are both installed, into the same folder: the last one wins",
                cure="pip uninstall both, then install the one that is wanted",
            )
        )
    return notes


def _speed_notes(host: Mapping[str, Any]) -> list[str]:
    state = hosts.host_state()
    found = list(hosts.host_warnings(state, state))
    if host["free_bytes"] is not None and host["free_bytes"] < _LITTLE_MEMORY:
        found.append(f"{host['free_bytes'] / 1024**3:.1f} GiB of memory are free: training may need more")
    return found


def _memory() -> dict[str, int | None]:
    """Return total and available memory in bytes; None where the system does not tell."""
    found: dict[str, int | None] = {"MemTotal": None, "MemAvailable": None}
    try:
        lines = _MEMORY.read_text(encoding="utf-8").splitlines()
    except OSError:
        if platform.system() == "Darwin":
            found["MemTotal"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return found
    for line in lines:
        key, _, value = line.partition(":")
        if key in found:
            found[key] = int(value.split()[0]) * 1024
    return found
