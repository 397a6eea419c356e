"""What a training leaves on disk after each epoch: one checkpoint, replaced atomically, and a CSV log."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeft.errors import WorkspaceError
from edgeft.types import EpochRecord

_VERSION = 2
State = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything that the epochs to come depend on.

    `identity` says which training this is, `best` is the network's state after the best of `records`, `bf16` the
    precision that was decided on; `average` and `match` are empty where no such thing is trained along.
    """

    identity: str
    records: tuple[EpochRecord, ...]
    network: State
    best: State
    optimizer: State
    average: State
    match: State
    bf16: bool


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` so that a crash at any moment leaves the previous file or this one, whole.

    Raises:
        WorkspaceError: The file cannot be written.
    """
    payload = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    payload["records"] = [dataclasses.asdict(record) for record in checkpoint.records]
    buffer = io.BytesIO()
    torch.save({"version": _VERSION, **payload}, buffer)
    _replace(path, buffer.getbuffer())


def write_log(path: Path, records: tuple[EpochRecord, ...], *, bf16: bool) -> None:
    """Write one line per epoch as CSV.

    Raises:
        WorkspaceError: The file cannot be written.
    """
    names = [field.name for field in dataclasses.fields(EpochRecord)]
    text = io.StringIO()
    table = csv.DictWriter(text, [*names, "precision"], lineterminator="\n")
    table.writeheader()
    for record in records:
        table.writerow({**dataclasses.asdict(record), "precision": "bf16" if bf16 else "float32"})
    _replace(path, text.getvalue().encode())


def _replace(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a crash at any moment leaves the previous one or this one, whole."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise WorkspaceError(
            f"{path}: what a training keeps cannot be written ({error})",
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
