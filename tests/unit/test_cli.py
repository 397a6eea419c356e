"""The command line in fresh processes: messages, exit codes, JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import edgeft as package
from edgeft import resources

RECIPE = """
schema = 1
name = "flowers"
targets = ["cpu-litert"]
[task]
data = "nowhere"
[model]
source = "builtin:edge-tiny"
"""


def test_version_and_help(edgeft):
    assert edgeft("--version").stdout == f"edgeft {package.__version__}\n"
    text = edgeft("--help").stdout
    for verb in ("run", "finetune", "prune", "quantize", "export", "check", "targets", "clean"):
        assert f" {verb} " in text
        assert edgeft(verb, "--help").returncode == 0


def test_without_a_command_help_is_shown(edgeft):
    result = edgeft()
    assert result.returncode == 2 and "Usage: edgeft" in result.stdout


def test_targets_lists_the_shipped_ones(edgeft):
    result = edgeft("targets")
    assert result.returncode == 0
    for name in resources.names("targets"):
        assert name in result.stdout
    records = json.loads(edgeft("targets", "--json").stdout)
    assert [r["target"] for r in records] == list(resources.names("targets"))
    assert {r["evidence"] for r in records} == {"measured", "executed", "estimated", "simulated", "hardware"}
    assert all(r["runs"] or r["obstacles"] for r in records)


def test_a_target_s_profile_is_a_target_file(edgeft, tmp_path):
    """What is printed can be the start of a target of one's own."""
    text = edgeft("targets", "cpu-litert").stdout
    (tmp_path / "cpu-litert.toml").write_text(text)
    again = edgeft("targets", "./cpu-litert.toml", "--json")
    assert json.loads(again.stdout) == json.loads(edgeft("targets", "cpu-litert", "--json").stdout)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runn"], "Did you mean 'run'"),
        (["targets", "cpu-lite"], "did you mean 'cpu-litert'?"),
        (["targets", "--jason"], "--json"),
        (["check"], "RECIPE"),
        (["check", "nowhere.toml"], "nowhere.toml: no such file"),
        (["run", "nowhere.toml"], "nowhere.toml: no such file"),
        (["export", "nowhere.toml"], "nowhere.toml: no such file"),
        (["run"], "missing: --data, --model, --target"),
        (["run", "--data", "x", "--model", "builtin:y"], "missing: --target"),
        (["run", "r.toml", "--data", "x", "--epochs", "2"], "r.toml and --data, --epochs"),
        (["run", "--data", "x", "--model", "y", "--target", "z", "--epochs", "0"], "finetune.epochs"),
        (["run", "--data", "x", "--model", "y", "--target", "z", "--epochs", "few"], "--epochs"),
        (["clean", "nowhere"], "not a workspace"),
        (["clean", "--all"], "which run?"),
    ],
)
def test_wrong_usage_is_exit_code_2_with_one_message(edgeft, arguments, told):
    result = edgeft(*arguments)
    assert result.returncode == 2, result.stderr
    assert told in result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr


def test_a_misspelt_key_is_told_with_the_nearest(edgeft, tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE + "[finetune]\nepoch = 3\n")
    for verb in ("run", "check", "finetune"):
        result = edgeft(verb, "r.toml")
        assert result.returncode == 2
        assert "r.toml: unknown key 'finetune.epoch' (did you mean 'epochs'?)" in result.stderr


def test_errors_are_json_when_json_is_asked_for(edgeft):
    for arguments in (["targets", "cpu-lite", "--json"], ["check", "--json"]):
        result = edgeft(*arguments)
        error = json.loads(result.stdout)["error"]
        assert set(error) == {"type", "message", "hint", "exit_code"}
        assert error["exit_code"] == result.returncode == 2
        assert result.stderr == ""


def test_the_traceback_is_shown_on_request_only(edgeft):
    assert "Traceback" in edgeft("targets", "cpu-lite", EDGEFT_DEBUG="1").stderr
    assert "Traceback" in edgeft("--debug", "targets", "cpu-lite").stderr
    assert "Traceback" not in edgeft("targets", "cpu-lite", EDGEFT_DEBUG="0").stderr


def test_clean_names_what_it_removes(edgeft, tmp_path):
    from edgeft.workspace import Workspace

    with Workspace.open(tmp_path / "runs" / "flowers") as ws:
        ws.begin(1, "finetune", "a" * 64)
        ws.write_text("stages.json", '{"01-finetune": "%s"}' % ("b" * 64))
    (tmp_path / "runs" / "notes").mkdir()
    removed = json.loads(edgeft("clean", "--json").stdout)["removed"]
    assert [Path(path).name for path in removed] == [".tmp-01-finetune-aaaaaaaaaaaa"]
    assert edgeft("clean").stdout == "nothing to remove\n"
    assert edgeft("clean", "--all", "runs/flowers").returncode == 0
    assert list((tmp_path / "runs" / "flowers").iterdir()) == []


def test_a_terminal_without_unicode_does_not_break(edgeft):
    result = edgeft("targets", PYTHONIOENCODING="ascii")
    assert result.returncode == 0 and "cpu-litert" in result.stdout


def test_a_closed_pipe_is_quiet():
    shell = f"{sys.executable} -m edgeft targets --json | head -c 1"
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert result.stdout == "[" and result.stderr == ""


def test_a_pipe_that_is_closed_before_the_end_is_no_interrupt(tmp_path):
    """More than a pipe holds, so that writing fails, not only the last flush."""
    script = tmp_path / "long.py"
    script.write_text(
        "import sys; from edgeft.cli import main\n"
        "main.app.command('long')(lambda: print('x' * 10**6))\n"
        "sys.exit(main.main(['long']))\n"
    )
    shell = f"{sys.executable} {script} | head -c 1"
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert result.stdout == "x" and result.stderr == ""
