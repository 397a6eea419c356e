"""Tiny packages to test with: a network of one convolution, written by `package.write`."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeft import package, target
from edgeft.preprocessing import ImagePreprocessing
from edgeft.types import (
    AccuracyResult,
    ExportedArtifact,
    LatencyResult,
    ParityResult,
    QuantCoverage,
    RatioResult,
    RuntimeReport,
    TargetResult,
    TensorSpec,
)

LABELS = ("cat", "dog", "élan")
PREPROCESSING = ImagePreprocessing(
    size=8, resize=9, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation="bicubic"
)
LSB = 0.05
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(0, 0.3, (3, 3, 8, 8)).astype(np.float32)
BIAS = np.float32([0.1, -0.2, 0.3])
INPUTS = RNG.normal(0, 1, (4, 3, 8, 8)).astype(np.float32)
LOGITS = (np.einsum("nchw,kchw->nk", INPUTS, WEIGHT) + BIAS).astype(np.float32)


def write_onnx(path: Path, batch: int | str = 1) -> None:
    """A network that any host runs: one convolution over the whole picture, logits as in `LOGITS`."""
    nodes = [
        helper.make_node("Conv", ["input", "weight", "bias"], ["features"]),
        helper.make_node("Flatten", ["features"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(BIAS, "bias")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def target_result(
    name: str,
    files: list[Path],
    batch: int = 1,
    fmt: str = "onnx",
    shape: tuple[int, ...] = (3, 8, 8),
    dtype: str = "float32",
) -> TargetResult:
    """What a run would have found out about the files of a model."""
    layout = "nchw" if len(shape) == 3 else "nk"
    spec = TensorSpec(name="input", shape=(batch, *shape), dtype=dtype, layout=layout)
    out = TensorSpec(name="logits", shape=(batch, 3), dtype="float32", layout="nk")
    artifact = ExportedArtifact(
        path=files[0],
        files=tuple(files),
        format=fmt,
        scheme="int8",
        sha256={f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
        size_bytes=sum(f.stat().st_size for f in files),
        coverage=QuantCoverage(mac_ops=1, int8_mac_ops=1),
        inputs=(spec,),
        outputs=(out,),
    )
    accuracy = AccuracyResult(
        accuracy=0.75,
        low=0.3,
        high=0.95,
        predictions=np.array([0, 1, 2, 0]),
        labels=np.array([0, 1, 2, 1]),
        ids=("a", "b", "c", "d"),
    )
    runtime = RuntimeReport(
        runtime=name,
        version="1.0",
        device="CPU",
        mac_precision={"int8": 1},
        details={"arena_bytes": 4096},  # told by TensorFlow Lite Micro alone
    )
    latency = LatencyResult(
        label="int8",
        evidence="measured",
        threads=1,
        samples_ms=((1.0, 1.1), (1.2, 1.0)),
        load_ms=(3.0, 3.1),
        first_ms=(2.0, 2.1),
        peak_rss_bytes=10_000_000,
        runtime=runtime,
    )
    ratio = RatioResult(base="float", head="int8", ratio=0.5, low=0.45, high=0.55, pairs=6)
    parity = ParityResult(
        samples=4,
        agreement=1.0,
        flips=0,
        confident_flips=0,
        lsb=LSB,
        max_lsb=1,
        mean_lsb=0.1,
        within_2_lsb=1.0,
    )
    return TargetResult(
        target=f"cpu-{name}",
        artifact=artifact,
        baseline=artifact,
        accuracy=accuracy,
        baseline_accuracy=accuracy,
        parity=parity,
        evidence="measured",
        runtime=latency.runtime,
        latency=latency,
        baseline_latency=latency,
        other_float=(),
        ratio=ratio,
    )


def write(folder: Path, result: TargetResult, profile: target.TargetProfile, **changes) -> Path:
    """Write a package of the tiny network; `changes` replace arguments of `package.write`."""
    settings = {
        "preprocessing": PREPROCESSING,
        "labels": LABELS,
        "golden_inputs": INPUTS,
        "golden_outputs": LOGITS,
        "reference_outputs": LOGITS + np.float32(LSB / 2),
        "lsb": LSB,
        "recipe_hash": "r" * 64,
        "data_fingerprint": "d" * 64,
        "versions": {"edgeft": "0.1.0"},
        "host": {"cpu": "test"},
    }
    return package.write(folder, result=result, profile=profile, **{**settings, **changes})


def any_host() -> target.TargetProfile:
    """A target whose float stand-in runs on any host, whatever its instruction set."""
    return target.load("cpu-onnxruntime").model_copy(update={"isa_floor": []})


def write_tiny(folder: Path) -> Path:
    """Write the tiny network and its package, which is at `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = folder.with_name("model.onnx")
    write_onnx(model)
    write(folder, target_result("onnxruntime", [model]), any_host())
    model.unlink()
    return folder


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of a package as a device would, from somewhere else."""
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, cwd="/", check=False
    )


def rehash(folder: Path, *, manifest: bool = True) -> None:
    """Make the hashes fit again, as somebody who changes a package on purpose would."""
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    files = {name: digest for name, digest in files.items() if name not in ("manifest.json", "SHA256SUMS")}
    if manifest:
        content = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**content, "files": files}))
    files["manifest.json"] = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text("".join(f"{files[name]}  {name}\n" for name in sorted(files)))
