"""Look-ups that wait for the shared cache, and those that are out: bounded in number and in the bytes they bring.

What leaves together is one pipeline, and others wait behind it. How much a pipeline brings back is known from those
before: many small answers are asked for at once, few large ones.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Shared = TypeVar("Shared")

# One pipeline's replies take Redis and the wire 0.4-3 ms for 1 MiB, within a budget of 5. Commands take 250 bytes for
# each look-up, half a millisecond for 1,024.
TOGETHER_BYTES_MAX = 1 << 20
TOGETHER_MIN, TOGETHER_MAX = 16, 1024
# 16 pipelines: behind a Redis that always just keeps its budget of 5 ms, the last one waits 80 ms.
WAITING_BYTES_MAX = 16 << 20
# As many as a worker takes on: a burst of small answers waits as a whole. A look-up holds 500 bytes.
WAITING_MAX = 4096
# Until something was read: 256 leave at first, and 4,096 may wait.
_BYTES_EACH_FIRST = 4096.0
# How many look-ups the mean goes back: a single large answer, or a few misses, say little.
_REMEMBERED = 64


@dataclass(slots=True, eq=False)
class LookUp(Generic[Shared]):
    """One look-up.

    Attributes:
        name: of the entry.
        asked_at: monotonic seconds.
        found: is told; None once that was done.
    """

    key: bytes
    name: str
    asked_at: float
    found: Callable[[Shared], None] | None


class LookUpQueue(Generic[Shared]):
    """What waits, and the pipeline that is out: at most one."""

    def __init__(self) -> None:
        self._waiting: deque[LookUp[Shared]] = deque()
        self._out: list[LookUp[Shared]] = []
        self._bytes_each = _BYTES_EACH_FIRST

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_out(self) -> bool:
        """Whether a pipeline is out."""
        return bool(self._out)

    @property
    def together_max(self) -> int:
        """How many leave as one pipeline."""
        fitting = int(TOGETHER_BYTES_MAX / max(self._bytes_each, 1.0))
        return min(max(fitting, TOGETHER_MIN), TOGETHER_MAX)

    @property
    def waiting_max(self) -> int:
        """How many may wait."""
        return min(self.together_max * (WAITING_BYTES_MAX // TOGETHER_BYTES_MAX), WAITING_MAX)

    def offer(self, look_up: LookUp[Shared]) -> bool:
        """Takes it, or refuses it where there is no room."""
        if len(self._waiting) >= self.waiting_max:
            return False
        self._waiting.append(look_up)
        return True

    def send(self) -> list[LookUp[Shared]]:
        """Those that leave now, in the order asked; they are out until `landed`."""
        count = min(len(self._waiting), self.together_max)
        self._out = [self._waiting.popleft() for _ in range(count)]
        return self._out

    def landed(self, bytes_read: int | None) -> list[LookUp[Shared]]:
        """The pipeline is not out any more.

        Args:
            bytes_read: what its replies brought; None where they did not come.

        Returns:
            The newest, where fewer may wait than thought: they do not wait any more.
        """
        count, self._out = len(self._out), []
        if bytes_read is not None:
            self._bytes_each = (self._bytes_each * _REMEMBERED + bytes_read) / (_REMEMBERED + count)
        return [self._waiting.pop() for _ in range(len(self._waiting) - self.waiting_max)]

    def give_up(self) -> list[LookUp[Shared]]:
        """Those that were not told, out and waiting; nobody waits any more, the pipeline is out as before."""
        untold = [look_up for look_up in self._out if look_up.found is not None]
        untold += self._waiting
        self._waiting.clear()
        return untold
