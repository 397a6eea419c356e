"""The main job through the command line: what a run leaves, what it reuses, how it stops."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import (
    TARGETS,
    Finished,
    digits_recipe,
    group_members,
    is_training,
    run_edgeft,
    stage_files,
    started_edgeft,
    wait_for,
)

ONE = ("cpu-onnxruntime",)
STAGES = [
    "00-data",
    "01-finetune",
    "02-prune",
    "03-quantize",
    *(f"04-export-{target}" for target in sorted(TARGETS)),
    *(f"05-measure-{target}" for target in sorted(TARGETS)),
]


# -- what a run leaves ----------------------------------------------------------------------------------------


def test_report_has_its_schema(digits_run: Finished):
    report = digits_run.report
    assert (report["schema"], report["version"], report["name"]) == ("edgeft-report", 1, "digits")
    assert report == json.loads((digits_run.workspace / "report.json").read_text())
    assert report["data"]["classes"] == ["5", "6", "7", "8", "9"]
    assert sum(report["data"]["counts"].values()) == 896
    assert (
        len(report["samples"]["ids"]) == len(report["samples"]["labels"]) == report["data"]["counts"]["test"]
    )
    assert len(set(report["samples"]["ids"])) == len(report["samples"]["ids"])
    assert {"torch", "onnxruntime", "openvino", "edgeft"} <= report["versions"].keys()
    assert [stage["name"] for stage in report["stages"]] == [
        name.partition("-")[2] for name in _in_order(STAGES)
    ]
    assert all(stage["seconds"] > 0 for stage in report["stages"])


@pytest.mark.parametrize("target", TARGETS)
def test_accuracy_is_what_the_predictions_say(digits_run: Finished, target: str):
    result, labels = digits_run.targets[target], digits_run.report["samples"]["labels"]
    for which in ("accuracy", "baseline_accuracy"):
        accuracy = result[which]
        right = np.mean(np.equal(accuracy["predictions"], labels))
        assert accuracy["value"] == pytest.approx(right)
        assert accuracy["low"] < accuracy["value"] < accuracy["high"]
        assert accuracy["value"] > 0.9
    assert digits_run.report["model"]["float_accuracy"]["val"] > 0.9


@pytest.mark.parametrize("target", TARGETS)
def test_every_mac_op_is_int8_in_the_file_and_as_executed(digits_run: Finished, target: str):
    result = digits_run.targets[target]
    coverage = result["artifact"]["coverage"]
    assert coverage["mac_ops"] == coverage["int8_mac_ops"] >= 10
    executed = result["latency"]["runtime"]["mac_precision"]
    assert set(executed) == {"int8"} and executed["int8"] >= coverage["mac_ops"]
    assert "int8" not in result["baseline_latency"]["runtime"]["mac_precision"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_runtime_gives_the_program_s_logits(digits_run: Finished, target: str):
    parity = digits_run.targets[target]["parity"]
    assert parity["samples"] == digits_run.report["data"]["counts"]["test"]
    assert parity["within_2_lsb"] >= 0.99
    assert parity["agreement"] >= 0.98
    assert parity["confident_flips"] == 0
    assert parity["lsb"] > 0


@pytest.mark.parametrize("target", TARGETS)
def test_latency_and_size_are_those_of_real_files(digits_run: Finished, target: str):
    result = digits_run.targets[target]
    folder = digits_run.workspace / "stages" / f"04-export-{target}"
    for which in ("artifact", "baseline"):
        size = sum((folder / file["name"]).stat().st_size for file in result[which]["files"])
        assert size == result[which]["size_bytes"]
    assert result["artifact"]["size_bytes"] < result["baseline"]["size_bytes"] / 2
    for which in ("latency", "baseline_latency"):
        latency = result[which]
        assert len(latency["samples_ms"]) == 2, "rounds = 2"
        assert all(len(runs) >= 10 for runs in latency["samples_ms"]), "min_runs = 10"
        assert 0 < latency["min_ms"] <= latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"]
        assert latency["evidence"] == "measured"
    ratio = result["ratio"]
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]


def test_pruning_met_its_budget(digits_run: Finished):
    macs, params = digits_run.report["model"]["macs"], digits_run.report["model"]["params"]
    assert 0.4 < macs["after"] / macs["before"] <= 0.6
    assert params["after"] < params["before"]


def test_training_is_transfer_and_gets_better(digits_run: Finished):
    stages = {stage["name"]: stage for stage in digits_run.report["stages"]}
    assert stages["finetune"]["results"]["tensors_loaded"] > 50
    assert stages["finetune"]["results"]["tensors_fresh"] == 2
    for name, epochs in (("finetune", 4), ("prune", 4), ("quantize", 2)):
        curve = stages[name]["results"]["epochs"]
        assert [record["epoch"] for record in curve] == list(range(epochs))
        assert curve[-1]["train_loss"] < curve[0]["train_loss"]
    assert (
        stages["prune"]["results"]["val_accuracy"]
        > stages["prune"]["results"]["val_accuracy_before_recovery"]
    )


def test_verdict_checks_every_target(digits_run: Finished):
    verdict = digits_run.report["verdict"]
    assert verdict["outcome"] in ("pass", "fail", "inconclusive")
    for target in TARGETS:
        names = {check["name"] for check in verdict["checks"] if check["target"] == target}
        assert {"accuracy", "size", "coverage"} <= names


def test_html_report_is_self_contained(digits_run: Finished):
    html = (digits_run.workspace / "report.html").read_text()
    loaded = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]+)\)|@import\s+(\S+)""", html)
    assert all(reference.startswith(("#", "data:")) for match in loaded for reference in match if reference)
    assert "<script src" not in html
    for target in TARGETS:
        assert target in html
    assert "data:image/" in html or "<svg" in html


def test_progress_is_one_line_per_stage_without_a_traceback(digits_run: Finished):
    assert "Traceback" not in digits_run.stderr
    lines = [line for line in digits_run.stderr.splitlines() if line.startswith(("✓", "ok"))]
    assert len(lines) == len(STAGES) + 1, digits_run.stderr
    assert "\x1b" not in digits_run.stderr, "no colours and no bars where output is no terminal"


def test_stderr_has_nothing_of_the_libraries(digits_run: Finished):
    """Their warnings are about their insides, and a user can do nothing about them."""
    strange = [line for line in digits_run.stderr.splitlines() if not line.startswith(("✓", "!", "ok"))]
    assert not strange


def test_effective_recipe_runs_as_it_is(digits_run: Finished, tmp_path: Path):
    from edgeft import recipe

    written = recipe.load(digits_run.workspace / "recipe.toml")
    assert written == recipe.load(digits_run.folder / "digits.toml")


# -- packages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_package_verifies_and_predicts_on_its_own(digits_run: Finished, tmp_path: Path, target: str):
    """Copied to where edgeft is not, with another working directory: as on a device."""
    package = tmp_path / "device" / target
    shutil.copytree(digits_run.workspace / "packages" / target, package)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # Without torch and without edgeft: importing either would be an error.
    (tmp_path / "hidden").mkdir()
    for name in ("torch", "edgeft"):
        (tmp_path / "hidden" / f"{name}.py").write_text(f"raise ImportError('{name} is not on the device')\n")
    alone = {**os.environ, "PYTHONPATH": str(tmp_path / "hidden")}

    def python(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, cwd=elsewhere, env=alone, capture_output=True, text=True, timeout=60, check=False
        )

    verified = python(package / "verify.py")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    example = python(package / "example.py")
    assert example.returncode == 0, example.stdout + example.stderr
    with np.load(package / "golden.npz") as golden:
        expected = "56789"[int(golden["outputs"][0].argmax())]
    assert expected in example.stdout.splitlines()[0] or expected in example.stdout.split()
    model = package / json.loads((package / "manifest.json").read_text())["model"]["path"]
    damaged = bytearray(model.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    model.write_bytes(damaged)
    refused = python(package / "verify.py")
    assert refused.returncode != 0 and model.name in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr


def test_golden_vectors_are_the_run_s_predictions(digits_run: Finished):
    for target in TARGETS:
        with np.load(digits_run.workspace / "packages" / target / "golden.npz") as golden:
            predicted = golden["outputs"].argmax(axis=1)
        kept = digits_run.targets[target]["accuracy"]["predictions"][: len(predicted)]
        assert predicted.tolist() == kept


# -- what is reused -------------------------------------------------------------------------------------------


def test_a_second_run_repeats_nothing(digits_copy: Finished):
    before = stage_files(digits_copy.workspace)
    assert sorted(before) == sorted(STAGES)
    again = run_edgeft("run", "digits.toml", "--json", cwd=digits_copy.folder)
    assert again.returncode == 0, again.stderr
    assert stage_files(digits_copy.workspace) == before
    assert again.stderr.count("reused") == len(STAGES)
    report = json.loads(again.stdout)["report"]
    assert report.pop("created") and digits_copy.report["created"]
    assert report == {key: value for key, value in digits_copy.report.items() if key != "created"}


def test_a_change_of_measure_does_only_measure_again(digits_copy: Finished):
    before = stage_files(digits_copy.workspace)
    (digits_copy.folder / "digits.toml").write_text(digits_recipe().replace("min_runs = 10", "min_runs = 20"))
    again = run_edgeft("run", "digits.toml", "--json", cwd=digits_copy.folder)
    assert again.returncode == 0, again.stderr
    after = stage_files(digits_copy.workspace)
    assert {name for name in after if after[name] != before[name]} == {
        name for name in STAGES if name.startswith("05-")
    }
    report = json.loads(again.stdout)["report"]
    for old, new in zip(digits_copy.report["targets"], report["targets"], strict=True):
        assert new["accuracy"] == old["accuracy"] and new["parity"] == old["parity"]
        assert all(len(runs) >= 20 for runs in new["latency"]["samples_ms"])


def test_fewer_targets_need_no_work_and_leave_no_package_behind(digits_copy: Finished):
    before = stage_files(digits_copy.workspace)
    (digits_copy.folder / "digits.toml").write_text(digits_recipe(targets=ONE))
    again = run_edgeft("run", "digits.toml", cwd=digits_copy.folder)
    assert again.returncode == 0, again.stderr
    assert stage_files(digits_copy.workspace) == before
    assert [path.name for path in (digits_copy.workspace / "packages").iterdir()] == list(ONE)
    cleaned = run_edgeft("clean", "runs/digits", "--json", cwd=digits_copy.folder)
    removed = {Path(path).name for path in json.loads(cleaned.stdout)["removed"]}
    assert removed == {name for name in STAGES if name.startswith(("04-", "05-")) and ONE[0] not in name}


def test_clean_removes_nothing_that_is_needed(digits_copy: Finished):
    before = stage_files(digits_copy.workspace)
    files = sorted(digits_copy.workspace.rglob("*"))
    cleaned = run_edgeft("clean", cwd=digits_copy.folder)
    assert cleaned.returncode == 0 and "nothing to remove" in cleaned.stdout
    assert stage_files(digits_copy.workspace) == before
    assert sorted(digits_copy.workspace.rglob("*")) == files


def test_the_end_of_a_run_is_a_table_and_where_things_are(digits_copy: Finished):
    """Without --json people read it; nothing is trained, everything is reused."""
    done = run_edgeft("run", "digits.toml", cwd=digits_copy.folder, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for told in (
        *TARGETS,
        "verdict:",
        "runs/digits/report.html",
        "int8 acc",
        "float acc",
        "agrees with Q/DQ",
    ):
        assert told in done.stdout
    assert str(digits_copy.folder) not in done.stdout, "paths are as a user would type them"


# -- other ways to run ----------------------------------------------------------------------------------------


def test_finetune_stops_there(digits_run: Finished, tmp_path: Path):
    (tmp_path / "digits.toml").write_text(digits_recipe(targets=ONE))
    done = run_edgeft("finetune", "digits.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    workspace = tmp_path / "runs" / "digits"
    assert list(stage_files(workspace)) == ["00-data", "01-finetune"]
    assert not (workspace / "report.json").exists() and not (workspace / "packages").exists()
    same = "stages/01-finetune/model.safetensors"
    assert (workspace / same).read_bytes() == (digits_run.workspace / same).read_bytes(), (
        "same seed, same weights"
    )


def test_a_run_without_a_recipe(tmp_path: Path):
    arguments = [
        "--data",
        "builtin:digits",
        "--model",
        "builtin:digitsnet",
        "--target",
        *ONE,
        "--epochs",
        "1",
    ]
    done = run_edgeft("run", *arguments, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert report["recipe"]["finetune"]["epochs"] == 1
    assert report["recipe"]["prune"] and report["recipe"]["quantize"]["method"] == "qat"
    (result,) = report["targets"]
    assert result["accuracy"]["value"] > 0.9 and result["artifact"]["scheme"] == "int8"


@pytest.mark.slow
def test_retrain_then_ptq_then_no_quantization(tmp_path: Path):
    """Three recipes in one workspace: what they share is not done again."""
    recipe = tmp_path / "digits.toml"
    retrained = 'method = "retrain"\nepochs = 6\nlearning_rate = 5e-3'
    recipe.write_text(digits_recipe(targets=ONE, finetune=retrained, quantize='method = "ptq"'))
    calibrated = run_edgeft("run", "digits.toml", "--json", cwd=tmp_path)
    assert calibrated.returncode == 0, calibrated.stderr
    report = json.loads(calibrated.stdout)["report"]
    stages = {stage["name"]: stage["results"] for stage in report["stages"]}
    assert stages["finetune"]["tensors_loaded"] == 0
    assert "epochs" not in stages["quantize"], "nothing is trained"
    (result,) = report["targets"]
    assert result["artifact"]["scheme"] == "int8" and result["parity"]["within_2_lsb"] >= 0.99
    assert result["accuracy"]["value"] > 0.6

    before = stage_files(tmp_path / "runs/digits")
    recipe.write_text(digits_recipe(targets=ONE, finetune=retrained, quantize='scheme = "none"'))
    floating = run_edgeft("run", "digits.toml", "--json", cwd=tmp_path)
    assert floating.returncode == 0, floating.stderr
    after = stage_files(tmp_path / "runs/digits")
    assert all(after[name] == before[name] for name in ("00-data", "01-finetune", "02-prune"))
    report = json.loads(floating.stdout)["report"]
    assert "quantize" not in [stage["name"] for stage in report["stages"]]
    (result,) = report["targets"]
    assert result["artifact"]["scheme"] == "float32" and result["parity"]["agreement"] == 1.0
    assert "coverage" not in {check["name"] for check in report["verdict"]["checks"]}
    html = (tmp_path / "runs/digits/report.html").read_text()
    assert "None" not in html and "nan" not in re.sub(r"data:image/[^\"]*", "", html)


# -- one at a time, and stopping ------------------------------------------------------------------------------


def test_lock_and_ctrl_c(digits_run: Finished, tmp_path: Path):
    """A second run is refused while one works; Ctrl-C keeps what is finished, and the next run ends the same."""
    (tmp_path / "digits.toml").write_text(digits_recipe(targets=ONE))
    workspace = tmp_path / "runs" / "digits"
    with started_edgeft("finetune", "digits.toml", cwd=tmp_path) as first:
        assert wait_for(lambda: is_training(workspace, "01-finetune"), first)
        first.send_signal(signal.SIGSTOP)
        second = run_edgeft("run", "digits.toml", cwd=tmp_path)
        assert second.returncode == 2
        assert f"process {first.pid}" in second.stderr and "in use" in second.stderr
        assert "Traceback" not in second.stderr
        cleaned = run_edgeft("clean", "runs/digits", cwd=tmp_path)
        assert cleaned.returncode == 2 and f"process {first.pid}" in cleaned.stderr
        first.send_signal(signal.SIGINT)
        first.send_signal(signal.SIGCONT)
        stderr = first.communicate(timeout=60)[1]
    assert first.returncode == 130, stderr
    assert "Traceback" not in stderr and "interrupted; everything finished is kept" in stderr
    before = stage_files(workspace)
    assert list(before) == ["00-data"]
    assert is_training(workspace, "01-finetune"), "the finished epochs are kept"

    again = run_edgeft("finetune", "digits.toml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert stage_files(workspace)["00-data"] == before["00-data"]
    same = "stages/01-finetune/model.safetensors"
    assert (workspace / same).read_bytes() == (digits_run.workspace / same).read_bytes()
    meta = json.loads((workspace / "stages/01-finetune/meta.json").read_text())
    assert meta["attempts"] == 2


@pytest.mark.parametrize("moment", ["start", "measure"])
def test_ctrl_c_in_a_terminal_reaches_all_processes(digits_copy: Finished, moment: str):
    """At the start it lands in imports; in a measurement it lands in the worker as well."""
    workspace = digits_copy.workspace
    before = stage_files(workspace)
    (digits_copy.folder / "digits.toml").write_text(digits_recipe().replace("min_runs = 10", "min_runs = 20"))
    with started_edgeft("run", "digits.toml", cwd=digits_copy.folder) as process:
        if moment == "start":
            assert wait_for(lambda: (workspace / ".lock").read_text().strip() == str(process.pid), process)
        else:
            assert wait_for(lambda: any(workspace.glob("stages/.tmp-05-*")), process)
            assert wait_for(lambda: len(group_members(process.pid)) > 1, process), "a worker is at work"
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        wait_for(lambda: not group_members(process.pid), seconds=20)
    # A shell shows 130 for both: Python ends by the signal itself if it met it inside an extension module.
    assert process.returncode in (130, -signal.SIGINT), stderr
    assert "Traceback" not in stdout + stderr and "error" not in stderr
    assert "interrupted; everything finished is kept" in stderr
    assert stage_files(workspace) == before


def _in_order(stages: list[str]) -> list[str]:
    """Return stage folders as the recipe names its targets."""
    rank = {target: number for number, target in enumerate(TARGETS)}
    return sorted(
        stages, key=lambda name: (name[:2], next((rank[t] for t in TARGETS if name.endswith(t)), 0))
    )
