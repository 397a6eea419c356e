"""Each adapter through its real runtime in a real worker process, against numpy."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeft import measure, target
from edgeft.errors import ExitCode, MeasurementError, MissingDependencyError
from edgeft.measure import session as sessions
from edgeft.measure.session import Session, build_zipapp
from edgeft.runtimes.base import from_native
from edgeft.types import ExportedArtifact, QuantCoverage, TensorSpec

SIZE, CHANNELS, CLASSES = 16, 8, 5
IN_SCALE, MID_SCALE, OUT_SCALE = 1 / 64, 1 / 32, 1 / 16
RNG = np.random.default_rng(7)
CONV = RNG.integers(-127, 128, (CHANNELS, 3, 3, 3)).astype(np.int8)
DENSE = RNG.integers(-127, 128, (CLASSES, CHANNELS)).astype(np.int8)
CONV_SCALE, DENSE_SCALE = np.float32(1 / 512), np.float32(1 / 128)


def reference(x: np.ndarray) -> np.ndarray:
    """Conv 3x3 (no padding), ReLU, global average, linear: in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), axis=(2, 3))
    hidden = np.einsum("nchwij,ocij->nohw", windows, CONV * float(CONV_SCALE))
    return np.maximum(hidden, 0).mean((2, 3)) @ (DENSE * float(DENSE_SCALE)).T


def onnx_model(*, int8: bool, batch: int | str = "N") -> onnx.ModelProto:
    tensors, nodes = [], []

    def constant(name: str, value: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def fake_quantized(name: str, scale: float, zero_point: int = 128) -> str:
        if not int8:
            return name
        s, z = constant(f"{name}_s", np.float32(scale)), constant(f"{name}_z", np.uint8(zero_point))
        nodes.append(helper.make_node("QuantizeLinear", [name, s, z], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", s, z], [f"{name}_dq"]))
        return f"{name}_dq"

    def weight(name: str, q: np.ndarray, scale: np.float32) -> str:
        if not int8:
            return constant(name, (q * scale).astype(np.float32))
        parts = [constant(f"{name}_q", q), constant(f"{name}_s", scale), constant(f"{name}_z", np.int8(0))]
        nodes.append(helper.make_node("DequantizeLinear", parts, [name]))
        return name

    x = fake_quantized("x", IN_SCALE)
    nodes.append(helper.make_node("Conv", [x, weight("w", CONV, CONV_SCALE)], ["c"], name="conv"))
    nodes.append(helper.make_node("Relu", ["c"], ["r"]))
    r = fake_quantized("r", MID_SCALE, 0)  # only at 0 does the conv absorb the ReLU
    nodes.append(helper.make_node("GlobalAveragePool", [r], ["g"]))
    g = fake_quantized("g", MID_SCALE, 0)
    nodes.append(helper.make_node("Flatten", [g], ["f"]))
    f = fake_quantized("f", MID_SCALE, 0)
    nodes.append(
        helper.make_node("Gemm", [f, weight("d", DENSE, DENSE_SCALE)], ["o"], transB=1, name="dense")
    )
    y = fake_quantized("o", OUT_SCALE)
    nodes.append(helper.make_node("Identity", [y], ["y"]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, CLASSES])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def artifact(path: Path, *, form: str, scheme: str, shape=(1, 3, SIZE, SIZE), **changes) -> ExportedArtifact:
    fields = {
        "path": path,
        "files": (path,),
        "format": form,
        "scheme": scheme,
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
        "size_bytes": path.stat().st_size,
        "coverage": QuantCoverage(mac_ops=2, int8_mac_ops=2 * (scheme == "int8")),
        "inputs": (TensorSpec(name="x", shape=shape, dtype="float32", layout="nchw"),),
        "outputs": (TensorSpec(name="y", shape=(1, CLASSES), dtype="float32", layout="nk"),),
    }
    return ExportedArtifact(**{**fields, **changes})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], ExportedArtifact]:
    import openvino as ov

    folder = tmp_path_factory.mktemp("files")
    made = {}
    for scheme in ("float32", "int8"):
        path = folder / f"{scheme}.onnx"
        onnx.save(onnx_model(int8=scheme == "int8"), path)
        made["onnx", scheme] = artifact(path, form="onnx", scheme=scheme)
        xml = path.with_suffix(".xml")
        ov.save_model(ov.convert_model(path), xml, compress_to_fp16=False)
        made["openvino", scheme] = artifact(xml, form="openvino", scheme=scheme)
    return made


def profile(runtime: str, **changes) -> target.TargetProfile:
    loaded = target.load(f"cpu-{runtime}")
    return loaded.model_copy(update={"runtime": loaded.runtime.model_copy(update=changes)})


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(3).uniform(-1.9, 1.9, (7, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize(("form", "runtime"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_predict_agrees_with_numpy_and_reads_back_the_precision(files, inputs, form, runtime, scheme):
    options = {"INFERENCE_PRECISION_HINT": "f32"} if runtime == "openvino" and scheme == "float32" else None
    logits, report = measure.predict(files[form, scheme], profile(runtime), inputs, options=options)
    assert logits.shape == (7, CLASSES) and logits.dtype == np.float32
    wanted = reference(inputs)
    assert np.abs(logits - wanted).max() <= (1e-4 if scheme == "float32" else 1.5 * OUT_SCALE)
    assert report.mac_precision == {scheme: 2}
    assert report.runtime == runtime
    assert report.details["threads"] == 1
    if scheme == "int8":
        assert np.allclose(logits / OUT_SCALE, np.rint(logits / OUT_SCALE))
        assert measure.parity(logits, wanted.astype(np.float32), OUT_SCALE).within_2_lsb == 1.0
    if options:
        assert report.details["inference_precision"] == "f32"


@pytest.mark.parametrize(("form", "runtime"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_input_lives_until_it_is_used(files, inputs, form, runtime):
    """A runtime that reads an array in place must hold it: freed memory is soon somebody else's."""
    made, runtime_of = files[form, "int8"], profile(runtime).runtime
    adapter = importlib.import_module(f"edgeft.runtimes.{runtime}").Adapter(
        str(made.path),
        device=runtime_of.device,
        threads=1,
        options=runtime_of.options,
        inputs=[dataclasses.asdict(spec) for spec in made.inputs],
        outputs=[dataclasses.asdict(spec) for spec in made.outputs],
    )
    (lane,) = adapter.lanes
    for i in range(len(inputs)):
        lane.place(adapter.natives([inputs], i))
        clutter = [np.full_like(inputs[:1], np.nan) for _ in range(50)]
        lane.invoke()
        logits = from_native(lane.fetch()[0], adapter.outputs[0])
        assert np.abs(logits - reference(inputs[i : i + 1])).max() <= 1.5 * OUT_SCALE
        del clutter


def test_onnxruntime_tells_float_kernels_from_integer_ones(tmp_path, inputs):
    model = onnx_model(int8=True)
    for (
        node
    ) in model.graph.node:  # the dense layer reads the unquantized tensor: its kernel has to run in float
        if node.name == "dense":
            node.input[0] = "f"
    path = tmp_path / "mixed.onnx"
    onnx.save(model, path)
    _, report = measure.predict(artifact(path, form="onnx", scheme="int8"), profile("onnxruntime"), inputs)
    assert report.mac_precision == {"float32": 1, "int8": 1}


def test_a_fixed_batch_of_one_is_looped_and_another_refused(tmp_path, inputs):
    for batch in (1, 4):
        path = tmp_path / f"batch{batch}.onnx"
        onnx.save(onnx_model(int8=False, batch=batch), path)
        made = artifact(path, form="onnx", scheme="float32")
        if batch == 1:
            logits, _ = measure.predict(made, profile("onnxruntime"), inputs)
            np.testing.assert_allclose(logits, reference(inputs), atol=1e-4)
        else:
            with pytest.raises(MeasurementError, match="batch size 4"):
                measure.predict(made, profile("onnxruntime"), inputs)


@pytest.mark.parametrize(
    ("runtime", "changes", "message"),
    [
        ("onnxruntime", {"device": "tpu"}, "unknown device 'tpu'"),
        ("onnxruntime", {"options": {"enable_cuda_graph": "1"}}, "the CPU has no options of its own"),
        ("openvino", {"device": "AUTO:NPU,CPU"}, "chooses devices by itself; name one of .*CPU"),
        ("openvino", {"options": {"NO_SUCH_OPTION": "1"}}, "NO_SUCH_OPTION"),
    ],
)
def test_no_silent_fallback(files, inputs, runtime, changes, message):
    form = "onnx" if runtime == "onnxruntime" else runtime
    with pytest.raises(MeasurementError, match=message):
        measure.predict(files[form, "float32"], profile(runtime, **changes), inputs)


@pytest.mark.parametrize(
    ("runtime", "device", "cure"),
    [
        ("onnxruntime", "cuda", r"nvidia-smi .*onnxruntime-gpu\[cuda,cudnn\]"),
        ("openvino", "GPU", "Intel GPU and its compute runtime"),
        ("openvino", "NPU", "NPU driver"),
        ("openvino", "GPU.3", "Intel GPU and its compute runtime"),
    ],
)
def test_a_device_that_is_not_here_is_missing_and_the_cure_is_told(files, inputs, runtime, device, cure):
    there = profile(runtime, device=device)
    if measure.find_device(device, measure.devices(there.runtime)):
        pytest.skip(f"this host has {device}")
    form = "onnx" if runtime == "onnxruntime" else runtime
    with pytest.raises(MissingDependencyError, match=cure) as caught:
        measure.predict(files[form, "float32"], there, inputs)
    assert caught.value.exit_code == ExitCode.MISSING
    with pytest.raises(MissingDependencyError, match=f"sees no device '{device}' here, only (?i:cpu)"):
        measure.check_device(there)


def test_a_file_that_is_not_what_the_artifact_says_is_refused(files, tmp_path, inputs):
    wrong = artifact(files["onnx", "int8"].path, form="onnx", scheme="int8", shape=(1, 3, SIZE, SIZE + 1))
    with pytest.raises(MeasurementError, match="the artifact says"):
        measure.predict(wrong, profile("onnxruntime"), inputs)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(MeasurementError, match=r"broken\.onnx"):
        measure.predict(artifact(broken, form="onnx", scheme="int8"), profile("onnxruntime"), inputs)


def test_latencies_take_turns_in_fresh_processes(files, inputs):
    seen = []
    variants = [
        measure.Variant(label=label, artifact=files[form, scheme], profile=profile(runtime), options=options)
        for label, form, scheme, runtime, options in [
            ("ort-float", "onnx", "float32", "onnxruntime", {}),
            ("ort-int8", "onnx", "int8", "onnxruntime", {}),
            ("ov-f32", "openvino", "float32", "openvino", {"INFERENCE_PRECISION_HINT": "f32"}),
        ]
    ]
    results = measure.latencies(
        variants,
        inputs,
        rounds=2,
        min_runs=20,
        min_seconds=0.01,
        progress=lambda message, *, done, total: seen.append((message, done, total)),
    )
    turns = ["ort-float", "ort-int8", "ov-f32", "ov-f32", "ort-int8", "ort-float"]
    assert seen == [(f"timing {label}", i, 6) for i, label in enumerate(turns)]
    assert [result.label for result in results] == ["ort-float", "ort-int8", "ov-f32"]
    for result in results:
        assert len(result.samples_ms) == len(result.load_ms) == len(result.first_ms) == 2
        assert all(len(process) >= 20 for process in result.samples_ms)
        assert 0 < result.p50_ms < 1000
        assert 10e6 < result.peak_rss_bytes < 1e9
    assert results[1].runtime.mac_precision == {"int8": 2}
    compared = measure.ratio(results[1], results[0])
    assert compared.low <= compared.ratio <= compared.high and compared.pairs == 2


def test_peak_memory_is_the_workers_own(files, inputs):
    code = (
        "import numpy as np, sys; from pathlib import Path; from test_runtimes import *\n"
        "ballast = np.ones(600_000_000, np.uint8)\n"
        f"made = artifact(Path({str(files['onnx', 'int8'].path)!r}), form='onnx', scheme='int8')\n"
        "v = measure.Variant(label='a', artifact=made, profile=profile('onnxruntime'))\n"
        "x = np.zeros((1, 3, SIZE, SIZE), np.float32)\n"
        "r = measure.latencies([v], x, rounds=1, min_runs=1, min_seconds=0.001)\n"
        "print(r[0].peak_rss_bytes)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert int(out.stdout) < 300e6


def test_a_dead_worker_is_a_measurement_error(files, inputs):
    with Session(files["onnx", "int8"], profile("onnxruntime")) as session:
        os.kill(session._process.pid, signal.SIGKILL)
        with pytest.raises(MeasurementError, match="SIGKILL"):
            session.predict(inputs)


def test_a_hanging_worker_times_out_and_is_killed(files, inputs):
    with Session(files["onnx", "int8"], profile("onnxruntime"), timeout_seconds=0.3) as session:
        process = session._process
        np.save(session._path("x.npy"), inputs)
        with pytest.raises(MeasurementError, match="no reply to 'time'"):
            session.time(session._path("x.npy"), min_runs=10**9, min_seconds=0.0)
        folder = session._path("x.npy").parent
    assert process.poll() == -signal.SIGKILL
    assert not folder.exists()


def test_a_timing_may_take_as_long_as_it_was_asked_to(files, inputs):
    with Session(files["onnx", "int8"], profile("onnxruntime"), timeout_seconds=1.0) as session:
        np.save(session._path("x.npy"), inputs)
        assert session.time(session._path("x.npy"), min_runs=1, min_seconds=1.5)["samples_ms"]


def test_an_interrupt_ends_the_worker(files, monkeypatch):
    started = []

    def interrupt(self, *arguments, **keywords):
        started.append(self._process)
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "_request", interrupt)
    with pytest.raises(KeyboardInterrupt), Session(files["onnx", "int8"], profile("onnxruntime")):
        pass
    assert started[0].poll() is not None


def test_runtime_chatter_does_not_break_the_protocol(files, inputs, monkeypatch, tmp_path):
    noisy = (
        tmp_path / "onnxruntime"
    )  # shadows the real runtime: prints at import, at C level too, then is missing
    noisy.mkdir()
    (noisy / "__init__.py").write_text(
        "import os\nprint('hello')\nos.write(1, b'chatter\\n')\n"
        "raise ImportError('onnxruntime lacks libfoo')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="lacks libfoo"):
        measure.predict(files["onnx", "int8"], profile("onnxruntime"), inputs)


def test_the_zipapp_is_reproducible_and_needs_no_edgeft(tmp_path):
    for runtime in sessions._MODULES:
        one = build_zipapp(runtime, tmp_path / "one.pyz").read_bytes()
        assert one == build_zipapp(runtime, tmp_path / "two.pyz").read_bytes()
        assert b"import edgeft" not in one and b"from edgeft" not in one
