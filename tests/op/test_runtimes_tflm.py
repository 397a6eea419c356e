"""The adapter of TensorFlow Lite Micro in a real worker, and the memory that it and the file tell of."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeft import measure, target
from edgeft.errors import MeasurementError
from edgeft.runtimes import tflm
from edgeft.types import QuantLayer

pytest.importorskip("tflite_micro")
import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from test_runtimes_litert import IN_SCALE, WEIGHT, WEIGHT_SCALE, artifact, write_model

PROFILE = target.load("mcu-tflm")
SIZE = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("tflm") / "int8.tflite"
    write_model(path, int8=True)
    return artifact(path, "int8")


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(3).uniform(-2, 2, (9, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def predicted(made, inputs):
    return measure.predict(made, PROFILE, inputs)


def changed(made, folder: Path, edit) -> object:
    """Return the artifact with its flatbuffer edited."""
    model = schema.ModelT.InitFromPackedBuf(made.path.read_bytes(), 0)
    edit(model)
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = folder / "changed.tflite"
    path.write_bytes(bytes(builder.Output()))
    return replace(made, path=path, files=(path,))


def test_its_answers_are_those_of_litert(made, inputs, predicted):
    """One convolution has one rounding, which both do in integers; `test_quantized_ops` holds both against numpy."""
    expected, _ = measure.predict(made, target.load("cpu-litert"), inputs)
    logits, report = predicted
    assert np.unique(expected).size > 10
    assert np.abs(logits - expected).max() <= made.outputs[0].scale
    assert report.mac_precision == {"int8": 1} and report.runtime == "tflite-micro"


def test_the_arena_is_the_smallest_that_the_runtime_loads_in(made, predicted):
    """It is more than what stays allocated, and one step less does not load."""
    details = predicted[1].details
    needed = details["arena_bytes"]
    assert needed >= details["planned_bytes"] + details["persistent_bytes"]
    assert tflm._loads(str(made.path), needed)
    assert not tflm._loads(str(made.path), needed - tflm._ALIGNMENT)
    assert not tflm._loads(str(made.path), 64)  # a segmentation fault, survived


def test_an_arena_that_is_too_small_grows(made, predicted, monkeypatch):
    needed = predicted[1].details["arena_bytes"]
    monkeypatch.setattr(tflm, "ARENAS", (needed - tflm._ALIGNMENT, 2 * needed))
    interpreter, allocated = tflm._load(str(made.path))
    assert interpreter.get_input_details(0)["shape"].tolist() == [1, SIZE, SIZE, 3]
    assert allocated["total"] == allocated["head"] + allocated["tail"]
    monkeypatch.setattr(tflm, "ARENAS", (needed - tflm._ALIGNMENT,))
    with pytest.raises(RuntimeError, match="bytes of tensors"):
        tflm._load(str(made.path))


def test_memory_is_the_arena_and_the_file_with_the_layers_by_name(made, predicted):
    layer = QuantLayer(
        name="features.conv",
        op="conv2d",
        weight=np.moveaxis(WEIGHT, -1, 1),
        weight_scale=WEIGHT_SCALE,
        bias=None,
        input=None,
        output=None,
    )
    memory = measure.memory.executed(made, predicted[1], [layer])
    assert memory.ram_layer == memory.flash_layer == "CONV_2D features.conv"
    assert memory.flash_bytes == made.path.stat().st_size
    convolution, reshape = measure.memory.operators(made.path, [layer])
    assert reshape.title == "RESHAPE y"
    assert (convolution.alive_bytes, convolution.macs) == (SIZE * SIZE * 3 + 4, SIZE * SIZE * 3 * 4)
    assert convolution.weight_bytes == WEIGHT.size + 4 * 4
    assert memory.ram_bytes > convolution.alive_bytes == measure.memory.activation_bytes(made.path)


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("a.MLP/torch.nn.modules.container.Sequential_features/b.Linear_0;;a.MLP/c", "features.0"),
        ("torch.nn.modules.linear.Linear_head;", "head"),
        ("__main__.ChannelLast;56", ""),
        ("serving_default_output_0_output", ""),
        ("model/conv2d_3/Relu;model/conv2d_3/BiasAdd", "model/conv2d_3/Relu"),
    ],
)
def test_layers_are_named_as_people_know_them(tensor, layer):
    assert measure.memory._readable(tensor) == layer


def test_an_operator_without_a_kernel_is_named(made, inputs, tmp_path):
    def to_gelu(model):
        for code in model.operatorCodes[1:]:
            code.builtinCode, code.deprecatedBuiltinCode = schema.BuiltinOperator.GELU, 127
        model.subgraphs[0].operators[1].inputs = model.subgraphs[0].operators[1].inputs[:1]

    with pytest.raises(MeasurementError, match="TensorFlow Lite Micro has no kernel of GELU") as caught:
        measure.predict(changed(made, tmp_path, to_gelu), PROFILE, inputs)
    assert "no section" not in caught.value.hint and "replace" in caught.value.hint


def test_a_truncated_file_is_refused(made, inputs, tmp_path):
    path = tmp_path / "half.tflite"
    path.write_bytes(made.path.read_bytes()[:-700])
    with pytest.raises(MeasurementError, match=r"half\.tflite"):
        measure.predict(replace(made, path=path, files=(path,)), PROFILE, inputs)


def test_what_the_request_says_must_be_true(made, inputs):
    other_scale = replace(made, inputs=(replace(made.inputs[0], scale=2 * IN_SCALE),))
    with pytest.raises(MeasurementError, match="scale and zero point"):
        measure.predict(other_scale, PROFILE, inputs)
    threads = PROFILE.model_copy(update={"runtime": PROFILE.runtime.model_copy(update={"threads": 2})})
    with pytest.raises(MeasurementError, match="with 1 thread"):
        measure.predict(made, threads, inputs)


@pytest.mark.data
@pytest.mark.skipif(
    "EDGEFT_TEST_DATA" not in os.environ, reason="EDGEFT_TEST_DATA names the optional data folder"
)
def test_the_planned_part_of_a_real_file_is_what_the_file_says():
    folder = Path(os.environ["EDGEFT_TEST_DATA"]) / "mlperf_tiny"
    path = folder / "ic_resnet8_int8.tflite"
    _, allocated = tflm._load(str(path))
    assert allocated["head"] == measure.memory.activation_bytes(path) == 49_152
    assert tflm.smallest_arena(str(path), allocated["total"]) == allocated["total"]
    # Activations of 768 bytes are less than the planner's own notes.
    _, allocated = tflm._load(str(folder / "ad01_int8.tflite"))
    assert (
        tflm.smallest_arena(str(folder / "ad01_int8.tflite"), allocated["total"]) > allocated["total"] + 150
    )
    fullest = max(measure.memory.operators(path), key=lambda each: each.alive_bytes)
    assert fullest.title == "CONV_2D model/batch_normalization_2/FusedBatchNormV3"
    assert fullest.macs == 32 * 32 * 16 * 9 * 16
