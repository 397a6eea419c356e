"""A release against the last one and the anchor: every outcome, every refusal, and the file that keeps them."""

from __future__ import annotations

import json
import re
import subprocess

import numpy as np
import pytest

import edgeft
from edgeft import gating, reporting
from edgeft.errors import ConfigError
from edgeft.gating import release as releases
from edgeft.gating.samples import SampleSet, decode, encode

TARGET = "cpu-onnxruntime"


def establish(report, tmp_path, name="baseline.json", **options):
    """Write the baseline of a report and return its path."""
    path = tmp_path / name
    known = gating.read_baseline(path) if path.exists() else None
    gating.write_baseline(gating.updated(known, gating.read_report(report), **options), path)
    return path


def outcomes(verdict):
    return {f"{c.target}/{c.name}": c.outcome for c in verdict.checks} | {"overall": verdict.outcome}


def record(
    tmp_path, low, high, *, base="a", head="b", target=TARGET, name="record.json", threads=1, **changes
):
    """Write a record of `edgeft compare`."""
    sides = {
        side: {
            "name": side,
            "target": target,
            "sha256": {"f": f"{target} {file}".encode().hex().ljust(64, "0")},
            "evidence": "measured",
            "threads": threads,
        }
        for side, file in (("base", base), ("head", head))
    }
    ratio = {"ratio": (low + high) / 2, "low": low, "high": high}
    host = {"cpu": "Example CPU", "machine": "x86_64", "cores": 2, "flags": ["avx512_vnni"]}
    document = {
        "schema": "edgeft-compare",
        "version": 1,
        **sides,
        "p50": ratio,
        "p95": ratio,
        "limit": 1.05,
        "pairs": 12,
        "host": host,
        "warnings": [],
    }
    path = tmp_path / name
    path.write_text(json.dumps({**document, **changes}))
    return path


def test_the_same_file_passes_however_few_samples_there_are(write_report, tmp_path):
    report = write_report(n=20)
    verdict = edgeft.gate(report, baseline=establish(report, tmp_path))
    assert verdict.outcome == "pass"
    assert outcomes(verdict)[f"{TARGET}/accuracy"] == "pass"
    assert not any("seed" in note for note in verdict.notes)


@pytest.mark.parametrize(
    ("n", "wrong", "outcome"),
    [(2000, 4, "pass"), (2000, 20, "inconclusive"), (2000, 60, "fail"), (100, 0, "inconclusive")],
)
def test_accuracy_decides_on_the_same_samples(write_report, tmp_path, n, wrong, outcome):
    baseline = establish(write_report(n=n), tmp_path)
    verdict = edgeft.gate(write_report(n=n, wrong=range(wrong), file="b"), baseline=baseline)
    found = outcomes(verdict)
    assert found[f"{TARGET}/accuracy"] == found["overall"] == outcome
    assert any("seed" in note for note in verdict.notes)


def test_the_margin_is_not_widened_to_what_few_samples_can_certify(write_report, tmp_path):
    baseline = establish(write_report(n=100), tmp_path)
    report = write_report(n=100, file="b")
    assert edgeft.gate(report, baseline=baseline).checks[0].values["margin"] == 0.01
    assert edgeft.gate(report, baseline=baseline, margin=0.1).outcome == "pass"
    lenient = write_report(n=100, file="b", gate={"accuracy_margin": 0.1})
    verdict = edgeft.gate(lenient, baseline=baseline)
    assert verdict.outcome == "pass"
    assert any("gate.accuracy_margin differs" in note for note in verdict.notes)


def test_flips_are_told_by_class(write_report, tmp_path):
    baseline = establish(write_report(), tmp_path)
    verdict = edgeft.gate(write_report(wrong=[0, 3, 6, 1], file="b"), baseline=baseline)
    detail = verdict.checks[0].detail
    assert (
        "4 predictions differ (4 became wrong, 0 became right; by class: glass -3 +0, metal -1 +0)" in detail
    )
    assert "McNemar p = 0.12" in detail and "2000 samples that differ as often can certify" in detail


def test_order_does_not_matter(write_report, tmp_path):
    baseline = establish(write_report(n=500, wrong=[7, 8]), tmp_path)
    shuffled = np.random.default_rng(0).permutation(500)
    again = establish(write_report(n=500, wrong=[7, 8], order=shuffled), tmp_path, "again.json")
    without_date = re.compile(r'"created": "[^"]*"')
    assert without_date.sub("", again.read_text()) == without_date.sub("", baseline.read_text())
    verdict = edgeft.gate(write_report(n=500, wrong=[7, 9], order=shuffled, file="b"), baseline=baseline)
    assert verdict.checks[0].values["flips"] == 2


def test_small_drops_cannot_add_up(write_report, tmp_path):
    """Each release loses 4 of 2,000 samples: none is stopped by the last one, but the anchor stays."""
    baseline = establish(write_report(), tmp_path)
    found = {}
    for step in range(1, 8):
        report = write_report(wrong=range(4 * step), file=str(step))
        if step in (1, 2, 7):
            found[step] = outcomes(edgeft.gate(report, baseline=baseline))
            assert found[step][f"{TARGET}/accuracy"] == "pass"
        establish(report, tmp_path)
    assert f"{TARGET}/accuracy since anchor" not in found[1]
    assert found[2][f"{TARGET}/accuracy since anchor"] == found[2]["overall"] == "pass"
    assert found[7][f"{TARGET}/accuracy since anchor"] == found[7]["overall"] == "inconclusive"


def test_an_anchor_from_another_file(write_report, tmp_path):
    good = establish(write_report(), tmp_path, "anchor.json")
    baseline = establish(write_report(wrong=range(60)), tmp_path)
    report = write_report(wrong=range(62), file="b")
    assert edgeft.gate(report, baseline=baseline).outcome == "pass"
    found = outcomes(edgeft.gate(report, baseline=baseline, anchor=good))
    assert found[f"{TARGET}/accuracy"] == "pass"
    assert found[f"{TARGET}/accuracy since anchor"] == found["overall"] == "fail"


def test_pinning_moves_the_anchor(write_report, tmp_path):
    establish(write_report(), tmp_path)
    path = establish(write_report(file="b"), tmp_path)
    assert gating.read_baseline(path).pinned.targets[TARGET].digests != (
        gating.read_baseline(path).release.targets[TARGET].digests
    )
    establish(write_report(file="c"), tmp_path, pin=True)
    assert gating.read_baseline(path).anchor is None


def test_without_a_baseline_nothing_is_compared(write_report, tmp_path):
    verdict = edgeft.gate(write_report(), baseline=tmp_path / "none.json")
    assert verdict.outcome == "no baseline" and "does not exist" in verdict.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 1999}, "of its 2000, 1 are not in the report, which has 0 others"),
        ({"edit": lambda d: d["data"].update(classes=["a", "b", "c"])}, "made for the classes glass"),
        ({"edit": lambda d: d["samples"]["labels"].__setitem__(0, 2)}, "1 of 2000 test samples have another"),
        ({"edit": lambda d: d["data"]["preprocessing"].update(size=96)}, "preprocessing: size 64 -> 96"),
    ],
)
def test_what_cannot_be_paired_is_refused(write_report, tmp_path, changes, message):
    baseline = establish(write_report(), tmp_path)
    with pytest.raises(ConfigError, match=message):
        edgeft.gate(write_report("other.json", **changes), baseline=baseline)


def test_other_samples_are_counted(write_report, tmp_path):
    baseline = establish(write_report(n=600), tmp_path)

    def replace(document):
        document["samples"]["ids"][:5] = [f"{i:064x}" for i in range(15 * 16**63, 15 * 16**63 + 5)]

    with pytest.raises(ConfigError, match="of its 600, 5 are not in the report, which has 5 others"):
        edgeft.gate(write_report(n=600, edit=replace), baseline=baseline)


def test_training_data_may_change_and_a_report_may_not_tell_its_preprocessing(write_report, tmp_path):
    baseline = establish(write_report(), tmp_path)

    def other(document):
        document["data"]["fingerprint"] = "00" * 32
        del document["data"]["preprocessing"]

    verdict = edgeft.gate(write_report(edit=other), baseline=baseline)
    assert verdict.outcome == "pass"
    assert any("training or validation data differ" in note for note in verdict.notes)


def test_what_a_table_learns_from_training_data_may_change():
    columns = [{"type": "numeric", "name": "x", "mean": 1.0, "std": 2.0}]
    one, _ = SampleSet.of(["a"], np.array([0]), ["k"], {"kind": "table", "columns": columns})
    two, _ = SampleSet.of(
        ["a"], np.array([0]), ["k"], {"kind": "table", "columns": [{**columns[0], "mean": 3.0}]}
    )
    one.require_same(two, "baseline")
    other, _ = SampleSet.of(
        ["a"], np.array([0]), ["k"], {"kind": "table", "columns": [{**columns[0], "name": "y"}]}
    )
    with pytest.raises(ConfigError, match="columns"):
        one.require_same(other, "baseline")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON, perhaps truncated"),
        (
            lambda text: text.replace('"version": 1', '"version": 2', 1),
            "edgeft-baseline version 2, .* reads 1",
        ),
        (lambda text: text.replace("edgeft-baseline", "edgeft-report"), "'edgeft-baseline' is needed"),
        (
            lambda text: text.replace('"count": 2000', '"count": 2001'),
            "labels: not 2001 indices of 3 classes",
        ),
        (lambda text: re.sub(r'("predictions": \[\s*")\d', r"\g<1>7", text, count=1), "file is damaged"),
        (lambda text: text.replace('"size_bytes"', '"weight"'), "size_bytes: Field required"),
        (
            lambda text: text.replace('"limits": {}', '"limits": {"accuracy_margin": 2}', 1),
            "release.limits: accuracy_margin: Input should be less than 1",
        ),
        (
            lambda text: text.replace('"recipe_hash"', '"board": "pi", "recipe_hash"', 1),
            r"release.board: Extra inputs are not permitted\n.*update edgeft, if a later one wrote it",
        ),
        (lambda text: "[]", "key \"schema\" is 'list'"),
    ],
)
def test_a_damaged_baseline_is_one_clear_message(write_report, tmp_path, damage, message):
    report = write_report()
    path = establish(report, tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ConfigError, match=message):
        edgeft.gate(report, baseline=path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["samples"].update(ids=[], labels=[]), "zero test samples"),
        (lambda d: d.update(targets=[]), "no target"),
        (lambda d: d["targets"].append(d["targets"][0]), f"targets holds {TARGET} more than once"),
        (lambda d: d["targets"][0]["accuracy"]["predictions"].__setitem__(0, None), "predictions.0"),
        (lambda d: d["targets"][0]["accuracy"]["predictions"].__setitem__(0, 3), "class indices from 0 to 3"),
        (lambda d: d["targets"][0]["accuracy"]["predictions"].pop(), "1999 predictions for 2000 samples"),
        (lambda d: d["targets"][0]["latency"].update(p50_ms=float("nan")), "NaN is no JSON number"),
        (lambda d: d.update(version=9), "edgeft-report version 9"),
        (lambda d: d.pop("samples"), "samples: Field required"),
        (lambda d: d["recipe"].update(gate="abc"), "recipe.gate: Input should be a valid dictionary"),
        (lambda d: d["recipe"].update(gate={"accuracy_margin": -1}), "recipe.gate: accuracy_margin: Input"),
        (lambda d: d["recipe"].update(gate={"accuracy_margin": 5}), "recipe.gate: accuracy_margin: Input"),
        (lambda d: d["recipe"].update(finetune="x"), "recipe.finetune: Input should be"),
        (lambda d: d["model"].update(macs=None), "model.macs: Input should be"),
        (lambda d: d["model"]["macs"].update(after=1.5), "model.macs.after: Input should be a valid integer"),
        (lambda d: d["targets"][0]["artifact"].update(size_bytes=10**400), "size_bytes: Input should be"),
        (lambda d: d["data"].update(preprocessing={"kind": "table"}), "data.preprocessing: columns: Field"),
        (lambda d: d["samples"]["labels"].__setitem__(0, 10**30), "labels: class indices from 0 to 10{30};"),
        (
            lambda d: d["targets"][1]["accuracy"]["predictions"].__setitem__(0, 10**30),
            "indices from 0 to 10{30};",
        ),
        (
            lambda d: d["verdict"]["checks"].append(
                {"name": "coverage", "target": TARGET, "values": {"file": None}}
            ),
            f"target {TARGET}: coverage check: file: Input should be a valid number\n.*executed: Field required",
        ),
    ],
)
def test_a_damaged_report_is_one_clear_message(write_report, tmp_path, edit, message):
    baseline = establish(write_report(), tmp_path)
    with pytest.raises(ConfigError, match=message):
        edgeft.gate(write_report(edit=edit), baseline=baseline)


@pytest.mark.parametrize(
    ("low", "high", "outcome"), [(0.9, 1.02, "pass"), (0.99, 1.2, "inconclusive"), (1.08, 1.2, "fail")]
)
def test_latency_is_judged_by_a_record(write_report, tmp_path, low, high, outcome):
    baseline = establish(write_report(), tmp_path)
    report = write_report(file="b")
    verdict = edgeft.gate(report, baseline=baseline, compare=[record(tmp_path, low, high)])
    found = outcomes(verdict)
    assert found[f"{TARGET}/latency"] == found["overall"] == outcome
    assert found["cpu-openvino/latency"] == "no baseline"  # no record of that one


def test_latency_limit_is_the_recipes_or_the_callers(write_report, tmp_path):
    baseline = establish(write_report(), tmp_path)
    slower = [record(tmp_path, 1.08, 1.2)]
    assert edgeft.gate(write_report(file="b"), baseline=baseline, compare=slower).outcome == "fail"
    report = write_report(file="b", gate={"latency_ratio": 1.3})
    assert edgeft.gate(report, baseline=baseline, compare=slower).outcome == "pass"
    assert edgeft.gate(report, baseline=baseline, compare=slower, latency_ratio=1.05).outcome == "fail"


def test_reports_alone_never_fail_on_latency(write_report, tmp_path):
    baseline = establish(write_report(), tmp_path)
    verdict = edgeft.gate(write_report(file="b", p50=20.0), baseline=baseline)
    (check,) = (c for c in verdict.checks if (c.target, c.name) == (TARGET, "latency"))
    assert verdict.outcome == "pass" and check.outcome == "no baseline"
    assert "advisory" in check.detail and "(10.00)" in check.detail


def test_a_record_of_another_host_is_advice(write_report, tmp_path):
    baseline = establish(write_report(), tmp_path)
    elsewhere = record(tmp_path, 1.08, 1.2, host={"cpu": "Another", "machine": "x86_64", "cores": 2})
    verdict = edgeft.gate(write_report(file="b"), baseline=baseline, compare=[elsewhere])
    (check,) = (c for c in verdict.checks if (c.target, c.name) == (TARGET, "latency"))
    assert verdict.outcome == "pass" and check.outcome == "no baseline"
    assert "above the limit" in check.detail and "'Another' and 'Example CPU'" in check.detail


def test_a_record_of_the_board_is_judged_where_the_report_is_of_that_board(write_report, tmp_path):
    board = {"host": "pi@board", "cpu": "Cortex-A72", "machine": "aarch64", "cores": 4, "flags": []}

    def on_the_board(document):
        document["targets"][0]["latency"]["runtime"]["details"]["host"] = board

    baseline = establish(write_report(edit=on_the_board), tmp_path)
    slower = record(tmp_path, 1.4, 1.6, host=board)
    report = write_report(file="b", edit=on_the_board)
    found = outcomes(edgeft.gate(report, baseline=baseline, compare=[slower]))
    assert found[f"{TARGET}/latency"] == found["overall"] == "fail"
    here = record(tmp_path, 1.4, 1.6, name="here.json")
    assert outcomes(edgeft.gate(report, baseline=baseline, compare=[here]))["overall"] == "pass"
    kept = json.loads(baseline.read_text())["release"]["targets"]
    assert kept[TARGET]["host"] == board and "host" not in kept["cpu-openvino"]


def test_a_record_with_other_threads_is_advice(write_report, tmp_path):
    baseline = establish(write_report(), tmp_path)
    verdict = edgeft.gate(
        write_report(file="b"), baseline=baseline, compare=[record(tmp_path, 0.4, 0.6, threads=8)]
    )
    (check,) = (c for c in verdict.checks if (c.target, c.name) == (TARGET, "latency"))
    assert check.outcome == "no baseline" and "ran with 8 threads" in check.detail


@pytest.mark.parametrize(
    ("side", "told"),
    [
        ({"asked": {"device": "GPU"}}, "compared with device GPU, not as the package says"),
        ({"runtime": {"runtime": "rt", "version": "2"}}, "ran in rt 2, the report's target in rt 1"),
    ],
)
def test_a_record_with_other_settings_is_advice(write_report, tmp_path, side, told):
    baseline = establish(write_report(), tmp_path)
    path = record(tmp_path, 0.4, 0.6)
    document = json.loads(path.read_text())
    document["head"] |= side
    path.write_text(json.dumps(document))
    verdict = edgeft.gate(write_report(file="b"), baseline=baseline, compare=[path])
    (check,) = (c for c in verdict.checks if (c.target, c.name) == (TARGET, "latency"))
    assert check.outcome == "no baseline" and told in check.detail


def test_a_record_of_too_few_pairs_is_refused(write_report, tmp_path):
    baseline = establish(write_report(), tmp_path)
    with pytest.raises(ConfigError, match="pairs: Input should be greater than or equal to 8"):
        edgeft.gate(write_report(file="b"), baseline=baseline, compare=[record(tmp_path, 0.4, 0.6, pairs=1)])


def test_the_same_file_in_another_runtime_has_no_latency_of_the_baselines(write_report, tmp_path):
    baseline = establish(write_report(), tmp_path)
    found = outcomes(edgeft.gate(write_report(), baseline=baseline))
    assert found[f"{TARGET}/latency"] == "pass"

    def upgraded(document):
        document["targets"][0]["latency"]["runtime"]["version"] = "2"

    found = outcomes(edgeft.gate(write_report(edit=upgraded), baseline=baseline))
    assert found[f"{TARGET}/latency"] == "no baseline"


def test_anchor_and_records_are_not_left_out_where_the_baseline_is_lost(write_report, tmp_path):
    baseline = establish(write_report(), tmp_path)
    lost = tmp_path / "lost.json"
    with pytest.raises(ConfigError, match=r"lost\.json does not exist, and the anchor"):
        edgeft.gate(write_report(), baseline=lost, anchor=baseline)
    with pytest.raises(ConfigError, match=r"lost\.json does not exist, and the record"):
        edgeft.gate(write_report(), baseline=lost, compare=[record(tmp_path, 0.4, 0.6)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": "edgeft-report", "version": 1, "x": 1e999}', "1e999 is larger than any number"),
        ("[" * 200_000, "too many brackets"),
    ],
)
def test_a_document_beyond_any_is_one_clear_message(tmp_path, content, message):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        edgeft.gate(path, baseline=tmp_path / "baseline.json")


@pytest.mark.parametrize("value", [0, 10**400])
def test_a_baseline_with_an_impossible_size_is_damaged(write_report, tmp_path, value):
    baseline = establish(write_report(), tmp_path)
    document = json.loads(baseline.read_text())
    document["release"]["targets"][TARGET]["size_bytes"] = value
    baseline.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="size_bytes: Input should be"):
        edgeft.gate(write_report(), baseline=baseline)


@pytest.mark.parametrize(("limit", "cure"), [(1.05, "--time-limit"), (1.1, "--limit 1.05")])
def test_what_helps_an_undecided_record_is_told(write_report, tmp_path, limit, cure):
    baseline = establish(write_report(), tmp_path)
    undecided = record(tmp_path, 1.03, 1.08, limit=limit)
    verdict = edgeft.gate(write_report(file="b"), baseline=baseline, compare=[undecided])
    (check,) = (c for c in verdict.checks if (c.target, c.name) == (TARGET, "latency"))
    assert check.outcome == "inconclusive" and cure in check.detail


def test_records_of_other_files_and_damaged_ones_are_refused(write_report, tmp_path):
    baseline = establish(write_report(), tmp_path)
    report = write_report(file="b")
    for bad, message in (
        (record(tmp_path, 0.9, 1.0, base="x", name="1"), "base 'base' .* is no file of the baseline"),
        (record(tmp_path, 0.9, 1.0, head="x", name="2"), "head 'head' .* is no file of the report"),
        (record(tmp_path, 1.0, 0.9, name="3"), "no interval of a ratio"),
        (record(tmp_path, 0.9, 1.0, name="4", version=2), "edgeft-compare version 2"),
        (tmp_path / "nothing.json", "no such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            edgeft.gate(report, baseline=baseline, compare=[bad])
    twice = [record(tmp_path, 0.9, 1.0, name=name) for name in ("5", "6")]
    with pytest.raises(ConfigError, match="both compare the files of target"):
        edgeft.gate(report, baseline=baseline, compare=twice)


def test_exact_checks(write_report, tmp_path):
    def memory(document, arena):
        for each in document["targets"]:
            each["memory"] = {"ram_bytes": arena, "flash_bytes": 10}

    def heavier(document):
        memory(document, 106)
        document["model"]["macs"]["after"] = 1051
        document["targets"][0]["parity"]["confident_flips"] = 21
        document["verdict"]["checks"] = [
            {
                "name": "coverage",
                "target": TARGET,
                "outcome": "fail",
                "detail": "",
                "values": {"file": 1.0, "executed": 0.75},
            }
        ]

    baseline = establish(write_report(edit=lambda d: memory(d, 100)), tmp_path)
    found = outcomes(edgeft.gate(write_report(size=1051, file="b", edit=heavier), baseline=baseline))
    wanted = {"size": "fail", "arena": "fail", "flash": "pass", "coverage": "fail", "parity": "fail"}
    assert {name: found[f"{TARGET}/{name}"] for name in wanted} == wanted
    assert found["/macs"] == "fail" and found["cpu-openvino/coverage"] == "pass"
    assert found[f"{TARGET}/size vs float"] == "pass"
    lighter = outcomes(edgeft.gate(write_report(size=1049, file="b"), baseline=baseline))
    assert lighter["overall"] == "pass" and f"{TARGET}/arena" not in lighter


def test_missing_and_new_targets_are_named(write_report, tmp_path):
    baseline = establish(write_report(), tmp_path)
    report = write_report(targets=[TARGET, "cpu-litert"], file="b")
    found = outcomes(edgeft.gate(report, baseline=baseline))
    assert found["cpu-openvino/target"] == found["overall"] == "fail"
    assert found["cpu-litert/target"] == "no baseline" and found["cpu-litert/parity"] == "pass"
    assert edgeft.gate(report, baseline=baseline, allow_missing=True).outcome == "pass"


def test_no_target_in_common_is_no_verdict(write_report, tmp_path):
    baseline = establish(write_report(), tmp_path)
    renamed = write_report(targets=["cpu-litert"], wrong=range(2000), file="b")
    with pytest.raises(
        ConfigError, match=r"knows none of the targets to judge .cpu-litert.; it has cpu-onnx"
    ):
        edgeft.gate(renamed, baseline=baseline, allow_missing=True)
    other = establish(write_report(targets=["cpu-litert"]), tmp_path, "anchor.json")
    with pytest.raises(ConfigError, match=r"anchor.json: knows none of the targets"):
        edgeft.gate(write_report(file="b"), baseline=baseline, anchor=other)


def test_a_target_that_the_anchor_does_not_know_is_said(write_report, tmp_path):
    baseline = establish(write_report(targets=["cpu-openvino"]), tmp_path)
    establish(write_report(file="b"), tmp_path)
    found = outcomes(edgeft.gate(write_report(file="c"), baseline=baseline))
    assert found[f"{TARGET}/accuracy since anchor"] == "no baseline"
    assert found["cpu-openvino/accuracy since anchor"] == found["overall"] == "pass"


def test_the_file_diffs_well(write_report, tmp_path):
    """Three flips of 2,000 samples and two targets change a few lines, and the lines stay short."""
    before = establish(write_report(), tmp_path, "before.json").read_text().splitlines()
    after = establish(write_report(wrong=[5, 700, 1999], file="b"), tmp_path, "after.json").read_text()
    changed = sum(one != other for one, other in zip(before, after.splitlines(), strict=True))
    assert changed <= 3 * 2 + 2 * 2 + 3  # predictions, files and accuracies of two targets; date
    assert max(map(len, before)) < 180
    assert len(after) / 2000 < 20  # bytes per sample


def test_an_update_says_what_changes(write_report, tmp_path):
    old = gating.read_baseline(establish(write_report(), tmp_path))
    candidate = gating.read_report(write_report(wrong=range(10), size=900, p50=2.5, file="b"))
    new = gating.updated(old, candidate, accepted="known regression")
    rows = {(row["what"], row["target"]): (row["before"], row["after"]) for row in gating.changes(old, new)}
    assert rows["accuracy", TARGET] == ("100.00%", "99.50%")
    assert rows["size", TARGET] == ("1,000 bytes", "900 bytes")
    assert rows["p50 (advisory)", TARGET] == ("2 ms", "2.5 ms")
    assert rows["predictions", TARGET] == ("", "10 differ")
    assert rows["accepted because", ""] == ("-", "known regression")
    assert ("recipe", "") not in rows and ("test samples", "") not in rows
    assert new.pinned == old.release
    first = gating.changes(None, new)
    assert {"what": "test samples", "target": "", "before": "-", "after": "2,000"} in first


@pytest.mark.parametrize("classes", [1, 3, 36, 37, 1000, 50_000])
def test_predictions_survive_their_text(classes):
    indices = np.random.default_rng(0).integers(0, classes, 333)
    lines = encode(indices, classes)
    assert decode(lines, classes, 333, "here").tolist() == indices.tolist()
    with pytest.raises(ConfigError, match="here: not 333 indices"):
        decode(lines[:-1], classes, 333, "here")


def test_the_gate_reads_the_reports_that_are_written():
    assert (releases.REPORT_SCHEMA, releases.REPORT_VERSION) == (reporting.SCHEMA, reporting.VERSION)


def test_the_commit_is_that_of_the_reports_repository(tmp_path):
    assert gating.commit_of(tmp_path) == ""
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        settings = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *settings, *arguments], check=True)
    assert re.fullmatch(r"[0-9a-f]{40}", gating.commit_of(tmp_path))


def on_devices(*, cycles=1000, source="Vela 5.2.0, ethos-u55-128", ram=1000, limit=2000):
    """Return an edit that takes the clock from all targets but the first and gives the last one a compiler."""

    def edit(document):
        for each in document["targets"][1:]:
            each |= {"latency": None, "baseline_latency": None, "other_float": [], "ratio": None}
            each["memory"] = {"ram_bytes": ram, "flash_bytes": 500}
            each["budgets"] = [
                {
                    "name": "ram",
                    "value": ram,
                    "limit": limit,
                    "unit": "bytes",
                    "met": ram <= limit,
                    "culprit": "ADD 3",
                }
            ]
        document["targets"][-1]["estimate"] = {"cycles": cycles, "ms": cycles / 500, "source": source}

    return {"targets": (TARGET, "mcu-tflm", "npu-ethos-u55-128"), "edit": edit}


def test_targets_without_a_clock_are_judged_exactly(write_report, tmp_path):
    path = establish(write_report(**on_devices()), tmp_path)
    stored = json.loads(path.read_text())["release"]["targets"]
    assert stored["mcu-tflm"]["latency"] is None and stored["mcu-tflm"]["runtime"] == "rt 1"
    assert not {"runtime", "estimate"} & stored[TARGET].keys()
    found = outcomes(edgeft.gate(write_report(file="b", **on_devices(cycles=1049, ram=1050)), baseline=path))
    assert found["npu-ethos-u55-128/estimate"] == found["mcu-tflm/arena"] == found["overall"] == "pass"
    assert not [name for name in found if name.endswith("/latency") and not name.startswith(TARGET)]
    found = outcomes(edgeft.gate(write_report(file="b", **on_devices(cycles=1051, ram=1051)), baseline=path))
    assert found["npu-ethos-u55-128/estimate"] == found["mcu-tflm/arena"] == found["overall"] == "fail"


def test_estimates_of_another_compiler_do_not_compare(write_report, tmp_path):
    path = establish(write_report(**on_devices()), tmp_path)
    report = write_report(file="b", **on_devices(cycles=9000, source="Vela 6.0.0, ethos-u55-128"))
    verdict = edgeft.gate(report, baseline=path)
    (check,) = (c for c in verdict.checks if c.name == "estimate")
    assert check.outcome == "no baseline" and "Vela 6.0.0" in check.detail and "Vela 5.2.0" in check.detail
    assert verdict.outcome == "pass"


def test_a_budget_that_a_release_misses_fails_the_gate(write_report, tmp_path):
    path = establish(write_report(**on_devices()), tmp_path)
    verdict = edgeft.gate(write_report(file="b", **on_devices(limit=999)), baseline=path)
    missed = [check for check in verdict.checks if check.outcome == "fail"]
    assert [(check.target, check.name) for check in missed] == [
        ("mcu-tflm", "ram budget"),
        ("npu-ethos-u55-128", "ram budget"),
    ]
    assert "ADD 3" in missed[0].detail


def test_a_target_that_loses_its_clock_is_not_compared_by_time(write_report, tmp_path):
    path = establish(write_report(targets=(TARGET, "mcu-tflm", "npu-ethos-u55-128")), tmp_path)
    found = outcomes(edgeft.gate(write_report(file="b", **on_devices()), baseline=path))
    assert "mcu-tflm/latency" not in found and found["overall"] == "pass"


def test_an_update_tells_of_memory_and_estimate(write_report, tmp_path):
    baseline = gating.read_baseline(establish(write_report(**on_devices()), tmp_path))
    new = gating.updated(
        baseline, gating.read_report(write_report(file="b", **on_devices(cycles=900, ram=800)))
    )
    rows = {(row["what"], row["target"]): row["after"] for row in gating.changes(baseline, new)}
    assert rows["RAM", "mcu-tflm"] == "800 bytes"
    assert rows["estimate", "npu-ethos-u55-128"] == "1.8 ms (Vela 5.2.0, ethos-u55-128)"
