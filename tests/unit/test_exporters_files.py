"""Nothing that needs a converter: the comparison of a file's numbers with the program's."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from edgeft.errors import ExportError
from edgeft.exporters.check import FileLayer, check_layers
from edgeft.preprocessing import ImagePreprocessing
from edgeft.types import ActivationQuant, QuantLayer, QuantModel

INPUT = ActivationQuant(name="input", scale=0.5, zero_point=3)
OUTPUT = ActivationQuant(name="output", scale=0.25, zero_point=-128)


def program() -> QuantModel:
    weights = np.arange(-6, 6, dtype=np.int8).reshape(2, 6)
    layers = tuple(
        QuantLayer(
            name=name,
            op="linear",
            weight=weight,
            weight_scale=np.float32([0.1, 0.2]),
            bias=np.int32([7, -9]),
            input=INPUT,
            output=OUTPUT,
        )
        for name, weight in (("first", weights), ("second", weights[:, ::-1].copy()))
    )
    return QuantModel(
        program=fx.GraphModule(torch.nn.Module(), fx.Graph()),
        layers=layers,
        activations=(INPUT, OUTPUT),
        float_ops=(),
        output=OUTPUT,
        preprocessing=ImagePreprocessing(size=4, resize=4, channels=1, mean=(0.0,), std=(1.0,)),
        labels=("a", "b"),
    )


def as_in_file(layer: QuantLayer, **changes: Any) -> FileLayer:
    scale = np.float32(layer.input.scale) * layer.weight_scale
    found = FileLayer(
        name=f"op of {layer.name}",
        weight=layer.weight,
        weight_scale=layer.weight_scale,
        bias=layer.bias,
        input_scale=layer.input.scale,
        input_zero_point=layer.input.zero_point,
        weight_zero_points=np.zeros(2, np.int8),
        bias_scale=scale,
    )
    return dataclasses.replace(found, **changes)


ACTIVATIONS = [(0.5, 3), (0.25, -128)]


def check(
    model: QuantModel, *layers: FileLayer, float_ops: tuple[str, ...] = (), activations: Any = None
) -> Any:
    return check_layers(model, layers, float_ops, activations or ACTIVATIONS, file="model.x")


def test_equal_numbers_pass_in_any_order() -> None:
    model = program()
    coverage = check(model, *[as_in_file(layer) for layer in reversed(model.layers)])
    assert (coverage.mac_ops, coverage.int8_mac_ops, coverage.float_ops) == (2, 2, ())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"bias": np.int32([7, -8])}, "bias of channel 1 is -8, the program has -9"),
        ({"bias": None}, "bias of channel 0 is 0"),
        ({"weight_scale": np.float32([0.1, 0.1])}, "weight scales"),
        ({"weight_zero_points": np.int8([0, 1])}, "zero point other than 0"),
        ({"input_scale": 0.5000001}, "input scale"),
        ({"input_zero_point": 4}, "input zero point"),
        ({"bias_scale": np.float32([0.05, 0.05])}, "bias scales"),
    ],
)
def test_any_other_number_is_refused_by_layer(changes: dict[str, Any], what: str) -> None:
    model = program()
    with pytest.raises(ExportError, match=f"'second'.*{what}"):
        check(model, as_in_file(model.layers[0]), as_in_file(model.layers[1], **changes))


def test_a_weight_that_differs_is_refused_by_layer() -> None:
    model = program()
    weight = model.layers[1].weight.copy()
    weight[1, 2] += 1
    with pytest.raises(ExportError, match="'second'"):
        check(model, as_in_file(model.layers[0]), as_in_file(model.layers[1], weight=weight))


@pytest.mark.parametrize("float_ops", [(), ("Conv_7",), ("Conv_7", "MatMul_9")])
def test_a_missing_layer_is_refused_whatever_else_is_in_float(float_ops: tuple[str, ...]) -> None:
    model = program()
    with pytest.raises(ExportError, match="'second'"):
        check(model, as_in_file(model.layers[0]), float_ops=float_ops)


def test_a_doubled_layer_is_refused() -> None:
    model = program()
    layers = [as_in_file(layer) for layer in (*model.layers, model.layers[0])]
    with pytest.raises(ExportError, match="op of first"):
        check(model, *layers)


@pytest.mark.parametrize("activations", [[(0.5, 3)], [(0.5, 3), (0.25, -127)], [(0.5, 3), (0.2500001, -128)]])
def test_an_activation_that_went_missing_is_refused_by_its_layer(activations: Any) -> None:
    model = program()
    with pytest.raises(ExportError, match="the output of layer 'first'"):
        check(model, *[as_in_file(layer) for layer in model.layers], activations=activations)


def test_an_activation_too_many_is_refused() -> None:
    model = program()
    with pytest.raises(ExportError, match="quantized otherwise"):
        check(model, *[as_in_file(layer) for layer in model.layers], activations=[*ACTIVATIONS, (0.125, 0)])
