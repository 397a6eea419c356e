"""Training by several processes of one machine: the first one owns the workspace, the others train with it and leave.

``torchrun --nproc-per-node 2 -m edgeft finetune RECIPE`` starts them; what they share of the batches is
`edgeft.training`'s business. The first tells the others by a file in the workspace when to join.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from edgeft.errors import ConfigError, WorkspaceError
from edgeft.pipeline.inputs import RunInputs
from edgeft.recipe import Recipe

_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 3600.0  # the first process reads and identifies all data meanwhile


def count() -> int:
    """Return how many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's number among them, 0 for the one that owns the workspace."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def require_finetune(until: str | None) -> None:
    """Raise `ConfigError` unless the run ends with the one stage that several processes share."""
    if until != "finetune":
        raise ConfigError(
            f"{count()} processes train the fine-tune stage together and no other",
            "torchrun ... -m edgeft finetune RECIPE, then `edgeft run RECIPE` without torchrun: it takes up the result",
        )


def call(workspace: Path, data: Path, checkpoint: Path) -> None:
    """Let the other processes join a training that is about to start.

    Args:
        workspace: The open workspace.
        data: Folder of the finished data stage.
        checkpoint: Where the training resumes from, if the file exists.
    """
    if count() > 1:
        _tell(workspace, {"train": True, "data": str(data), "checkpoint": str(checkpoint)})


def release(workspace: Path) -> None:
    """Let the other processes go where no training was to be done, and tidy up behind one that they have joined."""
    if count() == 1:
        return
    if _signal(workspace).exists():
        _signal(workspace).unlink()
    else:
        _tell(workspace, {"train": False})


def follow(recipe: Recipe, base: Path, workspace: Path, device: str) -> None:
    """Wait for the first process, and train with it if it says so; nothing is written.

    Raises:
        WorkspaceError: The first process has said nothing for an hour.
        EdgeftError: As the fine-tune stage.
    """
    signal, started = _signal(workspace), time.monotonic()
    while not signal.exists():
        if time.monotonic() - started > _PATIENCE_SECONDS:
            raise WorkspaceError(f"{workspace}: the first of {count()} processes does not begin to train")
        time.sleep(_POLL_SECONDS)
    told = json.loads(signal.read_text(encoding="utf-8"))
    if told["train"]:
        run = RunInputs(recipe, base, {"data": Path(told["data"])}, device=device)
        run.finetune_with(Path(told["checkpoint"]))


def _tell(workspace: Path, message: dict[str, object]) -> None:
    for old in workspace.glob(".torchrun-*"):
        old.unlink()
    partial = _signal(workspace).with_suffix(".partial")
    partial.write_text(json.dumps(message), encoding="utf-8")
    partial.replace(_signal(workspace))


def _signal(workspace: Path) -> Path:
    """Return the file of this start of these processes: one that was left by an earlier start is not it."""
    keys = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    start = "-".join(os.environ.get(key, "0") for key in keys)
    return workspace / f".torchrun-{start}-{os.getppid()}.json"
