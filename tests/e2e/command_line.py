"""The command line in processes of its own, and the recipes that these tests give it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("cpu-onnxruntime", "cpu-openvino", "cpu-litert")
# One thread: what several threads add up may differ in the last bit from run to run.
_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    "OMP_NUM_THREADS": "1",
}


def digits_recipe(
    *,
    targets: tuple[str, ...] = TARGETS,
    finetune: str = "epochs = 4",
    quantize: str = "epochs = 2",
    measure: str = "",
) -> str:
    """Return the text of a small recipe on scanned digits; the arguments are lines of its sections."""
    return f"""
name = "digits"
targets = {json.dumps(list(targets))}
[task]
data = "builtin:digits"
[model]
source = "builtin:digitsnet"
[finetune]
augment = "crop"
{finetune}
[prune]
epochs = 4
augment = "crop"
[quantize]
{quantize}
[measure]
rounds = 2
min_runs = 10
min_seconds = 0.05
{measure}
"""


def edgeft_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "edgeft", *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a test's process; an additional PYTHONPATH comes first."""
    merged = os.environ | _ENVIRONMENT | variables
    if "PYTHONPATH" in variables:
        merged["PYTHONPATH"] = os.pathsep.join([variables["PYTHONPATH"], _ENVIRONMENT["PYTHONPATH"]])
    return merged


def run_edgeft(
    *arguments: str | Path, cwd: Path, timeout: float = 240, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run edgeft to its end in a fresh process."""
    return subprocess.run(
        edgeft_command(*arguments),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(**variables),
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def started_edgeft(*arguments: str | Path, cwd: Path) -> "Iterator[subprocess.Popen[str]]":
    """Start edgeft in a process group of its own; nothing of the group survives the block."""
    process = subprocess.Popen(
        edgeft_command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(
    condition: Callable[[], bool], process: "subprocess.Popen[str] | None" = None, seconds: float = 120
) -> bool:
    """Wait until `condition` holds; return False if `process` ends before, fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            return condition()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} did not become true in {seconds} s")
        time.sleep(0.002)
    return True


def is_training(workspace: Path, stage: str) -> bool:
    """Return whether a stage has finished an epoch and is not finished itself."""
    return any(workspace.glob(f"stages/.tmp-{stage}-*/training.ckpt"))


def group_members(group: int) -> list[str]:
    """Return the commands of the living processes in a process group (zombies do not count)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            state, _, its_group = rest.split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(f"{stat.parent.name} {name}")
    return found


def stage_files(workspace: Path) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of every finished stage's meta.json: equal means not repeated."""
    metas = sorted(workspace.glob("stages/[0-9]*/meta.json"))
    return {meta.parent.name: (meta.stat().st_ino, meta.stat().st_mtime_ns) for meta in metas}


def assert_is_one_clear_message(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """Check exit code, form and brevity of a refusal, and return the message."""
    text = done.stdout + done.stderr
    assert done.returncode == code, text
    assert "Traceback" not in text
    assert "internal error" not in text
    assert done.stderr.count("error: ") == 1, text
    message = done.stderr[done.stderr.index("error: ") :]
    assert len(message.splitlines()) <= 12, message
    return message


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that ended: where, with what report, and what it printed on stderr."""

    folder: Path
    report: dict[str, Any]
    stderr: str

    @property
    def workspace(self) -> Path:
        return self.folder / "runs" / "digits"

    @property
    def targets(self) -> dict[str, dict[str, Any]]:
        return {result["target"]: result for result in self.report["targets"]}
