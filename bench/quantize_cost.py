"""Time preparing and converting a network, and measure the memory that calibration takes.

Usage::

    python bench/quantize_cost.py [torchvision:mobilenet_v2] [--input-size 224] [--samples 64 1024]
        [--recipe minmax ...]

Every figure comes from a fresh process. Seconds are the shortest of three rounds; imports are not counted. Memory is
the peak that calibrating adds to what the process held before, in batches of 32 random images made one at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from edgeft import calibration, models, quantization, training
from edgeft import recipe as recipes
from edgeft.types import FloatModel, example_inputs

_BATCH = 32
_CLASSES = 10
_ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description="What quantizing a network takes.")
    parser.add_argument("source", nargs="?", default="torchvision:mobilenet_v2")
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--recipe", nargs="+", default=["minmax"])
    parser.add_argument("--child", nargs=2, metavar=("RECIPE", "SAMPLES"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        recipe, samples = chosen.child
        Console().print_json(json.dumps(_measure(chosen.source, chosen.input_size, recipe, int(samples))))
        return
    table = Table(
        "recipe", "samples", "prepare s", "convert s", "calibrate s", "MiB before", "peak MiB", "added MiB"
    )
    for recipe in chosen.recipe:
        for samples in chosen.samples:
            command = [sys.executable, "-W", "ignore", __file__, chosen.source]
            command += ["--input-size", str(chosen.input_size), "--child", recipe, str(samples)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            figures: dict[str, float] = json.loads(result.stdout)
            table.add_row(
                recipe,
                str(samples),
                *(f"{figures[key]:.2f}" for key in ("prepare_s", "convert_s")),
                *(f"{figures[key]:.0f}" for key in ("calibrate_s", "before_mib", "peak_mib", "added_mib")),
            )
    Console().print(table)


def _measure(source: str, input_size: int, recipe_name: str, samples: int) -> dict[str, float]:
    """Return one process's figures: calibration first, so that nothing else has raised the peak."""
    model = _fresh_model(source, input_size)
    graph = quantization.prepare(model)
    before = _peak_mib()
    started = time.perf_counter()
    quantization.calibrate(graph, _images(model, samples), calibration.load(recipe_name))
    calibrate_s = time.perf_counter() - started
    peak = _peak_mib()
    check = next(_images(model, 1))
    return {
        "before_mib": before,
        "peak_mib": peak,
        "added_mib": peak - before,
        "calibrate_s": calibrate_s,
        "prepare_s": min(_seconds(lambda: quantization.prepare(model)) for _ in range(_ROUNDS)),
        "convert_s": min(_seconds(lambda: quantization.convert(graph, model, check)) for _ in range(_ROUNDS)),
    }


def _fresh_model(source: str, input_size: int) -> FloatModel:
    """Return a network with fresh weights whose batch norms have seen data: else all activations would vanish."""
    config = recipes.Model(source=source, input_size=input_size)
    preprocessing = models.default_preprocessing(config, "image-classification", base=Path())
    built = models.build(config, _CLASSES, base=Path(), seed=0, preprocessing=preprocessing, fresh=True)
    labels = tuple(str(label) for label in range(_CLASSES))
    model = FloatModel(module=built.module, preprocessing=preprocessing, labels=labels)
    x = torch.randn(8, *model.input_shape, generator=torch.Generator().manual_seed(0))
    training.reestimate_batch_norm(model.module, [(x, x)])
    return model


def _images(model: FloatModel, samples: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    for start in range(0, samples, _BATCH):
        count = min(_BATCH, samples - start)
        yield torch.randn(example_inputs(model.preprocessing, count).shape, generator=generator)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    main()
