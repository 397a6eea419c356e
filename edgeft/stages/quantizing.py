"""The quantize stage: make the Q/DQ program, by calibration, by training, or by whatever is needed."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from edgeft import calibration as calibrations
from edgeft import quantization, training
from edgeft.calibration import CalibrationRecipe
from edgeft.errors import BudgetError, ConfigError, DataError
from edgeft.quantization import Sensitivity
from edgeft.recipe import Quantize
from edgeft.stages.accuracy_aware import Limit, Means, Method, Search, exceeds
from edgeft.stages.common import curve_results, parse_config, right_answers, step_record
from edgeft.stages.second_engine import quantize_with_neural_compressor
from edgeft.stages.shrinking import shrink_weights
from edgeft.target import Numerics
from edgeft.training import Batches
from edgeft.types import EpochRecord, FloatModel, Progress, QuantModel, silent

_RANKING_SAMPLES, _RANKING_BATCH = 64, 16
_OWN_SETTINGS = {"observer": "percentile", "bias_correction": True}
"""What edgeft calibrates with beside the second engine, on the same samples: its defaults."""


def quantize(
    model: FloatModel,
    train: Batches,
    val: Batches,
    config: Quantize | None = None,
    *,
    calibration: CalibrationRecipe | None = None,
    numerics: Numerics | None = None,
    full_integer: bool = False,
    samples: Iterable[Any] | None = None,
    statistics: Batches | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    **settings: Any,
) -> QuantModel:
    """Return the Q/DQ program of `model`: calibrated (ptq), calibrated and trained (qat), or what suffices (auto).

    Args:
        model: Trained float network; also the teacher of quantization-aware training.
        train: As in `finetune`.
        val: As in `finetune`.
        config: Settings; or keywords (`method="ptq"`).
        calibration: How ranges are found; the shipped recipe that `config.calibration` names by default.
        numerics: Integer numbers of the targets' kernels; the usual ones by default.
        full_integer: Whether a target runs integer ops only, so that no layer may stay float.
        samples: Batches to calibrate with, labels optional; `statistics` by default.
        statistics: Unaugmented training batches for the batch norms' statistics; `train` by default.
        seed: As in `finetune`.
        checkpoint: As in `finetune`.
        device: As in `finetune`; calibration and conversion run on the CPU.
        progress: As in `finetune`.
        **settings: Fields of `recipe.Quantize`.

    Raises:
        ModelError: torch.export cannot capture the network.
        QuantizationError: The numerics do not hold (a range that is not finite, a batch norm left over).
        DataError: Fewer calibration samples than the calibration recipe asks for.
        BudgetError: `max_accuracy_drop` is missed; the message says by how much.
        ConfigError: A setting is unknown or out of range, or `float_layers` names no layer.
        MissingDependencyError: The device is not there.
    """
    config = parse_config(Quantize, config, settings)
    if not config.calibrates:
        return shrink_weights(model, val, config, numerics=numerics, seed=seed)
    recipe = calibration or calibrations.load(config.calibration)
    if config.float_layers and full_integer:
        raise ConfigError(
            f"quantize.float_layers = {config.float_layers}: a target runs integer ops only",
            "leave float_layers out, or the target",
        )
    started = time.monotonic()
    teacher = copy.deepcopy(model.module).eval()
    statistics = train if statistics is None else statistics
    batches = _read_again(statistics if samples is None else samples, recipe.samples)
    if config.engine == "neural-compressor":
        program = quantize_with_neural_compressor(
            model, val, list(batches()), config, recipe, numerics=numerics, seed=seed, progress=progress
        )
        own = recipe.model_copy(update=_OWN_SETTINGS)
        ours = quantize(
            model,
            train,
            val,
            Quantize(method="ptq"),
            calibration=own,
            samples=batches(),
            statistics=statistics,
            numerics=numerics,
            seed=seed,
            progress=progress,
        )
        return _beside(program, ours)
    source, graph, in_float = _calibrate(model, config, recipe, numerics, batches, statistics, progress)
    float_right, count = right_answers(teacher, val)

    def convert(fake: GraphModule, method: Method) -> QuantModel:
        if recipe.bias_correction and method == "ptq":  # training finds the biases by itself
            fake = quantization.copy_graph(fake)
            quantization.correct_biases(fake, batches(), progress=progress)
        return quantization.convert(fake, source, next(batches()))

    def count_right(program: QuantModel) -> int:
        return right_answers(program.program, val)[0]

    def train_graph(fake: GraphModule) -> tuple[EpochRecord, ...]:
        return _train(fake, teacher, train, val, config, seed, checkpoint, device, progress)

    def rank(fake: GraphModule) -> tuple[Sensitivity, ...]:
        return quantization.sensitivities(fake, _spread(val, count), progress=progress)

    results: dict[str, Any] = {"val_samples": count, "val_accuracy_float": float_right / count}
    if config.method == "auto":
        # The recipe writes the limit's default out, where none is given.
        limit = Limit(drop=config.max_accuracy_drop or 0.0, float_right=float_right, samples=count)
        means = Means(convert=convert, count_right=count_right, train=train_graph, rank=rank)
        found = Search(means, limit, may_mix=not full_integer, progress=progress).run(graph)
        program, curve = found.program, found.curve
        in_float += found.chosen.float_layers
        results |= {
            "method": found.chosen.method,
            "val_accuracy": found.chosen.val_accuracy,
            "attempts": [dataclasses.asdict(attempt) for attempt in found.attempts],
            "sensitivity": [dataclasses.asdict(each) for each in found.sensitivities],
        }
    else:
        curve = train_graph(graph) if config.method == "qat" else ()
        program = convert(graph, "qat" if config.method == "qat" else "ptq")
        right = count_right(program)
        _require_drop(config, float_right, right, count)
        results |= {"method": config.method, "val_accuracy": right / count}
    results |= {"float_layers": list(in_float), **curve_results(curve)}
    record = step_record("quantize", config, seed, started, results)
    return dataclasses.replace(program, history=(*model.history, record))


def _beside(program: QuantModel, ours: QuantModel) -> QuantModel:
    """Return a program of the second engine whose record tells what edgeft's own calibration gives instead."""
    *earlier, record = program.history
    compared = ours.history[-1]
    own = {
        "val_accuracy": compared.results["val_accuracy"],
        "seconds": compared.seconds,
        "settings": _OWN_SETTINGS,
    }
    record = dataclasses.replace(record, results={**record.results, "own_engine": own})
    return dataclasses.replace(program, history=(*earlier, record))


def measure_sensitivity(
    model: FloatModel,
    train: Batches,
    val: Batches,
    config: Quantize | None = None,
    *,
    calibration: CalibrationRecipe | None = None,
    numerics: Numerics | None = None,
    samples: Iterable[Any] | None = None,
    statistics: Batches | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> tuple[Sensitivity, ...]:
    """Return what calibrated quantization of each layer alone does to the outputs, on 64 validation samples.

    Args:
        model: As in `quantize`.
        train: As in `quantize`; read for the batch norms' statistics only, where `statistics` is not given.
        val: As in `quantize`; 64 samples are taken at equal distances, or all where there are fewer.
        config: As in `quantize`; layers that it leaves in float are not among the results.
        calibration: As in `quantize`.
        numerics: As in `quantize`.
        samples: As in `quantize`.
        statistics: As in `quantize`.
        progress: As in `quantize`.
        **settings: As in `quantize`.

    Raises:
        EdgeftError: As `quantize`, save for accuracy.
    """
    config = parse_config(Quantize, config, settings)
    recipe = calibration or calibrations.load(config.calibration)
    statistics = train if statistics is None else statistics
    batches = _read_again(statistics if samples is None else samples, recipe.samples)
    _, graph, _ = _calibrate(model, config, recipe, numerics, batches, statistics, progress)
    count = sum(len(labels) for _, labels in val)
    return quantization.sensitivities(graph, _spread(val, count), progress=progress)


def _calibrate(
    model: FloatModel,
    config: Quantize,
    recipe: CalibrationRecipe,
    numerics: Numerics | None,
    batches: Callable[[], Iterator[torch.Tensor]],
    statistics: Batches,
    progress: Progress,
) -> tuple[FloatModel, GraphModule, tuple[str, ...]]:
    """Return a copy of the model, its calibrated fake-quant graph, and the layers that are float by the recipe."""
    source = dataclasses.replace(model, module=copy.deepcopy(model.module))
    # Folding bakes the running statistics into the weights; training with augmentation leaves them slightly off.
    training.reestimate_batch_norm(source.module, statistics)
    source.module.eval()
    rewrites = quantization.calibration_rewrites(recipe, batches, progress=progress)
    graph = quantization.prepare(source, numerics=numerics, rewrites=rewrites)
    in_float = quantization.matching_layers(config.float_layers, list(quantization.quantized_layers(graph)))
    quantization.calibrate(graph, batches(), recipe, progress=progress)
    if in_float:
        graph = quantization.restore_float(graph, in_float)
    return source, graph, in_float


def _train(
    graph: GraphModule,
    teacher: nn.Module,
    train: Batches,
    val: Batches,
    config: Quantize,
    seed: int,
    checkpoint: Path | None,
    device: str,
    progress: Progress,
) -> tuple[EpochRecord, ...]:
    """Train a fake-quant graph in place after the float network; it ends up in evaluation mode."""
    # Ranges stand still in the last third, so that the weights settle on fixed grids.
    observe = math.ceil(config.epochs * 2 / 3) if config.observe_epochs is None else config.observe_epochs
    phases = quantization.QatPhases(graph, observe_epochs=observe, learned=config.scales == "learned")
    curve = training.fit(
        graph,
        train,
        val,
        config,
        seed=seed,
        checkpoint=checkpoint,
        teacher=teacher,
        phases=phases,
        paces=phases.paces,
        device=device,
        progress=progress,
    )
    phases.enter_evaluation()
    return curve


def _require_drop(config: Quantize, float_right: int, right: int, samples: int) -> None:
    drop = (float_right - right) / samples
    if config.max_accuracy_drop is not None and exceeds(drop, config.max_accuracy_drop):
        raise BudgetError(
            f"quantize.max_accuracy_drop = {config.max_accuracy_drop}: the {config.method} program loses {drop:.4f} "
            f"on the validation split ({float_right / samples:.4f} -> {right / samples:.4f}; {samples} samples, of "
            f"which one is {1 / samples:.4f})",
            'train longer (quantize.epochs), use method = "auto", or allow a larger drop'
            if config.method == "qat"
            else 'use method = "qat" or "auto", or allow a larger drop',
        )


def _spread(batches: Batches, count: int) -> Iterator[torch.Tensor]:
    """Yield inputs at equal distances, so that a split that is sorted by class gives some of every class."""
    wanted = set(np.linspace(0, count - 1, min(count, _RANKING_SAMPLES)).round().astype(int).tolist())
    taken: list[torch.Tensor] = []
    index = 0
    for inputs, _ in batches:
        for sample in inputs:
            if index in wanted:
                taken.append(sample)
            index += 1
        while len(taken) >= _RANKING_BATCH:
            yield torch.stack(taken[:_RANKING_BATCH])
            del taken[:_RANKING_BATCH]
    if taken:
        yield torch.stack(taken)


def _read_again(batches: Iterable[Any], count: int) -> Callable[[], Iterator[torch.Tensor]]:
    """Return what reads the first `count` inputs from the start, one batch at a time in memory.

    Only an iterator, which can be read once, is kept whole.
    """
    source = list(_take(batches, count)) if isinstance(batches, Iterator) else batches
    return lambda: _take(source, count)


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
