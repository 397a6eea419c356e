"""Time a step of quantization-aware training against a float one: same batch, taking turns, observers on.

Usage::

    python bench/qat_step_cost.py [torchvision:mobilenet_v2] [--input-size 160] [--batch 32] [--threads 1 2]

A step is forward pass, cross-entropy, backward pass and AdamW; distillation's pass through the teacher would cost both
the same and is left out. The ratio that counts is against ``fine-tuning``, the network as it was trained before, whose
batch norms compute statistics. A fake-quant graph has none, they are folded: ``folded`` is that graph in float, and
the distance to it is what the quantizers cost by themselves.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from edgeft import calibration, models, quantization, training
from edgeft import recipe as recipes
from edgeft.types import FloatModel, example_inputs

_CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a step of quantization-aware training.")
    parser.add_argument("source", nargs="?", default="torchvision:mobilenet_v2")
    parser.add_argument("--input-size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    model = _fresh_model(chosen.source, chosen.input_size)
    x = example_inputs(model.preprocessing, chosen.batch)
    x = torch.randn_like(x).to(memory_format=torch.channels_last)
    y = torch.arange(chosen.batch) % _CLASSES
    steps = {name: _step(network, x, y) for name, network in _networks(model, x).items()}
    table = Table("step", "threads", "median ms", "to fine-tuning [quartiles]", "to folded")
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        times = _take_turns(steps, chosen.rounds)
        for name, seconds in times.items():
            ratios = [a / b for a, b in zip(seconds, times["fine-tuning"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            folded = statistics.median(a / b for a, b in zip(seconds, times["folded"], strict=True))
            table.add_row(
                name,
                str(threads),
                f"{1e3 * statistics.median(seconds):.0f}",
                f"{middle:.2f} [{low:.2f}, {high:.2f}]",
                f"{folded:.2f}",
            )
    Console().print(table)


def _fresh_model(source: str, input_size: int) -> FloatModel:
    """Return a network with fresh weights: their values change no step's time."""
    config = recipes.Model(source=source, input_size=input_size)
    preprocessing = models.default_preprocessing(config, "image-classification", base=Path())
    built = models.build(config, _CLASSES, base=Path(), seed=0, preprocessing=preprocessing, fresh=True)
    labels = tuple(str(label) for label in range(_CLASSES))
    return FloatModel(module=built.module, preprocessing=preprocessing, labels=labels)


def _networks(model: FloatModel, x: torch.Tensor) -> dict[str, nn.Module]:
    """Return the contestants, each in training mode."""
    # With the statistics of fresh batch norms all activations would vanish.
    training.reestimate_batch_norm(model.module, [(x, x)])
    folded = quantization.capture(model.module, x[:2])
    folded.train()
    networks: dict[str, nn.Module] = {"fine-tuning": model.module.train(), "folded": folded}
    recipe = calibration.load("minmax")
    for name, observe_epochs, learned in (
        ("qat", 1, False),
        ("qat, ranges still", 0, False),
        ("qat, learned scales", 1, True),
    ):
        graph = quantization.prepare(model)
        quantization.calibrate(graph, [x], recipe)
        phases = quantization.QatPhases(graph, observe_epochs=observe_epochs, learned=learned)
        phases.enter_training(0)
        networks[name] = graph
    return networks


def _step(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _take_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every step, in turns of alternating order."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name in order:
            started = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - started)
        order.reverse()
    return times


if __name__ == "__main__":
    main()
