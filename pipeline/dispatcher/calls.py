"""One call on the fleet: which instance, how long it is waited for alone, who is asked besides, what is learnt."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pipeline.core.attempts import PULSE_S, Attempts, Pulse
from pipeline.core.batching import FOREVER, NEVER, GroupKey, join_tensors
from pipeline.core.coalescing import Flight
from pipeline.core.fleet_queue import wanted_until
from pipeline.core.routing import Router
from pipeline.dispatcher.call_spans import CallSpans
from pipeline.errors import InferenceServerError, InvalidTensor, ModelFailed, ModelNotReady, ServerUnavailable
from pipeline.metrics import EngineMetrics
from pipeline.ports import Clock, InferenceCall, InferenceServer, Tracer
from schemas.tensor import Tensor

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Dispatched:
    """What became of the flights of one call.

    Attributes:
        outputs: of all of them together, in the order asked, unless `error` says why there are none.
        parts: the outputs of each flight; whoever made the call splits them.
        instance: who answered.
        dispatched_at: when the call left, Unix seconds.
        inference_s: how long it took.
    """

    outputs: tuple[Tensor, ...] = ()
    error: InferenceServerError | None = None
    instance: str = ""
    dispatched_at: float = 0.0
    inference_s: float = 0.0
    parts: Sequence[tuple[Tensor, ...]] = ()


class _Begun(NamedTuple):
    """An attempt that is out.

    Attributes:
        number: with the router.
        at: when it left, monotonic seconds; `dispatched_at` in Unix seconds.
        timeout_s: until when it is waited for.
        is_hurried: because nobody waits any longer, not because it may not take longer.
        stood_still_s: what the pulse had told by then.
    """

    name: str
    number: int
    at: float
    dispatched_at: float
    timeout_s: float
    is_hurried: bool
    stood_still_s: float


_OUTCOMES: dict[type[Any], str] = {
    type(None): "answered",
    InvalidTensor: "refused",
    ModelFailed: "failed",
    ModelNotReady: "not_ready",
    ServerUnavailable: "unavailable",
}


class _Call(NamedTuple):
    """One call for all these flights, whoever is asked.

    Attributes:
        kind: calls that take about as long.
        before: rounds of attempts that the first of these flights has behind it.
    """

    request: InferenceCall
    flights: Sequence[Flight]
    kind: Hashable
    before: int


class FleetCalls:
    """Makes calls on the fleet, and keeps what they teach.

    Args:
        servers: the fleet.
        router: chooses among their names.
        clock: time.
        limit_max_s: how long one instance may take for one call.
        metrics: counts.
        tracer: makes spans of the calls; None: nobody follows any.
    """

    def __init__(
        self,
        servers: Sequence[InferenceServer],
        router: Router,
        clock: Clock,
        limit_max_s: float,
        metrics: EngineMetrics,
        tracer: Tracer | None = None,
    ) -> None:
        self._servers = {server.name: server for server in servers}
        self._router = router
        self._clock = clock
        self._metrics = metrics
        self._tracer = tracer
        self._attempts = Attempts(limit_max_s)
        self._pulse = Pulse()
        self._tasks: set[asyncio.Task[Dispatched]] = set()
        self.on_bug: Callable[[BaseException], None] = report_bug

    def p99_s(self, key: GroupKey, size_bytes: int) -> float | None:
        """What a call of a group takes that has so many bytes; None where that is not known."""
        return self._attempts.p99_s(_kind(key, size_bytes))

    async def stop(self) -> None:
        """Cancels what is out; nobody is told."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def call(self, key: GroupKey, flights: Sequence[Flight]) -> Dispatched:
        """One call for all these flights; an instance that gives no answer is passed over for another.

        Cancelling it reaches the instances that are asked.
        """
        first = flights[0]
        request = InferenceCall(
            first.version.model_name,
            first.version.version,
            join_tensors([flight.tensors for flight in flights]),
            first.outputs,
            first.all_parameters,
        )
        self._metrics.batch_rows.observe(sum([flight.rows for flight in flights]))
        size = sum([len(tensor.raw) for tensor in request.inputs])
        call = _Call(request, flights, _kind(key, size), first.tries)
        self._attempts.retries.earn()
        now = self._clock.monotonic()
        if (name := self._router.probe(now)) is not None:
            self._spawn(self._attempt(self._begin(name, now, self._attempts.probe_s(call.kind)), call, 0))
        if len(self._servers) != 1:
            return await self._race(call)
        begun = self._begin(next(iter(self._servers)), now, self._time_left(flights), wanted=True)
        try:
            return await self._attempt(begun, call, call.before + 1)
        except asyncio.CancelledError:
            self._give_up(begun)
            raise

    async def _race(self, call: _Call) -> Dispatched:
        """Asks one instance after the other until one answers; one that is overdue gets a rival, and runs on."""
        tried: list[str] = []
        running: dict[asyncio.Task[Dispatched], _Begun] = {}
        newest: asyncio.Task[Dispatched] | None = None
        patience_s = 0.0
        outcome = Dispatched(error=ServerUnavailable("fleet", "no instance is configured"))
        try:
            while True:
                now = self._clock.monotonic()
                left_s = 0.0 if newest is None or newest not in running else self._left_s(running[newest], patience_s)
                if left_s <= 0 and self._may_try(call, tried, outcome):
                    name = self._router.pick(now, tried)
                    self._metrics.instance_retries[name,] += bool(tried)
                    tried.append(name)
                    begun = self._begin(name, now, self._time_left(call.flights), wanted=True)
                    newest = self._spawn(self._attempt(begun, call, call.before * len(self._servers) + len(tried)))
                    running[newest] = begun
                    left_s = patience_s = self._patience_s(call, len(tried))
                elif not running:
                    return outcome
                timeout_s = left_s if 0 < left_s < FOREVER else None
                done, _ = await asyncio.wait(running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                    outcome = task.result()
                    if not isinstance(outcome.error, ServerUnavailable | ModelNotReady):
                        return outcome
        finally:
            for task, begun in running.items():
                task.cancel()
                self._give_up(begun)

    def _left_s(self, begun: _Begun, patience_s: float) -> float:
        """How much longer an attempt is waited for alone; one that is overdue is told to the router."""
        now = self._clock.monotonic()
        self._look_at_pulse(now)
        left_s = begun.at + patience_s + self._pulse.stood_still_s - begun.stood_still_s - now
        if left_s <= 0:
            self._router.overdue(begun.name, begun.number, now)
        return left_s

    def _may_try(self, call: _Call, tried: Sequence[str], outcome: Dispatched) -> bool:
        if len(tried) >= len(self._servers):
            return False
        if not tried:
            return True
        if not self._patient(call.flights):
            return False
        # Where a version is not loaded (yet) is found out in a millisecond.
        return isinstance(outcome.error, ModelNotReady) or self._attempts.retries.spend()

    def _patience_s(self, call: _Call, tried: int) -> float:
        """After how long the attempt that begins now gets a rival."""
        if tried >= len(self._servers):
            return FOREVER
        left_s = max(map(wanted_until, call.flights)) - self._clock.monotonic()
        before = call.before * len(self._servers) + tried - 1
        return self._attempts.patience_s(call.kind, max(left_s, 1e-3), before)

    def _begin(self, name: str, now: float, timeout_s: float, *, wanted: bool = False) -> _Begun:
        """An attempt leaves; nobody waits for one that is not `wanted`."""
        number = self._router.begin(name, now)
        if self._pulse.due_at == FOREVER:
            self._beat()
        is_hurried = wanted and timeout_s < self._attempts.limit_max_s
        return _Begun(name, number, now, self._clock.now(), timeout_s, is_hurried, self._pulse.stood_still_s)

    def _give_up(self, begun: _Begun) -> None:
        """Another instance was quicker, or nobody waits any more."""
        self._router.abandon(begun.name, begun.number, self._clock.monotonic())
        self._metrics.instance_calls[begun.name, "outrun"] += 1

    async def _attempt(self, begun: _Begun, call: _Call, number: int) -> Dispatched:
        if self._tracer is None:
            return await self._ask(begun, call)
        spans = CallSpans(self._tracer, call.flights, begun.name, begun.dispatched_at, number)
        call = call._replace(request=replace(call.request, traceparent=spans.traceparent))
        try:
            outcome = await self._ask(begun, call)
        except asyncio.CancelledError:
            spans.end(self._clock.now(), "outrun", "another instance was quicker, or nobody waits any more")
            raise
        error = outcome.error
        spans.end(self._clock.now(), "" if error is None else type(error).__name__, "" if error is None else str(error))
        return outcome

    async def _ask(self, begun: _Begun, call: _Call) -> Dispatched:
        name = begun.name
        outputs: tuple[Tensor, ...] = ()
        error: InferenceServerError | None = None
        try:
            outputs = await self._servers[name].infer(call.request, begun.timeout_s)
        except InferenceServerError as raised:
            error = raised
        except Exception as bug:  # whatever it is, those who wait are told
            model = call.request.model_name
            logger.exception("%s: a call of %s failed unexpectedly", name, model, extra={"model": model})
            error = InferenceServerError(name, f"{type(bug).__name__}: {bug}")
        self._learn(begun, call, error)
        took_s = self._clock.monotonic() - begun.at
        self._metrics.inference_seconds.observe(took_s)
        return Dispatched(outputs, error, name, begun.dispatched_at, took_s)

    def _learn(self, begun: _Begun, call: _Call, error: InferenceServerError | None) -> None:
        """What became of an attempt, for the router, the patience with the next ones, and the metrics."""
        ended = self._clock.monotonic()
        self._look_at_pulse(ended)
        timed_out = isinstance(error, ServerUnavailable) and ended - begun.at >= begun.timeout_s
        outcome = "timed_out" if timed_out else _OUTCOMES.get(type(error), "broken")
        self._metrics.instance_calls[begun.name, outcome] += 1
        if isinstance(error, ServerUnavailable) and self._pulse.stood_still_s != begun.stood_still_s:
            self._router.abandon(begun.name, begun.number, begun.at)  # it was us who did not listen
            return
        if timed_out and begun.is_hurried:
            self._router.abandon(begun.name, begun.number, ended)  # slow for the router's estimate, but no failure
            return
        answered = not isinstance(error, ServerUnavailable)
        timed = error is None or timed_out
        took_s = self._router.end(begun.name, begun.number, ended, answered=answered, timed=timed)
        if error is None:
            self._attempts.answered(call.kind, took_s)

    def _spawn(self, attempt: Coroutine[Any, Any, Dispatched]) -> "asyncio.Task[Dispatched]":
        task = asyncio.get_running_loop().create_task(attempt)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Dispatched]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            self.on_bug(bug)

    def _beat(self) -> None:
        """While calls are out it is noticed when this process stands still: that makes no instance slow."""
        now = self._clock.monotonic()
        self._look_at_pulse(now)
        if self._router.in_flight:
            self._pulse.due_at = now + PULSE_S
            asyncio.get_running_loop().call_later(PULSE_S, self._beat)
        else:
            self._pulse.due_at = FOREVER

    def _look_at_pulse(self, now: float) -> None:
        if late_s := self._pulse.late_s(now):
            self._router.stood_still(now, late_s)
            self._metrics.stood_still_s += late_s

    def _patient(self, flights: Sequence[Flight]) -> bool:
        """Whether anybody still waits for another try."""
        now = self._clock.monotonic()
        return any(member.give_up_at > now for flight in flights for member in flight.waiting())

    def _time_left(self, flights: Sequence[Flight]) -> float:
        """Until nobody waits any more, but no longer than one attempt may take. At least a millisecond."""
        until = NEVER
        for flight in flights:
            until = max(until, wanted_until(flight))
            if until == FOREVER:
                break
        if until in (NEVER, FOREVER):
            return self._attempts.limit_max_s
        return max(min(until - self._clock.monotonic(), self._attempts.limit_max_s), 1e-3)


def _kind(key: GroupKey, size_bytes: int) -> Hashable:
    """Calls with the same kind take about as long."""
    return key.model_name, key.version, key.parameters, size_bytes.bit_length()


def report_bug(bug: BaseException) -> None:
    """Where nobody else wants to know of a bug: the event loop's own handler tells it."""
    asyncio.get_running_loop().call_exception_handler({"message": "a bug in the engine", "exception": bug})
