"""Calibration: find the ranges of a prepared graph's activations from float forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.fx import GraphModule

from edgeft.calibration import CalibrationRecipe
from edgeft.errors import QuantizationError
from edgeft.quantization.equalization import equalize_layers
from edgeft.quantization.fake_quant import ActivationFakeQuant, Observer, WeightFakeQuant
from edgeft.quantization.observers import PercentileObserver, SquaredErrorObserver, not_finite
from edgeft.quantization.prepare import activation_sites, weight_sites
from edgeft.quantization.ranges import named_sites
from edgeft.quantization.smoothing import smooth_activations
from edgeft.types import Progress, silent

# Weight of one batch in the moving average. Training has hundreds of steps, calibration a handful.
_MOMENTUM = 0.1

BatchSource = Callable[[], Iterable[torch.Tensor]]
"""Gives the calibration inputs (N, ...) from the start, as often as it is called."""


def calibration_rewrites(
    recipe: CalibrationRecipe, batches: BatchSource, *, progress: Progress = silent
) -> tuple[Callable[[GraphModule], None], ...]:
    """Return what a recipe wants done to the float graph before quantizers are inserted (`prepare`'s `rewrites`).

    Args:
        recipe: Its `cross_layer_equalization` and `smooth_quant`.
        batches: SmoothQuant reads them once.
        progress: Told what was rewritten.
    """
    wanted: list[Callable[[GraphModule], None]] = []
    if recipe.cross_layer_equalization:
        wanted.append(lambda graph: progress(f"{equalize_layers(graph)} pairs of layers equalized"))
    strength = recipe.smooth_quant
    if strength is not None:
        wanted.append(
            lambda graph: progress(f"{smooth_activations(graph, batches(), strength)} norms smoothed")
        )
    return tuple(wanted)


def calibrate(
    graph: GraphModule,
    batches: Iterable[torch.Tensor],
    recipe: CalibrationRecipe,
    *,
    progress: Progress = silent,
) -> None:
    """Find activation ranges from float forward passes of a prepared graph, in place.

    Rounding is off meanwhile, so that every site sees what the float network computes. What was observed before is
    forgotten. One batch is held at a time, and what the observers keep does not grow.

    Args:
        graph: From `prepare`.
        batches: Model inputs (N, C, H, W), drawn from the training split only.
        recipe: Which statistic of the values to keep.
        progress: Told about every batch.

    Raises:
        QuantizationError: A value is not finite (the message names the tensor), or there is no batch.
    """
    sites = {name: site for name, site in named_sites(graph) if site.observes and not site.fixed}
    with rounding_off(graph), torch.inference_mode():
        for name, site in sites.items():
            site.observing, site.momentum = True, 1.0 if recipe.observer == "minmax" else _MOMENTUM
            site.observer = _observer(recipe, name, site)
            site.low.fill_(math.inf)
            site.high.fill_(-math.inf)
        index = 0
        for index, batch in enumerate(batches, 1):
            graph(batch)
            _check_finite(sites)
            progress(f"calibrating, batch {index}")
        if not index:
            raise QuantizationError("calibration saw no batch", "give at least one")
        for site in sites.values():
            site.observing = False
            if site.observer is not None:
                low, high = site.observer.range()
                site.low.fill_(low)
                site.high.fill_(high)
                site.observer = None


@contextmanager
def rounding_off(graph: GraphModule) -> Iterator[None]:
    """Let a prepared graph compute in float, in evaluation mode."""
    graph.eval()
    quantizers: list[ActivationFakeQuant | WeightFakeQuant] = [*activation_sites(graph), *weight_sites(graph)]
    for quantizer in quantizers:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.enabled = True


def _observer(recipe: CalibrationRecipe, name: str, site: ActivationFakeQuant) -> Observer | None:
    """Return what observes in the site's place; None lets it keep its own extremes, or their moving average."""
    if site.keeps_extremes:  # logits are not clipped
        return None
    if recipe.observer == "percentile":
        return PercentileObserver(name, recipe.percentile)
    return SquaredErrorObserver(name, symmetric=site.symmetric) if recipe.observer == "mse" else None


def _check_finite(sites: dict[str, ActivationFakeQuant]) -> None:
    """Name the first tensor in graph order whose extremes are not finite; observers check their own."""
    for name, site in sites.items():
        if site.observer is None and not bool(torch.isfinite(site.low) & torch.isfinite(site.high)):
            raise not_finite(name, float(site.low), float(site.high))
