"""Which devices a runtime drives on a host, as it says itself in a fresh process there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgeft import extras
from edgeft.errors import MeasurementError, MissingDependencyError
from edgeft.measure.host import PACKAGES
from edgeft.measure.session import OPEN_SECONDS, build_zipapp
from edgeft.measure.transports import connect
from edgeft.target import Runtime, TargetProfile


def devices(runtime: Runtime) -> dict[str, str]:
    """Return the devices of a runtime on its host: name -> what it is, where it says more than the name.

    Raises:
        MissingDependencyError: The runtime cannot be imported there, or the host cannot be reached.
        MeasurementError: The process died or gave no answer.
    """
    with (
        tempfile.TemporaryDirectory(prefix="edgeft-devices-") as folder,
        connect(runtime.host) as machine,
    ):
        app = machine.keep(build_zipapp(runtime.name, Path(folder) / "worker.pyz"))
        process = machine.start(app, {}, Path(folder))
        try:
            request = json.dumps({"do": "devices", "runtime": runtime.name})
            line = process.ask(request, OPEN_SECONDS, "asking for devices")
            ending = "" if line else process.ending().chatter.strip()
        except TimeoutError:
            raise MeasurementError(
                f"runtime {runtime.name}: no answer about its devices within {OPEN_SECONDS:.0f} s"
            ) from None
        finally:
            process.close()
    if not line:
        last = (ending.splitlines() or ["no message"])[-1]
        raise MeasurementError(f"runtime {runtime.name}: the process that asks for its devices died: {last}")
    reply = json.loads(line)
    if not reply["ok"]:
        package = PACKAGES[runtime.name][-1]
        raise MissingDependencyError(
            f"{package} is installed and cannot be imported: {reply['kind']}: {reply['error']}",
            f"pip install --force-reinstall {package}",
        )
    found: dict[str, str] = reply["devices"]
    return found


def find_device(wanted: str, found: Mapping[str, str]) -> str | None:
    """Return what a device is that a profile asks for, or None if it is not among those found."""
    for name, text in found.items():
        # OpenVINO numbers its devices where there are several, and GPU means the first.
        if wanted.lower() in (name.lower(), name.lower().partition(".")[0]):
            return text or name
    return None


def check_device(profile: TargetProfile) -> str:
    """Return what the device of a profile is, as its runtime says on the profile's host.

    Raises:
        MissingDependencyError: The device is not there. Also as `devices`.
        MeasurementError: As `devices`.
    """
    runtime = profile.runtime
    if runtime.device.lower() == "cpu":
        return "cpu"
    found = devices(runtime)
    device = find_device(runtime.device, found)
    if device is None:
        raise missing_device(profile, found)
    return device


def missing_device(profile: TargetProfile, found: Mapping[str, str]) -> MissingDependencyError:
    """Return the error for a device that is not among those found, with what a host needs to have it."""
    runtime = profile.runtime
    where = f"on {runtime.host}" if runtime.host else "here"
    only = f"only {', '.join(found)}" if found else "none at all"
    said = f"target {profile.id}: {runtime.name} sees no device {runtime.device!r} {where}, {only}"
    return extras.missing_device(runtime.name, runtime.device, said)
