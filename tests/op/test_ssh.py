"""The whole protocol on a board: real `ssh` client, server on loopback, real worker and runtime.

The tests of adb run against a stand-in for the `adb` command (`loopback.write_adb`), not against a device.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import loopback
import numpy as np
import onnx
import pytest
from loopback import LoopbackBoard, within
from onnx import TensorProto, helper, numpy_helper

import edgeft
from edgeft import measure, target
from edgeft.errors import ConfigError, MeasurementError, MissingDependencyError
from edgeft.measure import session as sessions
from edgeft.measure.session import Session
from edgeft.measure.transports import far_end
from edgeft.measure.transports.board import Board
from edgeft.recipe import Recipe
from edgeft.target import TargetProfile
from edgeft.types import ExportedArtifact, QuantCoverage, TensorSpec

RNG = np.random.default_rng(3)
WEIGHT = RNG.normal(size=(4, 3)).astype(np.float32)
INPUTS = RNG.normal(size=(7, 4)).astype(np.float32)
HOST = f"board{sys.executable}"

needs_ssh = pytest.mark.skipif(loopback.SSH is None, reason="needs an OpenSSH client")


def profile(host: str) -> TargetProfile:
    shipped = target.load("cpu-onnxruntime")
    return shipped.model_copy(update={"runtime": shipped.runtime.model_copy(update={"host": host})})


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> ExportedArtifact:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return ExportedArtifact(
        path=path,
        files=(path,),
        format="onnx",
        scheme="float32",
        sha256={},
        size_bytes=path.stat().st_size,
        coverage=QuantCoverage(mac_ops=1, int8_mac_ops=0),
        inputs=(TensorSpec(name="x", shape=(1, 4), dtype="float32", layout="nk"),),
        outputs=(TensorSpec(name="y", shape=(1, 3), dtype="float32", layout="nk"),),
    )


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackBoard]:
    keys, folder, programs = (tmp_path_factory.mktemp(name) for name in ("keys", "board", "bin"))
    loopback.write_keys(keys)
    served = LoopbackBoard(folder)
    with served.running(keys), pytest.MonkeyPatch.context() as patch:
        loopback.write_client(programs, keys, served.port)
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        yield served


def is_clean(board: LoopbackBoard) -> bool:
    return not list(board.folder.glob("edgeft-*")) and not board.processes()


@needs_ssh
def test_predictions_and_timings_come_from_the_board(board, artifact):
    logits, report = measure.predict(artifact, profile(HOST), INPUTS)
    np.testing.assert_allclose(logits, INPUTS @ WEIGHT, rtol=1e-5)
    assert report.details["host"]["host"] == HOST and report.details["host"]["cores"] >= 1
    here = measure.predict(artifact, profile(""), INPUTS)[0]
    assert (logits == here).all()
    variants = [
        measure.Variant(label="there", artifact=artifact, profile=profile(HOST)),
        measure.Variant(label="here", artifact=artifact, profile=profile("")),
    ]
    timed = measure.latencies(variants, INPUTS, rounds=2, min_runs=5, min_seconds=0.01)
    assert [len(result.samples_ms) for result in timed] == [2, 2]
    assert timed[0].p50_ms > 0 and "host" not in timed[1].runtime.details
    assert within(10, lambda: is_clean(board))


@needs_ssh
def test_files_are_copied_once_per_connection(board, artifact, monkeypatch):
    copied = []
    put = Board.put
    monkeypatch.setattr(
        Board,
        "put",
        lambda self, path, name, sha256: copied.append(path.name) or put(self, path, name, sha256),
    )
    with measure.connect(HOST):
        for _ in range(2):
            with Session(artifact, profile(HOST)) as session:
                session.predict(INPUTS)
    assert copied == ["worker.pyz", "model.onnx", "inputs.npy", "inputs.npy"]


@needs_ssh
def test_inputs_go_over_in_pieces(board, artifact, monkeypatch):
    monkeypatch.setattr(sessions, "_PIECE_BYTES", 3 * INPUTS[:1].nbytes)
    logits, _ = measure.predict(artifact, profile(HOST), INPUTS)
    np.testing.assert_allclose(logits, INPUTS @ WEIGHT, rtol=1e-5)


@needs_ssh
def test_a_connection_that_dies_is_reported_and_leaves_nothing_there(board, artifact, tmp_path):
    np.save(tmp_path / "inputs.npy", INPUTS)
    with Session(artifact, profile(HOST)) as session:
        threading.Timer(1.0, board.drop).start()
        start = time.monotonic()
        with pytest.raises(MeasurementError, match=r"host board.*lost while waiting for 'time'.*model\.onnx"):
            session.time(tmp_path / "inputs.npy", min_runs=1, min_seconds=120)
        assert time.monotonic() - start < 10
        assert within(10, lambda: is_clean(board))
        with pytest.raises(MeasurementError, match="lost"):
            session.predict(INPUTS)
    # The next measurement connects anew.
    assert len(measure.predict(artifact, profile(HOST), INPUTS)[0]) == 7


@needs_ssh
def test_an_interrupt_leaves_nothing_there(board, artifact):
    with pytest.raises(KeyboardInterrupt), Session(artifact, profile(HOST)):
        raise KeyboardInterrupt
    assert within(10, lambda: is_clean(board))


@needs_ssh
def test_a_worker_that_dies_there_is_told_from_a_lost_connection(board, artifact):
    broken = artifact.path.with_name("broken.onnx")
    broken.write_bytes(b"not a model")
    bad = dataclasses.replace(artifact, path=broken, files=(broken,))
    with pytest.raises(MeasurementError, match=rf"on {HOST}, broken\.onnx: onnxruntime failed to open"):
        measure.predict(bad, profile(HOST), INPUTS)
    with Session(artifact, profile(HOST)) as session:
        worker = next(line for line in board.processes() if "worker.pyz" in line)
        pids = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if path.read_bytes().replace(b"\0", b" ").decode() == worker
        ]
        os.kill(pids[0], 9)
        with pytest.raises(MeasurementError, match="was killed by SIGKILL during 'predict'"):
            session.predict(INPUTS)


@needs_ssh
def test_the_fingerprint_is_the_boards(board):
    there, here = measure.host_fingerprint(HOST), measure.host_fingerprint()
    assert there.pop("host") == HOST
    assert there == here  # the board of this test is this machine
    state = measure.host_state(HOST)
    assert state.keys() == measure.host_state().keys()
    measure.check_isa_floor(profile(HOST).model_copy(update={"isa_floor": []}))
    with pytest.raises(MissingDependencyError, match=f"the CPU of {HOST} has none of sve9"):
        measure.check_isa_floor(profile(HOST).model_copy(update={"isa_floor": ["sve9"]}))
    measure.check_host(profile(HOST))


@needs_ssh
def test_what_the_board_lacks_is_one_clear_message(board, artifact, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare" / "bin" / "python"
    with pytest.raises(MissingDependencyError, match="has no numpy") as caught:
        measure.check_host(profile(f"board{bare}"))
    assert caught.value.hint == f"on board: {bare} -m pip install numpy onnxruntime"
    with pytest.raises(MissingDependencyError, match="No module named 'numpy'") as caught:
        measure.predict(artifact, profile(f"board{bare}"), INPUTS)
    assert caught.value.hint.startswith("on board: ")
    with pytest.raises(MissingDependencyError, match=r"there is no '/no/python3' \(.*not found\)"):
        measure.check_host(profile("board/no/python3"))


@needs_ssh
def test_a_host_that_cannot_be_reached_is_refused(board):
    with pytest.raises(MissingDependencyError, match="cannot be reached with ssh") as caught:
        measure.host_fingerprint("nobody@127.0.0.1:9")
    assert "ssh -o BatchMode=yes -p 9 nobody@127.0.0.1 python3 --version" in caught.value.hint


@needs_ssh
def test_a_login_shell_may_greet(board, artifact, tmp_path):
    chatty = tmp_path / "python3"
    loopback.write_script(
        chatty, f'#!/bin/sh\necho "Welcome, the weather is fine"\nexec {sys.executable} "$@"\n'
    )
    assert measure.host_fingerprint(f"board{chatty}")["cores"] >= 1


def recipe(tmp_path: Path, host: str, **sections) -> Recipe:
    """Return a recipe for one target of its own, which is measured on `host`."""
    shipped = (Path(__file__).resolve().parents[2] / "targets/cpu-onnxruntime.toml").read_text()
    text = shipped.replace('id = "cpu-onnxruntime"', 'id = "my-board"').replace(
        'device = "cpu"', f'device = "cpu"\nhost = "{host}"'
    )
    (tmp_path / "my-board.toml").write_text(text)
    task, model = {"data": "builtin:digits"}, {"source": "builtin:digitsnet"}
    return Recipe.model_validate({"targets": ["./my-board.toml"], "task": task, "model": model, **sections})


@needs_ssh
@pytest.mark.slow
def test_a_run_prunes_and_measures_on_the_board(board, tmp_path):
    connected = len(board.connections)
    small = recipe(
        tmp_path,
        HOST,
        finetune={"epochs": 1},
        prune={"epochs": 1, "budget": {"latency": 0.9}},
        quantize={"method": "ptq"},
        measure={"rounds": 2, "min_runs": 10, "min_seconds": 0.02},
    )
    edgeft.run(small, base=tmp_path, workspace=tmp_path / "run")
    assert len(board.connections) > connected
    report = json.loads((tmp_path / "run/report.json").read_text())
    (result,) = report["targets"]
    assert result["latency"]["runtime"]["details"]["host"]["host"] == HOST
    assert within(10, lambda: is_clean(board))


@pytest.mark.slow
def test_a_recipe_is_checked_with_its_board(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    findings = edgeft.check(recipe(tmp_path, "pi@board"), base=tmp_path)
    texts = [finding.text for finding in findings if finding.error is not None]
    assert texts == ["host pi@board: the command 'ssh' is not on this machine's PATH"]


@pytest.fixture
def adb(tmp_path, monkeypatch) -> Path:
    """Put the stand-in on the PATH; returns the folder that is the device's for temporary files."""
    (tmp_path / "device").mkdir()
    loopback.write_adb(tmp_path, tmp_path / "device")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "device"


def test_adb_runs_the_same_protocol_against_a_stand_in(adb, artifact):
    logits, report = measure.predict(artifact, profile(f"adb:SERIAL1{sys.executable}"), INPUTS)
    np.testing.assert_allclose(logits, INPUTS @ WEIGHT, rtol=1e-5)
    assert report.details["host"]["host"].startswith("adb:SERIAL1")
    assert not list(adb.glob("edgeft-*"))


@pytest.mark.slow
def test_a_board_that_hangs_is_given_up(adb, artifact, tmp_path, monkeypatch):
    """As after a pulled cable, the link itself lives on and says nothing."""
    hasty = tmp_path / "far_end.py"
    text = Path(far_end.__file__).read_text()
    hasty.write_text(text.replace("BEAT_SECONDS = 5.0", "BEAT_SECONDS = 0.2"))
    monkeypatch.setattr(far_end, "__file__", str(hasty))
    monkeypatch.setattr(far_end, "SILENCE_SECONDS", 6.0)
    monkeypatch.setattr(far_end, "BEAT_SECONDS", 0.2)
    np.save(tmp_path / "inputs.npy", INPUTS)
    with Session(artifact, profile(f"adb:SERIAL1{sys.executable}")) as session:
        (pid,) = loopback.far_ends(adb)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(MeasurementError, match=r"lost while .*: nothing was heard for 6 s"):
                session.time(tmp_path / "inputs.npy", min_runs=1, min_seconds=60)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert within(20, lambda: not list(adb.glob("edgeft-*")))


def test_adb_without_the_device_or_the_command_is_refused(adb, artifact, monkeypatch):
    with pytest.raises(MissingDependencyError, match="device 'OTHER' not found"):
        measure.host_fingerprint("adb:OTHER")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependencyError, match="'adb' is not on this machine's PATH") as caught:
        measure.host_fingerprint("adb:SERIAL1")
    assert caught.value.hint == "install Android's platform tools"
    with pytest.raises(ConfigError, match="allowed are"):
        measure.host_fingerprint("adb:")


def test_a_copy_that_arrives_damaged_is_found_by_its_hash(adb, artifact, tmp_path):
    loopback.write_adb(tmp_path, adb, broken=WEIGHT.tobytes()[:16])
    with pytest.raises(MeasurementError, match=r"copying model\.onnx failed: arrived with sha256 .* not "):
        measure.predict(artifact, profile(f"adb:SERIAL1{sys.executable}"), INPUTS)
    assert not list(adb.glob("edgeft-*"))
