"""Records survive a stay on disk: what is read back is what was stored, to the type."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from edgeft import records, reporting
from edgeft.errors import WorkspaceError
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

ROOT = Path("/anywhere/run")


def artifact(**changes) -> ExportedArtifact:
    spec = TensorSpec(
        name="input", shape=(1, 3, 8, 8), dtype="int8", layout="nhwc", scale=0.1 + 0.2, zero_point=-3
    )
    fields = {
        "path": ROOT / "stages/model.onnx",
        "files": (ROOT / "stages/model.onnx",),
        "format": "onnx",
        "scheme": "int8",
        "sha256": {"model.onnx": "ab"},
        "size_bytes": 1234,
        "coverage": QuantCoverage(mac_ops=3, int8_mac_ops=2, float_ops=("conv_1",)),
        "inputs": (spec,),
        "outputs": (),
    }
    return ExportedArtifact(**{**fields, **changes})


def latency() -> LatencyResult:
    return LatencyResult(
        label="int8",
        evidence="measured",
        threads=1,
        samples_ms=((1.5, 1 / 3), (2.0,)),
        load_ms=(10.0, 11.0),
        first_ms=(3.0, 4.0),
        peak_rss_bytes=10**9,
        runtime=RuntimeReport(
            runtime="onnxruntime",
            version="1",
            device="cpu",
            mac_precision={"int8": 3},
            details={"nested": {"list": [1, "two", None], "flag": True}},
        ),
    )


def accuracy() -> AccuracyResult:
    return AccuracyResult(
        accuracy=2 / 3,
        low=0.2,
        high=0.9,
        predictions=np.array([0, 1, 1], dtype=np.int64),
        labels=np.array([0, 1, 0], dtype=np.int64),
        ids=("a", "b", "c"),
    )


def result() -> TargetResult:
    return TargetResult(
        target="cpu-litert",
        artifact=artifact(),
        baseline=artifact(scheme="float32"),
        accuracy=accuracy(),
        baseline_accuracy=accuracy(),
        parity=ParityResult(
            samples=3,
            agreement=1.0,
            flips=0,
            confident_flips=0,
            lsb=0.1,
            max_lsb=1.0,
            mean_lsb=0.2,
            within_2_lsb=1.0,
        ),
        evidence="measured",
        runtime=latency().runtime,
        latency=latency(),
        baseline_latency=latency(),
        other_float=(latency(),),
        ratio=RatioResult(base="float", head="int8", ratio=0.5, low=0.4, high=0.6, pairs=2),
    )


def through_json(value: object, root: Path = ROOT) -> dict:
    """Return what the pipeline stores, after a stay as text."""
    return json.loads(json.dumps(reporting.plain(records.encode(value, root)), allow_nan=False))


def assert_equal(ours: object, theirs: object) -> None:
    """Compare two records by value and by type, arrays by their dtype too."""
    assert type(ours) is type(theirs)
    if dataclasses.is_dataclass(ours):
        for field in dataclasses.fields(ours):
            assert_equal(getattr(ours, field.name), getattr(theirs, field.name))
    elif isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    elif isinstance(ours, tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    "record", [artifact(), latency(), accuracy(), result()], ids=lambda r: type(r).__name__
)
def test_a_record_comes_back_equal(record):
    assert_equal(records.decode(type(record), through_json(record), ROOT), record)


def test_paths_follow_a_folder_that_is_moved():
    stored = through_json(artifact())
    assert stored["path"] == "stages/model.onnx", "no absolute path of this machine"
    moved = records.decode(ExportedArtifact, stored, Path("/elsewhere"))
    assert moved.path == Path("/elsewhere/stages/model.onnx")
    assert moved.files == (moved.path,)


def test_a_path_outside_the_root_stays_absolute():
    stored = through_json(artifact(path=Path("/other/model.onnx")))
    assert records.decode(ExportedArtifact, stored, ROOT).path == Path("/other/model.onnx")


def test_an_empty_array_keeps_its_type():
    empty = np.array([], dtype=np.int64)
    record = dataclasses.replace(accuracy(), predictions=empty, labels=empty, ids=())
    assert records.decode(AccuracyResult, through_json(record), ROOT).predictions.dtype == np.int64


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: stored.pop("parity"),
        lambda stored: stored.update(accuracy=None),
        lambda stored: stored["accuracy"].update(predictions=["x"]),
        lambda stored: stored.update(artifact=[]),
        lambda stored: stored["artifact"].update(path=7),
        lambda stored: stored.update(other_float=7),
    ],
    ids=["missing", "null", "not numbers", "a list", "not a path", "not a list"],
)
def test_what_another_version_wrote_is_an_error_that_names_the_record(damage):
    stored = through_json(result())
    damage(stored)
    with pytest.raises(WorkspaceError, match="stored TargetResult") as raised:
        records.decode(TargetResult, stored, ROOT)
    assert raised.value.hint
