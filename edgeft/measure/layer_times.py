"""Where the time of a file goes, operation by operation, as the profiler of its runtime tells it."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from edgeft import extras
from edgeft.target import TargetProfile
from edgeft.types import ExportedArtifact, InputArray

_RUNS = 20
# Fusing an operation with its quantizers puts a token behind its name.
_NODE = re.compile(r"(?P<node>.+?)(_token_\d+)?(_quant)?_kernel_time")


def operation_times(
    artifact: ExportedArtifact, profile: TargetProfile, inputs: InputArray
) -> dict[str, float]:
    """Return milliseconds per inference of every operation of a file, by the node's name in the file.

    The profiler slows small operations down, and a transposition that the runtime put in has no name of the file:
    read the result as shares, not as a latency.

    Args:
        artifact: The file.
        profile: A target of ONNX Runtime on the CPU, or of OpenVINO on a device that is here.
        inputs: Real inputs (N, ...), fed in turn.

    Raises:
        MissingDependencyError: The runtime is not installed.
    """
    timed = _openvino if profile.runtime.name == "openvino" else _onnxruntime
    return timed(artifact, profile, inputs)


def _onnxruntime(artifact: ExportedArtifact, profile: TargetProfile, inputs: InputArray) -> dict[str, float]:
    ort = extras.load("onnxruntime", f"target {profile.id}")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = profile.runtime.threads, 1
    settings.log_severity_level = 3
    settings.enable_profiling = True
    for key, value in profile.runtime.options.items():
        settings.add_session_config_entry(key, value)
    with tempfile.TemporaryDirectory(prefix="edgeft-profile-") as folder:
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(artifact.path), settings, providers=["CPUExecutionProvider"])
        for run in range(_RUNS):
            session.run(None, {artifact.inputs[0].name: inputs[run % len(inputs)][None]})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    taken: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        named = _NODE.fullmatch(event["name"])
        if event.get("cat") == "Node" and named:
            taken[named["node"]].append(event["dur"] / 1000)
    return {node: float(np.median(times)) for node, times in taken.items()}


def _openvino(artifact: ExportedArtifact, profile: TargetProfile, inputs: InputArray) -> dict[str, float]:
    ov = extras.load("openvino", f"target {profile.id}")
    runtime = profile.runtime
    settings = {**runtime.options, "INFERENCE_NUM_THREADS": str(runtime.threads), "PERF_COUNT": "YES"}
    request = ov.Core().compile_model(str(artifact.path), runtime.device, settings).create_infer_request()
    taken: defaultdict[str, list[float]] = defaultdict(list)
    for run in range(_RUNS):
        request.infer([inputs[run % len(inputs)][None]])
        for layer in request.get_profiling_info():
            taken[layer.node_name].append(layer.real_time.total_seconds() * 1000)
    return {name: float(np.median(times)) for name, times in taken.items()}
