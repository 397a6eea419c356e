"""Addresses, the far end of a connection alone, and what a host tells of itself; no runtime, no network."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgeft import measure
from edgeft.errors import ConfigError, MissingDependencyError
from edgeft.measure import host, worker
from edgeft.measure.transports import address, far_end, probe
from edgeft.runtimes import base

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "kind", "destination", "port", "python"),
    [
        ("board", "ssh", "board", None, "python3"),
        ("pi@192.168.1.20", "ssh", "pi@192.168.1.20", None, "python3"),
        ("pi@board.local:2222", "ssh", "pi@board.local", 2222, "python3"),
        ("pi@board:22/home/pi/venv/bin/python", "ssh", "pi@board", 22, "/home/pi/venv/bin/python"),
        ("pi@[fe80::1%eth0]:22", "ssh", "pi@fe80::1%eth0", 22, "python3"),
        ("adb:emulator-5554", "adb", "emulator-5554", None, "python3"),
        ("adb:192.168.1.5:5555/data/py/bin/python3", "adb", "192.168.1.5:5555", None, "/data/py/bin/python3"),
    ],
)
def test_addresses_are_read(text, kind, destination, port, python):
    found = address.parse(text)
    assert (found.kind, found.destination, found.port, found.python) == (kind, destination, port, python)


@pytest.mark.parametrize(
    "text",
    ["-oProxyCommand=evil", "a@-b", "pi@board:", "pi@board:70000", "adb:", "two words", "a@b@c", "b:x"],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match=r"user@board:PORT or adb:SERIAL"):
        address.parse(text)


def test_commands_ask_nothing_and_quote_the_python(monkeypatch, tmp_path):
    for name in ("ssh", "adb"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = address.parse("pi@board:2222/opt/my$py/python").command("pass")
    assert "BatchMode=yes" in command
    assert command[-5:] == ["-p", "2222", "--", "pi@board", "exec '/opt/my$py/python' -I -c 'pass'"]
    adb = address.parse("adb:X1").command("pass")
    assert adb[1:] == ["-s", "X1", "shell", "-T", "exec python3 -I -c 'pass'"]
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(MissingDependencyError, match="'ssh' is not on this machine's PATH"):
        address.parse("board").command("pass")


class FarEnd:
    """A far end on this machine, spoken to through pipes."""

    def __init__(self, folder: Path, **constants: float) -> None:
        code = Path(far_end.__file__).read_text()
        for name, value in constants.items():
            line = next(line for line in code.splitlines() if line.startswith(f"{name} = "))
            code = code.replace(line, f"{name} = {value}")
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        self.hello = json.loads(self.process.stdout.readline().decode().removeprefix(far_end.MARK))
        self.frames: queue.Queue[dict[str, Any]] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            frame = json.loads(line)
            if "sha256" in frame:
                frame["body"] = self.process.stdout.read(frame["size"])
            if "beat" not in frame:
                self.frames.put(frame)

    def send(self, request: dict[str, Any], body: bytes = b"") -> None:
        self.process.stdin.write(json.dumps(request).encode() + b"\n" + body)
        self.process.stdin.flush()

    def ask(self, request: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        self.send(request, body)
        return self.frames.get(timeout=60)

    def end(self) -> int:
        """Close its input, as a connection that breaks off does, and return its exit code."""
        self.process.stdin.close()
        code = self.process.wait(60)
        self._listener.join(60)
        self.process.stdout.close()
        return code

    def put(self, name: str, body: bytes, digest: str = "") -> dict[str, Any]:
        digest = digest or hashlib.sha256(body).hexdigest()
        return self.ask({"do": "put", "name": name, "sha256": digest, "size": len(body)}, body)


@pytest.fixture
def far(tmp_path):
    made = FarEnd(tmp_path)
    yield made
    assert made.end() == 0
    assert not list(tmp_path.iterdir())


def test_files_come_and_go_whole(far, tmp_path):
    body = bytes(range(256)) * 1000
    kept = far.put("a/model.bin", body)
    assert kept == {"ok": True, "path": f"{far.hello['folder']}/a/model.bin"}
    fetched = far.ask({"do": "get", "path": kept["path"]})
    assert fetched["body"] == body and fetched["sha256"] == hashlib.sha256(body).hexdigest()
    refused = far.put("b/model.bin", body, digest="0" * 64)
    assert not refused["ok"] and f"not {'0' * 64}" in refused["error"]
    assert not (Path(far.hello["folder"]) / "b/model.bin").exists()
    assert "No such file" in far.ask({"do": "get", "path": "/no/file"})["error"]


def test_a_file_that_cannot_be_written_does_not_break_the_protocol(far):
    far.put("name", b"a file")
    refused = far.put("name/below", b"x" * 300_000)
    assert not refused["ok"] and "name" in refused["error"]
    assert far.put("other", b"another")["ok"]


def test_workers_answer_end_and_are_killed(far):
    script = far.put(
        "w.py", b"import sys\nfor line in sys.stdin:\n    print(line.upper(), end='', flush=True)\n"
    )
    started = far.ask({"do": "start", "worker": 1, "script": script["path"], "environment": {}})
    assert started["ok"] and Path(started["path"]).is_dir()
    assert far.ask({"do": "tell", "worker": 1, "line": "hello\n"}) == {"worker": 1, "line": "HELLO\n"}
    far.send({"do": "kill", "worker": 1})
    frames = [far.frames.get(timeout=60) for _ in range(2)]
    assert {"ok": True} in frames and any(frame.get("ended") == -9 for frame in frames)
    assert not Path(started["path"]).exists()
    failing = far.put("f.py", b"raise SystemExit('no good')")
    far.send({"do": "start", "worker": 2, "script": failing["path"], "environment": {}})
    frames = [far.frames.get(timeout=60) for _ in range(2)]
    assert {"worker": 2, "ended": 1, "chatter": "no good\n"} in frames


def pid_of_worker(far: FarEnd) -> int:
    script = far.put("sleep.py", b"import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    far.ask({"do": "start", "worker": 1, "script": script["path"], "environment": {}})
    return int(far.frames.get(timeout=60)["line"])


def test_nothing_outlives_silence(tmp_path):
    far = FarEnd(tmp_path, SILENCE_SECONDS=2.0, BEAT_SECONDS=0.1)
    pid = pid_of_worker(far)
    # Its input stays open and says nothing, as after a cable was pulled.
    assert far.process.wait(60) == 1
    far.end()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not list(tmp_path.iterdir())


def test_a_connection_that_breaks_inside_a_file_ends_all(tmp_path):
    far = FarEnd(tmp_path)
    pid = pid_of_worker(far)
    far.send({"do": "put", "name": "m", "sha256": "", "size": 1000}, b"only a part")
    assert far.end() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not list(tmp_path.iterdir())


def test_the_next_one_removes_what_a_killed_one_left(tmp_path):
    killed, running = FarEnd(tmp_path), FarEnd(tmp_path)
    killed.process.kill()
    killed.end()
    stranger = tmp_path / "edgeft-board-fresh"  # made this moment, not locked yet
    stranger.mkdir()
    hour_ago = time.time() - 3600
    for end in (killed, running):
        os.utime(end.hello["folder"], (hour_ago, hour_ago))
    after = FarEnd(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(
        [Path(running.hello["folder"]), Path(after.hello["folder"]), stranger]
    )
    for end in (running, after):
        end.end()


@pytest.mark.parametrize("module", [far_end, probe, worker, base])
def test_what_travels_runs_on_an_older_python(module):
    """Boards have what their distribution brings; ours is newer."""
    tree = ast.parse(Path(module.__file__).read_text(), feature_version=(3, 10))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    assert imported <= {*sys.stdlib_module_names, "numpy"}


def board_root(tmp_path: Path, **files: str) -> Path:
    """Write a made-up /proc and /sys; "__" in a name stands for a slash."""
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_board_is_read_as_it_says(tmp_path):
    root = board_root(
        tmp_path,
        proc__cpuinfo="processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n",
        proc__loadavg="0.52 0.4 0.3 1/200 77",
        proc__stat="cpu  100 5 50 800 20 1 2 30 0 0\ncpu0 50 0 0 0\ncpu1 50 0 0 0\nintr 3\n",
    )
    (root / "proc/device-tree").mkdir()
    (root / "proc/device-tree/model").write_bytes(b"Some Board Rev 1.2\0")
    cpu = root / "sys/devices/system/cpu"
    for core, clock in (("cpu0", 1_500_000), ("cpu1", 2_400_000)):
        (cpu / core / "cpufreq").mkdir(parents=True)
        (cpu / core / "cpufreq/scaling_cur_freq").write_text(f"{clock}\n")
    (cpu / "cpu0/cpufreq/scaling_governor").write_text("schedutil\n")
    (root / "sys/class/thermal/cooling_device0").mkdir(parents=True)
    (root / "sys/class/thermal/cooling_device0/type").write_text("cpufreq-cpu0\n")
    (root / "sys/class/thermal/cooling_device0/cur_state").write_text("2\n")
    found = probe.machine(root)
    assert (found["cpu"], found["flags"]) == ("Some Board Rev 1.2", ["asimd", "asimddp", "i8mm"])
    assert found["governor"] == "schedutil"
    state = probe.state(root, spin_seconds=0)
    assert (state["load"], state["cores"], state["clock_khz"]) == (0.52, 2, 2_400_000)
    assert (state["total_ticks"], state["idle_ticks"], state["steal_ticks"]) == (1008, 820, 30)
    assert state["capped_by_heat"] is True and state["throttled"] is None


def test_a_raspberry_pi_says_when_it_is_capped(tmp_path):
    firmware = tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled"
    firmware.parent.mkdir(parents=True)
    firmware.write_text("0\n")
    assert probe.state(tmp_path, spin_seconds=0)["capped_by_heat"] is False
    firmware.write_text("50000\n")  # it happened once since the start, and is over
    assert probe.state(tmp_path, spin_seconds=0)["capped_by_heat"] is False
    firmware.write_text("4\n")
    assert probe.state(tmp_path, spin_seconds=0)["capped_by_heat"] is True


def test_a_host_that_tells_nothing_gives_no_warning(tmp_path):
    nothing = probe.state(tmp_path, spin_seconds=0)
    assert set(nothing.values()) == {None}
    assert measure.host_warnings(nothing, nothing) == ()


QUIET: dict[str, Any] = {
    "cores": 4,
    "load": 0.3,
    "total_ticks": 10_000,
    "idle_ticks": 9_000,
    "steal_ticks": 0,
    "governor": "performance",
    "driver": "intel_pstate",
    "clock_khz": 2_000_000,
    "clock_limit_khz": 2_400_000,
    "clock_maximum_khz": 2_400_000,
    "throttled": 7,
    "capped_by_heat": False,
}
# A second on four cores, one of them busy with the timing.
AFTER = {**QUIET, "total_ticks": 10_400, "idle_ticks": 9_300}


def test_a_quiet_machine_gives_no_warning():
    assert measure.host_warnings(QUIET, AFTER) == ()


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({"load": 1.3}, {}, "load 1.3 on 4 cores"),
        ({}, {"idle_ticks": 9_100}, "kept 2.0 of 4 cores busy"),
        ({}, {"idle_ticks": 9_280, "steal_ticks": 20}, "5% of the time was stolen"),
        ({}, {"throttled": 9}, "throttled 2 times"),
        ({}, {"capped_by_heat": True}, "limited by temperature"),
        ({}, {"clock_khz": 1_500_000}, "clock fell from 2000 to 1500 MHz"),
        ({}, {"clock_limit_khz": 1_800_000}, "highest allowed clock fell from 2400 to 1800 MHz"),
        ({}, {"governor": "powersave", "driver": "cpufreq-dt"}, "governor powersave"),
    ],
)
def test_what_disturbs_a_timing_is_said(before, after, text):
    (warning,) = measure.host_warnings({**QUIET, **before}, {**AFTER, **after})
    assert text in warning


def test_powersave_of_a_cpu_that_governs_itself_is_ordinary():
    assert measure.host_warnings(QUIET, {**AFTER, "governor": "powersave"}) == ()


def test_threads_of_the_timing_itself_are_no_disturbance():
    busy = {**AFTER, "idle_ticks": 9_050}
    assert measure.host_warnings(QUIET, busy, threads=4) == ()
    assert measure.host_warnings(QUIET, busy, threads=1)


def test_int8_without_its_instructions_is_warned_about():
    assert "asimddp" in measure.int8_warning(["avx2", "avx512f"])
    assert "asimddp" in measure.int8_warning(["asimd"])
    assert not measure.int8_warning(["asimd", "asimddp"]) and not measure.int8_warning(["avx_vnni"])
    assert not measure.int8_warning([])  # unknown
    assert set(host.INT8_FLAGS) <= set(host.FLAGS)
