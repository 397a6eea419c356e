"""The verdict: every outcome of every check."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeft import gating
from edgeft.errors import EdgeftError
from edgeft.gating import checks
from edgeft.measure import noninferiority
from edgeft.measure.quality import accuracy
from edgeft.recipe import Gate
from edgeft.types import (
    BudgetResult,
    ExportedArtifact,
    LatencyResult,
    ParityResult,
    QuantCoverage,
    RatioResult,
    RuntimeReport,
    TargetResult,
)

N = 1000


def scored(right: np.ndarray, n: int = N):
    labels = np.arange(n) % 3
    return accuracy(
        np.eye(3, dtype=np.float32)[np.where(right, labels, (labels + 1) % 3)],
        labels,
        [str(i) for i in range(n)],
    )


def artifact(scheme: str, size: int, int8: int = 20) -> ExportedArtifact:
    return ExportedArtifact(
        path=Path(f"{scheme}.onnx"),
        files=(),
        format="onnx",
        scheme=scheme,
        sha256={f"{scheme}.onnx": f"digest of {scheme}, {size} bytes"},
        size_bytes=size,
        coverage=QuantCoverage(mac_ops=20, int8_mac_ops=int8, float_ops=("fc",) * (20 - int8)),
        inputs=(),
        outputs=(),
    )


def timed(**mac_precision: int) -> LatencyResult:
    report = RuntimeReport(runtime="r", version="1", device="cpu", mac_precision=mac_precision)
    return LatencyResult(
        label="x",
        evidence="measured",
        threads=1,
        samples_ms=((1.0,),) * 6,
        load_ms=(1.0,),
        first_ms=(1.0,),
        peak_rss_bytes=1,
        runtime=report,
    )


def result(worse: int = 2, better: int = 2, n: int = N, **changes) -> TargetResult:
    """A target whose file loses `worse` samples that the baseline got right, and wins `better` others."""
    base, head = np.ones(n, bool), np.ones(n, bool)
    head[:worse] = False
    base[worse : worse + better] = False
    good = TargetResult(
        target="t",
        artifact=artifact("int8", 300),
        baseline=artifact("float32", 1000, 0),
        accuracy=scored(head, n),
        baseline_accuracy=scored(base, n),
        parity=ParityResult(
            samples=n,
            agreement=1.0,
            flips=0,
            confident_flips=0,
            lsb=0.1,
            max_lsb=1,
            mean_lsb=0.1,
            within_2_lsb=1,
        ),
        evidence="measured",
        runtime=timed(int8=20).runtime,
        latency=timed(int8=20),
        baseline_latency=timed(float32=20),
        other_float=(),
        ratio=RatioResult(base="float", head="int8", ratio=0.5, low=0.45, high=0.55, pairs=6),
    )
    return replace(good, **changes)


def outcomes(*results: TargetResult, gate: Gate | None = None) -> dict[str, str]:
    verdict = gating.judge(results, gate or Gate(), reference="the float fine-tuned model")
    return {f"{c.target}/{c.name}": c.outcome for c in verdict.checks} | {"overall": verdict.outcome}


def test_a_good_result_passes_every_check():
    assert outcomes(result()) == {
        "t/accuracy": "pass",
        "t/size": "pass",
        "t/coverage": "pass",
        "t/parity": "pass",
        "t/speed": "pass",
        "overall": "pass",
    }


@pytest.mark.parametrize(
    ("worse", "better", "n", "margin", "outcome"),
    [
        (2, 2, 1000, 0.02, "pass"),
        (0, 0, 1000, 0.01, "pass"),
        (0, 0, 50, 0.01, "inconclusive"),  # no discordant pair, but too few samples to say so
        (20, 10, 1000, 0.01, "inconclusive"),  # worse by exactly the margin
        (60, 2, 1000, 0.01, "fail"),
        (2, 60, 1000, 0.01, "pass"),
    ],
)
def test_accuracy_is_judged_by_non_inferiority(worse, better, n, margin, outcome):
    found = outcomes(result(worse, better, n), gate=Gate(accuracy_margin=margin))
    assert found["t/accuracy"] == found["overall"] == outcome


def test_the_default_margin_is_what_the_samples_can_certify_and_the_text_says_so():
    check = gating.judge([result(0, 0, 200)], Gate(), reference="r").checks[0]
    assert check.outcome == "pass"
    assert check.values["margin"] == noninferiority.certifiable_margin(200) > 0.02
    assert 0.01 < check.values["certifiable_margin"] < check.values["margin"]  # no pair is discordant
    for word in (
        "drop 0.00",
        "margin",
        "200 samples that differ as often can certify",
        "McNemar p = 1",
        "predictions differ",
    ):
        assert word in check.detail
    assert gating.accuracy_margin(Gate(), 100_000) == gating.DEFAULT_MARGIN


def test_failing_is_adjusted_over_targets_and_passing_is_not():
    gate = Gate(accuracy_margin=0.01)
    suspicious = result(24, 4)  # drop 2 points: alone certainly above 1, but not as the worst of ten
    assert outcomes(suspicious, gate=gate)["t/accuracy"] == "fail"
    many = [replace(suspicious, target="first")] + [replace(result(), target=f"t{i}") for i in range(9)]
    found = outcomes(*many, gate=gate)
    assert found["first/accuracy"] == "inconclusive"
    assert all(found[f"t{i}/accuracy"] == "pass" for i in range(9))


def test_size_is_a_ratio_to_the_float_file():
    assert outcomes(result(artifact=artifact("int8", 1001)))["t/size"] == "fail"
    assert outcomes(result(artifact=artifact("int8", 1000)))["t/size"] == "pass"


def test_coverage_counts_the_file_and_the_runtime():
    assert outcomes(result(artifact=artifact("int8", 300, int8=19)))["t/coverage"] == "fail"
    silently_float = result(runtime=timed(int8=19, float32=1).runtime)
    assert outcomes(silently_float)["t/coverage"] == "fail"
    assert outcomes(silently_float, gate=Gate(min_coverage=0.9))["t/coverage"] == "pass"


def test_layers_in_float_on_purpose_do_not_count():
    one = result()
    total = one.artifact.coverage.mac_ops
    mixed = replace(
        one,
        artifact=artifact("int8", 300, total - 2),
        runtime=replace(one.runtime, mac_precision={"int8": total - 3, "float32": 3}),
    )
    assert checks.int8_shares(mixed.artifact, mixed.runtime, ["a", "b"]) == (1.0, (total - 3) / (total - 2))
    assert checks.int8_shares(mixed.artifact, mixed.runtime, [])[0] == (total - 2) / total


def test_a_float_file_has_no_coverage_check():
    found = outcomes(result(artifact=artifact("float32", 900, 0), latency=timed(float32=20)))
    assert "t/coverage" not in found and found["overall"] == "pass"


def test_parity_fails_on_confident_flips_only():
    parity = result().parity
    assert outcomes(result(parity=replace(parity, flips=50, agreement=0.95)))["t/parity"] == "pass"
    assert outcomes(result(parity=replace(parity, flips=10, confident_flips=10)))["t/parity"] == "pass"
    eleven = result(parity=replace(parity, flips=11, confident_flips=11))
    assert outcomes(eleven)["t/parity"] == "fail"
    assert outcomes(eleven, gate=Gate(max_confident_flips=0.011))["t/parity"] == "pass"


@pytest.mark.parametrize(
    ("low", "high", "outcome", "word"),
    [
        (0.5, 0.6, "pass", "certainly faster"),
        (0.9, 1.1, "pass", "not certainly faster"),
        (1.01, 1.2, "fail", "slower"),
    ],
)
def test_a_file_certainly_slower_than_float_fails_its_target(low, high, outcome, word):
    ratio = RatioResult(base="float", head="int8", ratio=(low + high) / 2, low=low, high=high, pairs=6)
    verdict = gating.judge([result(ratio=ratio)], Gate(), reference="r")
    assert verdict.outcome == outcome
    assert word in next(c.detail for c in verdict.checks if c.name == "speed")


def test_a_file_is_not_timed_against_itself():
    same = artifact("float32", 1000, 0)
    slower = RatioResult(base="float", head="final", ratio=1.01, low=1.005, high=1.02, pairs=6)
    verdict = gating.judge([result(artifact=same, baseline=same, ratio=slower)], Gate(), reference="r")
    assert verdict.outcome == "pass" and "speed" not in {check.name for check in verdict.checks}


def test_fail_outweighs_inconclusive_which_outweighs_pass():
    assert gating.overall(["pass", "inconclusive", "fail"]) == "fail"
    assert gating.overall(["pass", "inconclusive"]) == "inconclusive"
    assert gating.overall(["pass"]) == "pass"


def test_other_samples_order_or_labels_are_refused():
    good = result()
    base = good.baseline_accuracy
    for changed, message in [
        (replace(base, ids=(*base.ids[:-1], "other")), "2 samples are in one only"),
        (replace(base, ids=base.ids[::-1]), "order"),
        (replace(base, labels=(base.labels + 1) % 3), "one label"),
    ]:
        with pytest.raises(EdgeftError, match=message):
            gating.judge([replace(good, baseline_accuracy=changed)], Gate(), reference="r")
    with pytest.raises(EdgeftError, match="no result"):
        gating.judge([], Gate(), reference="r")


def test_the_verdict_names_its_reference_and_warns_of_seeds():
    verdict = gating.judge([result()], Gate(), reference="the float fine-tuned model")
    assert verdict.reference == "the float fine-tuned model"
    assert any("seed" in note for note in verdict.notes)


def test_a_missed_budget_fails_and_names_the_layer():
    met = BudgetResult(name="flash", value=300, limit=1000, unit="bytes", met=True, culprit="CONV_2D a")
    missed = BudgetResult(
        name="ram", value=36_912, limit=32_768, unit="bytes", met=False, culprit="ADD after b1"
    )
    verdict = gating.judge([result(budgets=(met, missed))], Gate(), reference="float")
    found = {check.name: check for check in verdict.checks}
    assert (found["flash budget"].outcome, found["ram budget"].outcome) == ("pass", "fail")
    assert found["ram budget"].detail == (
        "36,912 bytes, the profile's budget is 32,768 (113% of it): most of it takes ADD after b1"
    )
    assert "CONV_2D" not in found["flash budget"].detail
    assert verdict.outcome == "fail"


def test_operators_left_to_the_cpu_are_named():
    left = BudgetResult(name="fallback ops", value=2, limit=0, unit="ops", met=False, culprit="MEAN, SOFTMAX")
    verdict = gating.judge([result(budgets=(left,))], Gate(), reference="float")
    (check,) = (c for c in verdict.checks if c.name == "fallback ops budget")
    assert check.outcome == "fail"
    assert check.detail == "2 operators on the CPU, the profile's budget is 0: MEAN, SOFTMAX"


def test_a_target_without_a_clock_is_judged_by_all_but_speed():
    executed = result(evidence="executed", latency=None, baseline_latency=None, ratio=None)
    assert outcomes(executed) == {
        "t/accuracy": "pass",
        "t/size": "pass",
        "t/coverage": "pass",
        "t/parity": "pass",
        "overall": "pass",
    }
