"""What stands in model files, edgeft's and others'; and damaged ones, which are one clear error each."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_packages import write_onnx, write_tiny

from edgeft import inspection, package
from edgeft.cli.main import main
from edgeft.errors import ExitCode, ModelError

MLPERF = Path(os.environ.get("EDGEFT_TEST_DATA", "")) / "mlperf_tiny"
with_data = pytest.mark.skipif(
    "EDGEFT_TEST_DATA" not in os.environ, reason="EDGEFT_TEST_DATA names no data folder"
)
INT8 = np.full((4, 3, 3, 3), 7, np.int8)


def _save(path: Path, nodes, constants, *, shape=(1, 3, 8, 8), metadata=None) -> Path:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def _integer_network(path: Path) -> Path:
    """An int8 convolution, a ReLU between quantizers, and a float convolution with int8 weights behind them."""
    node = helper.make_node
    return _save(
        path,
        [
            node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            node("DequantizeLinear", ["w", "ws"], ["wd"]),
            node("Conv", ["xd", "wd"], ["c"], name="first"),
            node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
            node("DequantizeLinear", ["cq", "s", "z"], ["cd"]),
            node("Relu", ["cd"], ["r"]),
            node("QuantizeLinear", ["r", "s", "z"], ["rq"]),
            node("DequantizeLinear", ["rq", "s", "z"], ["rd"]),
            node("Sigmoid", ["rd"], ["a"]),
            node("DequantizeLinear", ["v", "ws"], ["vd"]),
            node("Conv", ["a", "vd"], ["y"], name="second"),
        ],
        {
            "s": np.float32(0.02),
            "z": np.uint8(128),
            "w": INT8,
            "ws": np.float32(0.1),
            "v": np.full((2, 4, 1, 1), 3, np.int8),
        },
        shape=("batch", 3, 8, 8),
        metadata={"edgeft.labels": '["a", "b"]'},
    )


def test_onnx_ops_have_the_precision_that_the_quantizers_give_them(tmp_path: Path):
    found = inspection.inspect(_integer_network(tmp_path / "m.onnx"))
    assert found.ops["Conv"] == {"int8": 1, "int8-weights": 1}
    assert found.ops["Relu"] == {"int8": 1} and found.ops["Sigmoid"] == {"float32": 1}
    assert found.ops["QuantizeLinear"] == {"int8": 3}
    assert (found.coverage.mac_ops, found.coverage.int8_mac_ops) == (2, 1)
    assert found.coverage.float_ops == ("second",)
    (source,) = found.inputs
    assert source.shape == ("batch", 3, 8, 8) and source.dtype == "float32" and source.layout == "nchw"
    assert source.scale == pytest.approx(0.02) and source.zero_point == 128
    assert found.version == "opset ai.onnx 18; IR version 9"
    assert found.weights["int8"] == INT8.size + 8 and found.metadata == {"edgeft.labels": '["a", "b"]'}


def test_onnx_operators_of_other_quantizers(tmp_path: Path):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "s", "z"]),
        helper.make_node("MatMulInteger", ["xq", "w", "z"], ["i"], name="dynamic"),
        helper.make_node("Cast", ["h"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["i"], ["j"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["j", "f"], ["y"]),
    ]
    constants = {"w": np.ones((8, 4), np.int8), "h": np.ones((4, 2), np.float16)}
    found = inspection.inspect(_save(tmp_path / "m.onnx", nodes, constants, shape=(1, 8)))
    assert found.ops["MatMulInteger"] == {"int8-dynamic": 1}
    assert found.ops["MatMul"] == {"float16-weights": 1}
    assert found.inputs[0].layout == "" and found.inputs[0].scale == 0


def test_onnx_constants_beside_the_file_must_be_there(tmp_path: Path):
    path = tmp_path / "m.onnx"
    write_onnx(path)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    found = inspection.inspect(path)
    assert found.files.keys() == {"m.onnx", "m.data"} and found.size_bytes == sum(found.files.values())
    (tmp_path / "m.data").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"m\.data, which is missing or shorter"):
        inspection.inspect(path)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../elsewhere" if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside of its folder"):
        inspection.inspect(path)


def test_openvino_needs_no_openvino(tmp_path: Path, monkeypatch):
    openvino = pytest.importorskip("openvino")
    model = openvino.convert_model(_integer_network(tmp_path / "m.onnx"))
    openvino.save_model(model, tmp_path / "m.xml", compress_to_fp16=False)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    found = inspection.inspect(tmp_path / "m.xml")
    assert found.ops["Convolution"] == {"int8": 1, "int8-weights": 1}
    (source,) = found.inputs
    assert source.name == "x" and source.shape == ("?", 3, 8, 8)
    assert source.scale == pytest.approx(0.02) and source.zero_point == 128
    assert found.files.keys() == {"m.xml", "m.bin"} and found.producer.startswith("OpenVINO 20")
    assert found.version.startswith("IR version 11")


def test_openvino_files_that_are_not_whole(tmp_path: Path):
    openvino = pytest.importorskip("openvino")
    path, weights = tmp_path / "m.xml", tmp_path / "m.bin"
    openvino.save_model(openvino.convert_model(_integer_network(tmp_path / "m.onnx")), path)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ModelError, match=rf"m\.bin, which is {len(content) - 1} bytes long"):
        inspection.inspect(path)
    weights.unlink()
    with pytest.raises(ModelError, match="missing"):
        inspection.inspect(path)
    text = path.read_text()
    for share in (0.0, 0.1, 0.5, 0.99):
        path.write_text(text[: int(len(text) * share)])
        with pytest.raises(ModelError, match="damaged, truncated"):
            inspection.inspect(path)
    path.write_text("<html><body/></html>")
    with pytest.raises(ModelError, match="not an OpenVINO model"):
        inspection.inspect(path)
    path.write_text(text.replace('type="Parameter"', ""))
    with pytest.raises(ModelError, match="damaged"):
        inspection.inspect(path)


@pytest.mark.data
@with_data
@pytest.mark.parametrize(
    ("name", "macs", "int8", "precision"),
    [
        ("ic_resnet8_int8", 10, 10, "int8"),
        ("ic_resnet8_fp32", 10, 0, "float32"),
        ("kws_dscnn_int8", 10, 10, "int8"),
        ("vww_96_int8", 28, 28, "int8"),
        ("ad01_int8", 10, 10, "int8"),
        ("ad01_fp32", 10, 0, "float32"),
    ],
)
def test_tflite_files_made_elsewhere(name: str, macs: int, int8: int, precision: str):
    pytest.importorskip("ai_edge_litert")
    found = inspection.inspect(MLPERF / f"{name}.tflite")
    assert (found.coverage.mac_ops, found.coverage.int8_mac_ops) == (macs, int8)
    kinds = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    assert all(found.ops[kind].keys() == {precision} for kind in kinds if kind in found.ops)
    (source,) = found.inputs
    assert (source.dtype, source.scale > 0) == (("int8", True) if precision == "int8" else ("float32", False))
    assert source.layout == ("nhwc" if len(source.shape) == 4 else "")
    assert found.size_bytes == (MLPERF / f"{name}.tflite").stat().st_size > found.weights[precision] > 0


@pytest.mark.data
@with_data
def test_a_truncated_tflite_is_a_clear_error_wherever_it_ends(tmp_path: Path):
    pytest.importorskip("ai_edge_litert")
    content = (MLPERF / "kws_dscnn_int8.tflite").read_bytes()
    path = tmp_path / "m.tflite"
    for length in (0, 3, 8, 20, 100, *range(1000, len(content), 4999)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"damaged, truncated or not a \.tflite file"):
            inspection.inspect(path)


def test_a_truncated_onnx_is_a_clear_error_wherever_it_ends(tmp_path: Path):
    content = _integer_network(tmp_path / "m.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    end = content.rindex(b"edgeft.labels")  # behind the graph: what is cut off there can be absent as well
    for length in range(0, end - 12):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"damaged, truncated or not a \.onnx file"):
            inspection.inspect(path)


def test_command_line(tmp_path: Path, capsys):
    path = _integer_network(tmp_path / "m.onnx")
    assert main(["inspect", str(path), "--json"]) == ExitCode.OK
    record = json.loads(capsys.readouterr().out)
    assert record["ops"]["Conv"] == {"int8": 1, "int8-weights": 1} and record["coverage"]["ratio"] == 0.5
    assert record["inputs"][0]["layout"] == "nchw" and record["format"] == "onnx"
    assert main(["inspect", str(path)]) == ExitCode.OK
    shown = capsys.readouterr().out
    assert (
        "int8: 1 of 2 ops" in shown and "not int8: second" in shown and "scale 0.02, zero point 128" in shown
    )
    for wrong in (tmp_path / "none.onnx", tmp_path / "text.txt", tmp_path):
        (tmp_path / "text.txt").write_text("")
        assert main(["inspect", str(wrong)]) == ExitCode.USAGE
        assert str(wrong) in capsys.readouterr().err


def test_packages_are_inspected_with_what_they_say_of_themselves(tmp_path: Path, capsys):
    folder = write_tiny(tmp_path / "p")
    for path in (folder, package.pack(folder)):
        assert main(["inspect", str(path), "--json"]) == ExitCode.OK
        record = json.loads(capsys.readouterr().out)
        assert record["package"]["target"] == "cpu-onnxruntime" and record["ops"] == {
            "Conv": {"float32": 1},
            "Flatten": {"float32": 1},
        }
    assert main(["inspect", str(folder)]) == ExitCode.OK
    assert "a package for ONNX Runtime" in capsys.readouterr().out
