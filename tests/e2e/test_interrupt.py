"""Ctrl-C while `edgeft bench` or `edgeft compare` measures: what is said is true, and nothing is left behind."""

import os
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import group_members, started_edgeft, wait_for
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(np.ones((4, 3), np.float32), "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("arguments", "whole_group"),
    [
        (("bench", "model.onnx", "--random", "--duration", "60", "--html", "page.html"), True),
        (("compare", "model.onnx", "model.onnx", "--random", "--output", "record.json"), False),
    ],
    ids=["bench, as a terminal does", "compare, as a supervisor does"],
)
def test_an_interrupt_while_a_worker_measures(
    arguments: tuple[str, ...],
    whole_group: bool,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """A terminal sends SIGINT to the worker as well, a supervisor SIGTERM to the command alone."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with started_edgeft(*arguments, cwd=tmp_path) as process:
        # Inputs are written before the first worker that measures is started.
        assert wait_for(lambda: bool([*scratch.glob("edgeft-*/*.npy")]), process), process.communicate()
        assert wait_for(lambda: len(group_members(process.pid)) > 1, process)
        if whole_group:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM)
        printed, said = process.communicate(timeout=20)
        assert process.returncode == 130, said
        assert said == "interrupted; nothing is kept: a record is written when all of it is measured\n"
        assert printed == "" and not group_members(process.pid)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "scratch"]
    assert not list(scratch.glob("edgeft-*"))
