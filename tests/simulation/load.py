"""A fleet under open load, as a queueing model: only the router is real. Milliseconds of work simulate minutes."""

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.core.routing import Router

ATTEMPT_TIMEOUT_S = 1.0
SLOTS = 2
MEAN_S = 0.010


@dataclass
class Instance:
    """A server with two slots. `slowness` multiplies its times; infinite: it never answers; None: it refuses."""

    slowness: Callable[[float], float | None] = lambda now: 1.0
    free_at: list[float] = field(default_factory=lambda: [0.0] * SLOTS)

    def ends_at(self, now: float, rng: random.Random) -> tuple[float, bool]:
        """When a call that begins now ends, and whether it was answered."""
        slowness = self.slowness(now)
        if slowness is None:
            return now + 0.0005, False
        if math.isinf(slowness):
            return now + ATTEMPT_TIMEOUT_S, False
        slot = min(range(SLOTS), key=self.free_at.__getitem__)
        end = max(self.free_at[slot], now) + rng.lognormvariate(math.log(MEAN_S) - 0.125, 0.5) * slowness
        if end > now + ATTEMPT_TIMEOUT_S:
            return now + ATTEMPT_TIMEOUT_S, False
        self.free_at[slot] = end
        return end, True


@dataclass
class LoadReport:
    """What became of the requests.

    Attributes:
        latencies: seconds from arrival to answer, retries included, in order of arrival.
        calls: by instance.
        called_at: when each instance was called.
        failed: requests without an answer after every instance was tried.
    """

    latencies: list[float] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    called_at: dict[str, list[float]] = field(default_factory=dict)
    failed: int = 0

    def p99(self) -> float:
        """The 99th percentile of all latencies."""
        return sorted(self.latencies)[int(len(self.latencies) * 0.99)]

    def share(self, name: str) -> float:
        """The part of all calls that went to one instance."""
        return self.calls[name] / self.calls.total()


def run_load(instances: dict[str, Instance], *, rate: float, seconds: float, seed: int) -> LoadReport:
    """Poisson arrivals at `rate` per second; a call without an answer is tried on another instance."""
    rng = random.Random(seed)
    router = Router(list(instances), random.Random(seed + 1))
    report = LoadReport(called_at={name: [] for name in instances})
    # (time, number, kind, arrival, tried, name, call, answered); numbers keep the heap's order total.
    queue: list[tuple[float, int, str, float, tuple[str, ...], str, int, bool]] = []
    number = 0
    arrival = rng.expovariate(rate)
    heapq.heappush(queue, (arrival, number, "start", arrival, (), "", 0, False))
    while queue:
        now, _, kind, arrived, tried, name, call, answered = heapq.heappop(queue)
        if kind == "end":
            router.end(name, call, now, answered=answered)
            if answered:
                report.latencies.append(now - arrived)
                continue
            if len(tried) == len(instances):
                report.failed += 1
                continue
        elif not tried and now < seconds:
            number += 1
            following = now + rng.expovariate(rate)
            heapq.heappush(queue, (following, number, "start", following, (), "", 0, False))
        name = router.pick(now, tried)
        call = router.begin(name, now)
        report.calls[name] += 1
        report.called_at[name].append(now)
        end, answered = instances[name].ends_at(now, rng)
        number += 1
        heapq.heappush(queue, (end, number, "end", arrived, (*tried, name), name, call, answered))
    return report
