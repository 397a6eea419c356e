"""A board at the other end of a `Link`, and processes on it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from edgeft.errors import MeasurementError
from edgeft.measure.transports import far_end
from edgeft.measure.transports.address import Address
from edgeft.measure.transports.base import Ending, Machine, Process
from edgeft.measure.transports.link import Frame, Link


class Board(Machine):
    """A connection to a board; ends everything that it started there when it is closed or lost.

    Raises:
        MissingDependencyError: The board cannot be reached, or has no Python that is recent enough.
    """

    def __init__(self, address: Address) -> None:
        self.name = address.host
        self._kept: dict[str, str] = {}
        self._keeping = threading.Lock()
        self._numbers = itertools.count(1)
        self._processes: dict[int, BoardProcess] = {}
        self._link = Link(address, self._hear)

    @property
    def lost(self) -> str:
        """Why the connection is no more; empty while it is."""
        return self._link.lost

    def keep(self, *paths: Path) -> str:
        """Copy files side by side unless the same ones are there; return the path of the first."""
        digests = [_digest(path) for path in paths]
        names = "".join(f"{path.name}\0{digest}\n" for path, digest in zip(paths, digests, strict=True))
        folder = hashlib.sha256(names.encode()).hexdigest()[:16]
        with self._keeping:  # a second copy would be written over one in use
            if folder not in self._kept:
                copies = [
                    self.put(path, f"{folder}/{path.name}", digest)
                    for path, digest in zip(paths, digests, strict=True)
                ]
                self._kept[folder] = copies[0]
        return self._kept[folder]

    def start(self, script: str, environment: Mapping[str, str], folder: Path) -> Process:
        """Start a process there, in a folder of its own."""
        process = BoardProcess(self, next(self._numbers), folder)
        self._processes[process.number] = process
        step = f"starting {Path(script).name}"
        reply = self._call("start", step, worker=process.number, script=script, environment=dict(environment))
        process.folder = reply["path"]
        return process

    def put(self, path: Path, name: str, sha256: str) -> str:
        """Copy a file to `name` in the board's folder, where its hash is checked; return its path there."""
        step, size = f"copying {path.name}", path.stat().st_size
        with path.open("rb") as body:
            copied: str = self._call("put", step, body=body, name=name, sha256=sha256, size=size)["path"]
        return copied

    def get(self, there: str, path: Path) -> None:
        """Move a file from there to `path`, and check its hash."""
        step = f"fetching {Path(there).name}"
        reply = self._call("get", step, sink=path, path=there)
        found = _digest(path)
        if found != reply["sha256"]:
            raise self._failure(step, f"arrived with sha256 {found}, not {reply['sha256']}")

    def tell(self, number: int, line: str) -> None:
        """Pass a line to a process; that it did not arrive shows in the missing reply."""
        self._link.tell({"do": "tell", "worker": number, "line": line + "\n"})

    def forget(self, number: int) -> None:
        """Kill a process there and remove its folder."""
        with contextlib.suppress(MeasurementError):  # a lost connection has ended it as well
            self._call("kill", "ending a worker", worker=number)

    def loss(self, step: str) -> MeasurementError:
        """Return the error for a connection that broke off."""
        return MeasurementError(
            f"host {self.name}: the connection was lost while {step}: {self.lost}",
            "see its power and network, then measure again; what ran there has ended or ends within "
            f"{far_end.SILENCE_SECONDS:.0f} s",
        )

    def close(self) -> None:
        """End the far end with all that it runs and keeps, and the connection."""
        self._link.close()

    def _call(
        self, do: str, step: str, *, body: BinaryIO | None = None, sink: Path | None = None, **arguments: Any
    ) -> Frame:
        """Send a request of `far_end` and return its reply; `step` says what is being done, for messages.

        Raises:
            MeasurementError: It was refused, or the connection is lost.
        """
        reply = self._link.exchange({"do": do, **arguments}, body, sink)
        if reply is None:
            raise self.loss(step)
        if not reply["ok"]:
            raise self._failure(step, reply["error"])
        return reply

    def _failure(self, step: str, reason: str) -> MeasurementError:
        return MeasurementError(
            f"host {self.name}: {step} failed: {reason}", "see the board's free disk space and permissions"
        )

    def _hear(self, frame: Frame) -> None:
        """Pass on a frame about a process, or the end of the connection to all."""
        if not frame:
            for process in list(self._processes.values()):
                process.hear({"ended": 0, "chatter": ""})
            return
        number: int = frame["worker"]
        if number in self._processes:
            self._processes[number].hear(frame)
        if "ended" in frame:
            self._processes.pop(number, None)


class BoardProcess(Process):
    """A process on a board."""

    def __init__(self, board: Board, number: int, local: Path) -> None:
        self._board, self.number, self._local = board, number, local
        self.folder = ""
        """Its working folder there."""
        self._frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._ending = Ending(code=0, chatter="")

    def hear(self, frame: Frame) -> None:
        """Take a frame from the board: a line, or the end."""
        self._frames.put(frame)

    def ask(self, line: str, timeout_seconds: float, step: str) -> str:
        """Send a line and return the reply."""
        if self._board.lost:
            raise self._board.loss(step)
        if line:
            self._board.tell(self.number, line)
        try:
            frame = self._frames.get(timeout=timeout_seconds)
        except queue.Empty:
            raise TimeoutError(step) from None
        if "line" in frame:
            reply: str = frame["line"]
            return reply
        if self._board.lost:
            raise self._board.loss(step)
        self._ending = Ending(code=frame["ended"], chatter=frame["chatter"])
        return ""

    def ending(self) -> Ending:
        """Return how the process ended."""
        return self._ending

    def give(self, path: Path) -> str:
        """Copy a file into the process's folder."""
        return self._board.put(path, f"{Path(self.folder).name}/{path.name}", _digest(path))

    def place(self, name: str) -> str:
        """Return a path in the process's folder there."""
        return f"{self.folder}/{name}"

    def take(self, place: str) -> Path:
        """Move a file from there into the local folder."""
        path = self._local / Path(place).name
        self._board.get(place, path)
        return path

    def close(self) -> None:
        """Kill the process there."""
        self._board.forget(self.number)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
