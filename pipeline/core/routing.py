"""Which instance gets the next call: two random choices, the lower expected wait.

Score = peak-EWMA latency x (calls in flight + 1); the age of the oldest open call counts as a sample, so an instance
that stopped answering is avoided before its first call times out. Two random choices instead of the minimum over all:
with the minimum, one instance of a healthy fleet got 72 % of the calls at low load, because those not asked keep an old
high estimate. An estimate nobody renewed falls back to the fleet's best, or an instance that was slow once would never
be asked again. Three failures in a row eject an instance for a growing pause, after which one call probes it; when more
than half are ejected all are used (a pause of this very process looks like that).

Source: Finagle's peak EWMA balancer; Mitzenmacher, "The power of two choices" (2001).
"""

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

_DECAY_S = 2.0
# An estimate that nobody renews: 20 s, one attempt's timeout, are forgotten in half a minute; an instance ten times
# slower than the others is asked every ten seconds or so.
_FORGET_S = 5.0
_PRIOR_LATENCY_S = 0.005
_STRIKES = 3
_PAUSE_FIRST_S = 0.5
_PAUSE_MAX_S = 15.0


@dataclass(slots=True)
class InstanceLoad:
    """What is known of one instance."""

    name: str
    latency_s: float = _PRIOR_LATENCY_S
    observed_at: float = 0.0
    strikes: int = 0
    ejected_until: float = 0.0
    open_calls: dict[int, float] = field(default_factory=dict)

    def score(self, now: float, best_s: float = 0.0) -> float:
        """Expected wait of one more call, in seconds. `best_s` is the lowest latency in the fleet."""
        oldest = next(iter(self.open_calls.values()), now)
        remembered = self.latency_s * math.exp(-max(now - self.observed_at, 0.0) / _FORGET_S)
        return max(remembered, best_s, now - oldest) * (len(self.open_calls) + 1)

    def available(self, now: float) -> bool:
        """Whether it may be asked: not ejected, or due for its one probe."""
        if self.strikes < _STRIKES:
            return True
        return self.ejected_until <= now and not self.open_calls


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
        untried = [load for load in self.instances.values() if load.name not in tried]
        candidates = untried or list(self.instances.values())
        available = [load for load in candidates if load.available(now)]
        if len(available) * 2 < len(candidates):
            available = candidates
        if len(available) > 2:
            available = self._rng.sample(available, 2)
        best_s = min(load.latency_s for load in self.instances.values())
        return min(available, key=lambda load: (load.score(now, best_s), self._rng.random())).name

    def begin(self, name: str, now: float) -> int:
        """A call to this instance starts; returns its number for `end`."""
        self._calls += 1
        self.instances[name].open_calls[self._calls] = now
        return self._calls

    def end(self, name: str, call: int, now: float, *, answered: bool) -> None:
        """A call ended. `answered` is False when the instance gave no answer; a refusal is an answer."""
        load = self.instances[name]
        latency = now - load.open_calls.pop(call)
        weight = math.exp(-max(now - load.observed_at, 0.0) / _DECAY_S)
        load.observed_at = now
        peak = latency > load.latency_s
        load.latency_s = latency if peak else load.latency_s * weight + latency * (1 - weight)
        if answered:
            load.strikes = 0
            return
        if load.strikes >= _STRIKES and now < load.ejected_until:
            return  # was out when the instance was ejected: only a probe that fails lengthens the pause
        load.strikes += 1
        if load.strikes >= _STRIKES:
            pause = min(_PAUSE_FIRST_S * 2 ** (load.strikes - _STRIKES), _PAUSE_MAX_S)
            load.ejected_until = now + pause * self._rng.uniform(0.8, 1.2)

    def abandon(self, name: str, call: int) -> None:
        """A call was given up by us: it says nothing about the instance."""
        self.instances[name].open_calls.pop(call, None)
