"""The LiteRT adapter on a file built from the flatbuffer schema, and on a real one where it is at hand."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeft import measure, target
from edgeft.errors import MeasurementError
from edgeft.types import ExportedArtifact, QuantCoverage, TensorSpec

pytest.importorskip("ai_edge_litert")
import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

SIZE, CLASSES = 6, 4
IN_SCALE, IN_ZERO, OUT_SCALE, OUT_ZERO = 1 / 32, 5, 1 / 8, -7
RNG = np.random.default_rng(11)
WEIGHT = RNG.integers(-127, 128, (CLASSES, SIZE, SIZE, 3)).astype(np.int8)  # O, H, W, I
WEIGHT_SCALE = np.float32(1 / 2048) * np.array([1, 0.5, 2, 1], np.float32)
BIAS = RNG.integers(-5000, 5000, CLASSES).astype(np.int32)
PROFILE = target.load("cpu-litert")


def write_model(path: Path, *, int8: bool) -> None:
    """Write conv over the whole image, then reshape to (1, K)."""
    buffers = [schema.BufferT()]
    tensors = []

    def tensor(name, shape, kind, data=None, scale=None, zero=0, axis=0) -> int:
        quantization = None
        if scale is not None and int8:
            scales = np.atleast_1d(np.float32(scale))
            quantization = schema.QuantizationParametersT(
                scale=scales, zeroPoint=np.full(len(scales), zero, np.int64), quantizedDimension=axis
            )
        if data is not None:
            buffers.append(schema.BufferT(data=np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)))
        tensors.append(
            schema.TensorT(
                shape=np.array(shape, np.int32),
                type=kind,
                buffer=len(buffers) - 1 if data is not None else 0,
                name=name,
                quantization=quantization,
            )
        )
        return len(tensors) - 1

    kinds = schema.TensorType
    real = kinds.INT8 if int8 else kinds.FLOAT32
    weight = WEIGHT if int8 else WEIGHT * WEIGHT_SCALE[:, None, None, None]
    bias = BIAS if int8 else (BIAS * WEIGHT_SCALE * np.float32(IN_SCALE)).astype(np.float32)
    x = tensor("x", (1, SIZE, SIZE, 3), real, None, IN_SCALE, IN_ZERO)
    w = tensor("w", WEIGHT.shape, real, weight, WEIGHT_SCALE)
    b = tensor("b", BIAS.shape, kinds.INT32 if int8 else kinds.FLOAT32, bias, WEIGHT_SCALE * IN_SCALE)
    c = tensor("c", (1, 1, 1, CLASSES), real, None, OUT_SCALE, OUT_ZERO)
    shape = tensor("shape", (2,), kinds.INT32, np.array([1, CLASSES], np.int32))
    y = tensor("y", (1, CLASSES), real, None, OUT_SCALE, OUT_ZERO)
    ops = schema.BuiltinOperator
    conv = schema.OperatorT(
        opcodeIndex=0,
        inputs=np.array([x, w, b], np.int32),
        outputs=np.array([c], np.int32),
        builtinOptionsType=schema.BuiltinOptions.Conv2DOptions,
        builtinOptions=schema.Conv2DOptionsT(padding=schema.Padding.VALID, strideW=1, strideH=1),
    )
    reshape = schema.OperatorT(
        opcodeIndex=1, inputs=np.array([c, shape], np.int32), outputs=np.array([y], np.int32)
    )
    codes = [schema.OperatorCodeT(builtinCode=o, deprecatedBuiltinCode=o, version=3) for o in (ops.CONV_2D,)]
    codes.append(schema.OperatorCodeT(builtinCode=ops.RESHAPE, deprecatedBuiltinCode=ops.RESHAPE, version=1))
    graph = schema.SubGraphT(
        tensors=tensors,
        inputs=np.array([x], np.int32),
        outputs=np.array([y], np.int32),
        operators=[conv, reshape],
    )
    model = schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers)
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def spec(details: dict, layout: str) -> TensorSpec:
    return TensorSpec(
        name=details["name"],
        shape=tuple(int(d) for d in details["shape"]),
        dtype=np.dtype(details["dtype"]).name,
        layout=layout,
        scale=float(details["quantization"][0]),
        zero_point=int(details["quantization"][1]),
    )


def artifact(path: Path, scheme: str) -> ExportedArtifact:
    interpreter = Interpreter(model_path=str(path))
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    return ExportedArtifact(
        path=path,
        files=(path,),
        format="tflite",
        scheme=scheme,
        sha256={},
        size_bytes=path.stat().st_size,
        coverage=QuantCoverage(mac_ops=1, int8_mac_ops=int(scheme == "int8")),
        inputs=(spec(source, "nhwc" if len(source["shape"]) == 4 else "nk"),),
        outputs=(spec(sink, "nk"),),
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, ExportedArtifact]:
    folder, made = tmp_path_factory.mktemp("tflite"), {}
    for scheme in ("float32", "int8"):
        write_model(folder / f"{scheme}.tflite", int8=scheme == "int8")
        made[scheme] = artifact(folder / f"{scheme}.tflite", scheme)
    return made


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(3).uniform(-2, 2, (9, 3, SIZE, SIZE)).astype(np.float32)


def accumulators(x: np.ndarray) -> np.ndarray:
    return np.einsum("nchw,ohwc->no", x.astype(np.float64), WEIGHT.astype(np.float64))


def test_int8_input_and_output_agree_with_integer_numpy(files, inputs):
    logits, report = measure.predict(files["int8"], PROFILE, inputs)
    q = np.clip(np.rint(inputs / IN_SCALE) + IN_ZERO, -128, 127) - IN_ZERO
    wanted = (accumulators(q) + BIAS) * IN_SCALE * WEIGHT_SCALE / OUT_SCALE
    wanted = (np.clip(np.rint(wanted) + OUT_ZERO, -128, 127) - OUT_ZERO) * OUT_SCALE
    assert len(np.unique(wanted)) > 10
    assert np.abs(logits - wanted).max() <= OUT_SCALE  # kernels may round a tie the other way
    assert measure.parity(logits, wanted.astype(np.float32), OUT_SCALE).mean_lsb < 0.1
    assert report.mac_precision == {"int8": 1}
    assert report.device == "cpu (XNNPACK)" and report.partitions == 1
    assert report.details["outside_delegate"] == []


def test_a_float_file_agrees_with_numpy(files, inputs):
    logits, report = measure.predict(files["float32"], PROFILE, inputs)
    wanted = (accumulators(inputs) + BIAS * IN_SCALE) * WEIGHT_SCALE
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    assert report.mac_precision == {"float32": 1}


def test_reference_kernels_run_outside_of_any_delegate(files, inputs):
    logits, report = measure.predict(files["int8"], PROFILE, inputs, options={"kernels": "reference"})
    assert logits.shape == (9, CLASSES)
    assert report.partitions == 0 and report.details["outside_delegate"] == ["CONV_2D", "RESHAPE"]


def test_what_the_request_says_must_be_true(files, inputs):
    made = files["int8"]
    other_scale = replace(made, inputs=(replace(made.inputs[0], scale=1.0),))
    with pytest.raises(MeasurementError, match="scale and zero point"):
        measure.predict(other_scale, PROFILE, inputs)
    other_type = replace(made, outputs=(replace(made.outputs[0], dtype="float32"),))
    with pytest.raises(MeasurementError, match="output is int8, the artifact says float32"):
        measure.predict(other_type, PROFILE, inputs)


@pytest.mark.parametrize("options", [{"kernels": "fast"}, {"no_such_option": "1"}])
def test_unknown_options_are_refused(files, inputs, options):
    with pytest.raises(MeasurementError, match="the one allowed is kernels"):
        measure.predict(files["int8"], PROFILE, inputs, options=options)


@pytest.mark.data
@pytest.mark.skipif(
    "EDGEFT_TEST_DATA" not in os.environ, reason="EDGEFT_TEST_DATA names the optional data folder"
)
def test_partitions_and_what_lies_between_them_are_told_on_a_real_file():
    path = Path(os.environ["EDGEFT_TEST_DATA"]) / "mlperf_tiny" / "ic_resnet8_int8.tflite"
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32)).astype(np.float32)
    _, report = measure.predict(artifact(path, "int8"), PROFILE, images)
    assert report.mac_precision == {"int8": 10}
    assert report.partitions == 2
    assert report.details["outside_delegate"] == ["AVERAGE_POOL_2D", "SOFTMAX"]
