"""Loopback ports: the usual one first, the next free one otherwise, the same one again after a restart."""

import errno
import json
import socket
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import StackError
from pipeline.stack.state import write_atomically

LOOPBACK = "127.0.0.1"
# Ports tried above the preferred one. 200 leaves room for some fifty stacks side by side.
PORTS_TRIED_MAX = 200


def is_port_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now.

    SO_REUSEADDR as the servers set it: connections in TIME_WAIT do not count as taken.

    Raises:
        OSError: for anything but a port in use or a privileged one.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


class PortBook:
    """Gives each named listener its port, and remembers it in a file of the data folder.

    Not for use by several processes at once: the stack's lock guards the folder.
    """

    def __init__(self, path: Path, is_free: Callable[[int], bool] = is_port_free) -> None:
        self._path = path
        self._is_free = is_free
        self._remembered = self._read()
        self._given: dict[str, int] = {}

    def take(self, name: str, preferred: int) -> int:
        """The port for `name`: the remembered one, else `preferred`, else the next free one.

        Raises:
            StackError: none of the ports above `preferred` is free.
        """
        if name in self._given:
            return self._given[name]
        candidates = [preferred + step for step in range(PORTS_TRIED_MAX)]
        if name in self._remembered:
            candidates.insert(0, self._remembered[name])
        # A port another listener is remembered with is its own, even while that one is down.
        foreign = {port for other, port in self._remembered.items() if other != name} | set(self._given.values())
        for port in candidates:
            if port not in foreign and self._is_free(port):
                self._given[name] = port
                return port
        raise StackError(f"no free port for {name} in {preferred}-{preferred + PORTS_TRIED_MAX - 1} on {LOOPBACK}")

    def save(self) -> None:
        """Write the ports given, and those of listeners not asked for this time."""
        self._remembered |= self._given
        write_atomically(self._path, json.dumps(self._remembered, indent=2, sort_keys=True))

    def _read(self) -> dict[str, int]:
        if not self._path.exists():
            return {}
        try:
            ports = json.loads(self._path.read_text())
        except ValueError as error:
            raise StackError(f"{self._path} is not JSON ({error}): remove it") from error
        return {str(name): int(port) for name, port in ports.items()}
