"""This machine: files stay where they are, workers are child processes."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from edgeft.measure.transports.base import Ending, Machine, Process


class Local(Machine):
    """This machine."""

    name = ""

    def keep(self, *paths: Path) -> str:
        """Return the path of the first file: all are here already."""
        return str(paths[0].resolve())

    def start(self, script: str, environment: Mapping[str, str], folder: Path) -> Process:
        """Start a child process with `folder` as its own."""
        return LocalProcess(script, environment, folder)


class LocalProcess(Process):
    """A child process; a thread forwards its lines, so that waiting for one can time out."""

    def __init__(self, script: str, environment: Mapping[str, str], folder: Path) -> None:
        self._folder = folder
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        with self._chatter.open("wb") as chatter:
            self._child = subprocess.Popen(
                [sys.executable, script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=chatter,
                text=True,
                env={**os.environ, **environment},
            )
        self.pid = self._child.pid
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def _chatter(self) -> Path:
        return self._folder / "stderr.txt"

    def _listen(self) -> None:
        if self._child.stdout is not None:
            with contextlib.suppress(ValueError):  # closed under our hands by close()
                for line in self._child.stdout:
                    self._lines.put(line)
        self._lines.put("")

    def ask(self, line: str, timeout_seconds: float, step: str) -> str:
        """Send a line and return the reply."""
        if line and self._child.stdin is not None:
            # A dead process is told from its missing reply, as is one that another thread has closed.
            with contextlib.suppress(BrokenPipeError, ValueError):
                self._child.stdin.write(line + "\n")
                self._child.stdin.flush()
        try:
            return self._lines.get(timeout=timeout_seconds)
        except queue.Empty:
            raise TimeoutError(step) from None

    def ending(self) -> Ending:
        """Return how the process ended."""
        code, chatter = self._child.wait(), ""
        with contextlib.suppress(FileNotFoundError):  # another thread closed the session
            chatter = self._chatter.read_text(errors="replace")
        return Ending(code=code, chatter=chatter)

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._child.poll()

    def give(self, path: Path) -> str:
        """Return the path: the file is here already."""
        return str(path.resolve())

    def place(self, name: str) -> str:
        """Return a path in the process's folder."""
        return str(self._folder / name)

    def take(self, place: str) -> Path:
        """Return the path: the file is here already."""
        return Path(place)

    def close(self) -> None:
        """Kill the process; its owner removes the folder."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
