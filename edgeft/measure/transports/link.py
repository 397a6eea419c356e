"""The connection to a far end: one local process (`ssh`, `adb`) whose input and output carry all frames."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

from edgeft.errors import EdgeftError, MissingDependencyError
from edgeft.measure.transports import far_end
from edgeft.measure.transports.address import CONNECT_SECONDS, Address

HELLO_SECONDS = 2.0 * CONNECT_SECONDS
PYTHON = (3, 10)
"""The oldest that worker and adapters run on."""
CHUNK = 1 << 16
_CLOSE_SECONDS = 10.0
_NO_COMMAND = (126, 127)
"""Exit codes of a shell that cannot run a command."""

Frame = dict[str, Any]


class Link:
    """A started far end; one request at a time, and frames that come unasked.

    Both ends show every few seconds that they live; one that hears nothing for `far_end.SILENCE_SECONDS` gives up.

    Args:
        address: Where the far end is.
        hear: Called in a thread of the link's with every frame about a worker, and with an empty one at the end.

    Raises:
        MissingDependencyError: The board cannot be reached, or has no Python that is recent enough.
    """

    def __init__(self, address: Address, hear: Callable[[Frame], None]) -> None:
        self._address, self._hear = address, hear
        self.lost = ""
        """Why the connection is no more; empty while it is."""
        self._replies: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._calling, self._writing = threading.Lock(), threading.Lock()
        self._heard = time.monotonic()
        self._sink: Path | None = None
        code = Path(far_end.__file__).read_bytes()
        command = address.command(
            f'import sys;exec(compile(sys.stdin.buffer.read({len(code)}),"far_end","exec"))'
        )
        self._chatter = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._chatter,
            start_new_session=True,  # Ctrl-C is for us to handle: the far end must still be told to stop
        )
        try:
            self._greet(code)
        except BaseException:
            self.close()
            self._stdout.close()
            raise
        for work in (self._listen, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def exchange(
        self, request: Frame, body: BinaryIO | None = None, sink: Path | None = None
    ) -> Frame | None:
        """Send a request and return its reply, or None if the connection is lost.

        Args:
            request: As `far_end` lists them.
            body: What follows the request.
            sink: Where the bytes that follow the reply go.
        """
        with self._calling:
            if self.lost:
                return None
            self._sink = sink
            try:
                with contextlib.suppress(OSError, ValueError):  # ended, or closed by another thread
                    self._write(request, body)
                return self._replies.get()  # silence is noticed by `_beat`, so this ends in any case
            except (
                BaseException
            ):  # interrupted inside a frame or before its reply: what follows makes no sense
                self.lost = self.lost or "it was interrupted"
                self._process.kill()
                raise

    def tell(self, frame: Frame) -> None:
        """Send a frame that has no reply."""
        with contextlib.suppress(OSError, ValueError):
            self._write(frame)

    def close(self) -> None:
        """End the far end with all that it runs and keeps, and the connection."""
        self.lost = self.lost or "it is closed"
        # At the end of its input the far end ends, then the link. A write that hangs would block the closing too.
        if self._writing.acquire(timeout=_CLOSE_SECONDS):
            with contextlib.suppress(OSError):
                self._stdin.close()
            self._writing.release()
            self._await_end()
        else:
            self._process.kill()
            self._process.wait()
        self._chatter.close()

    def _await_end(self) -> int:
        """Return the link's exit code; kill it if it does not end now."""
        try:
            return self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _greet(self, code: bytes) -> None:
        """Send the far end's program and wait until it says that it runs."""
        # The link may also hang before; killing it ends the read.
        watch = threading.Timer(HELLO_SECONDS, self._process.kill)
        watch.start()
        try:
            with contextlib.suppress(OSError):
                self._stdin.write(code)
                self._stdin.flush()
            # A login shell may greet first.
            for line in iter(self._stdout.readline, b""):
                if line.startswith(far_end.MARK.encode()):
                    hello = json.loads(line.removeprefix(far_end.MARK.encode()))
                    break
            else:
                raise self._no_far_end(self._process.wait())
        finally:
            watch.cancel()
        if tuple(int(part) for part in hello["python"].split(".")[:2]) < PYTHON:
            raise MissingDependencyError(
                f"host {self._address.host}: {self._address.python} is Python {hello['python']}; the worker needs "
                f"{PYTHON[0]}.{PYTHON[1]} or newer",
                f"name another one after the host: {self._address.without_python}/path/to/python3",
            )

    def _no_far_end(self, code: int) -> EdgeftError:
        address, said = self._address, self._said()
        if code in _NO_COMMAND:
            return MissingDependencyError(
                f"host {address.host}: there is no {address.python!r} ({said})",
                f"install Python there, or name it after the host: {address.without_python}/path/to/python3",
            )
        why = f"no answer within {HELLO_SECONDS:.0f} s" if code < 0 else f"exit code {code}"
        return MissingDependencyError(
            f"host {address.host} cannot be reached with {address.kind} ({why}{': ' if said else ''}{said})",
            f"try it by hand: {address.by_hand()}; keys, not passwords, are used",
        )

    def _said(self) -> str:
        """Return the last lines that the link's process wrote to stderr."""
        # Not by reading the file object: its position is the writer's, too.
        said = os.pread(self._chatter.fileno(), 1 << 16, 0).decode(errors="replace")
        lines = said.strip().splitlines()
        return "; ".join(line.strip() for line in lines[-3:])

    @property
    def _stdin(self) -> IO[bytes]:
        return _required(self._process.stdin)

    @property
    def _stdout(self) -> IO[bytes]:
        return _required(self._process.stdout)

    def _write(self, frame: Frame, body: BinaryIO | None = None) -> None:
        with self._writing:
            self._stdin.write((json.dumps(frame) + "\n").encode())
            if body is not None:
                for chunk in iter(lambda: body.read(CHUNK), b""):
                    self._stdin.write(chunk)
            self._stdin.flush()

    def _beat(self) -> None:
        """Show that this end lives, and end the link when the other one does not."""
        while self._process.poll() is None and not self.lost:
            if time.monotonic() - self._heard > far_end.SILENCE_SECONDS:
                self._process.kill()
                # A process that it started may hold the pipe open, so that `_listen` would not see its end.
                self._end(f"nothing was heard for {far_end.SILENCE_SECONDS:.0f} s")
                return
            if self._writing.acquire(
                timeout=far_end.BEAT_SECONDS
            ):  # else a file is on its way, which shows it too
                try:
                    with contextlib.suppress(OSError, ValueError):
                        self._stdin.write(b'{"do": "beat"}\n')
                        self._stdin.flush()
                finally:
                    self._writing.release()
            time.sleep(far_end.BEAT_SECONDS)

    def _listen(self) -> None:
        """Hand out what comes: replies to the caller, frames of workers to `hear`, the end of it all to both."""
        with contextlib.suppress(OSError, ValueError):  # broken off, maybe inside a frame
            for line in iter(self._stdout.readline, b""):
                self._heard = time.monotonic()
                frame: Frame = json.loads(line)
                if "worker" in frame:
                    self._hear(frame)
                elif "ok" in frame:
                    self._receive(frame.get("size", 0))
                    self._replies.put(frame)
        self._stdout.close()
        code = self._await_end()
        said = ""
        with contextlib.suppress(ValueError):  # closed with the connection
            said = self._said()
        self._end(said or f"{self._address.kind} ended with exit code {code}")

    def _end(self, reason: str) -> None:
        """Let everyone who waits know that the connection is no more."""
        self.lost = self.lost or reason
        self._replies.put(None)
        self._hear({})

    def _receive(self, size: int) -> None:
        """Read what follows a reply."""
        if self._sink is None:
            return
        with self._sink.open("wb") as file:
            while size > 0:
                chunk = self._stdout.read(min(size, CHUNK))
                if not chunk:
                    raise OSError("the connection ended inside a file")
                self._heard = time.monotonic()
                file.write(chunk)
                size -= len(chunk)


def _required(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise OSError("no pipe")
    return pipe
