"""Runs flights on the fleet: batches what may leave together, routes it, tries elsewhere, isolates what fails."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.core.batching import (
    BatchGroup,
    GroupKey,
    NotSplittableError,
    Waiting,
    group_key,
    join_tensors,
    split_tensors,
)
from pipeline.core.coalescing import Flight
from pipeline.core.routing import Router
from pipeline.errors import InferenceServerError, InvalidTensor, ModelFailed, ModelNotReady, ServerUnavailable
from pipeline.metrics import EngineMetrics
from pipeline.ports import Clock, InferenceCall, InferenceServer
from schemas.tensor import Tensor

logger = logging.getLogger(__name__)

# A batch that failed is run again one by one; this many at a time, so that one poisoned batch is not 64 calls at once.
_SINGLES_AT_ONCE = 8


@dataclass(slots=True, eq=False)  # frozen would cost 0.6 us for each miss
class Dispatched:
    """What became of one flight.

    Attributes:
        outputs: in the order asked, unless `error` says why there are none.
        instance: who answered.
        dispatched_at: when the call left, Unix seconds.
        inference_s: how long it took.
    """

    outputs: tuple[Tensor, ...] = ()
    error: InferenceServerError | None = None
    instance: str = ""
    dispatched_at: float = 0.0
    inference_s: float = 0.0


class Dispatcher:
    """Sends flights to instances and hands their outcome back in bulk: a task per batch, none per request.

    Args:
        servers: the fleet.
        router: chooses among their names.
        clock: time.
        attempt_timeout_s: how long one instance may take for one call.
        batches_in_flight: full batches that may be out to one instance, per group.
    """

    def __init__(
        self,
        servers: Sequence[InferenceServer],
        router: Router,
        clock: Clock,
        *,
        attempt_timeout_s: float,
        batches_in_flight: int,
        metrics: EngineMetrics | None = None,
    ) -> None:
        self._servers = {server.name: server for server in servers}
        self._router = router
        self._clock = clock
        self._attempt_timeout_s = attempt_timeout_s
        self._batches_in_flight = batches_in_flight
        self._metrics = metrics or EngineMetrics()
        self._groups: dict[GroupKey, BatchGroup[Flight]] = {}
        self._ready: dict[GroupKey, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsplittable: set[tuple[str, str, str]] = set()
        self._stopped = False
        self.on_done: Callable[[Flight, Dispatched | None], None] = _nobody
        self.on_bug: Callable[[BaseException], None] = report_bug

    def submit(self, flight: Flight) -> None:
        """Queues a flight. It leaves after everything that is ready now, so that all of one fetch ride along."""
        version = flight.version
        key = group_key(
            version.model_name,
            version.version,
            version.fingerprint,
            flight.tensors,
            flight.outputs_encoded,
            flight.all_parameters,
        )
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = BatchGroup(
                self._rows_max(flight), max(len(self._servers), 1), self._batches_in_flight
            )
        group.add(Waiting(flight, flight.tensors, flight.rows, flight.size_bytes))
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._send_ready)
        self._ready[key] = None

    async def stop(self) -> None:
        """Cancels what is out and what is queued; nobody is told."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _rows_max(self, flight: Flight) -> int:
        version = flight.version
        if not version.batches or (version.model_name, version.version, version.fingerprint) in self._unsplittable:
            return 1
        return version.signature.max_batch_size

    def _send_ready(self) -> None:
        ready, self._ready = self._ready, {}
        for key in ready:
            self._send(key)

    def _send(self, key: GroupKey) -> None:
        group = self._groups[key]
        while not self._stopped and (batch := group.take()):
            flights = [waiting.flight for waiting in batch]
            task = asyncio.get_running_loop().create_task(self._fly(key, group, flights))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        if not group.queue and not group.in_flight:
            del self._groups[key]

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            self.on_bug(bug)

    async def _fly(self, key: GroupKey, group: BatchGroup[Flight], flights: list[Flight]) -> None:
        try:
            if wanted := self._wanted(flights):
                await self._deliver(group, wanted)
        finally:
            group.in_flight -= 1
            self._send(key)

    def _wanted(self, flights: Sequence[Flight]) -> list[Flight]:
        """Those that somebody waits for; the others are done without a call."""
        wanted: list[Flight] = []
        for flight in flights:
            if flight.is_wanted:
                wanted.append(flight)
            else:
                self.on_done(flight, None)
        return wanted

    async def _deliver(self, group: BatchGroup[Flight], flights: list[Flight]) -> None:
        outcome = await self._call(flights)
        if outcome.error is None and len(flights) > 1:
            try:
                parts = split_tensors(outcome.outputs, [flight.rows for flight in flights])
            except NotSplittableError:
                version = flights[0].version
                self._unsplittable.add((version.model_name, version.version, version.fingerprint))
                group.rows_max = 1
                await self._deliver_one_by_one(flights)
                return
            for flight, outputs in zip(flights, parts, strict=True):
                self.on_done(
                    flight, Dispatched(outputs, None, outcome.instance, outcome.dispatched_at, outcome.inference_s)
                )
        elif len(flights) > 1 and isinstance(outcome.error, InvalidTensor | ModelFailed):
            await self._deliver_one_by_one(flights)
        else:
            for flight in flights:
                self.on_done(flight, outcome)

    async def _deliver_one_by_one(self, flights: list[Flight]) -> None:
        """One bad row fails a whole batch: run alone, only the bad one fails."""
        for start in range(0, len(flights), _SINGLES_AT_ONCE):
            some = self._wanted(flights[start : start + _SINGLES_AT_ONCE])
            for flight, outcome in zip(some, await asyncio.gather(*map(self._call_alone, some)), strict=True):
                self.on_done(flight, outcome)

    async def _call_alone(self, flight: Flight) -> Dispatched:
        return await self._call([flight])

    async def _call(self, flights: Sequence[Flight]) -> Dispatched:
        """One call for all these flights; an instance that gives no answer is passed over for another."""
        first = flights[0]
        call = InferenceCall(
            first.version.model_name,
            first.version.version,
            join_tensors([flight.tensors for flight in flights]),
            first.outputs,
            first.all_parameters,
        )
        self._metrics.batch_rows.observe(sum(flight.rows for flight in flights))
        tried: list[str] = []
        outcome = Dispatched(error=ServerUnavailable("fleet", "no instance is configured"))
        while len(tried) < len(self._servers) and (not tried or self._patient(flights)):
            name = self._router.pick(self._clock.monotonic(), tried)
            tried.append(name)
            outcome = await self._attempt(name, call, self._time_left(flights))
            if not isinstance(outcome.error, ServerUnavailable | ModelNotReady):
                break
        return outcome

    async def _attempt(self, name: str, call: InferenceCall, timeout_s: float) -> Dispatched:
        dispatched_at, started = self._clock.now(), self._clock.monotonic()
        number = self._router.begin(name, started)
        outputs: tuple[Tensor, ...] = ()
        error: InferenceServerError | None = None
        try:
            outputs = await self._servers[name].infer(call, timeout_s)
        except InferenceServerError as raised:
            error = raised
        except Exception as bug:  # whatever it is, those who wait are told
            logger.exception("%s: a call of %s failed unexpectedly", name, call.model_name)
            error = InferenceServerError(name, f"{type(bug).__name__}: {bug}")
        except BaseException:
            self._router.abandon(name, number)
            raise
        ended = self._clock.monotonic()
        # Out of time because those who wait had little of it: slow for the router's estimate, but no failure.
        hurried = timeout_s < self._attempt_timeout_s and ended - started >= timeout_s
        self._router.end(name, number, ended, answered=hurried or not isinstance(error, ServerUnavailable))
        self._metrics.inference_seconds.observe(ended - started)
        return Dispatched(outputs, error, name, dispatched_at, ended - started)

    def _patient(self, flights: Sequence[Flight]) -> bool:
        """Whether anybody still waits for another try."""
        now = self._clock.monotonic()
        return any(member.give_up_at > now for flight in flights for member in flight.waiting())

    def _time_left(self, flights: Sequence[Flight]) -> float:
        """Until nobody waits any more, but no longer than one attempt may take. At least a millisecond."""
        now = self._clock.monotonic()
        members = [member for flight in flights for member in flight.waiting()]
        if not members or any(member.deadline is None for member in members):
            return self._attempt_timeout_s
        latest = max(member.deadline or 0.0 for member in members)
        return max(min(latest - now, self._attempt_timeout_s), 1e-3)


def report_bug(bug: BaseException) -> None:
    """Where nobody else wants to know of a bug: the event loop's own handler tells it."""
    asyncio.get_running_loop().call_exception_handler({"message": "a bug in the engine", "exception": bug})


def _nobody(flight: Flight, outcome: Dispatched | None) -> None:
    raise RuntimeError("the dispatcher was given a flight before an engine was there to take its outcome")
