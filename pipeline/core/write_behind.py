"""Answers that wait to be written to the shared cache, and those on their way: bounded, and sent in their order."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.core.answer import StoredAnswer
from pipeline.core.cache_key import CacheScope

Shared = TypeVar("Shared")
# Small answers are held back by their number: one that waits takes about 300 bytes besides its own.
WRITES_WAITING_MAX = 16_384


@dataclass(slots=True, eq=False)
class Write(Generic[Shared]):
    """One answer to write.

    Attributes:
        expires_at: monotonic seconds; past them it is not written any more.
        replace: it is written whatever is there; otherwise the first one wins.
        winner: is told of the one that was first.
        forgotten: its scope was cleared when it was on its way: it is not written again, whatever becomes of it.
    """

    key: bytes
    scope: CacheScope
    answer: StoredAnswer
    expires_at: float
    replace: bool
    winner: Callable[[Shared], None]
    forgotten: bool = False


class WriteQueue(Generic[Shared]):
    """What waits, and the batch that is out: at most one.

    The answers are mostly the in-memory cache's own objects, and are counted all the same.

    Args:
        bytes_max: of all answers that wait; 0 lets none wait.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_held = 0
        self._bytes_max = bytes_max
        self._writes: deque[Write[Shared]] = deque()
        self._out: list[Write[Shared]] = []

    def __len__(self) -> int:
        return len(self._writes)

    def offer(self, write: Write[Shared]) -> bool:
        """Takes it, or refuses it where there is no room."""
        size = self.bytes_held + write.answer.size_bytes
        if size > self._bytes_max or len(self._writes) >= WRITES_WAITING_MAX:
            return False
        self._writes.append(write)
        self.bytes_held = size
        return True

    def send(self, count: int, bytes_max: int) -> list[Write[Shared]]:
        """Those that leave now, the longest waiting first; they are out until `landed`.

        Args:
            count: at most so many.
            bytes_max: no more leave once their raw bytes are so many; one always does.
        """
        batch: list[Write[Shared]] = []
        raw_bytes = 0
        while self._writes and len(batch) < count and raw_bytes < bytes_max:
            write = self._writes.popleft()
            self.bytes_held -= write.answer.size_bytes
            raw_bytes += write.answer.raw_bytes
            batch.append(write)
        self._out = batch
        return batch

    def landed(self) -> None:
        """What was out is written, or given up."""
        self._out = []

    def put_back(self) -> None:
        """What was out was not written: it waits again, before all others, but for what was forgotten meanwhile."""
        for write in reversed(self._out):
            if not write.forgotten:
                self._writes.appendleft(write)
                self.bytes_held += write.answer.size_bytes
        self._out = []

    def lose(self, count: int) -> int:
        """Gives up what is out, or where nothing is, so many of those that wait longest; returns how many it were."""
        lost = self._out or self.send(count, self._bytes_max)
        self._out = []
        return len(lost)

    def drop(self) -> int:
        """Gives all up that wait, and returns how many there were."""
        count = len(self._writes)
        self._writes.clear()
        self.bytes_held = 0
        return count

    def forget(self, wanted: Callable[[CacheScope], bool]) -> None:
        """Gives up those of the scopes that are wanted, and marks those that are out; the others keep their order.

        A full queue takes 5 ms.
        """
        self._writes = deque([write for write in self._writes if not wanted(write.scope)])
        self.bytes_held = sum(write.answer.size_bytes for write in self._writes)
        for write in self._out:
            write.forgotten = write.forgotten or wanted(write.scope)
