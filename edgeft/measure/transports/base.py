"""What it takes to measure on a machine: keep files there, run workers there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a process ended: its exit code (negative: the signal that killed it) and the end of its stderr."""

    code: int
    chatter: str


class Process(ABC):
    """A Python process on some machine that answers lines with lines.

    Its working folder is its own and is removed with it. All methods raise `MeasurementError` if the connection
    to the machine is lost.
    """

    @abstractmethod
    def ask(self, line: str, timeout_seconds: float, step: str) -> str:
        """Send a line and return the one that comes back, or an empty string if the process ended instead.

        Args:
            line: What to send, without a line break; empty to send nothing and only listen.
            timeout_seconds: How long to wait for the reply.
            step: What is being done, for messages.

        Raises:
            TimeoutError: No reply came in time.
        """

    @abstractmethod
    def ending(self) -> Ending:
        """Return how the process ended; call it only once `ask` has returned an empty string."""

    @abstractmethod
    def give(self, path: Path) -> str:
        """Make a file readable for the process and return its path there; the next one of that name replaces it."""

    @abstractmethod
    def place(self, name: str) -> str:
        """Return a path in the working folder, where the process may write."""

    @abstractmethod
    def take(self, place: str) -> Path:
        """Return a local copy of what the process wrote at `place`."""

    @abstractmethod
    def close(self) -> None:
        """Kill the process, whatever it is doing, and remove its folder; never raises for a lost connection."""


class Machine(ABC):
    """Where workers run."""

    name: str
    """As in `[runtime] host`; empty for this machine."""

    @abstractmethod
    def keep(self, *paths: Path) -> str:
        """Make files readable there, side by side under their names, and return the path of the first.

        What is there already, by its content, is not copied again; it stays as long as the connection.

        Raises:
            MeasurementError: A copy has another hash, the disk there is full, or the connection is lost.
        """

    @abstractmethod
    def start(self, script: str, environment: Mapping[str, str], folder: Path) -> Process:
        """Start a fresh Python process.

        Args:
            script: Path of a Python file or zipapp there, as `keep` returned it.
            environment: Variables over those that the machine has.
            folder: A local folder for temporary files, which outlives the process.

        Raises:
            MeasurementError: It could not be started, or the connection is lost.
        """
