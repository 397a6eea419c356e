"""One real run over all three runtimes, which many tests look at. Those that change it work on a copy."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import Finished, digits_recipe, run_edgeft


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The small digits recipe, run to its end; the processes of pytest-xdist share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "digits-run"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stdout, stderr = folder / "stdout.json", folder / "stderr.txt"
        if not stdout.exists():
            (folder / "digits.toml").write_text(digits_recipe())
            done = run_edgeft("run", "digits.toml", "--json", cwd=folder)
            assert done.returncode == 0, done.stderr
            stderr.write_text(done.stderr)
            stdout.write_text(done.stdout)
    report = json.loads(stdout.read_text())["report"]
    return Finished(folder=folder, report=report, stderr=stderr.read_text())


@pytest.fixture
def digits_copy(digits_run: Finished, tmp_path: Path) -> Finished:
    """A copy of the run's folder that a test may change."""
    folder = tmp_path / "copy"
    shutil.copytree(digits_run.folder, folder)
    return Finished(folder=folder, report=digits_run.report, stderr=digits_run.stderr)
