"""`edgeft gate` as people and CI use it: files in, exit code out."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgeft.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gate(tmp_path, monkeypatch, capsys):
    """Run the verb against baseline.json in `tmp_path`; return exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def run(report, *options):
        code = main(["gate", str(report), "--baseline", "baseline.json", *options])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_a_life_of_releases(gate, write_report):
    code, out = gate(write_report())
    assert code == 0 and "NO BASELINE" in out and "--update writes it" in out
    code, out = gate(write_report(), "--update")
    assert code == 0 and "moves on to this release" in out and "2,000" in out
    code, out = gate(write_report(wrong=range(4), file="b"))
    assert code == 0 and "PASS" in out and "4 predictions differ" in out
    code, out = gate(write_report(wrong=range(20), file="b"))
    assert code == 4 and "INCONCLUSIVE" in out
    code, out = gate(write_report(wrong=range(20), file="b"), "--inconclusive", "pass")
    assert code == 0 and "INCONCLUSIVE" in out
    code, out = gate(write_report(wrong=range(80), file="b"), "--inconclusive", "pass")
    assert code == 1 and "FAIL" in out


def test_an_update_never_moves_silently(gate, write_report, tmp_path):
    gate(write_report(), "--update")
    before = (tmp_path / "baseline.json").read_text()
    worse = write_report(wrong=range(80), file="b")
    code, out = gate(worse, "--update")
    assert code == 1 and "stays as it is" in out and "--accept" in out
    assert (tmp_path / "baseline.json").read_text() == before
    code, out = gate(worse, "--update", "--accept", "twice as fast")
    assert code == 0 and "80 differ" in out and "100.00%" in out and "96.00%" in out
    stored = json.loads((tmp_path / "baseline.json").read_text())
    assert stored["release"]["accepted"] == "twice as fast" and stored["anchor"]["accepted"] == ""
    code, out = gate(worse)
    assert code == 1 and "twice as fast" in out  # the anchor remembers how good it was
    assert gate(worse, "--accept", "x")[0] == 2


def test_a_baseline_of_other_data_is_not_replaced(gate, write_report, tmp_path):
    gate(write_report(), "--update")
    before = (tmp_path / "baseline.json").read_text()
    code, out = gate(write_report(n=1000, file="b"), "--update", "--accept", "more data")
    assert code == 2 and "1000 are not in the report" in out and "remove the file" in out
    assert (tmp_path / "baseline.json").read_text() == before


def test_json_says_what_happened(gate, write_report):
    code, out = gate(write_report(), "--update", "--json")
    assert code == 0 and json.loads(out)["updated"] is True
    code, out = gate(write_report(wrong=range(80), file="b"), "--json")
    verdict = json.loads(out)
    assert code == 1 and verdict["outcome"] == "fail" and verdict["updated"] is False
    assert {check["name"] for check in verdict["checks"]} >= {"accuracy", "size", "parity", "latency", "macs"}


def test_files_for_ci(gate, write_report, tmp_path, monkeypatch):
    gate(write_report(), "--update")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    files = (
        "--junit",
        "junit.xml",
        "--markdown",
        "gate.md",
        "--history",
        "history.jsonl",
        "--release",
        "1.2",
    )
    assert gate(write_report(wrong=range(80), file="b"), *files)[0] == 1
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()[0]
    assert int(suite.attrib["failures"]) == 2
    assert "**❌ fail**" in (tmp_path / "gate.md").read_text()
    assert (tmp_path / "gate.md").read_text() in (tmp_path / "summary.md").read_text()
    (line,) = (tmp_path / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["release"] == "1.2" and json.loads(line)["outcome"] == "fail"


def test_json_has_no_infinity(gate, write_report):
    gate(write_report(edit=lambda d: d["model"]["macs"].update(after=0)), "--update")
    code, out = gate(write_report(), "--json")
    macs = next(
        check for check in json.loads(out, parse_constant=pytest.fail)["checks"] if check["name"] == "macs"
    )
    assert code == 1 and macs["values"]["ratio"] is None and macs["values"]["reference"] == 0


@pytest.mark.parametrize("option", ["--junit", "--markdown", "--history"])
def test_a_file_that_cannot_be_written_does_not_hide_the_verdict(gate, write_report, tmp_path, option):
    gate(write_report(), "--update")
    before = (tmp_path / "baseline.json").read_text()
    code, out = gate(write_report(wrong=range(4), file="b"), "--update", option, "report.json/x")
    assert code == 2 and "report.json/x: cannot be " in out
    assert out.index("verdict: PASS") < out.index("error:")
    assert "moves on" not in out and (tmp_path / "baseline.json").read_text() == before


def test_json_tells_the_verdict_and_that_an_update_failed(write_report, tmp_path, capsys):
    report = write_report()
    code = main(["gate", str(report), "--baseline", str(report / "baseline.json"), "--update", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == told["error"]["exit_code"] == 2 and "cannot be written" in told["error"]["message"]
    assert told["outcome"] == "no baseline" and told["updated"] is False


def test_an_error_takes_the_place_of_an_older_verdict(gate, write_report, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    files = ("--junit", "junit.xml", "--markdown", "gate.md")
    gate(write_report(), "--update", *files)
    report = tmp_path / "cut.json"
    report.write_text(write_report().read_text()[:100])
    code, _ = gate(report, *files)
    (case,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("testcase")
    assert code == 2 and "perhaps truncated" in case.find("error").attrib["message"]
    for name in ("gate.md", "summary.md"):
        text = (tmp_path / name).read_text()
        assert "there is no verdict" in text and "perhaps truncated" in text


def test_what_was_accepted_is_no_failed_test(gate, write_report, tmp_path):
    gate(write_report(), "--update")
    worse = write_report(wrong=range(80), file="b")
    code, _ = gate(worse, "--update", "--accept", "twice as fast", "--junit", "junit.xml")
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert code == 0 and (suite.attrib["failures"], suite.attrib["errors"]) == ("0", "0")
    assert "accepted: twice as fast: " in suite.find("testcase/skipped").attrib["message"]


def test_a_linked_baseline_is_moved_on_where_it_is(gate, write_report, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "baseline.json").symlink_to("kept/b.json")
    code, out = gate(write_report())
    assert code == 2 and "a link to kept/b.json, which does not exist" in out
    (tmp_path / "baseline.json").unlink()
    gate(write_report(), "--update")
    (tmp_path / "baseline.json").rename(tmp_path / "kept" / "b.json")
    (tmp_path / "baseline.json").symlink_to("kept/b.json")
    assert gate(write_report(wrong=range(4), file="b"), "--update")[0] == 0
    assert (tmp_path / "baseline.json").is_symlink()
    stored = json.loads((tmp_path / "kept" / "b.json").read_text())
    assert stored["release"]["targets"]["cpu-onnxruntime"]["accuracy"] == 0.998
    assert not list(tmp_path.rglob("*.partial"))


def test_a_default_that_is_written_out_is_no_other_limit(gate, write_report):
    gate(write_report(), "--update")
    defaults = {"latency_ratio": 1.05, "max_confident_flips": 0.01}
    _, out = gate(write_report(file="b", gate=defaults))
    assert "differs from the baseline's" not in out
    _, out = gate(write_report(file="b", gate={"latency_ratio": 1.2}))
    assert "gate.latency_ratio differs from the baseline's: 1.05 -> 1.2" in out


def test_a_target_without_a_baseline_passes_in_no_table(gate, write_report, tmp_path):
    gate(write_report(targets=["cpu-onnxruntime"]), "--update")
    gate(write_report(file="b"), "--markdown", "gate.md")
    row = next(x for x in (tmp_path / "gate.md").read_text().splitlines() if x.startswith("| cpu-openvino |"))
    assert "no baseline |" in row


@pytest.mark.parametrize(
    ("options", "edit", "missing"),
    [
        (("--markdown", "x.md"), lambda target: target.pop("ratio"), "targets.0.ratio: Field required"),
        (("--history", "x.jsonl"), lambda target: target["accuracy"].pop("low"), "targets.0.accuracy.low"),
        (
            ("--markdown", "x.md"),
            lambda target: target["latency"]["runtime"].pop("mac_precision"),
            "targets.0.latency.runtime.mac_precision",
        ),
    ],
)
def test_files_need_more_of_a_report_than_the_gate_does(gate, write_report, tmp_path, options, edit, missing):
    report = write_report(edit=lambda document: edit(document["targets"][0]))
    assert gate(report)[0] == 0
    code, out = gate(report, *options)
    assert code == 2 and missing in out
    assert not (tmp_path / "x.jsonl").exists() and "verdict" not in out


def test_without_a_baseline_the_list_of_tests_says_so(gate, write_report, tmp_path):
    assert gate(write_report(), "--junit", "junit.xml")[0] == 0
    (case,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("testcase")
    assert "baseline.json does not exist" in case.find("skipped").attrib["message"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": "edgeft-baseline", "version": 1, "samp', "not valid JSON, perhaps truncated"),
        ('{"schema": "edgeft-baseline", "version": 7}', "version 7, this edgeft reads 1"),
        ('{"schema": "edgeft-baseline", "version": 1}', "samples: Field required"),
    ],
)
def test_bad_input_is_exit_code_2_and_one_message(gate, write_report, tmp_path, content, message):
    (tmp_path / "baseline.json").write_text(content)
    code, out = gate(write_report())
    assert code == 2 and message in out and out.count("error:") == 1 and "Traceback" not in out


def test_a_run_folder_is_its_report_and_nonsense_is_refused(gate, write_report, tmp_path):
    write_report()
    assert gate(tmp_path)[0] == 0
    assert gate(tmp_path / "nothing.json")[0] == 2
    gate(tmp_path, "--update")
    assert gate(tmp_path, "--margin", "1.5")[0] == 2
    assert gate(tmp_path, "--latency-ratio", "inf")[0] == 2


def test_ten_thousand_samples_and_five_targets_take_two_seconds_and_no_torch(write_report, tmp_path):
    targets = ["cpu-onnxruntime", "cpu-openvino", "cpu-litert", "cpu-onnxruntime-avx2", "cpu-openvino-avx2"]
    first = write_report("first.json", n=10_000, targets=targets)
    second = write_report("second.json", n=10_000, targets=targets, wrong=range(25), file="b")
    command = [sys.executable, "-m", "edgeft", "gate"]
    baseline = ["--baseline", str(tmp_path / "baseline.json")]
    subprocess.run([*command, str(first), *baseline, "--update"], check=True, cwd=ROOT, capture_output=True)
    # Its own time on the processor: other tests may keep the machine busy. The bound is for machines half as fast.
    code = (
        "import sys, time; from edgeft.cli.main import main; "
        f"assert main({['gate', str(second), *baseline]!r}) == 0; "
        "assert 'torch' not in sys.modules; assert 'matplotlib' not in sys.modules; print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "25 predictions differ" in done.stdout
    assert float(done.stdout.splitlines()[-1]) < 4.0
