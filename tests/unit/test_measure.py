"""Accuracy, parity, ratio and the host, without a runtime."""

from __future__ import annotations

import numpy as np
import pytest

from edgeft import measure, target
from edgeft.errors import MeasurementError, MissingDependencyError
from edgeft.measure import host
from edgeft.measure.transports import probe
from edgeft.types import LatencyResult, RuntimeReport


def test_accuracy_counts_right_answers_and_keeps_the_pairing():
    logits = np.array([[2, 1], [0, 1], [3, 4], [5, 4]], np.float32)
    scored = measure.accuracy(logits, np.array([0, 1, 0, 0]), ["a", "b", "c", "d"])
    assert scored.accuracy == 0.75
    assert (scored.low, scored.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert scored.predictions.tolist() == [0, 1, 1, 0] and scored.ids == ("a", "b", "c", "d")


def test_accuracy_refuses_unequal_lengths_and_nan():
    with pytest.raises(MeasurementError, match="2 logits, 1 labels"):
        measure.accuracy(np.zeros((2, 3), np.float32), np.array([0]), ["a"])
    with pytest.raises(MeasurementError, match="1 samples have a logit"):
        measure.accuracy(np.array([[np.nan, 0.0]], np.float32), np.array([0]), ["a"])


def test_parity_counts_lsb_and_tells_confident_flips_from_ties():
    lsb = 0.1
    reference = np.array([[0.0, 0.1], [0.0, 1.0], [0.5, 0.0], [0.0, 0.2]], np.float32)
    logits = np.array([[0.1, 0.0], [1.0, 0.0], [0.5, 0.0], [0.2, 0.0]], np.float32)
    found = measure.parity(logits, reference, lsb)
    assert (found.samples, found.flips, found.agreement) == (4, 3, 0.25)
    assert found.confident_flips == 1  # margins are 1, 10 and exactly 2 LSB
    assert found.max_lsb == pytest.approx(10)
    assert found.mean_lsb == pytest.approx((2 + 20 + 0 + 4) / 8)
    assert found.within_2_lsb == 0.75


@pytest.mark.parametrize("lsb", [0.0, -1.0, float("nan"), float("inf")])
def test_parity_needs_a_positive_lsb(lsb):
    with pytest.raises(MeasurementError, match="positive"):
        measure.parity(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32), lsb)


def timed(label: str, *processes: tuple[float, ...], evidence="measured") -> LatencyResult:
    return LatencyResult(
        label=label,
        evidence=evidence,
        threads=1,
        samples_ms=processes,
        load_ms=(1.0,) * len(processes),
        first_ms=(1.0,) * len(processes),
        peak_rss_bytes=1,
        runtime=RuntimeReport(runtime="r", version="1", device="cpu", mac_precision={}),
    )


def test_ratio_resamples_processes_not_runs():
    base = timed("base", *[(2.0, 2.0, 9.0)] * 4)
    head = timed("head", *[(1.0, 1.0, 7.0)] * 4)
    found = measure.ratio(head, base)
    # Every process has the same median: however unequal its runs, nothing is left to vary.
    assert (found.ratio, found.low, found.high, found.pairs) == (0.5, 0.5, 0.5, 4)
    assert (found.head, found.base) == ("head", "base")


def test_ratio_refuses_what_was_not_timed_together():
    with pytest.raises(MeasurementError, match="equal numbers"):
        measure.ratio(timed("a", (1.0,), (1.0,)), timed("b", (1.0,)))
    with pytest.raises(MeasurementError, match="estimated"):
        measure.ratio(timed("a", (1.0,), (1.0,)), timed("b", (1.0,), (1.0,), evidence="estimated"))


def test_the_isa_floor_needs_one_of_its_flags(monkeypatch):
    profile = target.load("cpu-onnxruntime")
    monkeypatch.setattr(host, "cpu_flags", lambda _: frozenset({"avx2", "avx_vnni"}))
    measure.check_isa_floor(profile)
    monkeypatch.setattr(host, "cpu_flags", lambda _: frozenset({"avx2"}))
    with pytest.raises(MissingDependencyError, match="avx512_vnni"):
        measure.check_isa_floor(profile)
    measure.check_isa_floor(target.load("cpu-litert"))  # has no floor


def test_cpu_flags_of_x86_and_arm_are_read(tmp_path):
    info = tmp_path / "proc/cpuinfo"
    info.parent.mkdir()
    info.write_text(
        "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\n"
    )
    assert probe.cpu_flags(tmp_path) >= {"avx2", "avx512_vnni"}
    assert probe.machine(tmp_path)["cpu"] == "Some CPU"
    info.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert probe.machine(tmp_path)["flags"] == ["asimd", "asimddp"]


def test_the_fingerprint_is_plain_data():
    import json

    found = measure.host_fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] >= 1 and "onnxruntime" in found["runtimes"]
