"""Whether something that answers only when it can is asked at all: closed, open, half-open.

It opens when so many tries in a row fail, or when too many of the last look-ups were not answered within their budget.
Then nobody is asked for a pause; after it one is, the probe, and what becomes of the probe decides. Each time it opens
again before it held for a whole window, the pause doubles.

    CLOSED --TRIPPED--> OPEN --PAUSE_OVER--> HALF_OPEN --ANSWERED--> CLOSED
                         ^----------FAILED-------'
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Circuit(Enum):
    """Whether anybody is asked."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Signal(Enum):
    """What changes that."""

    TRIPPED = "tripped"
    PAUSE_OVER = "pause over"
    ANSWERED = "answered"
    FAILED = "failed"


CIRCUIT_TRANSITIONS: dict[tuple[Circuit, Signal], Circuit] = {
    (Circuit.CLOSED, Signal.TRIPPED): Circuit.OPEN,
    (Circuit.OPEN, Signal.PAUSE_OVER): Circuit.HALF_OPEN,
    (Circuit.HALF_OPEN, Signal.ANSWERED): Circuit.CLOSED,
    (Circuit.HALF_OPEN, Signal.FAILED): Circuit.OPEN,
}


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When it opens, and for how long.

    Attributes:
        failures_max: failures in a row that open it: a restart breaks a connection once or twice.
        window: how many of the last outcomes the share is taken of, at least half of them.
        late_share_max: the share of late ones above which it opens.
        pause_s_first: the first pause.
        pause_s_max: the longest. A probe costs one look-up its budget, and 5 s after it is back everybody is back.
    """

    failures_max: int = 3
    window: int = 32
    late_share_max: float = 0.5
    pause_s_first: float = 0.1
    pause_s_max: float = 5.0


class CircuitBreaker:
    """The breaker for one thing that is asked. Times are monotonic seconds of the caller's.

    Whoever is told True by `allows` and asks, says so by `asking`, and then what came of it: `answered`, `late` or
    `failed`, exactly one of them.

    Args:
        policy: when it opens.
        jitter: a number from 0 to 1 for each pause, which it shortens by up to a half: those who failed together do
            not come back together.

    Attributes:
        is_merely_late: it is open because answers were late, and nothing failed since: whatever needs no answer in
            time may go on.
    """

    def __init__(self, policy: BreakerPolicy, jitter: Callable[[], float]) -> None:
        self.state = Circuit.CLOSED
        self._policy = policy
        self._jitter = jitter
        self._failures = 0
        self._were_late: deque[bool] = deque(maxlen=policy.window)
        self._late = 0
        self._openings = 0
        self._held = 0
        self._closed_until = 0.0
        self.is_merely_late = False

    def allows(self, now: float) -> bool:
        """Whether one more may ask now."""
        if self.state is Circuit.CLOSED:
            return True
        return self.state is Circuit.OPEN and now >= self._closed_until

    def asking(self, now: float) -> None:
        """One asks now; after the pause it is the probe, and nobody else asks until it has its outcome."""
        if self.state is Circuit.OPEN and now >= self._closed_until:
            self._change(Signal.PAUSE_OVER)

    def answered(self) -> None:
        """Answered in time."""
        self._failures = 0
        if self.state is Circuit.HALF_OPEN:
            self._change(Signal.ANSWERED)
            return
        self._count(late=False)

    def late(self, now: float) -> None:
        """Not answered within the budget."""
        if self.state is Circuit.HALF_OPEN:
            self._open(Signal.FAILED, now)
            self.is_merely_late = True
            return
        self._count(late=True)
        enough = len(self._were_late) * 2 >= self._policy.window
        if enough and self._late > len(self._were_late) * self._policy.late_share_max:
            self._open(Signal.TRIPPED, now)
            self.is_merely_late = True

    def failed(self, now: float) -> None:
        """Not answered at all."""
        self._failures += 1
        self.is_merely_late = False
        if self.state is Circuit.HALF_OPEN:
            self._open(Signal.FAILED, now)
        elif self.state is Circuit.CLOSED and self._failures >= self._policy.failures_max:
            self._open(Signal.TRIPPED, now)

    def _count(self, *, late: bool) -> None:
        if self.state is not Circuit.CLOSED:
            return  # asked before it opened: says nothing about now
        if len(self._were_late) == self._policy.window:
            self._late -= self._were_late[0]
        self._were_late.append(late)
        self._late += late
        self._held += 1
        if self._held >= self._policy.window:
            self._openings = 0

    def _open(self, signal: Signal, now: float) -> None:
        pause_s = min(self._policy.pause_s_first * 2.0 ** min(self._openings, 32), self._policy.pause_s_max)
        self._closed_until = now + pause_s * (1.0 - 0.5 * self._jitter())
        self._openings += 1
        self._change(signal)

    def _change(self, signal: Signal) -> None:
        self.state = CIRCUIT_TRANSITIONS[self.state, signal]
        self.is_merely_late = False
        self._failures = self._late = self._held = 0
        self._were_late.clear()
