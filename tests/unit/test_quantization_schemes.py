"""Programs whose weights alone are integers or fp16 numbers, and the settings that ask for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeft import exporters, quantization, schema, target
from edgeft.errors import BudgetError, ConfigError, QuantizationError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization.weight_only import dynamic_fake_quant
from edgeft.recipe import Quantize
from edgeft.stages.shrinking import shrink_weights
from edgeft.target import Numerics
from edgeft.types import FloatModel


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.per_pixel = nn.Linear(4, 4)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).permute(0, 2, 3, 1)
        rows = self.per_pixel(x.reshape(-1, 4))  # a row per pixel: no longer one per sample
        return self.head(rows.reshape(x.shape[0], -1))


@pytest.fixture
def model() -> FloatModel:
    torch.manual_seed(0)
    picture = ImagePreprocessing(size=8, resize=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    return FloatModel(module=Net().eval(), preprocessing=picture, labels=("a", "b", "c"))


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_fp16_rounds_matrices_and_spares_vectors(model: FloatModel):
    before = {name: value.clone() for name, value in model.module.named_parameters()}
    after = dict(quantization.halve_weights(model).program.named_parameters())
    for name, value in before.items():
        wanted = value.half().float() if value.dim() >= 2 else value
        assert torch.equal(after[name], wanted)
        assert torch.equal(dict(model.module.named_parameters())[name], value), (
            "the caller's model was changed"
        )


def test_a_weight_beyond_fp16_is_named(model: FloatModel):
    model.module.conv.weight.data[0, 0, 0, 0] = 1e5
    with pytest.raises(QuantizationError, match=r"'conv\.weight' reaches 1e\+05; fp16 ends at 65,504"):
        quantization.halve_weights(model)


@pytest.mark.parametrize("limit", [127, 63])
def test_integer_weights_are_the_contracts(model: FloatModel, batch: torch.Tensor, limit: int):
    numerics = Numerics(weight_range="half" if limit == 63 else "full")
    program = quantization.quantize_weights(model, numerics=numerics)
    assert [layer.name for layer in program.layers] == ["conv", "per_pixel", "head"]
    assert program.float_ops == ("conv", "per_pixel", "head")  # which is what they compute in
    for layer in program.layers:
        weight = model.module.get_parameter(f"{layer.name}.weight").detach().numpy()
        assert np.abs(layer.weight.astype(int)).max() == limit
        scale = layer.weight_scale.reshape(-1, *[1] * (weight.ndim - 1))
        assert (np.abs(layer.weight * scale - weight) <= 0.5001 * scale).all()
    rounded = Net().eval()
    rounded.load_state_dict(model.module.state_dict())
    for layer in program.layers:
        scale = layer.weight_scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
        rounded.get_parameter(f"{layer.name}.weight").data = torch.from_numpy(layer.weight * scale)
    with torch.inference_mode():
        torch.testing.assert_close(program.program(batch), rounded(batch), rtol=0, atol=1e-6)


def dynamic_quantize_linear(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Return what the ONNX operator's specification makes of a tensor, dequantized."""
    low, high = min(0, x.min()), max(0, x.max())
    scale = np.float32((high - low) / np.float32(255)) if high > low else np.float32(1)
    zero_point = np.rint(np.clip(-low / scale, 0, 255))
    return (np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point) * scale


@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (5.0, 1.0), (-5.0, 1.0), (0.0, 0.0), (0.0, 1e-4)])
def test_dynamic_rounding_follows_the_operators_specification(offset: float, spread: float):
    x = (np.random.default_rng(0).normal(size=(3, 7, 11)) * spread + offset).astype(np.float32)
    got = dynamic_fake_quant(torch.from_numpy(x)).numpy()
    for sample, rounded in zip(x, got, strict=True):
        np.testing.assert_allclose(rounded, dynamic_quantize_linear(sample), rtol=1e-6, atol=1e-12)


def test_dynamic_ranges_are_those_of_one_sample(model: FloatModel, batch: torch.Tensor):
    program = quantization.quantize_weights(model, dynamic=True)
    # A row per pixel cannot be told from a row per sample when the layer runs: that layer stays float, by name.
    assert [layer.name for layer in program.layers] == ["head"]
    assert program.float_ops == ("conv", "per_pixel")
    with torch.inference_mode():
        together = program.program(batch)
        alone = torch.cat([program.program(sample[None]) for sample in batch])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_network_without_linear_layers_has_nothing_dynamic():
    picture = ImagePreprocessing(size=8, resize=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    net = nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()).eval()
    model = FloatModel(module=net, preprocessing=picture, labels=("a", "b", "c"))
    with pytest.raises(QuantizationError, match="has no linear layer"):
        quantization.quantize_weights(model, dynamic=True)


@pytest.mark.parametrize("scheme", ["float16", "int8-weights", "int8-dynamic"])
def test_programs_survive_a_round_trip(model: FloatModel, batch: torch.Tensor, scheme: str, tmp_path: Path):
    program = (
        quantization.halve_weights(model)
        if scheme == "float16"
        else quantization.quantize_weights(model, dynamic=scheme == "int8-dynamic")
    )
    quantization.save(program, tmp_path)
    loaded = quantization.load(tmp_path, model)
    assert (loaded.scheme, loaded.float_ops) == (scheme, program.float_ops)
    for before, after in zip(program.layers, loaded.layers, strict=True):
        assert before.name == after.name
        np.testing.assert_array_equal(before.weight, after.weight)
        np.testing.assert_array_equal(before.weight_scale, after.weight_scale)
    with torch.inference_mode():
        assert torch.equal(loaded.program(batch), program.program(batch))


# -- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["fp16", "int8-weights", "int8-dynamic"])
def test_schemes_without_training_have_no_method(scheme: str):
    config = schema.validate({"scheme": scheme}, Quantize, "test")
    assert config.method == "none"
    assert not config.calibrates
    assert schema.validate(config.model_dump(exclude_none=True), Quantize, "again") == config


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "qat"},
        {"method": "auto"},
        {"engine": "neural-compressor"},
        {"calibration": "minmax"},
        {"float_layers": ["conv"]},
        {"scales": "learned"},
        {"observe_epochs": 1},
    ],
)
def test_settings_that_a_scheme_would_ignore_are_refused(settings: dict[str, object]):
    with pytest.raises(
        ConfigError, match=f"needs neither training nor calibration: leave out {next(iter(settings))}"
    ):
        schema.validate({"scheme": "fp16", **settings}, Quantize, "test")


def test_int8_needs_a_method():
    with pytest.raises(ConfigError, match='method = "none" goes with'):
        schema.validate({"method": "none"}, Quantize, "test")
    assert schema.validate({}, Quantize, "test").method == "qat"


def test_a_full_integer_target_refuses_float_computation():
    shipped = target.load("cpu-litert")
    precision = shipped.precision.model_copy(update={"full_integer": True})
    profile = shipped.model_copy(update={"precision": precision})
    exporters.require_scheme(profile, "int8")
    with pytest.raises(ConfigError, match="runs integers only; scheme 'float16'"):
        exporters.require_scheme(profile, "float16")


def test_dynamic_needs_batches_of_one():
    shipped = target.load("cpu-onnxruntime")
    profile = shipped.model_copy(update={"export": shipped.export.model_copy(update={"batch": 2})})
    with pytest.raises(ConfigError, match="one range for the whole batch"):
        exporters.require_scheme(profile, "int8-dynamic")


def test_a_missed_accuracy_says_by_how_much(model: FloatModel):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3, bias=False)).eval()
    net[1].weight.data.zero_()
    net[1].weight.data[:, 0] = 127.0  # so that a step is 1
    net[1].weight.data[1, 1] = 0.4  # and this, which decides, rounds to 0
    x = torch.zeros(4, 3, 8, 8)
    x[:, 0, 0, 1] = 1.0
    val = [(x, torch.ones(4, dtype=torch.int64))]
    weak = dataclasses.replace(model, module=net)
    config = schema.validate({"scheme": "int8-weights", "max_accuracy_drop": 0.5}, Quantize, "test")
    with pytest.raises(
        BudgetError, match=r"the int8-weights program loses 1\.0000 .* \(1\.0000 -> 0\.0000\)"
    ):
        shrink_weights(weak, val, config)
    half = schema.validate({"scheme": "fp16", "max_accuracy_drop": 0.5}, Quantize, "test")
    assert shrink_weights(weak, val, half).history[-1].results["val_accuracy"] == 1.0
