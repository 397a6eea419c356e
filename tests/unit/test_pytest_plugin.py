"""The fixture `edgeft_gate`, in a pytest of its own, on packages that need no training."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import scipy.optimize  # noqa: F401 - see `run`
from color_packages import COLORS, paint, paint_all, write_color_package

import edgeft.benchmarking.package_gate  # noqa: F401 - see `run`

pytest_plugins = ["pytester"]

TEST = """
def test_release(edgeft_gate):
    verdict = edgeft_gate("{package}", "pictures", "baseline.json"{options})
    assert verdict.outcome in ("pass", "inconclusive", "no baseline")
"""


@pytest.fixture
def project(pytester, monkeypatch) -> Path:
    """A project with a good package and one that confuses two classes, and 60 pictures of each class."""
    # Installed or not, the plugin is there once.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    write_color_package(pytester.path / "good")
    write_color_package(pytester.path / "bad", channels=(1, 0, 2))
    paint_all(pytester.path / "pictures", 60, mistakes=2)
    return pytester.path


@pytest.fixture
def run(pytester, project):
    """Run the project's test in this process: a new one would take seconds to import.

    pytester forgets modules that were imported in between, which extension modules do not survive; the imports at
    the top come before it.
    """

    def run(package: str, *arguments: str, options: str = ""):
        pytester.makepyfile(test_it=TEST.format(package=package, options=options))
        return pytester.runpytest_inprocess("-p", "edgeft.pytest_plugin", "-rs", *arguments)

    return run


def test_it_fails_and_passes_as_it_should(run, project):
    result = run("good")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*baseline.json does not exist*"])
    assert not (project / "baseline.json").exists()

    run("good", "--edgeft-update").assert_outcomes(passed=1)
    baseline = (project / "baseline.json").read_bytes()
    assert json.loads(baseline)["samples"]["count"] == 180
    run("good").assert_outcomes(passed=1)

    for arguments in ((), ("--edgeft-update",)):
        result = run("bad", *arguments)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["edgeft_gate: fail against *", "  fail: cpu-onnxruntime, accuracy: *"])
        assert "Traceback" not in result.stdout.str() and "pytest_plugin.py" not in result.stdout.str()
    assert (project / "baseline.json").read_bytes() == baseline


def test_what_cannot_be_decided_is_what_the_test_says(run, project):
    run("good", "--edgeft-update").assert_outcomes(passed=1)
    # The same answers from another file: 180 samples cannot certify a margin of a tenth of a point.
    write_color_package(project / "good", name="other")
    for choice, outcome in (("fail", "failed"), ("skip", "skipped"), ("pass", "passed")):
        result = run("good", options=f', margin=0.001, inconclusive="{choice}"')
        result.assert_outcomes(**{outcome: 1})


def test_the_baselines_samples_are_found_in_more_data(run, project):
    run("good", "--edgeft-update").assert_outcomes(passed=1)
    for seed, color in enumerate(COLORS):
        paint(project / "pictures" / color / "new.png", color, 9000 + seed)
    run("good").assert_outcomes(passed=1)


def test_an_unknown_outcome_for_the_undecided_is_refused(run, project):
    result = run("good", options=", inconclusive='Fail'")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["edgeft_gate: inconclusive = 'Fail'; allowed are 'fail', 'skip', 'pass'*"])


def test_an_unknown_column_is_refused(run, project):
    result = run("good", options=", columns={'lable': 'kind'}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["edgeft_gate: columns: lable; allowed are label, path, text*"])


def rename_target(baseline: Path) -> None:
    document = json.loads(baseline.read_text())
    (target,) = document["release"]["targets"].values()
    document["release"]["targets"] = {"cpu-openvino": target}
    baseline.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "baseline.json").write_text("{"), "edgeft_gate: *not valid JSON*"),
        (lambda root: (root / "good" / "labels.txt").write_text("red\n"), "edgeft_gate: *labels.txt*"),
        (lambda root: (root / "pictures" / "red" / "000.png").unlink(), "edgeft_gate: *other test samples*"),
        (lambda root: rename_target(root / "baseline.json"), "edgeft_gate: *knows none of the targets*"),
    ],
)
def test_bad_input_fails_the_test_with_one_message(run, project, damage, message):
    run("good", "--edgeft-update").assert_outcomes(passed=1)
    damage(project)
    result = run("good")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])
    assert "Traceback" not in result.stdout.str()


def test_pytest_finds_the_plugin_by_itself():
    points = metadata.distribution("edgeft").entry_points.select(group="pytest11")
    assert [point.value for point in points] == ["edgeft.pytest_plugin"]


def test_the_plugin_is_light():
    code = "import sys, edgeft.pytest_plugin; assert not {'numpy', 'torch', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2], check=True)
