"""A world for the engine that follows from a seed: requests of all kinds, promotions, outages, failures.

What happened is a `History`; the invariants are functions of it, in `test_engine_simulation.py`.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.answer import Answer, StoredAnswer
from pipeline.core.cache_key import CacheScope
from pipeline.core.coalescing import Flight
from pipeline.errors import InvalidTensor, ModelFailed
from schemas.request import InferenceRequest
from schemas.tensor import Tensor
from tests.simulation.fleet import FAILING_ROW, FakeVersion, right_outputs
from tests.simulation.shared_cache import FakeSharedCache, FakeSharedServer
from tests.simulation.system import MODEL, RecordingWaiter, System, make_system, model_record, request
from tests.simulation.virtual_time import UNIX_START, the_clock

REQUESTS = 250
# Longer than any request waits by itself: 30 s without an instance, and three attempts of 2 s.
SETTLED_AFTER_S = 60.0


@dataclass
class Sent:
    """One request, and all answers it got."""

    number: int
    asked: InferenceRequest
    sent_at: float
    appended_at: float
    waiter: RecordingWaiter
    at_once: Answer | None = None

    @property
    def answers(self) -> list[Answer]:
        """Every answer, in order."""
        return [*([self.at_once] if self.at_once is not None else []), *self.waiter.answers]

    @property
    def answered_at(self) -> float:
        """Monotonic seconds of its first answer."""
        return self.sent_at if self.at_once is not None else self.waiter.at[0]


@dataclass
class Promotion:
    """A version became the default, in Unix seconds."""

    number: str
    effective_at: float


@dataclass
class FlightBegun:
    """A flight was handed to the dispatcher, while another of its key had waiters (or not)."""

    flight: Flight
    at: float
    overlaps: bool


@dataclass
class Stored:
    """An answer was put into the cache."""

    key: bytes
    answer: StoredAnswer


@dataclass
class History:
    """What happened in one run.

    Attributes:
        contents: of every version there ever was, by its number.
        calls: how many the fleet heard.
        shared: what became of look-ups and writes in the shared cache.
    """

    seed: int
    sent: list[Sent] = field(default_factory=list)
    promotions: list[Promotion] = field(default_factory=list)
    flights: list[FlightBegun] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    shared: Counter[str] = field(default_factory=Counter)


def right_answer(content: str, asked: InferenceRequest) -> tuple[Tensor, ...]:
    """What a version of this content answers: the fake model's function, outputs as asked."""
    reaching = {name: value for name, value in asked.parameters.items() if not name.startswith("binary_")}
    outputs = right_outputs(content, [given.to_tensor() for given in asked.inputs], reaching)
    by_name = {tensor.name: tensor for tensor in outputs}
    return tuple(by_name[output.name] for output in asked.outputs or ()) or outputs


class World:
    """One run. Everything random comes from its seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.history = History(seed, contents={"1": "content-1"})
        self.redis = FakeSharedServer(rng=self.rng)
        self.shared = FakeSharedCache(self.redis) if self.rng.random() < 0.7 else None
        self.system: System = make_system(
            servers=3, versions=self.history.contents, attempt_timeout_s=2.0, ttl_s=5.0, shared=self.shared,
            cache_bytes=self.rng.choice([0, 8_000, 1 << 20]), seed=seed,
        )  # fmt: skip
        self.newest_version = 1
        self._newest_flight: dict[bytes, Flight] = {}
        self._watch_flights()
        self._watch_cache()

    async def run(self) -> History:
        """Sends requests while things happen, then lets everything settle."""
        for number in range(REQUESTS):
            if self.rng.random() < 0.08:
                self._something_happens()
            if self.rng.random() < 0.04:
                self._something_happens_to_caches()
            self._send(number)
            if self.rng.random() < 0.5:
                await asyncio.sleep(self.rng.choice([0.0, 0.001, 0.02, 0.2, 1.0]))
        for server in self.system.servers:
            server.down = server.hangs = False
            server.latency_s = 0.01
        await asyncio.sleep(SETTLED_AFTER_S)
        self.history.calls = self.system.calls
        if self.shared is not None:
            self.history.shared = self.shared.counts
        assert self.system.engine.flights_running == 0, f"flights never ended, seed {self.history.seed}"
        return self.history

    def _send(self, number: int) -> None:
        asked = some_request(self.rng, self.newest_version)
        clock = self.system.clock
        # Appended a little before it is taken, or, by a broker whose clock is ahead, a little after.
        sent = Sent(number, asked, clock.monotonic(), clock.now() - self.rng.uniform(-0.2, 0.5), RecordingWaiter())
        sent.at_once = self.system.engine.submit(
            asked, sent.waiter, requested_at=sent.appended_at, appended_at=sent.appended_at
        )
        self.history.sent.append(sent)

    def _something_happens(self) -> None:
        server = self.rng.choice(self.system.servers)
        what = self.rng.randrange(8)
        if what <= 1:
            server.down = not server.down
        elif what == 2:
            server.hangs = not server.hangs
        elif what == 3:
            server.latency_s = self.rng.choice([0.0, 0.01, 0.3, 3.0])
        elif what == 4:
            server.script.append(self.rng.choice([ModelFailed, InvalidTensor])(server.name, "by chance"))
        elif what == 5:
            for each in self.system.servers:
                each.down = True
        else:
            self._promote()

    def _something_happens_to_caches(self) -> None:
        """The shared one breaks or heals; this worker's is lost as by a restart, or cleared."""
        what = self.rng.randrange(7)
        if what == 0:
            self.redis.down = not self.redis.down
        elif what == 1:
            self.redis.latency_s = self.rng.choice([0.0, 0.0005, 0.004, 0.02])
        elif what == 2:
            self.redis.lossy = self.rng.choice([0.0, 0.3])
        elif what == 3:
            self.redis.full = not self.redis.full
        elif what == 4:
            self.redis.restart_empty()
        elif what == 5:
            self.system.cache.clear()
        else:
            self.system.engine.clear(lambda scope: scope.tenant is None)

    def _promote(self) -> None:
        """A new default version from a moment soon; the one before the previous leaves the fleet by and by."""
        self.newest_version += 1
        number, previous = str(self.newest_version), str(self.newest_version - 1)
        self.history.contents[number] = f"content-{number}"
        for server in self.system.servers:
            server.serves[MODEL, number] = FakeVersion(f"content-{number}")
        # Always announced ahead, by more than the broker's clock is: the watcher announces two seconds ahead.
        delay_s = self.rng.choice([0.3, 0.5, 2.0])
        effective_at = self.system.clock.now() + delay_s
        served = {each: self.history.contents[each] for each in (previous, number)}
        self.system.catalog.apply(
            model_record(served, number, previous=previous, effective_at=effective_at - UNIX_START)
        )
        self.history.promotions.append(Promotion(number, effective_at))
        loop = asyncio.get_running_loop()
        if self.rng.random() < 0.5:
            # Gone from the fleet before anybody said so, then from the catalog.
            loop.call_later(delay_s + 0.1, self._unload, previous)
            loop.call_later(delay_s + 0.4, self._forget, previous, number)

    def _unload(self, number: str) -> None:
        for server in self.system.servers:
            server.serves.pop((MODEL, number), None)

    def _forget(self, gone: str, default: str) -> None:
        if str(self.newest_version) == default:
            served = {default: self.history.contents[default]}
            self.system.catalog.apply(model_record(served, default))
            self._unload(gone)

    def _watch_flights(self) -> None:
        submit = self.system.dispatcher.submit

        def watched(flight: Flight) -> None:
            if flight.tries:  # the same one again, after an outage
                submit(flight)
                return
            overlaps = False
            if flight.key is not None:
                other = self._newest_flight.get(flight.key)
                overlaps = other is not None and bool(other.waiting())
                self._newest_flight[flight.key] = flight
            self.history.flights.append(FlightBegun(flight, the_clock().monotonic(), overlaps))
            submit(flight)

        self.system.dispatcher.submit = watched  # type: ignore[method-assign]

    def _watch_cache(self) -> None:
        put = self.system.cache.put

        def watched(key: bytes, value: StoredAnswer, expires_at: float, scope: CacheScope) -> None:
            self.history.stored.append(Stored(key, value))
            put(key, value, expires_at, scope)

        self.system.cache.put = watched  # type: ignore[method-assign]


def some_request(rng: random.Random, newest_version: int) -> InferenceRequest:
    """A request of any kind, out of few enough that equal ones meet."""
    changes: dict[str, Any] = {}
    if rng.random() < 0.2:
        changes["parameters"] = rng.choice([{"t": 1}, {"t": 1.0}, {"t": True}, {"binary_data_output": True}])
    if rng.random() < 0.2:
        changes["outputs"] = rng.choice([[{"name": "y"}], [{"name": "text"}, {"name": "y"}], []])
    if rng.random() < 0.3:
        changes["cache_control"] = rng.choice(["no-cache", "no-store", "max-age=1", "only-if-cached", "max-age=0"])
    if rng.random() < 0.1:
        changes["enable_cache"] = False
    if rng.random() < 0.2:
        changes["tenant"] = rng.choice(["a", "b"])
    if rng.random() < 0.3:
        changes["timeout_ms"] = rng.choice([0, 1, 30, 400, 2500, 20_000])
    if rng.random() < 0.15:
        changes["model_version"] = str(max(1, newest_version - rng.randrange(3)))
    rows: Sequence[int] = [rng.choice([1, 1, 2, 3, 4, FAILING_ROW if rng.random() < 0.1 else 5])]
    return request(*(list(rows) * rng.choice([1, 1, 1, 2, 3])), **changes)
