"""Reports of runs that never ran, for the tests of what reads reports."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft import reporting, target
from edgeft.measure.quality import accuracy
from edgeft.types import (
    ExportedArtifact,
    LatencyResult,
    ParityResult,
    QuantCoverage,
    RatioResult,
    RuntimeReport,
    TargetResult,
    Verdict,
)

CLASSES = ("glass", "metal", "paper")
HOST = {"cpu": "Example CPU", "machine": "x86_64", "cores": 2, "flags": ["avx512_vnni"], "governor": None}

WriteReport = Callable[..., Path]


@pytest.fixture
def write_report(tmp_path: Path) -> WriteReport:
    """Write the report of a run with samples of 3 classes, predicted right but for `wrong`."""

    def write(
        name: str = "report.json",
        *,
        n: int = 2000,
        wrong: Sequence[int] = (),
        targets: Sequence[str] = ("cpu-onnxruntime", "cpu-openvino"),
        file: str = "a",
        order: Sequence[int] | None = None,
        size: int = 1000,
        p50: float = 2.0,
        gate: dict[str, Any] | None = None,
        edit: Callable[[dict[str, Any]], None] = lambda document: None,
    ) -> Path:
        labels = np.arange(n) % 3
        ids = np.array([f"{i * 2654435761 % 2**32:08x}{i:056x}" for i in range(n)], dtype=np.str_)
        predicted = labels.copy()
        predicted[list(wrong)] = (predicted[list(wrong)] + 1) % 3
        by = np.arange(n) if order is None else np.asarray(order)
        scored = accuracy(np.eye(3, dtype=np.float32)[predicted[by]], labels[by], ids[by].tolist())
        results = [_result(each, scored, file, size, p50) for each in targets]
        document = reporting.build(
            name="waste",
            recipe={"targets": list(targets), "finetune": {"method": "fine-tune"}, "gate": gate or {}},
            recipe_hash="3f" * 32,
            data={
                "classes": CLASSES,
                "fingerprint": "9a" * 32,
                "preprocessing": {"kind": "image", "size": 64},
            },
            model={"macs": {"before": 2000, "after": 1000}},
            stages=(),
            targets=results,
            profiles={each: target.load(each) for each in targets},
            verdict=Verdict(outcome="pass", reference="the float model", checks=()),
            host=HOST,
            versions={"edgeft": "0.1.0"},
            notes=(),
        )
        edit(document)
        path = tmp_path / name
        path.write_text(json.dumps(document))
        return path

    return write


def _result(name: str, scored: Any, file: str, size: int, p50: float) -> TargetResult:
    n = len(scored.ids)
    runtime = RuntimeReport(runtime="rt", version="1", device="cpu", mac_precision={"int8": 4})
    timed = LatencyResult(
        label="int8",
        evidence="measured",
        threads=1,
        samples_ms=((p50,) * 5,) * 2,
        load_ms=(1.0, 1.0),
        first_ms=(1.0, 1.0),
        peak_rss_bytes=1,
        runtime=runtime,
    )
    return TargetResult(
        target=name,
        artifact=_artifact("int8", f"{name} {file}", size, 4),
        baseline=_artifact("float32", "float", 3000, 0),
        accuracy=scored,
        baseline_accuracy=scored,
        parity=ParityResult(
            samples=n,
            agreement=1.0,
            flips=0,
            confident_flips=0,
            lsb=0.1,
            max_lsb=1.0,
            mean_lsb=0.1,
            within_2_lsb=1.0,
        ),
        evidence="measured",
        runtime=timed.runtime,
        latency=timed,
        baseline_latency=timed,
        other_float=(),
        ratio=RatioResult(base="float", head="int8", ratio=0.5, low=0.4, high=0.6, pairs=2),
    )


def _artifact(scheme: Any, content: str, size: int, int8: int) -> ExportedArtifact:
    path = Path("model.onnx")
    return ExportedArtifact(
        path=path,
        files=(path,),
        format="onnx",
        scheme=scheme,
        sha256={path.name: content.encode().hex().ljust(64, "0")},
        size_bytes=size,
        coverage=QuantCoverage(mac_ops=4, int8_mac_ops=int8),
        inputs=(),
        outputs=(),
    )
