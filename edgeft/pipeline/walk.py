"""One walk through the stages of a workspace: reuse what is finished, do the rest, keep it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeft import reporting
from edgeft.pipeline.progress import RunProgress
from edgeft.workspace import KEYS_FILE, Workspace, stage_key

CHECKPOINT = "training.ckpt"
RESULTS = "results.json"

# The order of the stages, and what people read while they run.
TITLES = {
    "data": "data",
    "finetune": "fine-tune",
    "prune": "prune and recover",
    "quantize": "quantize",
    "export": "export",
    "measure": "measure",
}
STAGES = tuple(TITLES)

Outcome = tuple[Mapping[str, Any], str]
"""What a stage's work returns: results for the report, and one line for people."""


class Walk:
    """The stages that this run has come through: their keys and folders.

    A stage of a target has a suffix: ``export-cpu-litert``.

    Args:
        workspace: Where they are kept.
        progress: Told of each.
        until: The last stage that is asked for; None for all.
    """

    def __init__(self, workspace: Workspace, progress: RunProgress, *, until: str | None = None) -> None:
        self.workspace = workspace
        self.progress = progress
        self.until = until
        self.folders: dict[str, Path] = {}
        self.keys: dict[str, str] = {}

    def comes_to(self, stage: str) -> bool:
        """Return whether a stage is asked for."""
        return self.until is None or STAGES.index(stage) <= STAGES.index(self.until)

    def tell(self, message: str, *, done: int = 0, total: int = 0) -> None:
        """Report progress inside the current stage (`edgeft.types.Progress`)."""
        self.progress.stage_progress(message, done=done, total=total)

    def ensure(
        self, stage: str, inputs: Mapping[str, Any], work: Callable[[Path], Outcome], *, suffix: str = ""
    ) -> None:
        """Make sure that a stage is finished: reuse it, or do `work` in its scratch folder and commit that.

        Args:
            stage: One of `STAGES`.
            inputs: Everything that the stage reads, as JSON values; what its key is made of.
            work: Given the scratch folder, makes the stage's files.
            suffix: The target, for stages that run once per target.
        """
        index = STAGES.index(stage)
        name = f"{stage}-{suffix}" if suffix else stage
        title = f"{TITLES[stage]} {suffix}".strip()
        key = self.keys[name] = stage_key(name, inputs)
        self.record_keys(only_used=False)
        finished = self.workspace.stage(index, name, key)
        if finished is not None:
            self.folders[name] = finished
            self.progress.stage_reused(name, title)
            return
        self.progress.stage_started(name, title)
        started = time.monotonic()
        scratch = self.workspace.begin(index, name, key)
        results, summary = work(scratch)
        write_json(scratch / RESULTS, results)
        seconds = time.monotonic() - started
        self.folders[name] = self.workspace.commit(
            index, name, key, inputs=inputs, seconds=seconds, temporary=(CHECKPOINT,)
        )
        self.progress.stage_finished(name, seconds, summary)

    def record_keys(self, *, only_used: bool) -> None:
        """Write which stage keys the recipe needs; those of stages still to come stay unless `only_used`."""
        path = self.workspace.path / KEYS_FILE
        known = {} if only_used or not path.is_file() else read_json(path)
        for name, key in self.keys.items():
            known[f"{STAGES.index(name.partition('-')[0]):02d}-{name}"] = key
        self.workspace.write_text(KEYS_FILE, json.dumps(known, indent=1, sort_keys=True) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Write records, arrays and plain values as JSON."""
    path.write_text(json.dumps(reporting.plain(value), indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file of a finished stage."""
    return json.loads(path.read_text(encoding="utf-8"))
