"""Fresh worker processes: build the zipapp, start it, talk to it, and never leave one behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgeft import runtimes
from edgeft.errors import MeasurementError, MissingDependencyError
from edgeft.extras import missing_error
from edgeft.target import TargetProfile
from edgeft.types import ExportedArtifact, FloatArray, InputArray, RuntimeReport

_MODULES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "litert": "ai_edge_litert"}
OPEN_SECONDS = 120.0
RUN_SECONDS = 900.0


def build_zipapp(runtime: str, path: Path) -> Path:
    """Write the worker and the adapter of one runtime as a zipapp with the same bytes every time.

    Args:
        runtime: Name of a module of `edgeft.runtimes`.
        path: Where to write; by custom ``*.pyz``.

    Returns:
        `path`.
    """
    adapters = Path(runtimes.__file__).parent
    members = {"__main__.py": Path(__file__).with_name("worker.py")}
    members |= {f"runtimes/{name}.py": adapters / f"{name}.py" for name in ("__init__", "base", runtime)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, source in members.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), source.read_bytes())
    return path


class Session:
    """One fresh worker process with one artifact in it; a context manager that ends the process.

    Args:
        artifact: The file to open.
        profile: Runtime, device, threads and options.
        options: Further runtime options, over the profile's.
        timeout_seconds: How long one request may take once the file is open.

    Raises:
        MissingDependencyError: The runtime is not installed.
        MeasurementError: The worker died, timed out, or its runtime refused the file or an option.
    """

    def __init__(
        self,
        artifact: ExportedArtifact,
        profile: TargetProfile,
        *,
        options: Mapping[str, str] | None = None,
        timeout_seconds: float = RUN_SECONDS,
    ) -> None:
        self._artifact, self._profile, self._timeout = artifact, profile, timeout_seconds
        self._options = {**profile.runtime.options, **(options or {})}
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None
        self.load_ms = 0.0
        """Time to load and compile the file, without the import of the runtime."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="edgeft-worker-")
        try:
            self._start(Path(self._folder.name))
            self.load_ms = float(self._request("open", timeout=OPEN_SECONDS, **self._settings())["load_ms"])
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
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def predict(self, inputs: InputArray) -> FloatArray:
        """Return real-valued outputs (N, K) of model inputs, run one at a time."""
        source, sink = self._path("inputs.npy"), self._path("outputs.npy")
        np.save(source, inputs)
        self._request("predict", timeout=self._timeout, inputs=str(source), outputs=str(sink))
        outputs: FloatArray = np.load(sink)
        return outputs

    def time(self, inputs: Path, *, min_runs: int, min_seconds: float) -> dict[str, Any]:
        """Return `first_ms`, `samples_ms` and `peak_rss_bytes` on the inputs in a .npy file, in turn."""
        return self._request(
            "time", timeout=self._timeout, inputs=str(inputs), min_runs=min_runs, min_seconds=min_seconds
        )

    def describe(self) -> RuntimeReport:
        """Return what the runtime says of itself and the compiled file."""
        return RuntimeReport(**self._request("describe", timeout=self._timeout)["report"])

    def _settings(self) -> dict[str, Any]:
        runtime = self._profile.runtime
        return {
            "runtime": runtime.name,
            "path": str(self._artifact.path.resolve()),
            "device": runtime.device,
            "threads": runtime.threads,
            "options": self._options,
            "inputs": [asdict(spec) for spec in self._artifact.inputs],
            "outputs": [asdict(spec) for spec in self._artifact.outputs],
        }

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise MeasurementError("the measuring session is closed", "use it inside its `with` block")
        return Path(self._folder.name) / name

    def _start(self, folder: Path) -> None:
        app = build_zipapp(self._profile.runtime.name, folder / "worker.pyz")
        # numpy's own thread pool plays no part in a measurement and costs start-up time.
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": str(self._profile.runtime.threads),
        }
        with (folder / "stderr.txt").open("wb") as chatter:
            self._process = subprocess.Popen(
                [sys.executable, str(app)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=chatter,
                text=True,
                env=environment,
            )
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Forward reply lines; an empty one says that the worker has ended."""
        if process.stdout is not None:
            with contextlib.suppress(ValueError):  # closed under our hands by close()
                for line in process.stdout:
                    self._replies.put(line)
        self._replies.put("")

    def _request(self, do: str, *, timeout: float, **arguments: Any) -> dict[str, Any]:
        if self._process is None or self._process.stdin is None:
            raise MeasurementError("the measuring session is closed", "use it inside its `with` block")
        with contextlib.suppress(BrokenPipeError):  # a dead worker is told from its missing reply
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        try:
            line = self._replies.get(timeout=timeout)
        except queue.Empty:
            raise MeasurementError(
                f"{self._where()}: no reply to {do!r} within {timeout:.0f} s",
                "see whether the machine is overloaded",
            ) from None
        if not line:
            raise self._death(do)
        reply: dict[str, Any] = json.loads(line)
        if not reply["ok"]:
            raise self._refusal(do, reply)
        return reply

    def _where(self) -> str:
        return f"target {self._profile.id}, {self._artifact.path.name}"

    def _death(self, do: str) -> MeasurementError:
        """Return the error for a worker that ended without a reply, with the end of what it wrote."""
        code = self._process.wait() if self._process is not None else 0
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        tail = self._path("stderr.txt").read_text(errors="replace").strip().splitlines()[-5:]
        return MeasurementError(
            f"{self._where()}: the worker {end} during {do!r}" + "".join(f"\n    {line}" for line in tail),
            "SIGKILL is usually a lack of memory; SIGILL or SIGSEGV a fault of the runtime on this CPU",
        )

    def _refusal(self, do: str, reply: Mapping[str, Any]) -> MeasurementError | MissingDependencyError:
        if reply["kind"] in ("ImportError", "ModuleNotFoundError"):
            missing = missing_error(_MODULES[self._profile.runtime.name], f"target {self._profile.id}")
            return MissingDependencyError(f"{missing.message} ({reply['error']})", missing.hint)
        return MeasurementError(
            f"{self._where()}: {self._profile.runtime.name} failed to {do}: {reply['error']}",
            "see the target's [runtime] section: device, threads and options",
        )
