"""A process is killed at every file operation of begin and commit, and at random; nothing may be lost."""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from edgeft.errors import WorkspaceError
from edgeft.workspace import Workspace, stage_key

KEYS = [stage_key("train", {"version": version}) for version in range(2)]


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch):
    """A killed process loses nothing that it gave to the kernel; only a power cut would need the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


OPERATIONS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "open", "shutil.rmtree"}


def make_stage(path: Path, key: str, fuse: int = 0, pause_s: float = 0.0) -> None:
    """Make stage 1 out of three "epochs"; die of SIGKILL at file operation number `fuse`."""
    armed = False

    def audit(event: str, arguments: object) -> None:
        nonlocal fuse
        if armed and event in OPERATIONS:
            fuse -= 1
            if fuse == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if fuse:
        sys.addaudithook(audit)
    with Workspace.open(path) as ws:
        armed = True
        if ws.stage(1, "train", key) is None:
            scratch = ws.begin(1, "train", key)
            for epoch in range(3):
                if not (scratch / f"epoch-{epoch}").exists():
                    (scratch / "part").write_text(key)
                    (scratch / "part").rename(scratch / f"epoch-{epoch}")
                    time.sleep(pause_s)
            ws.commit(1, "train", key, inputs={}, seconds=0.0)


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; return the child's process id."""
    if (child := os.fork()) == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)  # an exception must not run the rest of the test twice
    return child


def exit_status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def assert_whole(path: Path) -> str | None:
    """Assert that whatever passes for finished is whole; return its key."""
    with Workspace.open(path) as ws:
        for key in KEYS:
            ws.stage(1, "train", key)  # to ask for a stage publishes it if only the rename is left to do
        found = [key for key in KEYS if ws.stage(1, "train", key)]
        folder = path / "stages" / "01-train"
        assert len(found) <= 1 and bool(found) == folder.exists()
        if not found:
            return None
        assert all((folder / f"epoch-{epoch}").read_text() == found[0] for epoch in range(3))
        assert json.loads((folder / "meta.json").read_text())["key"] == found[0]
        return found[0]


@pytest.mark.parametrize("replace", [False, True], ids=["first", "replacing"])
def test_a_kill_at_any_file_operation_loses_nothing(tmp_path, replace):
    old, new = KEYS
    kills = 0
    for fuse in range(1, 200):
        path = tmp_path / f"run-{fuse}"
        if replace:
            make_stage(path, old)
        status = exit_status(fork(partial(make_stage, path, new, fuse)))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
        epochs = {p.name for p in path.glob("stages/.tmp-*/epoch-*")}
        found = assert_whole(path)
        assert found == new or found == (old if replace else None), f"killed at operation {fuse}"
        make_stage(path, new)
        assert assert_whole(path) == new
        assert [p.name for p in (path / "stages").iterdir()] == ["01-train"]
        assert epochs <= {p.name for p in (path / "stages" / "01-train").iterdir()}
    assert kills >= 20  # else the fuse does not reach through begin and commit


def test_random_kills_end_with_the_undisturbed_result(tmp_path):
    path = tmp_path / "run"
    chance = random.Random(0)
    for attempt in range(20):
        child = fork(partial(make_stage, path, KEYS[attempt % 2], pause_s=0.005))
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        exit_status(child)
        assert_whole(path)
    make_stage(path, KEYS[0])
    assert assert_whole(path) == KEYS[0]


def add_one_repeatedly(path: Path, times: int) -> None:
    """Add to a counter without any protection but the lock; count own refusals in a file beside it."""
    refused = 0
    while times:
        try:
            with Workspace.open(path / "run") as ws:
                file = ws.path / "counter"
                count = int(file.read_text()) if file.exists() else 0
                time.sleep(0.001)
                ws.write_text("counter", str(count + 1))
                times -= 1
        except WorkspaceError:
            refused += 1
        time.sleep(0.0005)
    (path / f"refused-{os.getpid()}").write_text(str(refused))


def test_two_processes_that_fight_for_the_lock_take_turns(tmp_path):
    fighters = [fork(partial(add_one_repeatedly, tmp_path, 100)) for _ in range(2)]
    assert [exit_status(fighter) for fighter in fighters] == [0, 0]
    assert (tmp_path / "run" / "counter").read_text() == "200"
    assert sum(int(p.read_text()) for p in tmp_path.glob("refused-*")) > 0  # they did meet
