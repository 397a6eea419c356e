"""Exported files: one changed number is refused, two exports are equal bytes, and the metadata comes back."""

from __future__ import annotations

import functools
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from onnx import numpy_helper
from torch import nn

from edgeft import calibration, exporters, quantization, target
from edgeft.errors import ExportError
from edgeft.exporters import onnx as onnx_exporter
from edgeft.exporters import openvino as openvino_exporter
from edgeft.exporters import tflite as tflite_exporter
from edgeft.preprocessing import ImagePreprocessing
from edgeft.types import ExportedArtifact, FloatModel, QuantModel

TARGETS = {"onnx": "cpu-onnxruntime", "openvino": "cpu-openvino", "tflite": "cpu-litert"}
CHECKS: dict[str, Callable[[QuantModel, Path], Any]] = {
    "onnx": onnx_exporter.check,
    "openvino": openvino_exporter.check,
    "tflite": tflite_exporter.check,
}
FORMATS = tuple(TARGETS)
LABELS = ("äpfel", 'quoted "b"', "c")


@functools.cache
def program() -> QuantModel:
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("first", nn.Conv2d(3, 5, 3))
    network.add_module("clamp", nn.ReLU())
    network.add_module("second", nn.Conv2d(5, 3, 3))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flat", nn.Flatten())
    picture = ImagePreprocessing(size=8, resize=9, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
    model = FloatModel(module=network.eval(), preprocessing=picture, labels=LABELS)
    graph = quantization.prepare(model)
    x = torch.rand(8, 3, 8, 8) * 2 - 1
    quantization.calibrate(graph, [x], calibration.load("minmax"))
    return quantization.convert(graph, model, x)


@functools.cache
def scratch() -> Path:
    # Kept by the cache: its folder goes with the process.
    folder = tempfile.TemporaryDirectory(prefix="exported-")
    KEPT.append(folder)
    return Path(folder.name)


KEPT: list[Any] = []


@functools.cache
def exported(format_: str, count: int = 0) -> ExportedArtifact:
    folder = scratch() / f"{format_}-{count}"
    folder.mkdir()
    return exporters.export(program(), target.load(TARGETS[format_]), folder)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """Return a copy of an exported file that may be spoiled."""

    def make(format_: str) -> Path:
        for file in exported(format_).files:
            shutil.copy(file, tmp_path / file.name)
        return tmp_path / exported(format_).path.name

    return make


# --- one changed number ---


def spoil_onnx(path: Path, what: str) -> None:
    model = onnx.load(path)
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    conv = [node for node in model.graph.node if node.op_type == "Conv"][1]
    data, weight, bias = (makers[name] for name in conv.input)
    name = {
        "weight": weight.input[0],
        "weight scale": weight.input[1],
        "weight zero point": weight.input[2],
        "bias": bias.input[0],
        "bias scale": bias.input[1],
        "scale": data.input[1],
        "zero point": data.input[2],
        "output scale": makers[model.graph.output[0].name].input[1],
    }.get(what)
    if name is None:  # the layer computes in float
        scales = arrays[weight.input[1]].reshape(-1, 1, 1, 1)
        values = (arrays[weight.input[0]].astype(np.float32) * scales).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, "in_float"))
        conv.input[1] = "in_float"
    else:
        bump(arrays[name])
        for tensor in model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(arrays[name], name))
    onnx.save(model, path)


def bump(values: Any) -> None:
    """Change one number: an integer by one, a float by a thousandth."""
    values.reshape(-1)[...] = values.reshape(-1)  # a view, also of a scalar
    if values.dtype.kind == "f":
        values.reshape(-1)[:1] *= np.float32(1.001)
    else:
        values.reshape(-1)[:1] += 1 if values.reshape(-1)[0] < 100 else -1


def spoil_openvino(path: Path, what: str) -> None:
    ops = openvino.Core().read_model(path).get_ordered_ops()
    conv = [op for op in ops if op.get_type_name() == "Convolution"][1]
    quantize = conv.input_value(0).get_node()
    multiply = conv.input_value(1).get_node()
    add = next(iter(conv.output(0).get_target_inputs())).get_node()
    last = [op for op in ops if op.get_type_name() == "FakeQuantize"][-1]

    def constant(node: Any) -> Any:
        while node.get_type_name() != "Constant":
            node = node.input_value(0).get_node()
        return node

    source = {
        "weight": lambda: constant(multiply.input_value(0).get_node()),
        "weight scale": lambda: constant(multiply.input_value(1).get_node()),
        "bias": lambda: constant(add.input_value(1).get_node()),
        "scale": lambda: constant(quantize.input_value(2).get_node()),
        "zero point": lambda: constant(quantize.input_value(1).get_node()),
        "output scale": lambda: constant(last.input_value(2).get_node()),
    }.get(what)
    if source is None:
        conv.input(0).replace_source_output(quantize.input_value(0))
        model = openvino.Model(ops[-1:] if ops[-1].get_type_name() == "Result" else [], [ops[0]])
    else:
        node = source()
        values = np.array(node.get_data())
        if what == "zero point":  # a range one step lower has its zero point one higher
            values = values - np.float32(program().layers[1].input.scale)
        else:
            bump(values)
        other = openvino.op.Constant(values)
        node.output(0).replace(other.output(0))
        results = [op for op in ops if op.get_type_name() == "Result"]
        model = openvino.Model(results, [op for op in ops if op.get_type_name() == "Parameter"])
    fresh = path.with_name("spoiled.xml")
    openvino.save_model(model, fresh, compress_to_fp16=False)
    fresh.rename(path)
    fresh.with_suffix(".bin").rename(path.with_suffix(".bin"))


def spoil_tflite(path: Path, what: str) -> None:
    import flatbuffers

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    code = schema.BuiltinOperator.CONV_2D
    convs = [op for op in graph.operators if model.operatorCodes[op.opcodeIndex].builtinCode == code]
    data, weight, bias = (graph.tensors[index] for index in convs[1].inputs)
    tensor = {"weight": weight, "bias": bias, "scale": data, "zero point": data}.get(what, weight)
    if what == "output scale":
        tensor = graph.tensors[graph.outputs[0]]
    if what in ("weight", "bias"):
        values = np.array(model.buffers[tensor.buffer].data, np.uint8).view(
            np.int8 if what == "weight" else np.int32
        )
        values = values.copy()
        bump(values)
        model.buffers[tensor.buffer].data = values.view(np.uint8)
    elif what == "zero point":
        tensor.quantization.zeroPoint = np.asarray(tensor.quantization.zeroPoint) + 1
    else:
        scales = np.asarray(tensor.quantization.scale, np.float32).copy()
        bump(scales)
        tensor.quantization.scale = scales
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


SPOIL = {"onnx": spoil_onnx, "openvino": spoil_openvino, "tflite": spoil_tflite}
COMMON = ("weight", "weight scale", "bias", "scale", "zero point", "output scale")
CHANGES = [(f, what) for f in FORMATS for what in COMMON] + [
    ("onnx", "in float"),
    ("onnx", "weight zero point"),
    ("onnx", "bias scale"),
]


@pytest.mark.parametrize("format_", FORMATS)
def test_an_untouched_copy_passes(copy: Callable[[str], Path], format_: str) -> None:
    assert CHECKS[format_](program(), copy(format_)) == exported(format_).coverage


@pytest.mark.parametrize(("format_", "what"), CHANGES)
def test_a_changed_number_is_refused_by_layer(copy: Callable[[str], Path], format_: str, what: str) -> None:
    path = copy(format_)
    before = path.read_bytes(), path.with_suffix(".bin").read_bytes() if format_ == "openvino" else b""
    SPOIL[format_](path, what)
    assert (
        path.read_bytes(),
        path.with_suffix(".bin").read_bytes() if format_ == "openvino" else b"",
    ) != before
    named = (
        "no activation has scale|an activation is quantized"
        if what == "output scale"
        else "'second'|layer 'first'"
    )
    with pytest.raises(ExportError, match=named):
        CHECKS[format_](program(), path)


# --- bytes and metadata ---


@pytest.mark.parametrize("format_", FORMATS)
def test_two_exports_are_equal_bytes_without_build_paths(format_: str) -> None:
    first, second = exported(format_), exported(format_, 1)
    assert first.sha256 == second.sha256
    for file in first.files:
        content = file.read_bytes()
        for text in (
            str(file.parent),
            tempfile.gettempdir() + "/",
            str(Path(__file__).parents[2]),
            "site-packages",
        ):
            assert text.encode() not in content, f"{file.name} carries {text}"
        assert not re.search(rb"/(home|root|usr|tmp)/[\w.-]+", content)


def metadata(format_: str, path: Path) -> dict[str, Any]:
    if format_ == "onnx":
        found = {item.key: item.value for item in onnx.load(path).metadata_props}
        return {key: json.loads(found[f"edgeft.{key}"]) for key in ("labels", "preprocess")}
    if format_ == "openvino":
        model = openvino.Core().read_model(path)
        return {
            key: json.loads(model.get_rt_info(["edgeft", key]).astype(str))
            for key in ("labels", "preprocess")
        }
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    named = {
        item.name.decode() if isinstance(item.name, bytes) else item.name: model.buffers[item.buffer].data
        for item in model.metadata
    }
    return {key: json.loads(bytes(named[f"edgeft.{key}"])) for key in ("labels", "preprocess")}


@pytest.mark.parametrize("format_", FORMATS)
def test_labels_and_preprocessing_come_back_from_the_file(format_: str) -> None:
    found = metadata(format_, exported(format_).path)
    assert tuple(found["labels"]) == LABELS
    assert ImagePreprocessing.from_dict(found["preprocess"]) == program().preprocessing
