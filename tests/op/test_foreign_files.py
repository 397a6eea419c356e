"""Model files that edgeft did not make: several inputs and outputs, free dimensions, batches, streams, bad ones."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeft import benchmarking
from edgeft.errors import ConfigError, DataError, EdgeftError, ExitCode, MeasurementError, ModelError
from edgeft.runtimes import onnxruntime as onnxruntime_adapter
from edgeft.runtimes import openvino as openvino_adapter

flatbuffers = pytest.importorskip("flatbuffers")
litert_adapter = pytest.importorskip("edgeft.runtimes.litert")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

QUICK = benchmarking.StopRule(processes=1, min_runs=3, min_seconds=0.0)
RNG = np.random.default_rng(5)


def save_onnx(path: Path, nodes: list[onnx.NodeProto], inputs: dict, outputs: dict) -> Path:
    """Write a graph; inputs and outputs are name -> (dtype, shape)."""
    described = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in tensors.items()]
        for tensors in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "net", *described)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def save_sequence_model(path: Path) -> Path:
    """Two inputs of free batch and length, two outputs: the sum, and twice the first."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "real"], ["sum"]),
        helper.make_node("Add", ["x", "x"], ["twice"]),
    ]
    free = ["batch", "length"]
    return save_onnx(
        path,
        nodes,
        {"x": (TensorProto.FLOAT, free), "ids": (TensorProto.INT64, free)},
        {"sum": (TensorProto.FLOAT, free), "twice": (TensorProto.FLOAT, free)},
    )


def save_tflite(path: Path) -> Path:
    """Two inputs (free, 3), two outputs: their sum and their product."""
    names = ("a", "b", "sum", "product")
    tensors = [
        schema.TensorT(
            name=name,
            shape=np.array([1, 3], np.int32),
            shapeSignature=np.array([-1, 3], np.int32),
            type=schema.TensorType.FLOAT32,
            buffer=0,
        )
        for name in names
    ]
    kinds = schema.BuiltinOperator
    operators = [
        schema.OperatorT(
            opcodeIndex=i, inputs=np.array([0, 1], np.int32), outputs=np.array([2 + i], np.int32)
        )
        for i in range(2)
    ]
    graph = schema.SubGraphT(
        tensors=tensors,
        inputs=np.array([0, 1], np.int32),
        outputs=np.array([2, 3], np.int32),
        operators=operators,
    )
    codes = [
        schema.OperatorCodeT(builtinCode=k, deprecatedBuiltinCode=k, version=1)
        for k in (kinds.ADD, kinds.MUL)
    ]
    model = schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=[schema.BufferT()])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    import openvino as ov

    folder = tmp_path_factory.mktemp("foreign")
    made = {"onnx": save_sequence_model(folder / "net.onnx"), "tflite": save_tflite(folder / "net.tflite")}
    made["openvino"] = folder / "net.xml"
    ov.save_model(ov.convert_model(made["onnx"]), made["openvino"], compress_to_fp16=False)
    return made


def tensor(name: str, shape: tuple[int, ...], dtype: str = "float32", layout: str = "native") -> dict:
    return {
        "name": name,
        "shape": list(shape),
        "dtype": dtype,
        "layout": layout,
        "scale": 0.0,
        "zero_point": 0,
    }


@pytest.mark.parametrize(
    ("form", "module", "device"),
    [("onnx", onnxruntime_adapter, "cpu"), ("openvino", openvino_adapter, "CPU")],
)
def test_several_inputs_and_outputs_of_free_size(files, form, module, device):
    found = module.signature(str(files[form]))
    assert [(t["name"], t["shape"], t["dtype"]) for t in found["inputs"]] == [
        ("x", [None, None], "float32"),
        ("ids", [None, None], "int64"),
    ]
    inputs = [tensor("x", (2, 5)), tensor("ids", (2, 5), "int64")]
    outputs = [tensor("sum", (-1, -1)), tensor("twice", (-1, -1))]
    adapter = module.Adapter(
        str(files[form]), device=device, threads=1, options={}, inputs=inputs, outputs=outputs
    )
    x = RNG.normal(size=(3, 2, 5)).astype(np.float32)
    ids = RNG.integers(0, 9, (3, 2, 5))
    total, twice = adapter.run([x, ids])
    np.testing.assert_allclose(total, (x + ids).reshape(6, 5)[: len(total)], rtol=1e-6)
    np.testing.assert_allclose(twice, (2 * x).reshape(6, 5)[: len(twice)], rtol=1e-6)
    assert adapter.describe()["runtime"] == module.__name__.rpartition(".")[2]


def test_a_batch_is_filled_up_and_cut_again(files):
    """Seven samples in batches of four, through a resized .tflite."""
    assert litert_adapter.signature(str(files["tflite"]))["inputs"][1]["shape"] == [None, 3]
    adapter = litert_adapter.Adapter(
        str(files["tflite"]),
        device="cpu",
        threads=1,
        options={},
        inputs=[tensor(name, (4, 3), layout="nk") for name in "ab"],
        outputs=[tensor(name, (4, 3), layout="nk") for name in ("sum", "product")],
    )
    a, b = RNG.normal(size=(2, 7, 3)).astype(np.float32)
    total, product = adapter.run([a, b])
    np.testing.assert_allclose(total, a + b, rtol=1e-6)
    np.testing.assert_allclose(product, a * b, rtol=1e-6)


@pytest.mark.parametrize(
    ("form", "module", "device"),
    [
        ("onnx", onnxruntime_adapter, "cpu"),
        ("openvino", openvino_adapter, "CPU"),
        ("tflite", litert_adapter, "cpu"),
    ],
)
def test_an_inference_lets_the_other_streams_run(files, form, module, device):
    """Threads change here only where one lets go of the interpreter: an inference has to, or streams wait in line."""
    names, outputs = (
        (("a", "b"), ("sum", "product")) if form == "tflite" else (("x", "ids"), ("sum", "twice"))
    )
    kinds = ("float32", "float32" if form == "tflite" else "int64")
    adapter = module.Adapter(
        str(files[form]),
        device=device,
        threads=1,
        options={},
        streams=2,
        inputs=[tensor(name, (2, 3), dtype=kind) for name, kind in zip(names, kinds, strict=True)],
        outputs=[tensor(name, (2, 3)) for name in outputs],
    )
    lane, ran = adapter.lanes[0], threading.Event()
    lane.place([np.ones((2, 3), kind) for kind in kinds])
    interval = sys.getswitchinterval()
    gate = threading.Lock()
    gate.acquire()
    other = threading.Thread(target=lambda: (gate.acquire(), ran.set()))
    other.start()
    sys.setswitchinterval(1000.0)
    try:
        gate.release()
        end = time.monotonic() + 20
        while not ran.is_set() and time.monotonic() < end:
            lane.invoke()
        assert ran.is_set()
    finally:
        sys.setswitchinterval(interval)
        other.join()


def test_all_formats_are_timed_in_turns_with_streams(files, tmp_path):
    arrays = {"x": np.ones((6, 4), np.float32), "ids": np.arange(24).reshape(6, 4)}
    np.savez(tmp_path / "samples.npz", **arrays)
    subjects = [benchmarking.subject(files[f], inputs=tmp_path, batch=2) for f in ("onnx", "openvino")]
    assert [a.shape for a in subjects[0].inputs] == [
        (3, 2, 4),
        (3, 2, 4),
    ]  # the length comes from the samples
    subjects.append(benchmarking.subject(files["tflite"], inputs="random", threads=2))
    done = benchmarking.benchmark_all(subjects, QUICK, streams=2)
    record = json.loads(json.dumps(benchmarking.record(done), allow_nan=False))
    assert (record["schema"], record["version"]) == ("edgeft-bench", 1)
    for result, form in zip(record["results"], ("onnx", "openvino", "tflite"), strict=True):
        latency, throughput = result["latency"], result["throughput"]
        assert result["format"] == form and result["target"] == "" and result["scheme"] == "unknown"
        assert latency["runs"] == len(latency["samples_ms"][0]) >= 3
        assert 0 < latency["min_ms"] <= latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"]
        assert latency["load_ms"][0] > 0 and latency["first_ms"][0] > 0
        assert 10e6 < latency["peak_rss_bytes"] < 1e9
        assert throughput["streams"] == 2 and throughput["runs"] >= 4
        ratio = throughput["samples_per_second"] / throughput["inferences_per_second"]
        assert ratio == pytest.approx(result["batch"])
    assert [result["batch"] for result in record["results"]] == [2, 2, 1]
    assert record["results"][2]["threads"] == 2
    assert [f["name"] for f in record["results"][1]["files"]] == ["net.xml", "net.bin"]
    assert record["warnings"][-1:] == [f"fed with random numbers, not samples: {files['tflite']}"]


def test_what_is_missing_is_said_with_the_inputs(files, tmp_path):
    with pytest.raises(ConfigError) as said:
        benchmarking.subject(files["onnx"])
    assert "x (?, ?) float32, ids (?, ?) int64" in said.value.message
    assert "--inputs" in said.value.hint and "--random" in said.value.hint
    with pytest.raises(ConfigError, match="free dimension has no size") as said:
        benchmarking.subject(files["onnx"], inputs="random")
    assert said.value.hint.startswith("--shape x=1,N")
    with pytest.raises(ConfigError, match="no such input"):
        benchmarking.subject(files["onnx"], inputs="random", shapes={"idz": (1, 4)})
    np.save(tmp_path / "x.npy", np.zeros((2, 4), np.float32))
    with pytest.raises(DataError, match="nothing for input 'ids'"):
        benchmarking.subject(files["onnx"], inputs=tmp_path)


def test_a_batch_that_the_file_does_not_take(tmp_path):
    fixed = save_onnx(
        tmp_path / "fixed.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, [1, 3])},
        {"y": (TensorProto.FLOAT, [1, 3])},
    )
    with pytest.raises(ConfigError, match="a batch of 4 does not fit"):
        benchmarking.subject(fixed, inputs="random", batch=4)


def bad_files(folder: Path) -> dict[str, Path]:
    """Write one file of every kind that is no model."""
    model = save_sequence_model(folder / "whole.onnx").read_bytes()
    contents = {
        "truncated.onnx": model[: len(model) // 2],
        "empty.onnx": b"",
        "truncated.tflite": save_tflite(folder / "whole.tflite").read_bytes()[:150],
        "text.xml": b"not a model",
        "text.bin": b"weights",
        "lonely.xml": b"<net/>",
        "model.pt": b"PK",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    constant = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    save_onnx(
        folder / "no_inputs.onnx",
        [helper.make_node("Constant", [], ["y"], value=constant)],
        {},
        {"y": (TensorProto.FLOAT, [1])},
    )
    return {name: folder / name for name in [*contents, "no_inputs.onnx"] if name != "text.bin"}


def test_what_is_no_model_is_one_clear_error(tmp_path):
    said = {}
    for name, path in bad_files(tmp_path).items():
        with pytest.raises(ModelError) as caught:
            benchmarking.subject(path, inputs="random")
        assert caught.value.exit_code == ExitCode.USAGE and caught.value.hint
        assert str(path) in caught.value.message
        said[name] = caught.value.message
    assert "lonely.bin is missing" in said["lonely.xml"]
    assert "is empty" in said["empty.onnx"]
    assert "has no inputs" in said["no_inputs.onnx"]
    assert "unknown kind of file '.pt'" in said["model.pt"]
    with pytest.raises(ConfigError, match="no such file"):
        benchmarking.subject(tmp_path / "absent.onnx", inputs="random")
    with pytest.raises(EdgeftError, match="not a package"):
        benchmarking.subject(tmp_path)


def test_weights_that_are_cut_off_are_a_usage_error(tmp_path):
    import openvino as ov

    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [64, 64], RNG.normal(size=64 * 64))
    sizes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "net", sizes[:1], sizes[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "net.onnx")
    ov.save_model(ov.convert_model(tmp_path / "net.onnx"), tmp_path / "net.xml", compress_to_fp16=False)
    (tmp_path / "net.bin").write_bytes((tmp_path / "net.bin").read_bytes()[:1000])
    with pytest.raises(EdgeftError, match=r"net\.xml") as caught:
        benchmarking.benchmark_all([benchmarking.subject(tmp_path / "net.xml", inputs="random")], QUICK)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_model_that_crashes_its_runtime_ends_the_worker_only(tmp_path):
    """The remainder of the smallest integer by -1 traps in the CPU (SIGFPE)."""
    four = (TensorProto.INT32, [1, 4])
    path = save_onnx(
        tmp_path / "trap.onnx",
        [helper.make_node("Mod", ["a", "b"], ["y"])],
        {"a": four, "b": four},
        {"y": four},
    )
    limits = np.iinfo(np.int32)
    np.savez(tmp_path / "x.npz", a=np.full((1, 4), limits.min, np.int32), b=np.full((1, 4), -1, np.int32))
    subject = benchmarking.subject(path, inputs=tmp_path / "x.npz")
    with pytest.raises(MeasurementError, match=r"trap\.onnx: the worker was killed by SIGFPE during 'time'"):
        benchmarking.benchmark_all([subject], QUICK)
    np.savez(tmp_path / "x.npz", a=np.full((1, 4), 7, np.int32), b=np.full((1, 4), 2, np.int32))
    harmless = benchmarking.subject(path, inputs=tmp_path / "x.npz")
    (measured,) = benchmarking.benchmark_all([harmless], QUICK).results
    assert measured.latency.p50_ms > 0


def test_an_option_that_the_runtime_does_not_take_is_a_usage_error(files):
    subject = benchmarking.subject(files["tflite"], inputs="random", options={"nonsense": "1"})
    with pytest.raises(MeasurementError, match="nonsense") as caught:
        benchmarking.benchmark_all([subject], QUICK)
    assert caught.value.exit_code == ExitCode.USAGE


def test_what_openvino_says_over_many_lines_is_one(files):
    shapes = {"x": (1, 4), "ids": (1, 4)}
    subject = benchmarking.subject(
        files["openvino"], inputs="random", shapes=shapes, options={"NUM_STREAMS": "many"}
    )
    with pytest.raises(MeasurementError, match="from str: many") as caught:
        benchmarking.benchmark_all([subject], QUICK)
    assert "\n" not in caught.value.message
