"""Where workers run: on this machine, on a board over SSH, or on an Android device over adb.

The way there is the user's own `ssh` or `adb` command, so that its configuration, keys and jump hosts apply.
Nothing needs to be installed on the other side but Python, numpy and the runtime: one command starts
`transports.far_end` there, and everything else, files included, passes through its standard input and output. (No
scp or sftp: the SSH servers of small boards often lack them.)

SSH is tested with the real client against a server on loopback, adb against a stand-in for the `adb` command only, not
on a device. A host that cannot be reached, or lacks something, is a `MissingDependencyError` (exit code 5); a
connection that breaks off later a `MeasurementError` (exit code 1).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from edgeft.measure.transports import address
from edgeft.measure.transports.address import Address
from edgeft.measure.transports.base import Ending, Machine, Process
from edgeft.measure.transports.board import Board
from edgeft.measure.transports.local import Local

__all__ = ["Address", "Ending", "Machine", "Process", "address", "connect"]


@dataclass(slots=True)
class _Shared:
    board: Board
    users: int = 0


_open: dict[str, _Shared] = {}
_opening = threading.Lock()


@contextlib.contextmanager
def connect(host: str) -> Iterator[Machine]:
    """Give the machine of a `[runtime] host`, connected until the block ends.

    Blocks inside one another, and in several threads, share one connection and the files that were copied over it:
    hold one around many measurements.

    Args:
        host: ``[user@]board[:port]`` or ``adb:SERIAL``, each with the path of its Python after it where that is not
            on the PATH; empty for this machine.

    Raises:
        ConfigError: The host is neither.
        MissingDependencyError: It cannot be reached, has no Python, or the command that reaches it is missing here.
    """
    if not host:
        yield Local()
        return
    with _opening:
        shared = _open.get(host)
        if shared is None or shared.board.lost:
            shared = _open[host] = _Shared(board=Board(address.parse(host)))
        shared.users += 1
    try:
        yield shared.board
    finally:
        with _opening:
            shared.users -= 1
            if not shared.users:
                if _open.get(host) is shared:
                    del _open[host]
                shared.board.close()
