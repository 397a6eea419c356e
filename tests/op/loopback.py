"""A board on this very machine: an SSH server on loopback for the real `ssh` client, and a stand-in for `adb`."""

from __future__ import annotations

import asyncio
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncssh

SSH = shutil.which("ssh")
USER = "tester"

# What `adb` does as far as a transport sees it; the "device" is this machine.
_STAND_IN = """#!{python}
import os, subprocess, sys, threading
arguments = sys.argv[1:]
if arguments[0] != "-s" or arguments[1] != "SERIAL1":
    sys.exit("adb: device '%s' not found" % arguments[1])
if arguments[2:4] != ["shell", "-T"] or len(arguments) != 5:
    sys.exit("the stand-in knows nothing but adb -s SERIAL shell -T COMMAND")
device = subprocess.Popen(["/bin/sh", "-c", arguments[4]], stdin=subprocess.PIPE,
                          env=dict(os.environ, TMPDIR={tmp!r}))
broken = {broken!r}
def forward():
    while chunk := os.read(0, 65536):
        if broken:
            chunk = chunk.replace(broken, b"X" * len(broken))
        device.stdin.write(chunk)
        device.stdin.flush()
    device.stdin.close()
threading.Thread(target=forward, daemon=True).start()
code = device.wait()
sys.stdout.flush()
os._exit(code)
"""


class Server(asyncssh.SSHServer):
    """Remembers its connections, so that a test can break them off."""

    def __init__(self, connections: list[asyncssh.SSHServerConnection]) -> None:
        self._connections = connections

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connections.append(conn)


class LoopbackBoard:
    """An SSH server in a thread; commands run in `sh` on this machine, as sshd would run them.

    `folder` is the board's folder for temporary files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder)}
        self._loop = asyncio.new_event_loop()

    def drop(self) -> None:
        """Break off all connections, as a board that loses its network does."""
        for connection in self.connections:
            self._loop.call_soon_threadsafe(connection.abort)

    def processes(self) -> list[str]:
        """Return the command lines of this machine's processes that have to do with the board."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.folder / "edgeft-board-") in line:
                found.append(line)
        return found

    async def _listen(self, keys: Path) -> None:
        server = await asyncssh.create_server(
            lambda: Server(self.connections),
            "127.0.0.1",
            0,
            server_host_keys=[str(keys / "host")],
            authorized_client_keys=str(keys / "client.pub"),
            process_factory=self._execute,
            encoding=None,
        )
        self._server = server
        self.port = server.sockets[0].getsockname()[1]

    async def _execute(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_shell(
            process.command or "", stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment
        )
        feeding = asyncio.create_task(self._feed(process, child))
        # Not by asyncssh's `redirect`: at the end of either it closes the channel for both, and what the other still
        # has to say breaks off the connection. sshd does not.
        await asyncio.gather(_pass_on(child.stdout, process.stdout), _pass_on(child.stderr, process.stderr))
        process.exit(await child.wait())
        feeding.cancel()
        await process.wait_closed()

    @staticmethod
    async def _feed(process: asyncssh.SSHServerProcess[bytes], child: asyncio.subprocess.Process) -> None:
        await _pass_on(process.stdin, child.stdin)
        child.stdin.close()

    @contextmanager
    def running(self, keys: Path) -> Iterator[None]:
        """Serve until the block ends."""
        started = threading.Event()

        def serve() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(self._listen(keys))
            started.set()
            self._loop.run_forever()
            self._loop.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        if not started.wait(20):
            raise RuntimeError("the SSH server does not start")
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._server.close)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(10)


async def _pass_on(source: Any, sink: Any) -> None:
    """Copy to the end; a sink that has ended before is no error, as in sshd."""
    with suppress(OSError, asyncssh.Error):
        while chunk := await source.read(1 << 16):
            sink.write(chunk)
            await sink.drain()


def far_ends(folder: Path) -> list[int]:
    """Return the ids of the far ends whose folder for temporary files this is."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if b"-I\0-c\0" in command and f"TMPDIR={folder}\0".encode() in environment + b"\0":
            found.append(int(path.name))
    return found


def write_keys(folder: Path) -> None:
    """Write a key for the host and one for the client."""
    for name in ("host", "client"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(folder / name))
        key.write_public_key(str(folder / f"{name}.pub"))
        (folder / name).chmod(0o600)


def write_client(folder: Path, keys: Path, port: int) -> None:
    """Write an `ssh` that is the real one with a configuration of its own, with the host "board" in it.

    The real one looks for its configuration in the user's home whatever $HOME says.
    """
    host_key = (keys / "host.pub").read_text().strip()
    (keys / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (keys / "config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  User {USER}\n"
        f"Host *\n  IdentityFile {keys}/client\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {keys}/known_hosts\n  StrictHostKeyChecking yes\n"
    )
    write_script(folder / "ssh", f'#!/bin/sh\nexec {SSH} -F {keys}/config "$@"\n')


def write_adb(folder: Path, tmp: Path, broken: bytes = b"") -> None:
    """Write the stand-in for `adb`, with one device; what it is to break arrives as so many X."""
    write_script(folder / "adb", _STAND_IN.format(python=sys.executable, tmp=str(tmp), broken=broken))


def write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Return whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
