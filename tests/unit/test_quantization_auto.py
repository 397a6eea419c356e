"""Accuracy-aware quantization on a network whose difficulty is known: one range that nothing but float saves."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edgeft import calibration, stages
from edgeft.errors import BudgetError, ConfigError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization import Sensitivity
from edgeft.recipe import Quantize
from edgeft.stages.accuracy_aware import Attempt, Limit, Means, Search, exceeds
from edgeft.types import FloatModel

SIZE = 8
LAYERS = ("one", "two", "three", "head")


class Net(nn.Module):
    """Bright upper half or bright lower half, from averages that are a thousandth of the largest value."""

    def __init__(self, outlier: float) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 4, 1)
        self.two = nn.Conv2d(4, 4, 1)
        self.three = nn.Conv2d(4, 2, 1)
        self.head = nn.Linear(2 * SIZE * SIZE, 2)
        with torch.no_grad():
            for layer in (self.one, self.two, self.three):
                layer.weight.fill_(0.0)
                layer.bias.fill_(0.0)
                for channel in range(min(layer.weight.shape[:2])):
                    layer.weight[channel, channel] = 1.0
            self.one.bias[3] = outlier  # one range holds all channels, and nobody reads this one
            half = SIZE * SIZE // 2
            sign = torch.cat([torch.ones(half), -torch.ones(half)]).repeat(2) / half
            self.head.weight.copy_(torch.stack([sign, -sign]))
            self.two.weight[3, 3] = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(self.three(self.two(self.one(x))), 1))


def model(outlier: float) -> FloatModel:
    picture = ImagePreprocessing(size=SIZE, resize=SIZE, channels=1, mean=(0.0,), std=(1.0,))
    return FloatModel(module=Net(outlier).eval(), preprocessing=picture, labels=("up", "down"))


def batches(count: int, seed: int = 0) -> DataLoader:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.uniform(-0.2, 0.2, (count, 1, SIZE, SIZE)).astype(np.float32)
    images[labels == 0, :, : SIZE // 2] += 0.1
    images[labels == 1, :, SIZE // 2 :] += 0.1
    return DataLoader(TensorDataset(torch.from_numpy(images), torch.from_numpy(labels)), batch_size=16)


def quantize(outlier: float, **settings):
    few = calibration.load("minmax").model_copy(update={"samples": 32})
    config = {"epochs": 1, "learning_rate": 1e-9, "augment": "none"} | settings
    return stages.quantize(model(outlier), batches(32), batches(64, seed=1), calibration=few, **config)


def test_ptq_is_enough_for_a_kind_network():
    program = quantize(0.0, method="auto")
    results = program.history[-1].results
    assert (results["method"], results["float_layers"]) == ("ptq", [])
    assert [attempt["method"] for attempt in results["attempts"]] == ["ptq"]
    assert results["val_samples"] == 64
    assert program.history[-1].config["max_accuracy_drop"] == 0.01


def test_the_layers_around_a_bad_range_go_back_to_float_and_no_other():
    program = quantize(1000.0, method="auto")
    results = program.history[-1].results
    assert set(results["float_layers"]) == {"one", "two"}
    assert set(program.float_ops) == {"one", "two"}
    assert [layer.name for layer in program.layers] == ["three", "head"]
    assert results["val_accuracy_float"] - results["val_accuracy"] <= 0.01
    first, second, *rest = results["attempts"]
    assert (first["method"], second["method"]) == ("ptq", "qat")
    assert not first["holds"] and not second["holds"] and first["drop"] > 0.1
    assert all(attempt["float_layers"] for attempt in rest)
    assert {each["layer"] for each in results["sensitivity"]} == set(LAYERS)
    worst = sorted(results["sensitivity"], key=lambda each: -each["kl"])[:2]
    assert {each["layer"] for each in worst} == {"one", "two"}


def test_named_layers_are_float_from_the_start():
    program = quantize(1000.0, method="ptq", float_layers=["one", "t*o"])
    assert set(program.float_ops) == {"one", "two"}
    assert program.history[-1].results["float_layers"] == ["one", "two"]
    assert program.history[-1].results["val_accuracy"] > 0.95


def test_a_missed_limit_says_how_close_it_came():
    with pytest.raises(
        BudgetError, match=r"max_accuracy_drop = 0.01.*the ptq program loses 0\.\d+.*64 samples"
    ):
        quantize(1000.0, method="ptq", max_accuracy_drop=0.01)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["thre"], r"'thre' \(did you mean 'three'\?\)"), (["*"], "leaves no layer in int8")],
)
def test_names_that_cannot_be_meant_are_refused(names, message):
    with pytest.raises(ConfigError, match=message):
        quantize(0.0, method="ptq", float_layers=names)


def test_float_layers_and_an_integer_device_exclude_each_other():
    with pytest.raises(ConfigError, match="integer ops only"):
        quantize(0.0, method="ptq", float_layers=["one"], full_integer=True)
    with pytest.raises(BudgetError, match=r"integer ops only.*closest is (ptq|qat), which loses"):
        quantize(1000.0, method="auto", full_integer=True)


def test_a_limit_is_met_by_as_many_samples_as_it_names():
    assert not exceeds(0.99 - 0.98, 0.01)
    assert exceeds(3 / 200, 0.01)


def search(needed: set[str], layers: tuple[str, ...]) -> Search:
    """Return a search over a network of `layers` that holds if and only if `needed` are in float."""

    def rank(_):
        zero = {"mse": 0.0, "sqnr_db": 0.0, "mac_share": 0.1, "range_use": 1.0}
        return tuple(Sensitivity(layer=name, kl=len(layers) - i, **zero) for i, name in enumerate(layers))

    means = Means(convert=lambda *_: None, count_right=lambda _: 0, train=lambda _: (), rank=rank)
    looking = Search(means, Limit(drop=0.01, float_right=100, samples=100), may_mix=True)

    def attempt(method, graph, tried=(), *, started=None):
        holds = needed <= set(tried)
        drop = 0.0 if holds else 0.5
        result = Attempt(
            method=method,
            float_layers=tuple(tried),
            val_accuracy=1 - drop,
            drop=drop,
            holds=holds,
            seconds=0.0,
        )
        looking._attempts.append(result)
        if holds:
            looking._held = (None, result)
        return holds

    looking._try = attempt  # the order of the search, apart from any network
    return looking


@pytest.mark.parametrize(
    "needed", [{"a"}, {"b"}, {"h"}, {"a", "c"}, {"b", "f", "g"}, set("abcdefgh"), {"a", "b", "c", "d", "e"}]
)
def test_the_search_finds_just_the_needed_layers(needed, monkeypatch):
    from edgeft import quantization

    monkeypatch.setattr(quantization, "copy_graph", lambda graph: graph)
    found = search(needed, tuple("abcdefghijklmnop")).run(None)
    assert set(found.chosen.float_layers) == needed
    prefix = max(ord(name) for name in needed) - ord("a") + 1
    assert len(found.attempts) <= 2 + 2 * prefix.bit_length() + 1 + prefix


def test_a_network_that_needs_all_layers_in_float_is_refused(monkeypatch):
    from edgeft import quantization

    monkeypatch.setattr(quantization, "copy_graph", lambda graph: graph)
    for layers in ("abcde", "ab", "a"):
        with pytest.raises(BudgetError, match=rf"up to {len(layers) - 1} of {len(layers)} layers"):
            search(set(layers), tuple(layers)).run(None)


def test_auto_has_a_limit_by_default():
    assert Quantize(method="auto").max_accuracy_drop == 0.01
    assert Quantize(method="auto", max_accuracy_drop=0.02).max_accuracy_drop == 0.02
    assert Quantize(method="ptq").max_accuracy_drop is None


def test_sensitivity_needs_no_training():
    few = calibration.load("minmax").model_copy(update={"samples": 32})
    source = model(1000.0)
    found = stages.measure_sensitivity(source, batches(32), batches(64, seed=1), calibration=few)
    assert [each.layer for each in found] == list(LAYERS)
    assert dataclasses.asdict(found[0]).keys() == {"layer", "kl", "mse", "sqnr_db", "mac_share", "range_use"}
