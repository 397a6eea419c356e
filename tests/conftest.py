"""What all tests share: quiet, reproducible numerics and a way to run the command line in a fresh process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Two test processes on two cores: more threads get in each other's way. Read when numpy or torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests on real files skip where no folder is named; an empty name is none.
if not os.environ.get("EDGEFT_TEST_DATA"):
    os.environ.pop("EDGEFT_TEST_DATA", None)

ROOT = Path(__file__).resolve().parent.parent

Edgeft = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def edgeft(tmp_path: Path) -> Edgeft:
    """Run `python -m edgeft ARGUMENTS` in a fresh process and in `tmp_path`, as a user would."""

    def run(
        *arguments: str, options: tuple[str, ...] = (), **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, *options, "-m", "edgeft", *arguments]
        # A checkout that is not installed works too.
        paths = {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        }
        variables = os.environ | paths | environment
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=variables, timeout=120, check=False
        )

    return run
