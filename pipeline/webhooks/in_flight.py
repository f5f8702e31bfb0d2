"""What is in hand: records in all, and the calls to each host with the line before them.

A host has a few calls at a time, and the next of its callbacks wait in line for a moment: a burst to a quick receiver
is delivered as fast as it answers. What has waited for too long, or finds the line full, waits in a delay tier instead,
where it holds neither memory nor a commit.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

# Of what is in hand, one host may have a quarter: a slow one keeps nobody else waiting.
_HOST_SHARE = 4
# Records in hand, 2,000 in line for one host: at 8 calls of 25 ms that is 6 s of its work. A record of 1 kB holds 4.
IN_HAND_MAX = 8192
# Nothing behind a record that waits in line is committed: as long again as a third of an attempt.
LINE_WAIT_S = 5.0


class InHand:
    """Records that were begun and are not done, in number and bytes.

    Args:
        count_max: how many at most.
        bytes_max: of their values; a single one may be larger.
    """

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self.count = 0
        self._bytes = 0
        self._count_max = count_max
        self._bytes_max = bytes_max

    def is_full(self, size: int) -> bool:
        """Whether a record of so many bytes has to wait."""
        return self.count >= self._count_max or (self.count > 0 and self._bytes + size > self._bytes_max)

    def begin(self, size: int) -> None:
        """A record is in hand."""
        self.count += 1
        self._bytes += size

    def end(self, size: int) -> None:
        """It is done with."""
        self.count -= 1
        self._bytes -= size


@dataclass(slots=True)
class _Host:
    calls: int = 0
    size: int = 0
    line: deque["asyncio.Future[None]"] = field(default_factory=deque)


class HostLines:
    """Calls that are out, and what waits in line for them. Hosts take turns where calls are scarce.

    Args:
        calls_max: calls at a time.
        per_host_max: likewise to one host.
        count_max: records in hand at most; a quarter of them may be one host's.
        bytes_max: their bytes; likewise, or a single one.

    Attributes:
        calls: calls that are out.
    """

    def __init__(self, calls_max: int, per_host_max: int, *, count_max: int, bytes_max: int) -> None:
        self.calls = 0
        self._calls_max = calls_max
        self._per_host_max = per_host_max
        self._line_max = max(count_max // _HOST_SHARE, 1)
        self._bytes_max = bytes_max // _HOST_SHARE
        self._hosts: dict[str, _Host] = {}
        self._closed = False

    @property
    def hosts(self) -> int:
        """Hosts that are called, or waited for, at present."""
        return len(self._hosts)

    async def enter(self, name: str, size: int, wait_s: float = LINE_WAIT_S) -> bool:
        """Waits for a call to a host; False where its line is full or closed, or the call would come too late.

        True: the call is the caller's until `leave`.
        """
        if self._closed:
            return False
        host = self._hosts.setdefault(name, _Host())
        if host.size and (len(host.line) >= self._line_max or host.size + size > self._bytes_max):
            return False
        host.size += size
        turn = asyncio.get_running_loop().create_future()
        host.line.append(turn)
        self._grant(name)
        try:
            if not turn.done():
                await asyncio.wait((turn,), timeout=wait_s)
        except asyncio.CancelledError:
            self._withdraw(name, size, turn)
            raise
        if turn.done() and not turn.cancelled():
            return True
        self._withdraw(name, size, turn)
        return False

    def close(self) -> None:
        """Sends away what waits in line, and what comes from now on; calls go on."""
        self._closed = True
        for host in self._hosts.values():
            for turn in host.line:
                turn.cancel()

    def leave(self, name: str, size: int) -> None:
        """The call is over: somebody else's turn."""
        host = self._hosts[name]
        was_scarce = self.calls >= self._calls_max
        self.calls -= 1
        host.calls -= 1
        self._release(name, size)
        if was_scarce:
            for other in list(self._hosts):
                self._grant(other)
        else:
            self._grant(name)

    def _grant(self, name: str) -> None:
        host = self._hosts.get(name)
        if (
            host is None
            or self._closed
            or not host.line
            or host.calls >= self._per_host_max
            or self.calls >= self._calls_max
        ):
            return
        host.line.popleft().set_result(None)
        host.calls += 1
        self.calls += 1
        # Behind all others, for when calls are scarce.
        self._hosts[name] = self._hosts.pop(name)

    def _withdraw(self, name: str, size: int, turn: "asyncio.Future[None]") -> None:
        if turn.done() and not turn.cancelled():
            self.leave(name, size)
            return
        self._hosts[name].line.remove(turn)
        self._release(name, size)

    def _release(self, name: str, size: int) -> None:
        host = self._hosts[name]
        host.size -= size
        if not host.calls and not host.line:
            del self._hosts[name]
