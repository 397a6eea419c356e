"""Text files that are written whole, whoever else writes them."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import pytest

from edgeft.errors import WorkspaceError
from edgeft.files import alone, require_writable, write_text


def _write_often(path: Path, letter: str) -> None:
    for _ in range(40):
        write_text(path, letter * 200_000)


def _count_up(path: Path) -> None:
    for _ in range(40):
        with alone(path):
            write_text(path, json.dumps(json.loads(path.read_text()) + 1))


def _run(work, *arguments) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_two_writers_never_leave_a_part(tmp_path):
    path = tmp_path / "file.json"
    _run(_write_often, (path, "a"), (path, "b"))
    assert path.read_text() in ("a" * 200_000, "b" * 200_000)
    assert list(tmp_path.iterdir()) == [path]


def test_two_that_add_to_a_file_lose_nothing(tmp_path):
    path = write_text(tmp_path / "count.json", "0")
    _run(_count_up, (path,), (path,))
    assert path.read_text() == "80"


def test_a_link_stays_and_what_fails_leaves_nothing(tmp_path):
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "x"
    with pytest.raises(WorkspaceError, match="cannot be written"):
        write_text(tmp_path / "file", "\ud800")
    assert (tmp_path / "file").read_text() == "x" and len(list(tmp_path.iterdir())) == 2


def test_what_can_be_written_is_known_beforehand(tmp_path):
    require_writable(tmp_path / "new" / "file")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(WorkspaceError, match="no plain file"):
        require_writable(tmp_path)
    with pytest.raises(WorkspaceError, match="cannot be written"):
        require_writable(Path("/proc/x.md"))


def test_a_file_has_the_rights_of_any_other(tmp_path):
    (tmp_path / "usual").write_text("")
    rights = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual",)]
    assert stat.S_IMODE(write_text(tmp_path / "file", "").stat().st_mode) == rights[0]
