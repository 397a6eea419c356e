"""The training checkpoint: one file, replaced atomically after each epoch."""

from __future__ import annotations

import dataclasses
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeft.errors import WorkspaceError
from edgeft.types import EpochRecord

_VERSION = 1
State = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything that the epochs to come depend on.

    `identity` says which training this is, `best` is the network's state after the best of `records`.
    """

    identity: str
    records: tuple[EpochRecord, ...]
    network: State
    best: State
    optimizer: State
    scheduler: State


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` so that a crash at any moment leaves the previous file or this one, whole.

    Raises:
        WorkspaceError: The file cannot be written.
    """
    payload = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    payload["records"] = [dataclasses.asdict(record) for record in checkpoint.records]
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save({"version": _VERSION, **payload}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise WorkspaceError(
            f"{path}: the training checkpoint cannot be written ({error})",
            "free space, or choose another folder",
        ) from error


def read(path: Path, identity: str) -> Checkpoint | None:
    """Return what `write` left at `path`, or None if there is no file.

    Raises:
        WorkspaceError: The file is unreadable, or belongs to another training.
    """
    hint = f"delete {path} to train from the first epoch"
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
        version = payload.pop("version")
        records = tuple(EpochRecord(**record) for record in payload.pop("records"))
        checkpoint = Checkpoint(records=records, **payload)
    except FileNotFoundError:
        return None
    except (
        OSError,
        EOFError,
        RuntimeError,
        pickle.UnpicklingError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise WorkspaceError(f"{path}: the training checkpoint cannot be read ({reason})", hint) from error
    if version != _VERSION or checkpoint.identity != identity:
        raise WorkspaceError(
            f"{path}: the checkpoint belongs to a training with another config or seed", hint
        )
    return checkpoint
