"""The stages as plain functions: each takes records and returns new ones, and knows nothing of the workspace.

`edgeft.finetune`, `edgeft.prune`, `edgeft.quantize`, `edgeft.export` and `edgeft.benchmark` are these functions;
the pipeline calls the same ones. None of them changes the caller's model.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from edgeft import calibration as calibrations
from edgeft import exporters, extras, measure, pruning, quantization, schema, target, training
from edgeft.calibration import CalibrationRecipe
from edgeft.errors import BudgetError, ConfigError, DataError, ModelError
from edgeft.models import surgery
from edgeft.recipe import Finetune, Prune, Quantize, Training
from edgeft.schema import Strict
from edgeft.target import PruneLimits, TargetProfile
from edgeft.training import Batches
from edgeft.types import (
    EpochRecord,
    ExportedArtifact,
    FloatArray,
    FloatModel,
    InputArray,
    LatencyResult,
    Progress,
    QuantModel,
    StepRecord,
    example_inputs,
    silent,
)

_VERSIONS = ("torch", "torchao", "torch_pruning", "lightning", "numpy")
Config = TypeVar("Config", bound=Strict)


def finetune(
    model: FloatModel,
    train: Batches,
    val: Batches,
    config: Finetune | None = None,
    *,
    head: str = "",
    teacher: torch.nn.Module | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    **settings: Any,
) -> FloatModel:
    """Train `model` on new data and return the epoch that was best on `val`.

    Args:
        model: Float network, its head already sized for the new classes.
        train: Batches of inputs (N, ...) and class indices (N,) int64, for example a DataLoader.
        val: The same, for choosing the epoch.
        config: Settings; or give them as keywords (`epochs=5, learning_rate=1e-3`).
        head: Dotted prefix of the fresh head, which learns faster (`head_lr_multiplier`). Where a setting needs
            to know the head and none is given, it is the last linear or convolutional layer.
        teacher: Network for the same inputs and classes that ``method = "distill"`` follows, and no other does.
        seed: Of everything random.
        checkpoint: File to resume from and to write after every epoch; cached features lie beside it.
        device: Where to train: ``cpu``, ``cuda`` or ``cuda:N``. The result is on the CPU.
        progress: Told how far it is.
        **settings: Fields of `recipe.Finetune`.

    Raises:
        ConfigError: A setting is unknown or out of range, or does not go with another one or with `teacher`.
        ModelError: The network has no head or blocks such as a setting needs.
        MissingDependencyError: The device is not there.
    """
    if teacher is not None and (config is None or config.teacher is None):
        settings["teacher"] = {"source": type(teacher).__qualname__}  # for the record
    config = _config(Finetune, config, settings)
    if config.method == "distill" and teacher is None:
        raise ConfigError('finetune.method = "distill": no teacher network was given', "give teacher=NETWORK")
    started = time.monotonic()
    module = copy.deepcopy(model.module)
    common: dict[str, Any] = {"seed": seed, "checkpoint": checkpoint, "device": device, "progress": progress}
    curve: tuple[EpochRecord, ...] = ()
    results: dict[str, Any] = {}
    head = _tuned_head(model, config, head)
    if config.method == "feature-extraction":
        curve, results["feature_seconds"] = training.fit_head(module, train, val, config, head=head, **common)
    elif config.method != "none":
        curve = training.fit(
            module,
            train,
            val,
            config,
            head=head,
            blocks=[block.prefixes for block in surgery.blocks(module, head)],
            **_teaching(model, config, teacher),
            **common,
        )
    module.eval()
    results |= {"val_accuracy": _accuracy(module, val), **_curve(curve)}
    return _advanced(model, module, _record("finetune", config, seed, started, results))


def _tuned_head(model: FloatModel, config: Finetune, given: str) -> str:
    """Return the head's dotted name: the given one, or the one that is found where a setting needs it."""
    if config.method == "retrain":
        return ""  # all weights are fresh
    needed = (
        config.method == "feature-extraction"
        or config.feature_weight > 0
        or config.train_blocks is not None
        or config.unfreeze_every is not None
        or config.block_lr_decay < 1
    )
    if given or not needed:
        return given
    return surgery.find_head(copy.deepcopy(model.module), example_inputs(model.preprocessing))


def _teaching(model: FloatModel, config: Finetune, teacher: torch.nn.Module | None) -> dict[str, Any]:
    """Return what `training.fit` has to know about the teacher."""
    if teacher is None:
        return {}
    copied = copy.deepcopy(teacher).eval()
    wanted = config.feature_weight > 0
    head = surgery.find_head(copied, example_inputs(model.preprocessing)) if wanted else ""
    return {"teacher": copied, "teacher_head": head}


def prune(
    model: FloatModel,
    train: Batches,
    val: Batches,
    config: Prune | None = None,
    *,
    limits: PruneLimits | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> FloatModel:
    """Cut whole channels until the budget holds, then recover by distillation from the unpruned network.

    Args:
        model: Trained float network.
        train: As in `finetune`.
        val: As in `finetune`.
        config: Settings; or keywords (`budget={"macs": 0.5}`).
        limits: Channel multiple and minimum of the targets; 8 and 8 by default.
        seed: As in `finetune`.
        checkpoint: As in `finetune`.
        progress: As in `finetune`.
        **settings: Fields of `recipe.Prune`.

    Raises:
        BudgetError: The budget is out of reach; the message names the best that is.
        ModelError: The architecture cannot be pruned.
        ConfigError: A setting is unknown or out of range.
    """
    config = _config(Prune, config, settings)
    limits = limits or PruneLimits()
    started = time.monotonic()
    pruned = pruning.prune(
        model.module,
        example_inputs(model.preprocessing),
        macs=config.budget.macs,
        channel_multiple=limits.channel_multiple,
        min_channels=limits.min_channels,
        importance=config.importance,
    )
    cut_accuracy = _accuracy(pruned.module, val)
    curve = training.fit(
        pruned.module,
        train,
        val,
        config,
        seed=seed,
        checkpoint=checkpoint,
        teacher=copy.deepcopy(model.module).eval(),
        progress=progress,
    )
    pruned.module.eval()
    results = {
        "plan": pruned.plan.to_dict(),
        "val_accuracy_before_recovery": cut_accuracy,
        "val_accuracy": _accuracy(pruned.module, val),
        **_curve(curve),
    }
    return _advanced(model, pruned.module, _record("prune", config, seed, started, results))


def quantize(
    model: FloatModel,
    train: Batches,
    val: Batches,
    config: Quantize | None = None,
    *,
    calibration: CalibrationRecipe | None = None,
    samples: Iterable[Any] | None = None,
    statistics: Batches | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> QuantModel:
    """Return the Q/DQ program of `model`: calibrated (ptq), or calibrated and trained (qat).

    Args:
        model: Trained float network; also the teacher of quantization-aware training.
        train: As in `finetune`.
        val: As in `finetune`.
        config: Settings; or keywords (`method="ptq"`).
        calibration: How ranges are found; the shipped recipe that `config.calibration` names by default.
        samples: Batches to calibrate with, labels optional; `statistics` by default.
        statistics: Unaugmented training batches for the batch norms' statistics; `train` by default.
        seed: As in `finetune`.
        checkpoint: As in `finetune`.
        progress: As in `finetune`.
        **settings: Fields of `recipe.Quantize`.

    Raises:
        ModelError: torch.export cannot capture the network.
        QuantizationError: The numerics do not hold (a range that is not finite, a batch norm left over).
        DataError: Fewer calibration samples than the calibration recipe asks for.
        BudgetError: `max_accuracy_drop` is missed; the message says by how much.
        ConfigError: A setting is unknown or out of range.
    """
    config = _config(Quantize, config, settings)
    recipe = calibration or calibrations.load(config.calibration)
    started = time.monotonic()
    teacher = copy.deepcopy(model.module).eval()
    source = dataclasses.replace(model, module=copy.deepcopy(model.module))
    # Folding bakes the running statistics into the weights; training with augmentation leaves them slightly off.
    statistics = train if statistics is None else statistics
    training.reestimate_batch_norm(source.module, statistics)
    source.module.eval()
    batches = list(_take(statistics if samples is None else samples, recipe.samples))
    graph = quantization.prepare(source)
    quantization.calibrate(graph, batches, recipe, progress=progress)
    curve: tuple[EpochRecord, ...] = ()
    if config.method == "qat":
        # Ranges stand still in the last third, so that the weights settle on fixed grids.
        phases = quantization.QatPhases(graph, observe_epochs=math.ceil(config.epochs * 2 / 3))
        curve = training.fit(
            graph,
            train,
            val,
            config,
            seed=seed,
            checkpoint=checkpoint,
            teacher=teacher,
            phases=phases,
            progress=progress,
        )
        phases.enter_evaluation()
    program = quantization.convert(graph, source, batches[0])
    float_accuracy, accuracy = _accuracy(teacher, val), _accuracy(program.program, val)
    drop = float_accuracy - accuracy
    if config.max_accuracy_drop is not None and drop > config.max_accuracy_drop:
        raise BudgetError(
            f"quantize.max_accuracy_drop = {config.max_accuracy_drop}: the {config.method} program loses {drop:.4f} "
            f"on the validation split ({float_accuracy:.4f} -> {accuracy:.4f})",
            'train longer (quantize.epochs), use method = "qat", or allow a larger drop',
        )
    results = {"val_accuracy_float": float_accuracy, "val_accuracy": accuracy, **_curve(curve)}
    record = _record("quantize", config, seed, started, results)
    return dataclasses.replace(program, history=(*model.history, record))


def export(
    model: QuantModel | FloatModel, profile: TargetProfile | str, folder: Path | str, *, name: str = "model"
) -> ExportedArtifact:
    """Write a program (or a float model) for a target into `folder`, read the file back and check it.

    Args:
        model: What `quantize` returned, or a float model for a float file.
        profile: A target profile, or the name or path of one.
        folder: Made if it does not exist.
        name: File name without suffix.

    Raises:
        ExportError: The converter failed, or the file's numbers are not the program's.
        MissingDependencyError: A package of the target is not installed.
    """
    profile = target.load(profile) if isinstance(profile, str) else profile
    target.require_packages(profile)
    program = quantization.float_program(model) if isinstance(model, FloatModel) else model
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return exporters.export(program, profile, folder, name=name)


def benchmark(
    artifact: ExportedArtifact,
    profile: TargetProfile | str,
    inputs: InputArray,
    *,
    rounds: int = 6,
    min_runs: int = 30,
    min_seconds: float = 0.3,
    progress: Progress = silent,
) -> LatencyResult:
    """Time an exported file on its target in fresh processes.

    Args:
        artifact: What `export` returned.
        profile: A target profile, or the name or path of one.
        inputs: Real model inputs (N, ...); each run takes the next one.
        rounds: Fresh processes.
        min_runs: Least number of steady runs of each.
        min_seconds: Least steady time of each.
        progress: Told how far it is.

    Raises:
        MeasurementError: A worker died or the runtime refused the file.
    """
    profile = target.load(profile) if isinstance(profile, str) else profile
    variant = measure.Variant(label=profile.id, artifact=artifact, profile=profile)
    (result,) = measure.latencies(
        [variant], inputs, rounds=rounds, min_runs=min_runs, min_seconds=min_seconds, progress=progress
    )
    return result


def predict_program(program: torch.nn.Module, inputs: InputArray, *, batch_size: int = 32) -> FloatArray:
    """Return the logits (N, K) of a graph in evaluation mode for inputs (N, ...)."""
    batches = np.array_split(inputs, -(-len(inputs) // batch_size))
    with torch.inference_mode():
        return np.concatenate([program(torch.from_numpy(batch)).numpy() for batch in batches])


def _take(batches: Iterable[Any], count: int) -> Iterator[torch.Tensor]:
    """Yield inputs until `count` samples are reached; the last batch is cut."""
    taken = 0
    for batch in batches:
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        inputs = inputs[: count - taken]
        taken += len(inputs)
        yield inputs
        if taken >= count:
            return
    raise DataError(
        f"calibration asks for {count} samples, there are {taken}",
        "give more, or use a calibration recipe with fewer samples",
    )


def _accuracy(module: torch.nn.Module, batches: Batches) -> float:
    logits, labels = training.predict(module, batches)
    if not np.isfinite(logits).all():
        raise ModelError("the network gives NaN or infinite logits", "lower the learning rate")
    return float((logits.argmax(axis=1) == labels).mean())


def _config(kind: type[Config], config: Config | None, settings: Mapping[str, Any]) -> Config:
    given = {} if config is None else config.model_dump()
    return schema.validate({**given, **settings}, kind, f"edgeft.{kind.__name__.lower()}")


def _curve(curve: tuple[EpochRecord, ...]) -> dict[str, Any]:
    return {"epochs": [dataclasses.asdict(record) for record in curve]} if curve else {}


def _record(name: str, config: Training, seed: int, started: float, results: Mapping[str, Any]) -> StepRecord:
    return StepRecord(
        name=name,
        config=config.model_dump(mode="json", exclude_none=True),
        seed=seed,
        seconds=time.monotonic() - started,
        versions=extras.versions(*_VERSIONS),
        results=results,
    )


def _advanced(model: FloatModel, module: torch.nn.Module, record: StepRecord) -> FloatModel:
    return dataclasses.replace(model, module=module, history=(*model.history, record))
