"""Fresh worker processes: build the zipapp, start it, talk to it, and never leave one behind."""

from __future__ import annotations

import json
import re
import signal
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgeft import runtimes
from edgeft.errors import MeasurementError, MissingDependencyError, RefusedError
from edgeft.extras import missing_device, missing_error
from edgeft.measure import host as hosts
from edgeft.measure.transports import Machine, Process, address, connect
from edgeft.target import TargetProfile
from edgeft.types import ExportedArtifact, FloatArray, InputArray, RuntimeReport

_MODULES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "litert": "ai_edge_litert",
    "tflm": "tflite_micro",
    "qnn": "onnxruntime_qnn",
    "torch-cuda": "torch",
}
_BUILT_ON = {"qnn": ("onnxruntime",)}
"""Adapters that another one needs beside it."""
_PIECE_BYTES = 64 << 20
"""Inputs of one request at most: a board's folder for temporary files is often a piece of its memory."""
OPEN_SECONDS = 120.0
RUN_SECONDS = 900.0


def build_zipapp(runtime: str, path: Path) -> Path:
    """Write the worker and the adapter of one runtime as a zipapp with the same bytes every time.

    Args:
        runtime: Name of a runtime in profiles, as is its module of `edgeft.runtimes`.
        path: Where to write; by custom ``*.pyz``.

    Returns:
        `path`.
    """
    adapters = Path(runtimes.__file__).parent
    members = {"__main__.py": Path(__file__).with_name("worker.py")}
    members |= {
        f"runtimes/{name}.py": adapters / f"{name}.py"
        for name in ("__init__", "base", *_BUILT_ON.get(runtime, ()), runtime.replace("-", "_"))
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, source in members.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), source.read_bytes())
    return path


class Session:
    """One fresh worker process with one artifact in it; a context manager that ends the process.

    The process runs on the profile's `runtime.host`.

    Args:
        artifact: The file to open.
        profile: Runtime, device, threads and options.
        options: Further runtime options, over the profile's.
        timeout_seconds: How long one request may take once the file is open, besides the seconds that it asks for.
        streams: Inferences at a time that `throughput` runs, each with the profile's threads.
        open_file: Whether to open the file at once; else all that can be asked is `signature`.

    Raises:
        MissingDependencyError: The runtime is not installed, or the host cannot be reached.
        MeasurementError: The worker died, timed out, its runtime refused the file or an option, or the connection to
            the host was lost.
    """

    def __init__(
        self,
        artifact: ExportedArtifact,
        profile: TargetProfile,
        *,
        options: Mapping[str, str] | None = None,
        timeout_seconds: float = RUN_SECONDS,
        streams: int = 1,
        open_file: bool = True,
    ) -> None:
        self._artifact, self._profile, self._timeout = artifact, profile, timeout_seconds
        self._streams, self._open_file = streams, open_file
        self._options = {**profile.runtime.options, **(options or {})}
        self._stack = ExitStack()
        self._folder: Path | None = None
        self._machine: Machine | None = None
        self._process: Process | None = None
        self.load_ms = 0.0
        """Time to load and compile the file, without the import of the runtime."""

    def __enter__(self) -> Self:
        try:
            self._start()
            if self._open_file:
                opened = self._request("open", timeout=OPEN_SECONDS, **self._settings())
                self.load_ms = float(opened["load_ms"])
        except BaseException:  # an interrupt too must not leave a worker behind
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker, whatever it is doing, and remove its files."""
        self._process = self._machine = self._folder = None
        self._stack.close()

    def predict(self, inputs: InputArray) -> FloatArray:
        """Return real-valued outputs (N, K) of model inputs, run one at a time."""
        process, source = self._running(), self._path("inputs.npy")
        rows = max(1, _PIECE_BYTES // max(1, inputs[:1].nbytes))
        pieces: list[FloatArray] = []
        for start in range(0, len(inputs), rows):
            np.save(source, inputs[start : start + rows])
            there, sink = process.give(source), process.place("outputs.npy")
            self._request("predict", timeout=self._timeout, inputs=there, outputs=sink)
            pieces.append(np.load(process.take(sink)))
        return np.concatenate(pieces)

    def time(
        self, inputs: Path, *, min_runs: int, min_seconds: float, warm_up_seconds: float | None = None
    ) -> dict[str, Any]:
        """Return `first_ms`, `samples_ms` and `peak_rss_bytes` on the inputs in a .npy or .npz file, in turn.

        The warm-up is a tenth of `min_seconds` unless it is given.
        """
        return self._timed("time", inputs, min_runs, min_seconds, warm_up_seconds)

    def throughput(
        self, inputs: Path, *, min_runs: int, min_seconds: float, warm_up_seconds: float | None = None
    ) -> dict[str, Any]:
        """Return `runs`, `seconds`, `samples_ms` (a list per stream) and `peak_rss_bytes`, all streams at once."""
        return self._timed("throughput", inputs, min_runs, min_seconds, warm_up_seconds)

    def _timed(
        self, do: str, inputs: Path, min_runs: int, min_seconds: float, warm_up_seconds: float | None
    ) -> dict[str, Any]:
        wanted = {"min_runs": min_runs, "min_seconds": min_seconds, "warm_up_seconds": warm_up_seconds}
        # However long is asked for; the rest of the time is for the least number of runs.
        asked = min_seconds + (min_seconds if warm_up_seconds is None else warm_up_seconds)
        return self._request(do, timeout=self._timeout + asked, inputs=self._keep(inputs), **wanted)

    def signature(self) -> dict[str, list[dict[str, Any]]]:
        """Return the file's own `inputs` and `outputs` as `edgeft.runtimes.base.tensor` describes them."""
        runtime, path = self._profile.runtime.name, self._model()
        reply = self._request("signature", timeout=OPEN_SECONDS, runtime=runtime, path=path)
        return {kind: reply[kind] for kind in ("inputs", "outputs")}

    def describe(self) -> RuntimeReport:
        """Return what the runtime says of itself and the compiled file; on a board its fingerprint, too."""
        report = RuntimeReport(**self._request("describe", timeout=self._timeout)["report"])
        host = self._profile.runtime.host
        if not host:
            return report
        return replace(report, details={**report.details, "host": hosts.host_fingerprint(host)})

    def _settings(self) -> dict[str, Any]:
        runtime = self._profile.runtime
        return {
            "runtime": runtime.name,
            "path": self._model(),
            "device": runtime.device,
            "threads": runtime.threads,
            "options": self._options,
            "streams": self._streams,
            "inputs": [asdict(spec) for spec in self._artifact.inputs],
            "outputs": [asdict(spec) for spec in self._artifact.outputs],
        }

    def _model(self) -> str:
        """Return the path of the model file where the worker runs."""
        path = self._artifact.path
        return self._keep(path, *(file for file in self._artifact.files if file != path))

    def _keep(self, *paths: Path) -> str:
        if self._machine is None:
            raise _closed()
        return self._machine.keep(*paths)

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise _closed()
        return self._folder / name

    def _running(self) -> Process:
        if self._process is None:
            raise _closed()
        return self._process

    def _start(self) -> None:
        runtime = self._profile.runtime
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeft-worker-")))
        self._machine = self._stack.enter_context(connect(runtime.host))
        app = self._machine.keep(build_zipapp(runtime.name, self._folder / "worker.pyz"))
        # numpy's own thread pool plays no part in a measurement and costs start-up time.
        environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(runtime.threads)}
        self._process = self._machine.start(app, environment, self._folder)
        self._stack.callback(self._process.close)

    def _request(self, do: str, *, timeout: float, **arguments: Any) -> dict[str, Any]:
        process = self._running()
        request = json.dumps({"do": do, **arguments})
        try:
            line = process.ask(request, timeout, f"waiting for {do!r} of {self._where()}")
        except TimeoutError:
            raise MeasurementError(
                f"{self._where()}: no reply to {do!r} within {timeout:.0f} s",
                "see whether the machine is overloaded; of a slow model ask for fewer runs",
            ) from None
        if not line:
            raise self._death(do, process)
        reply: dict[str, Any] = json.loads(line)
        if not reply["ok"]:
            raise self._refusal(do, reply)
        return reply

    def _where(self) -> str:
        there = f" on {self._profile.runtime.host}" if self._profile.runtime.host else ""
        return f"target {self._profile.id}{there}, {self._artifact.path.name}"

    def _death(self, do: str, process: Process) -> MeasurementError | MissingDependencyError:
        """Return the error for a worker that ended without a reply, with the end of what it wrote."""
        ending = process.ending()
        if missing := re.search(r"No module named '(\w+)'", ending.chatter):
            return self._missing(missing[0])
        code, tail = ending.code, ending.chatter.strip().splitlines()[-5:]
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return MeasurementError(
            f"{self._where()}: the worker {end} during {do!r}" + "".join(f"\n    {line}" for line in tail),
            "SIGKILL is usually a lack of memory; SIGILL or SIGSEGV a fault of the runtime on this CPU",
        )

    def _refusal(self, do: str, reply: Mapping[str, Any]) -> MeasurementError | MissingDependencyError:
        if reply["kind"] in ("ImportError", "ModuleNotFoundError"):
            return self._missing(reply["error"])
        if reply["kind"] == "MissingDeviceError":
            runtime = self._profile.runtime
            return missing_device(runtime.name, runtime.device, f"{self._where()}: {reply['error']}")
        hint = "see the target's [runtime] section: device, threads and options"
        if "has no kernel of" in reply["error"]:
            hint = "replace the operation in the network (targets/operators.md lists what has kernels), or the target"
        # OpenVINO says where in its sources, line by line, and ends with empty ones.
        said = "; ".join(line.strip() for line in reply["error"].splitlines() if line.strip())
        return RefusedError(f"{self._where()}: {self._profile.runtime.name} failed to {do}: {said}", hint)

    def _missing(self, said: str) -> MissingDependencyError:
        runtime = self._profile.runtime
        if runtime.host:
            hint = address.parse(runtime.host).pip_line(hosts.PACKAGES[runtime.name])
            return MissingDependencyError(f"{self._where()}: the Python there lacks a package ({said})", hint)
        missing = missing_error(_MODULES[runtime.name], self._where())
        return MissingDependencyError(f"{missing.message} ({said})", missing.hint)


def _closed() -> MeasurementError:
    return MeasurementError("the measuring session is closed", "use it inside its `with` block")
