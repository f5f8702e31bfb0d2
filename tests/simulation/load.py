"""A fleet under open load, as a queueing model: router, limits and budgets are the real ones. Minutes take a second.

Several clients with routers of their own share four instances with two slots each; a call takes 10 ms on average,
lognormal. What is cancelled while it waits at an instance is dropped there, what runs runs on, as in Triton.
"""

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from functools import partial

from pipeline.core.attempts import Attempts, Budget
from pipeline.core.routing import Router

ATTEMPT_TIMEOUT_S = 20.0
PLAIN_TIMEOUT_S = 1.0
DEADLINE_S = 10.0
SLOTS = 2
MEAN_S = 0.010
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0


class RoundRobin(Router):
    """The plain way: one after the other, with the same ejection."""

    def pick(self, now: float, tried: Collection[str] = ()) -> str:
        """The next in turn that may be asked."""
        loads = [load for load in self.instances.values() if load.name not in tried] or [*self.instances.values()]
        available = [load for load in loads if not load.ejected] or loads
        return available[self._calls % len(available)].name


class LeastInFlight(Router):
    """The one with the fewest calls out, with the same ejection."""

    def pick(self, now: float, tried: Collection[str] = ()) -> str:
        """The least busy that may be asked; one of several by chance."""
        loads = [load for load in self.instances.values() if load.name not in tried] or [*self.instances.values()]
        available = [load for load in loads if not load.ejected] or loads
        return min(available, key=lambda load: (len(load.open_calls), self._rng.random())).name


class PlainAttempts(Attempts):
    """One constant limit, which cuts off; retries without a budget."""

    def __init__(self) -> None:
        super().__init__(PLAIN_TIMEOUT_S)
        self.retries = Budget(1.0, 1e9)

    def patience_s(self, kind: Hashable, left_s: float, before: int) -> float:
        """Nobody else is asked while one is out."""
        return math.inf


class HedgedAttempts(Attempts):
    """What the product does not do: a second call after the p99, for one call in twenty at most."""

    def __init__(self, limit_max_s: float = ATTEMPT_TIMEOUT_S) -> None:
        super().__init__(limit_max_s)
        self.hedges = Budget(0.05, 10.0)


@dataclass
class Job:
    """One call at an instance."""

    finished: Callable[[bool], None]
    cancelled: bool = False


@dataclass
class Instance:
    """A server with two slots. `slowness` multiplies its times; infinite: it never answers; None: it refuses."""

    slowness: Callable[[float], float | None] = lambda now: 1.0
    running: int = 0
    queue: deque[Job] = field(default_factory=deque)


@dataclass
class LoadReport:
    """What became of the requests.

    Attributes:
        latencies: seconds from arrival to answer, retries included, of those that arrived once measuring began.
        calls: by instance, of the same time.
        called_at: when each instance was called.
        failed: requests without an answer within their deadline.
        requests: all, from the start; `attempts` are the calls for them, retries and probes among them.
    """

    latencies: list[float] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    called_at: dict[str, list[float]] = field(default_factory=dict)
    failed: int = 0
    requests: int = 0
    attempts: int = 0

    def quantile(self, part: float) -> float:
        """A quantile of all latencies."""
        return sorted(self.latencies)[int(len(self.latencies) * part)]

    def p99(self) -> float:
        """The 99th percentile of all latencies."""
        return self.quantile(0.99)

    def share(self, name: str) -> float:
        """The part of all calls that went to one instance."""
        return self.calls[name] / self.calls.total()


class _Fleet:
    """The instances, and what is due when."""

    def __init__(self, instances: dict[str, Instance], rng: random.Random) -> None:
        self.instances = instances
        self.rng = rng
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        """Does something later."""
        self._number += 1
        heapq.heappush(self._due, (self.now + delay_s, self._number, what))

    def run(self) -> None:
        """Until nothing is due any more."""
        while self._due:
            self.now, _, what = heapq.heappop(self._due)
            what()

    def submit(self, name: str, job: Job) -> None:
        """A call arrives at an instance."""
        instance = self.instances[name]
        if instance.slowness(self.now) is None:
            self.after(0.0005, lambda: job.finished(False))
            return
        instance.queue.append(job)
        self._start(instance)

    def _start(self, instance: Instance) -> None:
        while instance.queue and instance.running < SLOTS:
            job = instance.queue.popleft()
            slowness = instance.slowness(self.now)
            if job.cancelled:
                continue
            if slowness is None:
                job.finished(False)
                continue
            if math.isinf(slowness):
                continue  # accepted, and never heard of again
            instance.running += 1
            self.after(self.rng.lognormvariate(math.log(MEAN_S) - 0.125, 0.5) * slowness, self._ends(instance, job))

    def _ends(self, instance: Instance, job: Job) -> Callable[[], None]:
        def ends() -> None:
            instance.running -= 1
            if not job.cancelled:
                job.finished(instance.slowness(self.now) is not None)
            self._start(instance)

        return ends


@dataclass(eq=False)
class _Attempt:
    name: str
    call: int
    began: float
    job: Job | None = None
    over: bool = False


class _Request:
    """One request's attempts, as the dispatcher makes them."""

    def __init__(self, fleet: _Fleet, router: Router, attempts: Attempts, report: LoadReport, measured: bool) -> None:
        self._fleet, self._router, self._attempts, self._report = fleet, router, attempts, report
        self._measured = measured
        self._arrived = fleet.now
        self._tried: list[str] = []
        self._before = 0
        self._rounds = 0
        self._open: list[_Attempt] = []
        self._done = False

    def begin(self) -> None:
        """A round of attempts begins: each instance is asked once at most."""
        self._tried = []
        self._attempts.retries.earn()
        probed = self._router.probe(self._fleet.now)
        self._attempt()
        if probed is not None:
            self._probe(probed)
        p99_s = self._attempts.p99_s("a model")
        if isinstance(self._attempts, HedgedAttempts) and p99_s is not None:
            self._attempts.hedges.earn()
            self._fleet.after(p99_s, partial(self._hedge, self._attempts.hedges))

    def _attempt(self) -> None:
        fleet = self._fleet
        name = self._router.pick(fleet.now, self._tried)
        self._tried.append(name)
        left_s = self._arrived + DEADLINE_S - fleet.now
        elsewhere = len(self._tried) < len(fleet.instances)
        patience_s = self._attempts.patience_s("a model", left_s, self._before) if elsewhere else math.inf
        self._before += 1
        attempt = self._sent(name, self._ended)
        self._open.append(attempt)
        if self._measured:
            self._report.calls[name] += 1
        if patience_s < left_s:
            fleet.after(patience_s, lambda: self._overdue(attempt))
        fleet.after(min(left_s, self._attempts.limit_max_s), lambda: self._ended(attempt, False))

    def _sent(self, name: str, ended: Callable[["_Attempt", bool], None]) -> "_Attempt":
        fleet = self._fleet
        attempt = _Attempt(name, self._router.begin(name, fleet.now), fleet.now)
        attempt.job = Job(lambda answered: ended(attempt, answered))
        self._report.attempts += 1
        self._report.called_at[name].append(fleet.now)
        fleet.submit(name, attempt.job)
        return attempt

    def _probe(self, name: str) -> None:
        def ended(attempt: _Attempt, answered: bool) -> None:
            if not attempt.over:
                attempt.over = True
                self._router.end(name, attempt.call, self._fleet.now, answered=answered)

        probe = self._sent(name, ended)
        self._fleet.after(self._attempts.probe_s("a model"), lambda: ended(probe, False))

    def _overdue(self, attempt: "_Attempt") -> None:
        if attempt.over:
            return
        self._router.overdue(attempt.name, attempt.call, self._fleet.now)
        if self._open[-1] is attempt and self._attempts.retries.spend():
            self._attempt()

    def _hedge(self, budget: Budget) -> None:
        if not self._done and len(self._open) == len(self._tried) == 1 and budget.spend():
            self._attempt()

    def _ended(self, attempt: _Attempt, answered: bool) -> None:
        if attempt.over:
            return
        attempt.over = True
        assert attempt.job is not None
        attempt.job.cancelled = True
        self._open.remove(attempt)
        now = self._fleet.now
        taken_s = self._router.end(attempt.name, attempt.call, now, answered=answered)
        if answered:
            self._attempts.answered("a model", taken_s)
            self._answered()
        elif not self._open:
            self._again()

    def _answered(self) -> None:
        self._done = True
        for other in self._open:
            other.over = True
            assert other.job is not None
            other.job.cancelled = True
            self._router.abandon(other.name, other.call, self._fleet.now)
        if self._measured:
            self._report.latencies.append(self._fleet.now - self._arrived)

    def _again(self) -> None:
        fleet = self._fleet
        if fleet.now - self._arrived >= DEADLINE_S:
            self._report.failed += 1
        elif len(self._tried) < len(fleet.instances) and self._attempts.retries.spend():
            self._attempt()
        else:
            self._rounds += 1
            fleet.after(min(RETRY_FIRST_S * 2 ** (self._rounds - 1), RETRY_MAX_S), self.begin)


def run_load(
    instances: dict[str, Instance],
    *,
    rate: float,
    seconds: float,
    seed: int,
    clients: int = 1,
    measured_from: float = 0.0,
    router: type[Router] = Router,
    attempts: Callable[[], Attempts] = lambda: Attempts(ATTEMPT_TIMEOUT_S),
) -> LoadReport:
    """Poisson arrivals at `rate` per second, spread over clients by chance; a call without an answer is tried again."""
    rng = random.Random(seed)
    fleet = _Fleet(instances, rng)
    senders = [(router(list(instances), random.Random(seed * 100 + index)), attempts()) for index in range(clients)]
    report = LoadReport(called_at={name: [] for name in instances})

    def arrive() -> None:
        if fleet.now < seconds:
            fleet.after(rng.expovariate(rate), arrive)
            report.requests += 1
            _Request(fleet, *rng.choice(senders), report, fleet.now >= measured_from).begin()

    fleet.after(rng.expovariate(rate), arrive)
    fleet.run()
    return report
