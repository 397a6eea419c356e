"""The examples for CI systems: valid by the systems' own schemas, and their scripts do what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_reporting import _report as make_report

from edgeft import reporting
from edgeft.cli.main import main
from edgeft.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / ".ci" / "examples"
SCHEMAS = {
    "github/action.yml": ("--builtin-schema", "vendor.github-actions"),
    "github/workflow.yml": ("--builtin-schema", "vendor.github-workflows"),
    "gitlab-ci.yml": ("--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"),
}

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="a copy without the examples")


def lint(path: Path, *schema: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", *schema, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "part", "misspelt"),
    [
        ("github/action.yml", "using: composite", "using: composit"),
        ("github/workflow.yml", "runs-on:", "run-on:"),
        ("gitlab-ci.yml", "exit_codes:", "exit_code:"),
    ],
)
def test_an_example_is_valid(name, part, misspelt, tmp_path):
    result = lint(EXAMPLES / name, *SCHEMAS[name])
    assert result.returncode == 0, result.stdout
    broken = tmp_path / "broken.yml"
    broken.write_text((EXAMPLES / name).read_text().replace(part, misspelt))
    assert lint(broken, *SCHEMAS[name]).returncode == 1


def test_every_example_is_checked():
    assert {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*") if path.is_file()} == set(
        SCHEMAS
    )


@pytest.fixture
def project(tmp_path) -> Path:
    """A checkout with the report of a run, its baseline, and `edgeft` and `python` on the path."""
    report = make_report()
    for check in report["verdict"]["checks"]:
        check["values"] = {
            "file": 1.0,
            "executed": 1.0,
        }  # what the gate reads of the run's own coverage checks
    reporting.write_json(report, tmp_path / "runs" / "flowers" / "report.json")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, arguments in (("python", ""), ("edgeft", "-m edgeft")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (commands / name).chmod(0o755)
    assert gate(tmp_path, "--update") == ExitCode.OK
    return tmp_path


def gate(project: Path, *options: str) -> int:
    """Run `edgeft gate` in this process, which is quicker."""
    return main(["gate", str(project / "runs/flowers"), "-b", str(project / "baseline.json"), *options])


def bash(project: Path, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a step as GitHub and GitLab do: in bash, ending with the first command that fails."""
    environment = {
        **os.environ,
        "PATH": f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def damage(report: Path) -> None:
    """Give the wrong answer for half of the samples of the first target."""
    document = json.loads(report.read_text())
    predictions = document["targets"][0]["accuracy"]["predictions"]
    document["targets"][0]["accuracy"]["predictions"] = [(p + i % 2) % 6 for i, p in enumerate(predictions)]
    report.write_text(json.dumps(document))


def test_the_action_judges_and_keeps_the_verdict(project):
    steps = yaml.safe_load((EXAMPLES / "github" / "action.yml").read_text())["runs"]["steps"]
    script = next(step["run"] for step in steps if step.get("id") == "gate")
    variables = {
        "REPORT": "runs/flowers",
        "BASELINE": "baseline.json",
        "COMPARE": "",
        "INCONCLUSIVE": "fail",
        "RUNNER_TEMP": str(project / "temp"),
        "GITHUB_OUTPUT": str(project / "output"),
        "GITHUB_STEP_SUMMARY": str(project / "summary.md"),
    }
    report = project / "runs" / "flowers" / "report.json"
    codes = [bash(project, script, **variables).returncode]
    damage(report)
    codes.append(bash(project, script, **variables).returncode)
    report.write_text("{")
    failed = bash(project, script, **variables)
    assert (*codes, failed.returncode) == (0, 1, 2)
    assert "not valid JSON" in failed.stdout
    assert (project / "output").read_text() == "outcome=pass\noutcome=fail\noutcome=error\n"
    assert (project / "summary.md").read_text(encoding="utf-8").count("## edgeft gate: trashnet") == 2
    kept = {path.name for path in (project / "temp" / "edgeft-gate").iterdir()}
    assert kept == {"gate.md", "junit.xml", "verdict.json"}


def test_a_record_per_line_is_given_to_the_gate(project):
    steps = yaml.safe_load((EXAMPLES / "github" / "action.yml").read_text())["runs"]["steps"]
    script = next(step["run"] for step in steps if step.get("id") == "gate")
    (project / "bin" / "edgeft").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments; echo "{}"\n')
    variables = {"REPORT": "a run", "BASELINE": "$(touch x)", "COMPARE": "one.json\ntwo three.json\n"}
    paths = {"RUNNER_TEMP": str(project), "GITHUB_OUTPUT": str(project / "output")}
    result = bash(project, script, INCONCLUSIVE="pass", **variables, **paths)
    assert result.returncode == 0, result.stderr
    assert (project / "arguments").read_text().splitlines()[:10] == [
        "gate", "a run", "--baseline", "$(touch x)", "--inconclusive", "pass", "--compare", "one.json",
        "--compare", "two three.json",
    ]  # fmt: skip
    assert not (project / "x").exists()


def test_the_gate_adds_to_the_history_and_draws_it(project, capsys):
    files = {name: project / name for name in ("releases.jsonl", "trend.html")}
    options = ("--history", str(files["releases.jsonl"]), "--trend", str(files["trend.html"]))
    assert gate(project, *options, "--release", "1.0") == ExitCode.OK
    damage(project / "runs" / "flowers" / "report.json")
    assert gate(project, *options, "--release", "1.1") == ExitCode.CHECK_FAILED
    assert len(files["releases.jsonl"].read_text().splitlines()) == 2
    assert files["trend.html"].read_text(encoding="utf-8").count("<figure>") == 3
    assert gate(project, *options[2:]) == ExitCode.USAGE
    assert "--history" in capsys.readouterr().err


def test_the_pipeline_gates(project):
    job = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())["edgeft-gate"]
    script = job["script"][-1]
    damage(project / "runs" / "flowers" / "report.json")
    assert bash(project, script).returncode == 1
    assert (project / job["artifacts"]["reports"]["junit"]).read_text().count("<failure") >= 1
    assert all((project / path).is_file() for path in job["artifacts"]["paths"])
