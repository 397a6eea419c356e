"""`edgeft compare` with real processes: a file and one with an op added, its record, its refusals, its exit codes."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import tiny_packages
from onnx import helper

import edgeft
from edgeft import benchmarking
from edgeft.benchmarking import comparison, interleaving
from edgeft.cli import main
from edgeft.errors import ConfigError
from edgeft.measure import latency
from edgeft.types import Estimate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`base.onnx`, `head.onnx` with 200 ops added, and samples."""
    folder = tmp_path_factory.mktemp("compare")
    tiny_packages.write_onnx(folder / "base.onnx")
    model = onnx.load(folder / "base.onnx")
    names = ["input", *(f"extra_{i}" for i in range(200))]
    chain = [helper.make_node("Tanh", [a], [b]) for a, b in itertools.pairwise(names)]
    model.graph.node[0].input[0] = names[-1]
    for node in reversed(chain):
        model.graph.node.insert(0, node)
    onnx.save(model, folder / "head.onnx")
    np.save(folder / "inputs.npy", tiny_packages.INPUTS)
    return folder


@pytest.fixture(scope="module")
def slower(folder):
    """The fewest processes there can be: the time limit has passed before the first round ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interleaving, "RUN_SECONDS", 0.05)
        return edgeft.compare(
            folder / "base.onnx", folder / "head.onnx", inputs=folder / "inputs.npy", time_limit_seconds=0.1
        )


def test_an_added_op_is_found(slower):
    assert slower.outcome == "fail"
    assert slower.decision.pairs == 8
    assert 1.05 < slower.decision.p50.low <= slower.decision.p50.value
    assert slower.head.p50_ms > slower.base.p50_ms
    assert slower.stopped.startswith("the interval lies above 1.05 after 8 pairs")


def test_the_record_holds_every_run_of_every_process(slower, folder):
    record = json.loads(json.dumps(slower.record(), allow_nan=False))
    assert (record["schema"], record["version"], record["outcome"]) == ("edgeft-compare", 1, "fail")
    for side, name in (("base", "base.onnx"), ("head", "head.onnx")):
        kept = record[side]
        assert list(kept["sha256"]) == [name]
        assert kept["size_bytes"] == (folder / name).stat().st_size
        assert (kept["evidence"], kept["threads"], kept["target"]) == ("measured", 1, "")
        assert kept["runtime"]["runtime"] == "onnxruntime"
        assert len(kept["samples_ms"]) == 8 and min(map(len, kept["samples_ms"])) >= 10
        medians = [np.median(samples) for samples in kept["samples_ms"]]
        assert kept["p50_ms"] == pytest.approx(np.median(medians), rel=1e-3)
    assert record["base"]["inputs"] == record["head"]["inputs"] and "inputs.npy" in record["base"]["inputs"]
    for ratio in (record["p50"], record["p95"], record["noise"]["p50"]):
        assert 0.0 < ratio["low"] <= ratio["ratio"] <= ratio["high"]
    assert record["host"]["cores"] >= 1
    assert record["seconds"] > 0.1


def test_the_ratio_is_that_of_neighbours_in_time(slower):
    record = slower.record()
    logs = np.log(
        [
            np.median(head) / np.median(base)
            for base, head in zip(record["base"]["samples_ms"], record["head"]["samples_ms"], strict=True)
        ]
    )
    # The 20 % trimmed mean of eight leaves out the least and the greatest.
    assert record["p50"]["ratio"] == pytest.approx(np.exp(np.sort(logs)[1:-1].mean()), rel=1e-3)


@pytest.mark.parametrize(("outcome", "code"), [("pass", 0), ("fail", 1), ("inconclusive", 4)])
def test_the_exit_code_is_the_outcome(monkeypatch, capsys, tmp_path, slower, outcome, code):
    found = replace(slower, decision=replace(slower.decision, outcome=outcome), warnings=("mind the gap",))
    asked = {}

    def measured(base, head, **settings):
        asked.update(settings, base=base, head=head)
        return found

    monkeypatch.setattr(benchmarking, "compare", measured)
    record = tmp_path / "compare.json"
    arguments = ["--limit", "1.2", "--time-limit", "30", "--threads", "2", "--host", "me@board"]
    arguments += ["--option", "HINT=f32", "--option", "a=b=c", "--shape", "x=1,3"]
    assert main.main(["compare", "a.onnx", "b.onnx", *arguments, "--output", str(record)]) == code
    shown = capsys.readouterr().out
    assert outcome.upper() in shown and "mind the gap" in shown and "base / itself (noise)" in shown
    assert f"{found.decision.p50.value:.3f} [" in shown
    assert json.loads(record.read_text())["outcome"] == outcome
    assert (asked["base"], asked["head"], asked["limit"], asked["time_limit_seconds"]) == (
        "a.onnx", "b.onnx", 1.2, 30.0
    )  # fmt: skip
    assert (asked["threads"], asked["host"], asked["device"], asked["inputs"]) == (2, "me@board", None, None)
    assert (asked["options"], asked["shapes"]) == ({"HINT": "f32", "a": "b=c"}, {"x": (1, 3)})
    assert "measured on " in shown
    assert main.main(["compare", "a.onnx", "b.onnx", "--json", "--random"]) == code
    assert json.loads(capsys.readouterr().out)["p50"]["ratio"] == found.decision.p50.value
    assert asked["inputs"] == "random"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_record_that_cannot_be_written_any_more_is_shown(monkeypatch, capsys, tmp_path, slower, as_json):
    record = tmp_path / "compare.json"

    def measured(*_, **__):
        record.mkdir()
        return slower

    monkeypatch.setattr(benchmarking, "compare", measured)
    arguments = ["a.onnx", "b.onnx", "--output", str(record), *(["--json"] if as_json else [])]
    assert main.main(["compare", *arguments]) == 2
    shown = capsys.readouterr().out
    if as_json:
        assert json.JSONDecoder().raw_decode(shown)[0] == slower.record()
    else:
        assert "FAIL" in shown and "record:" not in shown


@pytest.mark.parametrize("output", [".", "/", "/dev/null", "base.onnx/record.json"])
def test_where_a_record_cannot_be_written_is_said_before_measuring(monkeypatch, capsys, folder, output):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(benchmarking, "compare", lambda *_, **__: pytest.fail("it was measured"))
    assert main.main(["compare", "base.onnx", "head.onnx", "--random", "--output", output]) == 2
    assert f"{output}: " in capsys.readouterr().err


def test_a_board_is_sent_no_more_than_fits(monkeypatch, tmp_path, slower):
    monkeypatch.setattr(latency, "_SENT_BYTES", 2 * tiny_packages.INPUTS[0].nbytes)
    here = slower.base.subject
    runtime = here.profile.runtime.model_copy(update={"host": "me@board"})
    there = replace(here, profile=here.profile.model_copy(update={"runtime": runtime}))
    for subject, samples in ((here, len(tiny_packages.INPUTS)), (there, 2)):
        interleaving._Timed(subject).store(tmp_path, "base")
        assert len(np.load(tmp_path / "base.npy")) == samples


def test_what_cannot_be_compared_is_refused(slower):
    base, head = slower.base.subject, slower.head.subject
    estimated = replace(head, profile=head.profile.model_copy(update={"evidence": "estimated"}))
    with pytest.raises(ConfigError, match="is estimated; only a clock can be compared"):
        comparison.require_comparable(base, estimated)
    board = head.profile.runtime.model_copy(update={"host": "me@board"})
    elsewhere = replace(head, profile=head.profile.model_copy(update={"runtime": board}))
    with pytest.raises(ConfigError, match=r"runs on this machine, .* on me@board"):
        comparison.require_comparable(base, elsewhere)
    comparison.require_comparable(base, head)


def test_what_makes_a_comparison_doubtful_is_said(slower):
    clear = slower.decision
    drifted = replace(
        clear,
        outcome="pass",
        noise=Estimate(value=1.1, low=1.05, high=1.2),
        p95=Estimate(value=2, low=1.5, high=3),
    )
    said = " ".join(comparison.doubts(drifted, 1.05, 60.0))
    assert "drifted" in said and "1.100 [1.050, 1.200]" in said
    assert "slow runs of head" in said and "2.000 [1.500, 3.000]" in said
    quiet = replace(clear, noise=Estimate(value=1.0, low=0.9, high=1.1))
    assert comparison.doubts(quiet, 1.05, 60.0) == []
    long = replace(quiet, pairs=8, seconds=104.0)
    assert comparison.doubts(long, 1.05, 60.0) == [
        "8 pairs, the fewest that decide anything, took 104 s, more than the time limit of 60 s"
    ]
    other = replace(slower.head.runtime, runtime="openvino", device="GPU")
    said = " ".join(comparison.differences(slower.base, replace(slower.head, runtime=other)))
    assert "runtime: base onnxruntime" in said and "device: base" in said and "threads" not in said
    runtime = slower.head.subject.profile.runtime.model_copy(update={"options": {"b": "2", "a": "1"}})
    subject = replace(
        slower.head.subject, profile=slower.head.subject.profile.model_copy(update={"runtime": runtime})
    )
    (said,) = comparison.differences(slower.base, replace(slower.head, subject=subject))
    assert said.startswith("options: base none, head a=1, b=2; the ratio is of this")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["base.onnx", "none.onnx", "--random"], "none.onnx: no such file"),
        (["base.onnx", "head.onnx"], "needs inputs"),
        (["base.onnx", "head.onnx", "--random", "--limit", "0"], "limit 0"),
        (["base.onnx", "head.onnx", "--random", "--limit", "nan"], "limit nan"),
        (["base.onnx", "head.onnx", "--random", "--time-limit", "inf"], "time limit inf"),
        (["base.onnx", "head.onnx", "--random", "--inputs", "inputs.npy"], "exclude each other"),
        (["base.onnx", "head.onnx", "--random", "--output", "no/where.json"], "there is no folder no"),
        (["base.onnx", "inputs.npy", "--random"], "unknown kind of file"),
    ],
)
def test_what_cannot_be_done_is_one_message(monkeypatch, capsys, folder, arguments, told):
    monkeypatch.chdir(folder)
    assert main.main(["compare", *arguments]) == 2
    assert told in capsys.readouterr().err
