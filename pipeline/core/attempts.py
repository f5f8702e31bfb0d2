"""How long one attempt is waited for alone, and whether another one follows: learnt from recent calls, within a budget.

An attempt that takes five times what nearly all calls of its kind take gets a rival on another instance, and whoever
answers first is heard: that, not the configured 20 s, is what a request pays for an instance that accepts and never
answers. Nothing is cut off, for a model may just be slower than usual; it is the last to be given up, and its answer
teaches the new time. A kind is a model's version with the same parameters and about as many bytes, so that a large
batch is not measured by small ones. Each further attempt is waited for four times as long.

Retries are a budget, a share of the first attempts: without one they multiply the load of a fleet that is slow because
it has too much of it. There are no hedges after the p99: simulated with a budget of 5 %, they made p99 worse (one slow
instance of four at load 0.6: 65 ms without, 76 with; a silent one: 57 and 73), since a fleet at 80 % has no calls to
give away; docs/benchmarks.md has the table.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

# The third longest of 256 is their p99; sorting them, every 32nd call, takes 15 us.
_REMEMBERED = 256
_RENEW_AFTER = 32
# Fewer calls have no p99: of 32 the longest is as good a guess as there is, and five times it is a wide one.
_KNOWN_AFTER = 32
_KINDS_MAX = 1024
_TIMES_P99 = 5.0
_PATIENCE_MIN_S = 0.05
# Of a kind that is not known: a copy too many is harmless, a request that waits at a silent instance is not.
_PATIENCE_UNKNOWN_S = 1.0
_WIDER = 4.0
# A server that has just started takes its time for the first call.
_PROBE_MIN_S = 1.0
_RETRY_SHARE = 0.1
# A fleet at rest has saved up this many: an instance that dies takes 4 full batches of each of two groups with it.
_RETRY_BURST = 10.0
# The loop is looked at ten times a second while calls are out. A turn of it takes up to 20 ms on a busy core; what is
# late by more is this process's own fault, not an instance's.
PULSE_S = 0.1
_LATE_S = 0.05


@dataclass(slots=True)
class CallTimes:
    """How long recent calls of one kind took, those that were answered.

    Attributes:
        p99_s: None while too few are known.
    """

    p99_s: float | None = None
    _taken: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    _fresh: int = 0

    def add(self, seconds: float) -> None:
        """One more call was answered."""
        self._taken.append(seconds)
        self._fresh += 1
        if self._fresh >= _RENEW_AFTER and len(self._taken) >= _KNOWN_AFTER:
            self._fresh = 0
            self.p99_s = sorted(self._taken)[int(len(self._taken) * 0.99)]


@dataclass(slots=True)
class Budget:
    """Spends at most a share of what was earned, and a little that was saved up.

    Attributes:
        share: tokens earned by each first attempt.
        tokens: at the start, and at most.
    """

    share: float
    tokens: float
    _saved_max: float = field(init=False)

    def __post_init__(self) -> None:
        self._saved_max = self.tokens

    def earn(self) -> None:
        """A first attempt begins."""
        self.tokens = min(self.tokens + self.share, self._saved_max)

    def spend(self) -> bool:
        """Takes one token; False where none is left."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Attempts:
    """Decides on patience and retries, and learns from what calls took.

    Args:
        limit_max_s: what one attempt may take at most, whatever is known.
    """

    def __init__(self, limit_max_s: float) -> None:
        self.limit_max_s = limit_max_s
        self.retries = Budget(_RETRY_SHARE, _RETRY_BURST)
        self._kinds: dict[Hashable, CallTimes] = {}

    def answered(self, kind: Hashable, seconds: float) -> None:
        """An attempt was answered after so long."""
        times = self._kinds.get(kind)
        if times is None:
            if len(self._kinds) >= _KINDS_MAX:
                del self._kinds[next(iter(self._kinds))]
            times = self._kinds[kind] = CallTimes()
        times.add(seconds)

    def p99_s(self, kind: Hashable) -> float | None:
        """What all but one in a hundred calls of a kind take at most; None where that is not known."""
        times = self._kinds.get(kind)
        return times.p99_s if times is not None else None

    def patience_s(self, kind: Hashable, left_s: float, before: int) -> float:
        """After how long another instance is asked beside this one.

        Args:
            kind: of the call.
            left_s: until nobody waits any more; infinite where somebody waits as long as it takes.
            before: attempts that were made for this call already, in earlier rounds too.
        """
        left_s = min(left_s, self.limit_max_s)
        p99 = self.p99_s(kind)
        if p99 is None:
            return min(left_s / 2, _PATIENCE_UNKNOWN_S * _WIDER**before)
        patient = max(_TIMES_P99 * p99 * _WIDER**before, _PATIENCE_MIN_S)
        # Half of what is left goes to the next attempt, unless this one would not have had the time it needs.
        return min(patient, max(left_s / 2, 2.0 * p99))

    def probe_s(self, kind: Hashable) -> float:
        """How long a probe may take: an instance that answers later is not back."""
        p99 = self.p99_s(kind)
        return self.limit_max_s if p99 is None else min(max(_TIMES_P99 * p99, _PROBE_MIN_S), self.limit_max_s)


@dataclass(slots=True)
class Pulse:
    """Notices that this process stood still: a beat that should have come did not.

    Attributes:
        due_at: when the next beat is due, monotonic seconds; infinite while nobody beats.
        stood_still_s: all pauses together.
    """

    due_at: float = float("inf")
    stood_still_s: float = 0.0

    def late_s(self, now: float) -> float:
        """How long it stood still until now, told once; 0 where it did not."""
        late = now - self.due_at
        if late <= _LATE_S:
            return 0.0
        self.due_at = now + PULSE_S
        self.stood_still_s += late
        return late
