"""Compare calibration recipes: post-training quantization of one trained float network, judged on the validation split.

Usage::

    python bench/calibration_recipes.py bench/recipes/weather4.toml
        --weights runs/weather4/stages/01-finetune/model.safetensors
        [--calibration NAME ...] [--seeds N] [--granularity per-tensor]

WEIGHTS are those of the recipe's network after fine-tuning. Each calibration recipe draws its samples once per seed;
figures are means over the seeds. *Noise* is the Q/DQ program's mean squared error at the logits against the float
network's, over the variance of the latter, in dB: the figure that tells recipes apart where accuracy cannot.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgeft import calibration, data, models, quantization, resources, stages, training
from edgeft import recipe as recipes
from edgeft.calibration import CalibrationRecipe
from edgeft.errors import QuantizationError
from edgeft.target import Numerics
from edgeft.types import FloatArray, FloatModel, Splits

_BATCH = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A trained float network with its data and what it answers on the validation split."""

    model: FloatModel
    splits: Splits
    inputs: Any
    logits: FloatArray

    @property
    def accuracy(self) -> float:
        """Share of right answers of the float network."""
        return float((self.logits.argmax(1) == self.splits.val.labels).mean())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One calibrated program against its float network."""

    accuracy: float
    agreement: float
    noise_db: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare calibration recipes.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="of the fine-tuned float network")
    parser.add_argument("--calibration", nargs="+", default=list(resources.names("calibration")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--granularity", choices=("per-channel", "per-tensor"), default="per-channel")
    chosen = parser.parse_args()
    console = Console()
    case = load(chosen.recipe, chosen.weights)
    numerics = Numerics(granularity=chosen.granularity)
    console.print(
        f"{chosen.recipe.stem}, {numerics.granularity} weights, {len(case.splits.val)} validation samples, "
        f"float accuracy {case.accuracy:.2%}"
    )
    table = Table("calibration", "accuracy", "agreement", "noise, dB (each seed)", "seconds")
    for name in chosen.calibration:
        wanted = calibration.load(name)
        try:
            results = [quantize(case, wanted, numerics, seed) for seed in range(chosen.seeds)]
        except QuantizationError as error:
            table.add_row(Path(name).stem, "-", "-", error.message.partition(": ")[2], "-")
            continue
        mean = Result(**{f.name: _mean(results, f.name) for f in dataclasses.fields(Result)})
        each = ", ".join(f"{result.noise_db:.1f}" for result in results)
        table.add_row(
            Path(name).stem,
            f"{mean.accuracy:.2%}",
            f"{mean.agreement:.2%}",
            f"{mean.noise_db:.2f} ({each})",
            f"{mean.seconds:.1f}",
        )
    console.print(table)


def load(path: Path, weights: Path) -> Case:
    """Build a recipe's network with fine-tuned weights, its batch norms re-estimated as the quantize stage does."""
    recipe, base = recipes.load(path), path.parent
    template = models.default_preprocessing(recipe.model, recipe.task.kind, base=base)
    splits = data.load(recipe.task, template, base=base, seed=recipe.seed)
    trained = recipe.model.model_copy(update={"weights": str(weights.resolve())})
    built = models.build(
        trained,
        len(splits.classes),
        base=base,
        seed=recipe.seed,
        preprocessing=splits.preprocessing,
        keep_head=True,
    )
    module = built.module.eval()
    inputs = splits.val.inputs(range(len(splits.val)))
    statistics = training.loader(splits.train, splits.preprocessing, batch_size=_BATCH, seed=recipe.seed)
    training.reestimate_batch_norm(module, statistics)
    module.eval()
    logits = stages.predict_program(module, inputs)
    model = FloatModel(module=module, preprocessing=splits.preprocessing, labels=splits.classes)
    return Case(model=model, splits=splits, inputs=inputs, logits=logits)


def quantize(case: Case, wanted: CalibrationRecipe, numerics: Numerics, seed: int) -> Result:
    """Calibrate and convert as the quantize stage does, and judge the program."""
    samples = data.calibration_samples(case.splits.train, wanted, seed)
    batches = training.loader(samples, case.model.preprocessing, batch_size=_BATCH, seed=seed)

    def inputs() -> Any:
        return (x for x, _ in batches)

    source = dataclasses.replace(case.model, module=copy.deepcopy(case.model.module))
    started = time.monotonic()
    rewrites = quantization.calibration_rewrites(wanted, inputs)
    graph = quantization.prepare(source, numerics=numerics, rewrites=rewrites)
    quantization.calibrate(graph, inputs(), wanted)
    if wanted.bias_correction:
        quantization.correct_biases(graph, inputs())
    program = quantization.convert(graph, source, next(inputs()))
    seconds = time.monotonic() - started
    got = stages.predict_program(program.program, case.inputs)
    return Result(
        accuracy=float((got.argmax(1) == case.splits.val.labels).mean()),
        agreement=float((got.argmax(1) == case.logits.argmax(1)).mean()),
        noise_db=10 * math.log10(float(np.square(got - case.logits).mean() / case.logits.var())),
        seconds=seconds,
    )


def _mean(results: list[Result], name: str) -> float:
    return float(np.mean([getattr(result, name) for result in results]))


if __name__ == "__main__":
    main()
