"""Neural Compressor as the engine: its numbers survive, in the contract's spelling, up to the files of all runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from edgeft import calibration, exporters, measure, stages, target
from edgeft.errors import BudgetError, ConfigError, MissingDependencyError, QuantizationError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization import neural_compressor
from edgeft.quantization.capture import capture
from edgeft.quantization.program import DEQUANTIZE_WEIGHT, QUANTIZE, QUANTIZE_WEIGHT
from edgeft.target import Numerics
from edgeft.types import FloatModel, QuantModel, example_inputs

pytest.importorskip("neural_compressor")

SIZE = 12
PICTURE = ImagePreprocessing(size=SIZE, resize=SIZE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [torch.rand(8, 3, SIZE, SIZE, generator=GENERATOR) * 2 - 1 for _ in range(2)]


class Residual(nn.Module):
    """A stem, a residual block and a classifier: what a MobileNetV2 is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6())
        self.project = nn.Conv2d(16, 8, 1)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.classifier(x.mean([2, 3]))


def model(module: nn.Module | None = None) -> FloatModel:
    if module is None:
        torch.manual_seed(0)
        module = Residual()
    return FloatModel(module=module.eval(), preprocessing=PICTURE, labels=("a", "b", "c"))


def quantized(module: nn.Module | None = None, **settings: Any) -> QuantModel:
    return neural_compressor.quantize(model(module), BATCHES, **settings)


def their_own(module: nn.Module) -> GraphModule:
    """What Neural Compressor's documented calls make of the same graph, untouched."""
    api = pytest.importorskip("neural_compressor.torch.quantization")
    graph: Any = capture(module, example_inputs(PICTURE))
    graph._exported, graph.dynamic_shapes = True, None
    prepared = api.prepare(graph, api.get_default_static_config())
    with torch.inference_mode():
        for batch in BATCHES:
            prepared(batch)
    converted: GraphModule = api.convert(prepared)
    return converted


def test_scales_and_weights_are_neural_compressors() -> None:
    source = model()
    result, reference = neural_compressor.quantize(source, BATCHES), their_own(source.module)
    theirs = {(n.args[1], n.args[2] - 128) for n in reference.graph.nodes if n.target is QUANTIZE}
    ours = {(a.scale, a.zero_point) for a in result.activations}
    assert theirs < ours and len(ours - theirs) == 3, (
        "beside the block's last layer, the addition and the logits"
    )
    weights = [n for n in reference.graph.nodes if n.target is QUANTIZE_WEIGHT]
    lowest = 0
    for node, layer in zip(weights, result.layers, strict=True):
        values, scales = (getattr_dotted(reference, n.target).detach() for n in node.args[:2])
        shape = (-1, *[1] * (values.ndim - 1))
        integers = torch.clamp(torch.round(values * (1 / scales).reshape(shape)), -128, 127).int()
        lowest = min(lowest, int(integers.min()))
        np.testing.assert_array_equal(layer.weight_scale, scales.numpy())
        np.testing.assert_array_equal(layer.weight, integers.clamp(min=-127).numpy())
    assert lowest == -128, "or nothing was clipped"


def getattr_dotted(module: nn.Module, name: str) -> torch.Tensor:
    return module.get_parameter(name) if name in dict(module.named_parameters()) else module.get_buffer(name)


def test_what_ends_in_float_there_is_quantized_and_named() -> None:
    result = quantized()
    (record,) = result.history
    assert record.name == "neural-compressor"
    assert record.config == {"act_sym": False, "act_algo": "minmax"}
    assert record.results == {"trials": 1, "added_quantizers": ["project", "add", "classifier"]}
    assert result.output is not None and not result.float_ops
    assert all(layer.output is not None for layer in result.layers)


def test_the_program_stays_close_to_the_float_network() -> None:
    source = model()
    result = neural_compressor.quantize(source, BATCHES)
    with torch.inference_mode():
        expected, got = source.module(BATCHES[0]), result.program(BATCHES[0])
    assert result.output is not None
    assert float((got - expected).abs().max()) < 8 * result.output.scale


@pytest.mark.parametrize(
    "name", ["cpu-onnxruntime", "cpu-openvino", pytest.param("cpu-litert", marks=pytest.mark.slow)]
)
def test_every_runtime_computes_it_in_int8(name: str, tmp_path: Path) -> None:
    source = quantized()
    profile = target.load(name)
    artifact = exporters.export(source, profile, tmp_path)  # which checks every number of the file
    assert artifact.coverage.ratio == 1.0 and artifact.coverage.mac_ops == len(source.layers)
    images = torch.cat(BATCHES)
    logits, runtime = measure.predict(artifact, profile, images.numpy())
    assert runtime.mac_precision == {"int8": len(source.layers)}
    with torch.inference_mode():
        reference = source.program(images).numpy()
    assert source.output is not None
    assert measure.parity(logits, reference, source.output.scale).max_lsb <= 1.001


def test_autotune_stops_at_the_first_settings_that_hold_the_drop() -> None:
    scores: Iterator[float] = iter([0.9, 0.5, 0.88])
    result = quantized(evaluate=lambda program: next(scores), max_accuracy_drop=0.03)
    assert result.history[-1].results["trials"] == 2
    assert result.history[-1].config == {"act_sym": True, "act_algo": "minmax"}
    assert all(a.zero_point == -1 for a in result.activations), "what it calls symmetric: 127 of 255"


def test_autotune_returns_its_best_where_none_holds_the_drop() -> None:
    scores: Iterator[float] = iter([0.9, 0.5, 0.6, 0.7, 0.4])
    result = quantized(evaluate=lambda program: next(scores), max_accuracy_drop=0.0)
    assert result.history[-1].results["trials"] == 5, "four settings, and the best again"
    assert result.history[-1].config == {"act_sym": False, "act_algo": "kl"}


def test_autotune_scores_programs_that_keep_the_contract() -> None:
    seen: list[GraphModule] = []

    def evaluate(program: GraphModule) -> float:
        seen.append(program)
        return 1.0

    quantized(evaluate=evaluate, max_accuracy_drop=0.1)
    bounds = {n.args[4:6] for n in seen[-1].graph.nodes if n.target is DEQUANTIZE_WEIGHT}
    assert len(seen) == 2 and bounds == {(-127, 127)}


@pytest.mark.parametrize("other", [{"granularity": "per-tensor"}, {"symmetric_activations": True}])
def test_numerics_that_it_does_not_have_are_refused(other: dict[str, Any]) -> None:
    numerics = Numerics(**other)
    with pytest.raises(ConfigError, match=f"cannot make {numerics.name} numerics"):
        quantized(numerics=numerics)


def test_a_limit_without_a_way_to_score_is_refused() -> None:
    with pytest.raises(ConfigError, match="together or not at all"):
        quantized(max_accuracy_drop=0.01)
    with pytest.raises(QuantizationError, match="nothing to hold"):
        quantized(evaluate=lambda program: 0.0, max_accuracy_drop=0.01)


def test_a_dead_channel_keeps_its_bias() -> None:
    net = Residual()
    with torch.no_grad():
        net.project.weight[3] = 0.0
        net.project.bias.fill_(0.2)
        net.project.bias[3] = 40.0
    layer = next(layer for layer in quantized(net).layers if layer.name == "project")
    assert layer.bias is not None
    real = layer.bias[3] * layer.weight_scale[3] * layer.input.scale
    assert real == pytest.approx(40.0, rel=1e-6)
    assert abs(int(layer.bias[3])) <= 2**30 * 1.001


class Twice(nn.Module):
    """One layer with two input ranges."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(SIZE, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(4 * torch.relu(self.layer(x))).mean([1, 2]))


def test_a_layer_that_is_called_twice_has_a_bias_on_each_grid() -> None:
    layer = nn.Linear(SIZE, SIZE)
    first, second, _ = quantized(Twice(layer)).layers
    assert first.input.scale != second.input.scale
    for call in (first, second):
        assert call.bias is not None
        step = call.weight_scale.astype(np.float64) * call.input.scale
        np.testing.assert_array_less(np.abs(call.bias * step - layer.bias.detach().numpy()), step)


def test_a_network_that_it_refuses_is_one_error() -> None:
    with pytest.raises(
        QuantizationError, match="cannot quantize Twice: conv partition has more than one output"
    ):
        quantized(Twice(nn.Conv2d(3, 3, 3, padding=1)))


def test_what_it_leaves_in_float_stays_so_by_name() -> None:
    class Transposed(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 3, 2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.up(x))

    assert quantized(Transposed()).float_ops == ("up",)


LABELS = torch.arange(8) % 3
VALIDATION = [(BATCHES[0], LABELS)]


def staged(**settings: Any) -> QuantModel:
    recipe = calibration.load("minmax").model_copy(update={"samples": 16, **settings.pop("recipe", {})})
    settings = {"engine": "neural-compressor", "method": "ptq", **settings}
    return stages.quantize(model(), VALIDATION, VALIDATION, calibration=recipe, samples=BATCHES, **settings)


def test_the_stage_records_the_engine() -> None:
    (record,) = staged().history
    assert record.name == "quantize" and record.config["engine"] == "neural-compressor"
    assert record.results["neural_compressor"]["added_quantizers"] == ["project", "add", "classifier"]
    assert {"val_accuracy", "val_accuracy_float", "val_samples"} <= record.results.keys()
    own = record.results["own_engine"]
    assert 0.0 <= own["val_accuracy"] <= 1.0 and own["seconds"] > 0


def test_the_stage_tunes_within_its_limit_or_says_by_how_much_it_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (
        staged(method="auto", max_accuracy_drop=0.9).history[-1].results["neural_compressor"]["trials"] == 1
    )
    # The float network is right everywhere, its programs are not.
    answers = iter([(8, 8), (4, 8)])
    monkeypatch.setattr("edgeft.stages.second_engine.right_answers", lambda program, val: next(answers))
    with pytest.raises(
        BudgetError, match=r"loses 0\.5000 on the validation split \(1\.0000 -> 0\.5000; 8 samples"
    ):
        staged(max_accuracy_drop=0.01)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "qat"}, "does not train"),
        ({"float_layers": ["stem*"]}, "quantize.float_layers"),
        ({"scales": "learned"}, "quantize.scales"),
        ({"recipe": {"observer": "mse"}}, "observer of the calibration recipe"),
        ({"recipe": {"cross_layer_equalization": True}}, "cross_layer_equalization"),
    ],
)
def test_settings_of_the_other_engine_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        staged(**settings)


def test_nothing_is_printed_and_the_model_is_not_touched(capfd: pytest.CaptureFixture[str]) -> None:
    source = model()
    before = {name: value.clone() for name, value in source.module.state_dict().items()}
    told: list[str] = []
    neural_compressor.quantize(source, BATCHES, progress=lambda text, **_: told.append(text))
    assert capfd.readouterr() == ("", "")
    assert told == [f"Neural Compressor, trial 1, batch {n}" for n in (1, 2)]
    assert all(torch.equal(value, before[name]) for name, value in source.module.state_dict().items())


def test_its_absence_is_one_error_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeft.extras.is_installed", lambda module: module != "neural_compressor")
    with pytest.raises(MissingDependencyError, match="neural-compressor") as error:
        quantized()
    assert error.value.hint == "pip install 'edgeft[neural-compressor]'"
