"""One recipe for devices that are not here: the same file for all, judged in the way of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run_edgeft
from tiny_tasks import write_fruit, write_recipe

from edgeft import resources

TARGETS = ("cpu-litert", "mcu-tflm", "npu-ethos-u55-128")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fruit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, int, str]:
    """Run the recipe on the three and on a board too small for it: folder, report, exit code, what was said."""
    folder = tmp_path_factory.mktemp("devices")
    write_fruit(folder / "fruit.csv")
    mcu = (
        resources.find("targets", "mcu-tflm").read_text(encoding="utf-8").replace("mcu-tflm", "tiny-board", 1)
    )
    (folder / "tiny-board.toml").write_text(f"{mcu}\n[memory]\nram = 1024\nflash = 65536\n")
    write_recipe(
        folder,
        "fruit",
        task='kind = "tabular-classification"\ndata = "fruit.csv"',
        model='source = "builtin:mlp"',
        stages='[finetune]\nmethod = "retrain"\nepochs = 3\nbatch_size = 8\nlearning_rate = 1e-2\n'
        '[quantize]\nmethod = "ptq"\ncalibration = "few.toml"\nmax_accuracy_drop = 0.5',
        targets=(*TARGETS, "./tiny-board.toml"),
    )
    done = run_edgeft("run", "fruit.toml", cwd=folder)
    report = json.loads((folder / "runs/fruit/report.json").read_text())
    return folder, report, done.returncode, done.stdout


def test_all_take_the_same_file(fruit):
    _, report, _, _ = fruit
    digests = {target["artifact"]["files"][0]["sha256"] for target in report["targets"]}
    assert len(report["targets"]) == 4 and len(digests) == 1


def test_each_tells_what_its_evidence_allows(fruit):
    _, report, _, _ = fruit
    litert, mcu, npu, _ = report["targets"]
    assert litert["latency"] and not litert["memory"] and not litert["estimate"]
    assert mcu["latency"] is mcu["ratio"] is mcu["estimate"] is None
    assert mcu["memory"]["ram_bytes"] == mcu["executed"]["details"]["arena_bytes"] > 1024
    assert mcu["memory"]["flash_layer"].startswith("FULLY_CONNECTED features.")
    assert npu["latency"] is None and npu["estimate"]["cycles"] > 0 and not npu["estimate"]["fallback_ops"]
    assert npu["executed"]["runtime"] == mcu["executed"]["runtime"] == "tflite-micro"
    for target in report["targets"]:
        assert target["parity"]["max_lsb"] <= 1 and target["accuracy"]["value"] > 0.7


def test_a_device_that_is_too_small_fails_the_run_and_names_the_layer(fruit):
    _, report, code, said = fruit
    assert code == 1 and report["verdict"]["outcome"] == "fail"
    missed = [check for check in report["verdict"]["checks"] if check["outcome"] == "fail"]
    assert {(check["target"], check["name"]) for check in missed} >= {("tiny-board", "ram budget")}
    (check,) = (check for check in missed if check["name"] == "ram budget")
    assert (
        "the profile's budget is 1,024" in check["detail"] and "FULLY_CONNECTED features." in check["detail"]
    )
    assert check["detail"] in " ".join(said.split())


@pytest.mark.parametrize("target", TARGETS[1:])
def test_packages_prove_themselves_here_and_pass_the_gate(fruit, target):
    folder, _, _, _ = fruit
    package = folder / "runs/fruit/packages" / target
    manifest = json.loads((package / "manifest.json").read_text())
    assert manifest["metrics"]["latency"] is None and manifest["metrics"]["memory"]["ram_bytes"] > 0
    assert run_edgeft("verify", str(package), cwd=folder).returncode == 0
    card = (package / "model_card.md").read_text()
    assert f"evidence: {manifest['evidence']}" in card and "- RAM: " in card


def test_the_gate_takes_a_report_without_latencies(fruit):
    folder, _, _, _ = fruit
    report = "runs/fruit/report.json"
    assert run_edgeft("gate", report, "--baseline", "base.json", "--update", cwd=folder).returncode == 0
    again = run_edgeft("gate", report, "--baseline", "base.json", "--json", cwd=folder)
    assert again.returncode == 1  # for the board's budget, and nothing else
    checks = json.loads(again.stdout)["checks"]
    assert {check["name"] for check in checks if check["outcome"] == "fail"} == {"ram budget"}
