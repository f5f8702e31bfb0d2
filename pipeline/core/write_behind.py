"""Answers that wait to be written to the shared cache: bounded in bytes and in number, taken in their order."""

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
    """

    key: bytes
    scope: CacheScope
    answer: StoredAnswer
    expires_at: float
    replace: bool
    winner: Callable[[Shared], None]


class WriteQueue(Generic[Shared]):
    """What waits. The answers are mostly the in-memory cache's own objects, and are counted all the same.

    Args:
        bytes_max: of all answers that wait; 0 lets none wait.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_held = 0
        self._bytes_max = bytes_max
        self._writes: deque[Write[Shared]] = deque()

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

    def take(self) -> Write[Shared]:
        """The one that waits longest.

        Raises:
            IndexError: none does.
        """
        write = self._writes.popleft()
        self.bytes_held -= write.answer.size_bytes
        return write

    def drop(self) -> int:
        """Gives all of them up, and returns how many there were."""
        count = len(self._writes)
        self._writes.clear()
        self.bytes_held = 0
        return count

    def forget(self, wanted: Callable[[CacheScope], bool]) -> None:
        """Gives up those of the scopes that are wanted; the others keep their order."""
        for _ in range(len(self._writes)):
            write = self.take()
            if not wanted(write.scope):
                self.offer(write)
