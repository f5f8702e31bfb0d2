"""Which instance gets the next call: two random choices, the lower expected wait.

Score = peak-EWMA latency x (calls in flight + 1); the age of the oldest open call counts as a sample, so an instance
that stopped answering is avoided before its first call times out. Two random choices instead of the minimum over all:
with the minimum, one instance of a healthy fleet got 72 % of the calls at low load, because those not asked keep an old
high estimate. An estimate nobody renewed falls back to the fleet's best, or an instance that was slow once would never
be asked again. Three failures in a row eject an instance for a growing pause, after which a copy of one call probes it;
then its share grows over some seconds, for a server that just started is cold. When more than half are ejected all are
used (a pause of this very process looks like that), and time that this process stood still is no instance's latency.

Source: Finagle's peak EWMA balancer; Mitzenmacher, "The power of two choices" (2001).
"""

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

_DECAY_S = 2.0
# An estimate that nobody renews is forgotten by time and by calls, whichever is slower, and at half the speed each time
# it turns out to be true: an instance ten times slower than the others is asked again after 180 calls and 14 s, for its
# host may have been busy; if it is slow again after 370, then after 740 calls. So less than one call in a hundred is
# spent on it, at any rate, and p99 is that of the others.
_FORGET_S = 6.0
_FORGET_CALLS = 80
_MEMORY_MAX = 4.0
_FORGET_MAX_S = 40.0
_SLOW_TIMES = 3.0
_PRIOR_LATENCY_S = 0.005
_STRIKES = 3
_PAUSE_FIRST_S = 0.5
_PAUSE_MAX_S = 15.0
# A share that grows for so long: an ONNX session's first calls take 10-50 times the later ones, for a second or two.
_SLOW_START_S = 5.0
_SHARE_MIN = 0.1


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance as a status page shows it.

    Attributes:
        latency_s: the estimate that it is chosen by.
        in_flight: calls that are out now; `oldest_s` is how long the oldest of them is.
        ejected_s: how much longer nobody asks it; 0 for one in use.
        share: the part of its usual calls that it gets; below 1 while it starts.
        calls: so far; `unanswered` of them had no answer.
        probes: copies of calls, to see whether it is back.
        ejections: how often it was taken out.
    """

    name: str
    latency_s: float
    in_flight: int
    oldest_s: float
    ejected_s: float
    share: float
    calls: int
    unanswered: int
    probes: int
    ejections: int


@dataclass(slots=True)
class InstanceLoad:
    """What is known of one instance."""

    name: str
    latency_s: float = _PRIOR_LATENCY_S
    observed_at: float = -math.inf
    observed_call: int = 0
    memory: float = 1.0
    strikes: int = 0
    ejected_until: float = 0.0
    back_at: float = -math.inf
    open_calls: dict[int, float] = field(default_factory=dict)
    overdue: set[int] = field(default_factory=set)
    calls: int = 0
    unanswered: int = 0
    probes: int = 0
    ejections: int = 0

    def score(self, now: float, calls: int, best_s: float = 0.0) -> float:
        """Expected wait of one more call, in seconds.

        Args:
            now: monotonic seconds.
            calls: how many the whole fleet had so far.
            best_s: the lowest latency in the fleet.
        """
        oldest = next(iter(self.open_calls.values()), now)
        remembered = self.latency_s * math.exp(-self.forgotten(now, calls))
        return max(remembered, best_s, now - oldest) * (len(self.open_calls) + 1)

    def forgotten(self, now: float, calls: int) -> float:
        """How far its estimate is forgotten: by 1, it counts for 1/e. Infinite for one that was never asked."""
        age_s = max(now - self.observed_at, 0.0)
        by_both = min(age_s / _FORGET_S, (calls - self.observed_call) / _FORGET_CALLS) / self.memory
        return max(by_both, age_s / _FORGET_MAX_S)

    def observe(self, latency_s: float, now: float, calls: int, best_s: float) -> None:
        """One more latency: a longer one counts in full, a shorter one by the time since the last."""
        if latency_s <= _SLOW_TIMES * best_s:
            self.memory = max(self.memory / 2, 1.0)
        elif 1.0 < self.forgotten(now, calls) < math.inf:  # slow again, though it had its second chance
            self.memory = min(self.memory * 2, _MEMORY_MAX)
        weight = math.exp(-max(now - self.observed_at, 0.0) / _DECAY_S)  # 0 for the first
        peak = latency_s > self.latency_s
        self.latency_s = latency_s if peak else self.latency_s * weight + latency_s * (1 - weight)
        self.observed_at, self.observed_call = now, calls

    @property
    def ejected(self) -> bool:
        """Whether nobody should ask it, but for probes."""
        return self.strikes >= _STRIKES

    def due_for_probe(self, now: float) -> bool:
        """Whether its pause is over, and nobody asks it already."""
        return self.ejected and self.ejected_until <= now and not self.open_calls

    def share(self, now: float) -> float:
        """The part of its usual calls that it may have: from a tenth to all in the seconds after it came back."""
        return min(max((now - self.back_at) / _SLOW_START_S, _SHARE_MIN), 1.0)

    def view(self, now: float) -> InstanceView:
        """What a status page shows of it."""
        ejected_s = max(self.ejected_until - now, 0.0) if self.ejected else 0.0
        oldest = next(iter(self.open_calls.values()), now)
        return InstanceView(
            self.name, self.latency_s, len(self.open_calls), now - oldest, ejected_s, self.share(now), self.calls,
            self.unanswered, self.probes, self.ejections,
        )  # fmt: skip


class Router:
    """Chooses among named instances and learns from what became of each call.

    Args:
        names: the instances.
        rng: the source of the random choices.
    """

    def __init__(self, names: Sequence[str], rng: random.Random) -> None:
        self.instances = {name: InstanceLoad(name) for name in names}
        self._rng = rng
        self._calls = 0

    def pick(self, now: float, tried: Collection[str] = ()) -> str:
        """The instance for the next call; one in `tried` only when there is no other."""
        available = self._candidates(now, tried)
        if len(available) > 2:
            available = self._rng.sample(available, 2)
        best_s = self._best_s()
        return min(available, key=lambda load: (load.score(now, self._calls, best_s), self._rng.random())).name

    def probe(self, now: float) -> str | None:
        """An ejected instance that should be sent a copy of a call now, if there is one: nobody waits for it."""
        for load in self.instances.values():
            if load.strikes and load.due_for_probe(now):
                load.probes += 1
                return load.name
        return None

    def begin(self, name: str, now: float) -> int:
        """A call to this instance starts; returns its number for `end`."""
        self._calls += 1
        load = self.instances[name]
        load.calls += 1
        load.open_calls[self._calls] = now
        return self._calls

    def overdue(self, name: str, call: int, now: float) -> None:
        """A call takes so long that another instance is asked beside it: a failure, until it is answered."""
        load = self.instances[name]
        began = load.open_calls.get(call)
        if began is None or call in load.overdue:
            return
        load.overdue.add(call)
        if now - began > load.latency_s:
            load.observe(now - began, now, self._calls, self._best_s())
        self._strike(load, now)

    def end(self, name: str, call: int, now: float, *, answered: bool, timed: bool = True) -> float:
        """A call ended; returns how long it took, less what this process stood still.

        Args:
            name: of the instance.
            call: as `begin` numbered it.
            now: monotonic seconds.
            answered: False when the instance gave no answer; a refusal is an answer.
            timed: whether it says how quick the instance is; a refusal does not.
        """
        load = self.instances[name]
        latency_s = now - load.open_calls.pop(call)
        # One that refuses, or fails, everything in a millisecond would look like the quickest and get all calls.
        if (answered and timed) or latency_s > load.latency_s:
            load.observe(latency_s, now, self._calls, self._best_s())
        was_overdue = call in load.overdue
        load.overdue.discard(call)
        if answered:
            if load.ejected:
                load.back_at = now
            load.strikes = 0
        else:
            load.unanswered += 1
            if not was_overdue:
                self._strike(load, now)
        return latency_s

    def abandon(self, name: str, call: int, now: float) -> None:
        """A call was given up by us: all that is known is that it takes longer than this."""
        load = self.instances[name]
        began = load.open_calls.pop(call, now)
        load.overdue.discard(call)
        if now - began > load.latency_s:
            load.observe(now - began, now, self._calls, self._best_s())

    @property
    def in_flight(self) -> int:
        """Calls that are out, to all instances."""
        return sum([len(load.open_calls) for load in self.instances.values()])

    def stood_still(self, now: float, seconds: float) -> None:
        """This process did nothing for so long until now: no open call is older by it."""
        for load in self.instances.values():
            for call, began in load.open_calls.items():
                load.open_calls[call] = min(began + seconds, now)

    def views(self, now: float) -> list[InstanceView]:
        """All instances, as a status page shows them."""
        return [load.view(now) for load in self.instances.values()]

    def _best_s(self) -> float:
        return min([load.latency_s for load in self.instances.values()])

    def _candidates(self, now: float, tried: Collection[str]) -> list[InstanceLoad]:
        """Those of which two are looked at; never none."""
        loads = list(self.instances.values())
        candidates = [load for load in loads if load.name not in tried] or loads if tried else loads
        available = [load for load in candidates if not load.ejected]
        if len(available) * 2 < len(candidates):
            return candidates
        started = [load for load in available if load.back_at == -math.inf or self._rng.random() < load.share(now)]
        return started or available

    def _strike(self, load: InstanceLoad, now: float) -> None:
        if load.ejected and now < load.ejected_until:
            return  # was out when the instance was ejected: only a probe that fails lengthens the pause
        load.strikes += 1
        if load.ejected:
            load.ejections += 1
            pause = min(_PAUSE_FIRST_S * 2 ** (load.strikes - _STRIKES), _PAUSE_MAX_S)
            load.ejected_until = now + pause * self._rng.uniform(0.8, 1.2)
