"""What every stage does alike: read its settings, score its result, record what it did."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch

from edgeft import extras, schema, training
from edgeft.errors import ModelError
from edgeft.recipe import Training
from edgeft.schema import Strict
from edgeft.training import Batches
from edgeft.types import EpochRecord, FloatModel, StepRecord

_VERSIONS = ("torch", "torchao", "torch_pruning", "lightning", "numpy")
Config = TypeVar("Config", bound=Strict)


def accuracy(module: torch.nn.Module, batches: Batches) -> float:
    """Return the share of right answers, 0..1. Raises `ModelError` where logits are not finite."""
    right, samples = right_answers(module, batches)
    return right / samples


def right_answers(module: torch.nn.Module, batches: Batches) -> tuple[int, int]:
    """Return how many samples are answered right, and how many there are. Raises as `accuracy`."""
    logits, labels = training.predict(module, batches)
    if not np.isfinite(logits).all():
        raise ModelError("the network gives NaN or infinite logits", "lower the learning rate")
    return int((logits.argmax(axis=1) == labels).sum()), len(labels)


def own_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a network by name, each with memory of its own: a file may not hold one weight twice."""
    return {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }


def digest(module: torch.nn.Module) -> str:
    """Return a hash of the tensors of a network, by name."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def parse_config(kind: type[Config], config: Config | None, settings: Mapping[str, Any]) -> Config:
    """Return `config` with `settings` over it. Raises `ConfigError`."""
    given = {} if config is None else config.model_dump()
    where = f"edgeft.{kind.__name__.lower()}"
    return schema.validate({**given, **settings}, kind, where, whole="the settings")


def curve_results(curve: tuple[EpochRecord, ...]) -> dict[str, Any]:
    """Return the epochs as a stage's results hold them."""
    return {"epochs": [dataclasses.asdict(record) for record in curve]} if curve else {}


def step_record(
    name: str, config: Training, seed: int, started: float, results: Mapping[str, Any]
) -> StepRecord:
    """Return what a stage did, from `started` (`time.monotonic`) till now."""
    return StepRecord(
        name=name,
        config=config.model_dump(mode="json", exclude_none=True),
        seed=seed,
        seconds=time.monotonic() - started,
        versions=extras.versions(*_VERSIONS),
        results=results,
    )


def advanced(model: FloatModel, module: torch.nn.Module, record: StepRecord) -> FloatModel:
    """Return `model` with another module and one more record in its history."""
    return dataclasses.replace(model, module=module, history=(*model.history, record))
