"""How a run tells where it is."""

from __future__ import annotations

from typing import Protocol


class RunProgress(Protocol):
    """Where a run tells how far it is; the CLI draws it."""

    def stage_started(self, name: str, title: str) -> None:
        """A stage begins."""

    def stage_reused(self, name: str, title: str) -> None:
        """A stage was finished by an earlier run."""

    def stage_progress(self, message: str, *, done: int = 0, total: int = 0) -> None:
        """The current stage is alive; with `total` > 0, `done` of `total` units are finished."""

    def stage_finished(self, name: str, seconds: float, summary: str) -> None:
        """A stage is done."""

    def note(self, text: str) -> None:
        """Something that people should know."""


class SilentProgress:
    """A `RunProgress` that tells nobody."""

    def stage_started(self, name: str, title: str) -> None:
        """Ignore it."""

    def stage_reused(self, name: str, title: str) -> None:
        """Ignore it."""

    def stage_progress(self, message: str, *, done: int = 0, total: int = 0) -> None:
        """Ignore it."""

    def stage_finished(self, name: str, seconds: float, summary: str) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""
