"""Observers and calibration: the ranges that they find, what they refuse, and that memory does not grow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeft import quantization
from edgeft.calibration import CalibrationRecipe
from edgeft.errors import QuantizationError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization import contract
from edgeft.quantization.observers import Histogram, PercentileObserver, SquaredErrorObserver
from edgeft.quantization.ranges import named_sites
from edgeft.types import FloatModel

SIZE = 8
OBSERVERS = ("minmax", "moving-average", "percentile", "mse")


def recipe(observer: str = "minmax", **settings: Any) -> CalibrationRecipe:
    given = {"schema": 1, "id": "test", "title": "test", "observer": observer}
    return CalibrationRecipe.model_validate(given | settings)


def model(module: nn.Module) -> FloatModel:
    picture = ImagePreprocessing(size=SIZE, resize=SIZE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    return FloatModel(module=module.eval(), preprocessing=picture, labels=("a", "b", "c"))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 3, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def images(count: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def heavy_tailed(count: int = 200_000, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_t(3, count).astype(np.float32))


def squared_error(x: torch.Tensor, low: float, high: float) -> float:
    scale, zero_point = contract.activation_qparams(torch.tensor(low), torch.tensor(high))
    rounded = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -128, 127)
    return float((rounded - x).double().square().mean())


# --- the histogram ---


@pytest.mark.parametrize("seed", range(4))
def test_counts_depend_neither_on_order_nor_on_cuts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [
        torch.from_numpy((rng.normal(size=500) * 10.0**exponent).astype(np.float32))
        for exponent in range(-3, 3)
    ]
    at_once, piecemeal = Histogram("x"), Histogram("x")
    at_once.update(torch.cat(parts))
    for index in rng.permutation(len(parts)):
        for piece in parts[index].split(97):
            piecemeal.update(piece)
    assert at_once.width == piecemeal.width
    for ours, theirs in zip(at_once.seen(), piecemeal.seen(), strict=True):
        assert torch.equal(ours, theirs)


def test_every_value_lies_in_its_bin() -> None:
    x = heavy_tailed(5_000)
    histogram = Histogram("x")
    for piece in x.split(100):
        histogram.update(piece)
    edges, counts = histogram.seen()
    expected = torch.floor(x.double() / histogram.width)
    values, expected_counts = expected.unique(return_counts=True)
    assert torch.equal(edges, values * histogram.width)
    assert torch.equal(counts, expected_counts.double())
    assert (x.max() - x.min()) / histogram.width <= 4096


# --- percentiles and squared error ---


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentiles_are_those_of_the_values(percentile: float) -> None:
    x = heavy_tailed()
    observer = PercentileObserver("x", percentile)
    for piece in x.split(7_001):
        observer.update(piece)
    low, high = observer.range()
    width = float(x.max() - x.min()) / 2048
    assert low == pytest.approx(np.percentile(x.numpy(), 100 - percentile), abs=width)
    assert high == pytest.approx(np.percentile(x.numpy(), percentile), abs=width)


def test_all_of_the_values_are_their_extremes() -> None:
    x = heavy_tailed(1_000)
    observer = PercentileObserver("x", 100.0)
    observer.update(x)
    assert observer.range() == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("shape", ["two-sided", "skewed", "rectified", "negative"])
def test_no_range_of_a_fine_grid_errs_noticeably_less(shape: str) -> None:
    x = heavy_tailed(50_000)
    x = {
        "two-sided": x,
        "skewed": torch.where(x > 0, 5 * x, x),
        "rectified": x.relu(),
        "negative": -x.relu(),
    }[shape]
    observer = SquaredErrorObserver("x")
    for piece in x.split(999):
        observer.update(piece)
    found = squared_error(x, *observer.range())
    shares = np.geomspace(0.02, 1.0, 25)
    low, high = float(x.min()), float(x.max())
    best = min(squared_error(x, low * a, high * b) for a in shares for b in shares)
    assert found <= 1.05 * best


def test_a_lonely_outlier_is_clipped() -> None:
    x = torch.randn(500_000, generator=torch.Generator().manual_seed(0))
    x[0] = 30.0
    observer = SquaredErrorObserver("x")
    observer.update(x)
    low, high = observer.range()
    assert high < 20
    assert squared_error(x, low, high) < 0.7 * squared_error(x, float(x.min()), float(x.max()))


def test_values_without_a_tail_are_not_clipped_much() -> None:
    x = torch.linspace(-1, 3, 10_001)
    observer = SquaredErrorObserver("x")
    observer.update(x)
    low, high = observer.range()
    assert low == pytest.approx(-1, abs=0.06)
    assert high == pytest.approx(3, abs=0.06)


def test_a_symmetric_grid_is_searched_as_one() -> None:
    x = heavy_tailed(50_000).relu()
    observer = SquaredErrorObserver("x", symmetric=True)
    observer.update(x)
    _, high = observer.range()
    errors = {}
    for share in np.geomspace(0.02, 1.0, 60):
        scale, zero_point = contract.activation_qparams(torch.tensor(0.0), x.max() * share, symmetric=True)
        rounded = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -128, 127)
        errors[share] = float((rounded - x).square().mean())
    assert high == pytest.approx(min(errors, key=errors.__getitem__) * float(x.max()), rel=0.15)


@pytest.mark.parametrize("value", [0.0, 2.5, -1e-3, 1e6, 1e-12])
def test_equal_values_have_a_range_that_holds_them(value: float) -> None:
    for observer in (PercentileObserver("x", 99.99), SquaredErrorObserver("x")):
        observer.update(torch.full((100,), value))
        low, high = observer.range()
        scale, zero_point = contract.activation_qparams(torch.tensor(low), torch.tensor(high))
        assert float(scale) > 0
        rounded = torch.fake_quantize_per_tensor_affine(torch.tensor([value]), scale, zero_point, -128, 127)
        assert abs(float(rounded) - value) <= max(float(scale) / 2, 0.01 * abs(value))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_name_their_tensor(bad: float) -> None:
    for observer in (PercentileObserver("layer.3:conv2d", 99.9), SquaredErrorObserver("layer.3:conv2d")):
        observer.update(torch.zeros(3))
        with pytest.raises(QuantizationError, match=r"layer\.3:conv2d.*not finite"):
            observer.update(torch.tensor([1.0, bad]))


def test_an_observer_that_saw_nothing_says_so() -> None:
    for observer in (PercentileObserver("layer.3:conv2d", 99.9), SquaredErrorObserver("layer.3:conv2d")):
        with pytest.raises(QuantizationError, match=r"nothing was observed at 'layer\.3:conv2d'"):
            observer.range()


# --- a whole graph ---


@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_observer_gives_a_program_near_the_float_network(observer: str) -> None:
    source = model(network())
    graph = quantization.prepare(source)
    batches = [images(8, seed) for seed in range(4)]
    quantization.calibrate(graph, batches, recipe(observer))
    assert all(
        site.observer is None and not site.observing and site.enabled for _, site in named_sites(graph)
    )
    program = quantization.convert(graph, source, batches[0])
    with torch.inference_mode():
        expected, got = source.module(batches[0]), program.program(batches[0])
    assert float((got - expected).abs().max()) < 0.1 * float(expected.abs().max())


@pytest.mark.parametrize("observer", ["percentile", "mse"])
def test_logits_are_not_clipped_and_followers_do_not_observe(observer: str) -> None:
    torch.manual_seed(0)
    source = model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)))
    graph = quantization.prepare(source)
    batches = [images(64, seed) for seed in range(4)]
    batches[2][5] *= 8
    quantization.calibrate(graph, batches, recipe(observer, percentile=90.0))
    table = quantization.range_table(graph)
    logits = torch.cat([source.module(batch) for batch in batches])
    last = list(table.values())[-1]
    assert (last.min, last.max) == pytest.approx((float(logits.min()), float(logits.max())), rel=0.02)
    # The pool, the flattening and the convolution's output have one range, found at the convolution.
    assert (
        len(
            {
                (table[name].scale, table[name].zero_point)
                for name in ("0:conv2d", "1:max_pool2d", "2:flatten")
            }
        )
        == 1
    )
    inputs = torch.cat(batches)
    assert table["input"].max < 0.9 * float(inputs.max())


def test_a_fixed_range_stays() -> None:
    source = model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 3, 3), nn.Flatten()))
    graph = quantization.prepare(source)
    fixed = [site for _, site in named_sites(graph) if site.fixed]
    assert fixed
    quantization.calibrate(graph, [images()], recipe("mse"))
    for site in fixed:
        scale, zero_point = site.calculate_qparams()
        assert (float(scale), int(zero_point)) == (1 / 256, -128)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_calibrating_twice_is_calibrating_once(observer: str) -> None:
    graph = quantization.prepare(model(network()))
    batches = [images(8, seed) for seed in range(3)]
    quantization.calibrate(graph, batches, recipe(observer))
    once = quantization.range_table(graph)
    quantization.calibrate(graph, [images() * 50], recipe(observer))
    quantization.calibrate(graph, batches, recipe(observer))
    assert not quantization.diff_ranges(once, quantization.range_table(graph))


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_batch_names_the_first_tensor_that_it_reaches(observer: str, bad: float) -> None:
    graph = quantization.prepare(model(network()))
    broken = images()
    broken[3, 1, 2, 2] = bad
    with pytest.raises(QuantizationError, match=r"values of 'input' are not finite"):
        quantization.calibrate(graph, [images(), broken], recipe(observer))


def test_a_network_that_overflows_names_the_layer() -> None:
    net = network()
    nn.init.constant_(net[3].weight, 1e38)
    graph = quantization.prepare(model(net))
    with pytest.raises(QuantizationError, match=r"values of '3:conv2d' are not finite"):
        quantization.calibrate(graph, [images() * 1e3], recipe("mse"))


@pytest.mark.parametrize("observer", OBSERVERS)
def test_no_batch_is_refused(observer: str) -> None:
    graph = quantization.prepare(model(network()))
    with pytest.raises(QuantizationError, match="no batch"):
        quantization.calibrate(graph, [], recipe(observer))


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_dead_channel_and_a_dead_layer_work(observer: str) -> None:
    net = network()
    net[0].weight.data[2] = 0
    net[0].bias.data[2] = 0
    net[3].weight.data.zero_()
    net[3].bias.data.zero_()
    source = model(net)
    graph = quantization.prepare(source)
    quantization.calibrate(graph, [images()], recipe(observer))
    program = quantization.convert(graph, source, images())
    assert not program.program(images()).any()


# --- memory ---

_MEASURE = """
import resource, sys
import torch
sys.path.insert(0, {folder!r})
import test_quantization_calibration as here
from edgeft import quantization

graph = quantization.prepare(here.model(here.wide()))
batches = (torch.randn(8, 3, 64, 64) for _ in range(int(sys.argv[1]) // 8))
wanted = here.recipe(sys.argv[2])
quantization.calibrate(graph, batches, wanted)
quantization.correct_biases(graph, (torch.randn(8, 3, 64, 64) for _ in range(int(sys.argv[1]) // 8)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@pytest.mark.slow
@pytest.mark.parametrize("observer", ["moving-average", "mse"])
def test_peak_memory_does_not_grow_with_the_samples(observer: str) -> None:
    script = _MEASURE.format(folder=str(Path(__file__).parent))

    def peak(samples: int) -> int:
        command = [sys.executable, "-c", script, str(samples), observer]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak(1024) <= 1.1 * peak(64)


def test_batches_are_taken_one_by_one() -> None:
    graph = quantization.prepare(model(network()))
    alive: list[int] = []

    def batches() -> Iterator[torch.Tensor]:
        for index in range(5):
            alive.append(index)
            yield images(4, index)

    told: list[int] = []
    quantization.calibrate(graph, batches(), recipe("mse"), progress=lambda *_, **__: told.append(len(alive)))
    assert told == [1, 2, 3, 4, 5]
