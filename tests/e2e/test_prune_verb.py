"""`edgeft prune`: the plan before anything is changed, a measured budget as far as the report, and refusals."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import Finished, assert_is_one_clear_message, digits_recipe, run_edgeft

ONE = ("cpu-onnxruntime",)
PRUNE = '[prune]\nepochs = 4\naugment = "crop"\n'


def recipe_text(prune: str, *, finetune: str = "epochs = 1", quantize: str = 'method = "ptq"') -> str:
    text = digits_recipe(targets=ONE, finetune=finetune, quantize=quantize)
    return text.replace(PRUNE, f'[prune]\nepochs = 1\naugment = "crop"\n{prune}\n')


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The plan of a small network that has hardly been trained."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "digits.toml").write_text(recipe_text("budget = { macs = 0.5 }"))
    done = run_edgeft("prune", "digits.toml", "--explain", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return Finished(folder=folder, report=json.loads(done.stdout), stderr=done.stderr)


def test_the_plan_is_said_before_anything_is_changed(planned: Finished):
    plan = planned.report["plan"]
    assert plan == json.loads((planned.workspace / "prune-plan.json").read_text())
    assert (plan["schema"], plan["version"]) == ("edgeft-prune-plan", 2)
    assert not list(planned.workspace.glob("stages/*prune*")), "it was asked to explain, not to prune"
    groups = plan["groups"]
    assert sum(group["macs_share"] for group in groups) == pytest.approx(1, abs=1e-3)
    assert 0 < sum(group["time_share"] for group in groups) < 1, "some is spent between the layers"
    cut = [group for group in groups if group["planned_width"] < group["width"]]
    assert cut and all(group["planned_width"] % 8 == 0 for group in cut)
    assert all(0 <= group["accuracy"] <= 1 and group["tried_width"] < group["width"] for group in cut)
    assert 0.4 < plan["plan"]["macs_share"] <= 0.5


def test_a_plan_is_measured_once_and_printed(planned: Finished):
    done = run_edgeft("prune", "digits.toml", "--explain", cwd=planned.folder)
    assert done.returncode == 0, done.stderr
    plan = planned.report["plan"]
    assert "reused" in next(line for line in done.stdout.splitlines() if "prune plan" in line)
    for group in plan["groups"]:
        assert group["layers"][0] in done.stdout
    assert f"{plan['plan']['macs_share']:.1%} of the MACs" in done.stdout
    assert "ONNX Runtime's profile" in done.stdout


@pytest.mark.slow
def test_a_latency_budget_ends_in_the_report(tmp_path: Path):
    (tmp_path / "digits.toml").write_text(recipe_text("budget = { latency = 0.85 }"))
    done = run_edgeft("run", "digits.toml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "of the latency on cpu-onnxruntime" in done.stderr
    report = json.loads(done.stdout)["report"]
    prune = report["prune"]
    search = prune["search"]
    chosen = search["candidates"][search["chosen"]]
    assert chosen["value"] <= 0.85 and search["exports"] <= 12
    final = prune["measured"]["cpu-onnxruntime"]
    assert final["head"] == "final" and final["low"] <= final["ratio"] <= final["high"]
    layers = prune["plan"]["layers"]
    assert any(layer["outputs"][1] < layer["outputs"][0] for layer in layers)
    page = (tmp_path / "runs" / "digits" / "report.html").read_text()
    assert "Search for the budget" in page
    assert all(layer["layer"] in page for layer in layers)
    again = run_edgeft("run", "digits.toml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "reused" in next(line for line in again.stdout.splitlines() if "prune" in line)


def test_a_budget_out_of_reach_is_one_clear_message(tmp_path: Path):
    (tmp_path / "digits.toml").write_text(recipe_text("budget = { macs = 0.01 }"))
    done = run_edgeft("prune", "digits.toml", cwd=tmp_path)
    assert "of the MACs are left" in assert_is_one_clear_message(done, 1)
    assert not list(tmp_path.glob("runs/digits/stages/*/training.*")), "nothing was trained before"


def test_a_plan_out_of_reach_is_shown_all_the_same(planned: Finished, tmp_path: Path):
    shutil.copytree(planned.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "digits.toml").write_text(recipe_text("budget = { macs = 0.01 }"))
    done = run_edgeft("prune", "digits.toml", "--explain", cwd=tmp_path)
    assert "of the MACs are left" in assert_is_one_clear_message(done, 1)
    plan = json.loads((tmp_path / "runs" / "digits" / "prune-plan.json").read_text())
    assert plan["plan"] is None and "0.010 cannot be met" in plan["missed"]["message"]
    assert all(group["layers"][0] in done.stdout for group in plan["groups"])
    # The groups are those of the other budget: measured once.
    measured = ("layers", "accuracy", "loss", "time_share")
    before = planned.report["plan"]["groups"]
    assert [[g[k] for k in measured] for g in plan["groups"]] == [[g[k] for k in measured] for g in before]
