"""Addresses of boards, and the commands that reach them."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgeft.errors import ConfigError, MissingDependencyError

CONNECT_SECONDS = 15
_FORMS = "user@board, user@board:PORT or adb:SERIAL, each with /path/to/python3 after it where it is not on the PATH"
_ADB = re.compile(r"adb:(?P<serial>[\w.:\-]+)(?P<python>/\S+)?", re.ASCII)
_SSH = re.compile(
    r"(?P<destination>(?:[^\s@/:\[\]-][^\s@/:\[\]]*@)?(?:[^\s@/:\[\]-][^\s@/:\[\]]*|\[[0-9a-fA-F:.%\w]+\]))"
    r"(?::(?P<port>\d{1,5}))?(?P<python>/\S+)?"
)
_SSH_OPTIONS = (
    "BatchMode=yes",  # a password prompt would wait for ever
    f"ConnectTimeout={CONNECT_SECONDS}",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",  # what the user's configuration adds for logins
    "RemoteCommand=none",
    "PermitLocalCommand=no",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a board is and what its Python is called; `destination` is an SSH destination or an adb serial."""

    host: str
    kind: Literal["ssh", "adb"]
    destination: str
    port: int | None = None
    python: str = "python3"

    def command(self, code: str) -> list[str]:
        """Return the local command that runs Python code there, with its input and output as this process' own.

        Args:
            code: Without single quotes: the shells of all boards take it between these.

        Raises:
            MissingDependencyError: `ssh` or `adb` is not installed here.
        """
        there = f"exec {shlex.quote(self.python)} -I -c '{code}'"
        if self.kind == "adb":
            return [_find("adb", self.host), "-s", self.destination, "shell", "-T", there]
        options = [argument for option in _SSH_OPTIONS for argument in ("-o", option)]
        port = ["-p", str(self.port)] if self.port else []
        return [_find("ssh", self.host), "-T", "-a", "-x", *options, *port, "--", self.destination, there]

    @property
    def without_python(self) -> str:
        """The host as the user wrote it, without its Python."""
        return self.host.partition("/")[0]

    def by_hand(self) -> str:
        """Return a command line with which a person tries whether the board can be reached."""
        if self.kind == "adb":
            return f"adb -s {self.destination} shell {shlex.quote(self.python)} --version"
        port = f"-p {self.port} " if self.port else ""
        return f"ssh -o BatchMode=yes {port}{self.destination} {shlex.quote(self.python)} --version"

    def pip_line(self, packages: Sequence[str]) -> str:
        """Return what to run on the board to install packages."""
        return f"on {self.without_python}: {shlex.quote(self.python)} -m pip install {' '.join(packages)}"


def parse(host: str) -> Address:
    """Read ``[user@]board[:port]`` or ``adb:SERIAL``, each with an absolute path of its Python after it if need be.

    The SSH client's own configuration applies: a name of ~/.ssh/config, keys, jump hosts.

    Raises:
        ConfigError: It is neither.
    """
    if found := _ADB.fullmatch(host):
        return Address(
            host=host, kind="adb", destination=found["serial"], python=found["python"] or "python3"
        )
    found = _SSH.fullmatch(host)
    port = int(found["port"]) if found and found["port"] else None
    if not found or host == "adb" or (port is not None and not 0 < port < 65536):
        raise ConfigError(f"host: got {host!r}; allowed are {_FORMS}", "for example pi@192.168.1.20")
    return Address(
        host=host,
        kind="ssh",
        destination=found["destination"].replace("[", "").replace("]", ""),
        port=port,
        python=found["python"] or "python3",
    )


def _find(program: str, host: str) -> str:
    path = shutil.which(program)
    if path is None:
        package = "Android's platform tools" if program == "adb" else "an OpenSSH client"
        raise MissingDependencyError(
            f"host {host}: the command {program!r} is not on this machine's PATH", f"install {package}"
        )
    return path
