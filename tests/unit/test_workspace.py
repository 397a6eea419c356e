import json
import math
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edgeft.errors import WorkspaceError
from edgeft.workspace import Workspace, clean, is_workspace, stage_key

KEY, OTHER = stage_key("finetune", {"seed": 0}), stage_key("finetune", {"seed": 1})


def finish(ws: Workspace, key: str = KEY, text: str = "weights", seconds: float = 1.0) -> Path:
    scratch = ws.begin(1, "finetune", key)
    (scratch / "parts").mkdir(exist_ok=True)
    (scratch / "parts" / "model.bin").write_text(text)
    return ws.commit(1, "finetune", key, inputs={"seed": 0}, seconds=seconds)


@pytest.fixture
def ws(tmp_path):
    with Workspace.open(tmp_path / "run") as opened:
        yield opened


def test_a_key_depends_on_every_input_and_not_on_their_order():
    assert stage_key("prune", {"a": 1, "b": [2.5, None]}) == stage_key("prune", {"b": [2.5, None], "a": 1})
    keys = {
        stage_key("prune", {"a": 1}),
        stage_key("prune", {"a": 2}),
        stage_key("prune", {"a": "1"}),
        stage_key("quantize", {"a": 1}),
        stage_key("prune", {}),
    }
    assert len(keys) == 5 and all(len(key) == 64 for key in keys)


@pytest.mark.parametrize(
    ("value", "error"), [(Path("x"), TypeError), (math.nan, ValueError), ({1}, TypeError)]
)
def test_a_key_refuses_what_has_no_canonical_form(value, error):
    with pytest.raises(error):
        stage_key("prune", {"value": value})


def test_a_finished_stage_is_found_by_its_key_only(ws):
    assert ws.stage(1, "finetune", KEY) is None
    folder = finish(ws)
    assert folder == ws.path / "stages" / "01-finetune"
    assert ws.stage(1, "finetune", KEY) == folder
    assert ws.stage(1, "finetune", OTHER) is None
    assert (folder / "parts" / "model.bin").read_text() == "weights"
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["key"] == KEY and meta["inputs"] == {"seed": 0} and meta["files"] == {"parts/model.bin": 7}
    assert sorted(p.name for p in (ws.path / "stages").iterdir()) == ["01-finetune"]


def test_scratch_is_kept_for_the_same_key_and_dropped_for_another(ws):
    (ws.begin(1, "finetune", KEY) / "epoch-3.ckpt").write_text("state")
    assert (ws.begin(1, "finetune", KEY) / "epoch-3.ckpt").read_text() == "state"
    neighbour = ws.begin(2, "prune", KEY)
    assert list(ws.begin(1, "finetune", OTHER).glob("*.ckpt")) == []
    assert neighbour.is_dir()
    assert len(list((ws.path / "stages").glob(".tmp-01-finetune-*"))) == 1


def test_a_new_key_replaces_the_finished_stage_when_it_is_done_and_not_before(ws):
    finish(ws, KEY, "old")
    ws.begin(1, "finetune", OTHER)
    assert ws.stage(1, "finetune", KEY) is not None
    folder = finish(ws, OTHER, "new one")
    assert (folder / "parts" / "model.bin").read_text() == "new one"
    assert ws.stage(1, "finetune", KEY) is None and ws.stage(1, "finetune", OTHER) == folder


def test_seconds_add_up_over_restarts(ws):
    scratch = ws.begin(1, "finetune", KEY)
    attempts = json.loads((scratch / ".attempts.json").read_text())
    attempts[-1]["began"] -= 100.0  # as if killed after its last write, 100 s into the work
    (scratch / ".attempts.json").write_text(json.dumps(attempts))
    meta = json.loads((finish(ws, seconds=5.0) / "meta.json").read_text())
    assert meta["attempts"] == 2
    assert 105.0 <= meta["seconds"] < 110.0


@pytest.mark.parametrize("damage", ["removed", "truncated", "meta"])
def test_a_damaged_stage_is_done_again_and_said_so(tmp_path, damage):
    notes: list[str] = []
    with Workspace.open(tmp_path / "run", note=notes.append) as ws:
        folder = finish(ws)
        file = folder / "parts" / "model.bin"
        match damage:
            case "removed":
                file.unlink()
            case "truncated":
                os.truncate(file, 3)
            case "meta":
                (folder / "meta.json").write_text(
                    (folder / "meta.json").read_text().replace('"schema": 1', '"schema": 9')
                )
        assert ws.stage(1, "finetune", KEY) is None
        assert len(notes) == 1 and notes[0].startswith("stage 01-finetune is done again: ")
        finish(ws)
        assert ws.stage(1, "finetune", KEY) == folder


def test_a_stage_without_meta_is_not_finished(ws):
    folder = finish(ws)
    (folder / "meta.json").write_text('{"key": "')
    assert ws.stage(1, "finetune", KEY) is None


def test_write_text_replaces_and_stays_in_the_root(ws):
    assert ws.write_text("recipe.toml", "a").read_text() == "a"
    assert ws.write_text("recipe.toml", "b").read_text() == "b"
    assert [p.name for p in ws.path.glob("*recipe*")] + [p.name for p in ws.path.glob(".*.part")] == [
        "recipe.toml"
    ]
    for name in ("../x", "a/b", "", ".lock"):
        with pytest.raises(ValueError, match="plain name"):
            ws.write_text(name, "")


def test_clean_keeps_what_the_recipe_needs(tmp_path):
    path = tmp_path / "run"
    with Workspace.open(path) as ws:
        finish(ws)
        ws.begin(2, "prune", KEY)
        ws.begin(3, "quantize", OTHER)
        ws.begin(4, "export", KEY)
        ws.commit(4, "export", KEY, inputs={}, seconds=0.0)
        assert ws.stale() == []  # nothing is known yet
        ws.write_text("stages.json", json.dumps({"01-finetune": KEY, "02-prune": KEY, "04-export": OTHER}))
    removed = clean(path)
    assert [p.name for p in removed] == [f".tmp-03-quantize-{OTHER[:12]}", "04-export"]
    assert sorted(p.name for p in (path / "stages").iterdir()) == [f".tmp-02-prune-{KEY[:12]}", "01-finetune"]
    assert clean(path) == []


def test_clean_everything_empties_a_workspace_and_nothing_else(tmp_path):
    path = tmp_path / "run"
    with Workspace.open(path) as ws:
        finish(ws)
        (path / "packages" / "cpu").mkdir(parents=True)
    assert {p.name for p in clean(path, everything=True)} == {"stages", "packages"}
    assert list(path.iterdir()) == []
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(WorkspaceError, match="not a workspace"):
        clean(tmp_path, everything=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_folder_of_something_else_is_not_taken(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(WorkspaceError, match="neither empty nor a workspace"):
        Workspace.open(tmp_path)
    assert not is_workspace(tmp_path)


def test_a_second_run_is_refused_with_the_process_id(ws):
    code = "import sys, pathlib, edgeft.workspace as w; w.Workspace.open(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(ws.path)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "WorkspaceError" in second.stderr and f"(process {os.getpid()})" in second.stderr
    with pytest.raises(WorkspaceError, match="in use"):  # the same process, too
        Workspace.open(ws.path)


def test_a_released_lock_can_be_taken_again(tmp_path):
    for _ in range(2):
        with Workspace.open(tmp_path / "run"):
            pass


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    path = tmp_path / "run"
    script = f"""
    import os, sys, time
    from pathlib import Path
    from edgeft.workspace import Workspace
    Workspace.open(Path({str(path)!r}))
    if os.fork() == 0:
        sys.stdout.write(f"{{os.getpid()}}\\n"); sys.stdout.flush()
        time.sleep(60)
    os.kill(os.getpid(), 9)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    try:
        assert parent.wait() == -9
        with Workspace.open(path):
            pass
    finally:
        os.kill(child, 9)
        parent.stdout.close()


@pytest.mark.parametrize("place", ["file", "/proc/edgeft", "/dev/null/run"])
def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path, place):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run" if place == "file" else Path(place)
    with pytest.raises(WorkspaceError, match="cannot write") as caught:
        Workspace.open(path)
    assert "--workspace" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_clear_error(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(WorkspaceError, match="Permission denied"):
        Workspace.open(tmp_path / "run")


def test_a_write_that_the_disk_refuses_leaves_the_old_content(ws):
    """A file-size limit stands in for a full disk: both fail in the middle of a write."""
    ws.write_text("report.json", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(WorkspaceError, match="cannot write"):
            ws.write_text("report.json", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (ws.path / "report.json").read_text() == "old"
