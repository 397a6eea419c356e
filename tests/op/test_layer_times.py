"""Where the time goes, by the profilers of two runtimes, on a file whose operations have names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from test_runtimes import SIZE, artifact, onnx_model

from edgeft import measure, target


# What a runtime fuses with its neighbour goes by another name.
@pytest.mark.parametrize(("runtime", "named"), [("onnxruntime", "dense"), ("openvino", "conv")])
def test_operations_are_timed_by_their_names(runtime: str, named: str, tmp_path: Path):
    path = tmp_path / "net.onnx"
    onnx.save(onnx_model(int8=False), path)
    inputs = np.random.default_rng(0).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)
    made = artifact(path, form="onnx", scheme="float32")
    taken = measure.operation_times(made, target.load(f"cpu-{runtime}"), inputs)
    assert named in taken and len(taken) > 1
    assert all(ms >= 0 for ms in taken.values()) and taken[named] > 0
