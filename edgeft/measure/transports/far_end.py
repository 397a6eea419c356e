"""The far end of a connection to a board: keeps files in a private folder, and runs workers.

It needs nothing but Python's standard library and is not installed: the near end sends this very text through
the connection, where ``python3 -c`` runs it. A frame is one line of JSON, followed by ``size`` raw bytes where it
names a size. First comes the line `MARK` with {"python": "3.11.2", "folder": ...}; then one reply per request:

    {"do": "put", "name": "a/model.onnx", "sha256": ..., "size": n} + n bytes  -> {"ok": true, "path": ...}
    {"do": "get", "path": ...}                          -> {"ok": true, "sha256": ..., "size": n} + n bytes
    {"do": "start", "worker": 1, "script": ..., "environment": {}}             -> {"ok": true, "path": FOLDER}
    {"do": "kill", "worker": 1}                                                -> {"ok": true}

A request that cannot be carried out is answered by {"ok": false, "error": ...}. Without a reply are {"do": "tell",
"worker": 1, "line": ...}, a line for a worker, and {"do": "beat"}. Without a request come {"worker": 1, "line":
...}, a line from it, {"worker": 1, "ended": exit code, "chatter": end of its stderr}, and {"beat": true}.

Nothing outlives the connection: at the end of its input, or hearing nothing for `SILENCE_SECONDS` (a cable that
was pulled ends no input), it kills the workers, removes the folder and ends. If it is killed itself, its workers
see the end of their own input, and the next far end here removes the folder, which no one holds locked any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

MARK = "edgeft far end 1 "
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0
_PREFIX = "edgeft-board-"
_CHUNK = 1 << 16
_CHATTER_BYTES = 4096
_FRESH_SECONDS = 60.0
"""A folder younger than this may be one whose maker has not locked it yet."""


class FarEnd:
    """Carries out requests; holds the folder, its lock and the workers."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source, self._sink = source, sink
        self._sink_lock = threading.Lock()
        self._heard = time.monotonic()
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._folder = Path(_make_folder())
        self._lock = os.open(str(self._folder), os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def serve(self) -> None:
        """Answer requests until the input ends."""
        hello = {"python": platform.python_version(), "folder": str(self._folder)}
        self._write((MARK + json.dumps(hello) + "\n").encode())
        threading.Thread(target=self._watch, daemon=True).start()
        do: dict[str, Callable[..., None]] = {
            "put": self._put,
            "get": self._get,
            "start": self._start,
            "kill": self._kill,
            "tell": self._tell,
        }
        for line in iter(self._source.readline, b""):
            self._heard = time.monotonic()
            request = json.loads(line.decode())
            name = request.pop("do")
            if name != "beat":
                do[name](**request)

    def close(self) -> None:
        """Kill the workers and remove the folder."""
        for number in list(self._workers):
            self._end(number)
        shutil.rmtree(str(self._folder), ignore_errors=True)

    def _watch(self) -> None:
        """Show that this end lives, and end it when the other one does not."""
        while time.monotonic() - self._heard < SILENCE_SECONDS:
            try:
                self._send({"beat": True})
            except OSError:
                break
            time.sleep(BEAT_SECONDS)
        self.close()
        os._exit(1)  # the main thread sits in a read that will not return

    def _put(self, name: str, sha256: str, size: int) -> None:
        path = self._folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for chunk in self._body(size):
                    size -= len(chunk)
                    file.write(chunk)
            found = self._digest(path)  # of what the disk gives back
        except OSError as error:
            for _ in self._body(size):
                pass
            if path.is_file():
                path.unlink()
            self._send({"ok": False, "error": str(error)})
            return
        if found == sha256:
            self._send({"ok": True, "path": str(path)})
        else:
            path.unlink()
            self._send({"ok": False, "error": f"arrived with sha256 {found}, not {sha256}"})

    def _body(self, size: int) -> Iterator[bytes]:
        while size > 0:
            chunk = self._source.read(min(size, _CHUNK))
            if not chunk:
                raise EOFError
            self._heard = time.monotonic()
            size -= len(chunk)
            yield chunk

    def _get(self, path: str) -> None:
        try:
            frame = {"ok": True, "sha256": self._digest(Path(path)), "size": Path(path).stat().st_size}
            with Path(path).open("rb") as file:
                self._send(frame, iter(lambda: file.read(_CHUNK), b""))
            Path(path).unlink()
        except OSError as error:
            self._send({"ok": False, "error": str(error)})

    def _digest(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(_CHUNK), b""):
                digest.update(chunk)
                self._heard = time.monotonic()  # nobody reads the other side's beats meanwhile
        return digest.hexdigest()

    def _start(self, worker: int, script: str, environment: Mapping[str, str]) -> None:
        folder = self._folder / f"worker-{worker}"
        try:
            folder.mkdir()
            with (folder / "stderr.txt").open("wb") as chatter:
                process = subprocess.Popen(
                    [sys.executable, script],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=chatter,
                    env=dict(os.environ, **environment),
                    cwd=str(folder),
                    start_new_session=True,
                )
        except OSError as error:
            self._send({"ok": False, "error": str(error)})
            return
        self._workers[worker] = process
        self._send({"ok": True, "path": str(folder)})
        threading.Thread(target=self._listen, args=(worker, process, folder), daemon=True).start()

    def _listen(self, worker: int, process: subprocess.Popen[bytes], folder: Path) -> None:
        """Forward a worker's lines and tell of its end."""
        try:
            for line in process.stdout or ():
                self._send({"worker": worker, "line": line.decode()})
            code = process.wait()
            try:
                chatter = (folder / "stderr.txt").read_bytes()[-_CHATTER_BYTES:].decode(errors="replace")
            except OSError:
                chatter = ""
            self._send({"worker": worker, "ended": code, "chatter": chatter})
        except OSError:
            pass  # the connection is gone: the main thread sees it too

    def _tell(self, worker: int, line: str) -> None:
        process = self._workers.get(worker)
        if process is not None and process.stdin is not None:
            try:
                process.stdin.write(line.encode())
                process.stdin.flush()
            except OSError:
                pass  # it is dead, which `_listen` reports

    def _kill(self, worker: int) -> None:
        self._end(worker)
        shutil.rmtree(str(self._folder / f"worker-{worker}"), ignore_errors=True)
        self._send({"ok": True})

    def _end(self, worker: int) -> None:
        process = self._workers.pop(worker, None)
        if process is not None and process.poll() is None:
            with contextlib.suppress(OSError):  # it has ended this moment
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _send(self, frame: Mapping[str, Any], body: Iterable[bytes] = ()) -> None:
        with self._sink_lock:
            self._sink.write((json.dumps(frame) + "\n").encode())
            for chunk in body:
                self._sink.write(chunk)
                self._heard = time.monotonic()
            self._sink.flush()

    def _write(self, data: bytes) -> None:
        with self._sink_lock:
            self._sink.write(data)
            self._sink.flush()


def _make_folder() -> str:
    """Return a new private folder, having removed those that dead far ends of this user left behind."""
    try:
        parent = tempfile.gettempdir()
    except OSError:
        parent = "/data/local/tmp"  # Android has no other place that everyone may write to
    for path in Path(parent).glob(_PREFIX + "*"):
        _remove_abandoned(path)
    return tempfile.mkdtemp(prefix=_PREFIX, dir=parent)


def _remove_abandoned(path: Path) -> None:
    try:
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            return
        if time.time() - path.stat().st_mtime < _FRESH_SECONDS:
            return
        lock = os.open(str(path), os.O_RDONLY)
    except OSError:
        return  # removed by another one meanwhile
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(str(path), ignore_errors=True)
    except OSError:
        pass  # in use
    finally:
        os.close(lock)


def main() -> None:
    """Serve standard input and output."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    far_end = FarEnd(sys.stdin.buffer, sys.stdout.buffer)
    try:
        far_end.serve()
    except (EOFError, OSError, ValueError):
        pass  # the connection broke off, maybe inside a frame
    finally:
        far_end.close()
        os._exit(0)  # no flushing into a closed pipe, no waiting for threads


if __name__ == "__main__":
    main()
