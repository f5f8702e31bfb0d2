"""Runs flights on the fleet: batches what may leave together, routes it, tries elsewhere, isolates what fails.

docs/routing.md tells which instance gets what, and why.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from pipeline.core.batching import BatchGroup, GroupKey, NotSplittableError, group_key, split_tensors
from pipeline.core.coalescing import Flight
from pipeline.core.fleet_queue import Batch, FleetOverloaded, FleetQueue, ModelLine, QueueBounds
from pipeline.core.routing import InstanceView, Router
from pipeline.dispatcher.calls import Dispatched, FleetCalls, report_bug
from pipeline.errors import InvalidTensor, ModelFailed
from pipeline.metrics import EngineMetrics, MetricName
from pipeline.ports import Clock, InferenceServer, Tracer

# A batch that failed is run again in parts; this many at a time, so that one poisoned batch is not 64 calls at once.
_PARTS_AT_ONCE = 8
# Content that failed by itself leaves alone from then on. Of more than this many the oldest is trusted again.
_QUARANTINED_MAX = 1024
# Requests without parameters have one of a few layouts; past so many of a version the key is simply made again.
_KEYS_REMEMBERED = 4096


class FleetView(NamedTuple):
    """The fleet as a status page shows it: who gets how much, and what waits for which model."""

    instances: list[InstanceView]
    models: list[ModelLine]

    def as_json(self) -> dict[str, list[dict[str, Any]]]:
        """The same for JSON."""
        return {"instances": [asdict(one) for one in self.instances], "models": [one._asdict() for one in self.models]}


class Dispatcher:
    """Sends flights to instances and hands their outcome back in bulk: a task per batch, none per request.

    Args:
        servers: the fleet.
        router: chooses among their names.
        clock: time.
        attempt_timeout_s: how long one instance may take for one call.
        batches_in_flight: full batches that may be out to one instance, per group.
        bounds: what may wait; a flight that finds no room comes back with `FleetOverloaded`.
        metrics: counts.
        tracer: makes spans of the calls; None: nobody follows any.

    Attributes:
        waiting_max: how many may wait, here and for an instance that answers.
    """

    def __init__(
        self,
        servers: Sequence[InferenceServer],
        router: Router,
        clock: Clock,
        *,
        attempt_timeout_s: float,
        batches_in_flight: int,
        bounds: QueueBounds | None = None,
        metrics: EngineMetrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._router = router
        self._clock = clock
        bounds = bounds or QueueBounds()
        self.waiting_max = bounds.count_max
        self._metrics = metrics or EngineMetrics()
        self._calls = FleetCalls(servers, router, clock, attempt_timeout_s, self._metrics, tracer)
        self._queue = FleetQueue(max(len(servers), 1), batches_in_flight, bounds, self._rows_max, self._calls.p99_s)
        self._metrics.watch_fleet(self._instance_readings, self._model_readings)
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsplittable: set[tuple[str, str, str]] = set()
        self._quarantined: dict[int, None] = {}
        self._sending = False
        self._stopped = False
        self.on_done: Callable[[Sequence[Flight], Dispatched | None], None] = _nobody
        self.on_bug: Callable[[BaseException], None] = report_bug
        self._calls.on_bug = lambda bug: self.on_bug(bug)

    def submit(self, flight: Flight) -> None:
        """Queues a flight. It leaves after everything that is ready now, so that all of one fetch ride along."""
        key = _key_of(flight)
        if self._quarantined and _content(key, flight) in self._quarantined:
            key = key._replace(alone=True)
        if not self._queue.add(key, flight, self._clock.monotonic()):
            self._metrics.fleet_shed[key.model_name, "overloaded"] += 1
            reason = f"{self._queue.count} requests of {self._queue.bytes} bytes wait for it already: try again later"
            outcome = Dispatched(error=FleetOverloaded("fleet", reason))
            asyncio.get_running_loop().call_soon(self.on_done, [flight], outcome)
            return
        if not self._sending:
            self._sending = True
            asyncio.get_running_loop().call_soon(self._send)

    async def stop(self) -> None:
        """Cancels what is out and what is queued; nobody is told."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._calls.stop()

    def view(self) -> FleetView:
        """Every instance and every model's queue, now."""
        now = self._clock.monotonic()
        return FleetView(self._router.views(now), self._queue.lines(now))

    def _instance_readings(self) -> dict[str, dict[MetricName, float]]:
        return {
            view.name: {
                "pipeline_instance_in_flight": view.in_flight,
                "pipeline_instance_latency_seconds": view.latency_s,
                "pipeline_instance_ejected": view.ejected_s > 0,
                "pipeline_instance_share": view.share,
                "pipeline_instance_probes": view.probes,
                "pipeline_instance_ejections": view.ejections,
            }
            for view in self.view().instances
        }

    def _model_readings(self) -> dict[str, dict[MetricName, float]]:
        return {
            line.model_name: {
                "pipeline_fleet_queue": line.waiting,
                "pipeline_fleet_queue_bytes": line.bytes,
                "pipeline_fleet_queue_age_seconds": line.oldest_s,
                "pipeline_fleet_in_flight": line.in_flight,
            }
            for line in self.view().models
        }

    def _rows_max(self, flight: Flight) -> int:
        version = flight.version
        if not version.batches or (version.model_name, version.version, version.fingerprint) in self._unsplittable:
            return 1
        return version.signature.max_batch_size

    def _send(self) -> None:
        self._sending = False
        now = self._clock.monotonic()
        while not self._stopped and (batch := self._queue.take(now)) is not None:
            task = asyncio.get_running_loop().create_task(self._fly(batch))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        if unwanted := self._queue.unwanted():
            for flight in unwanted:
                self._metrics.fleet_shed[flight.version.model_name, "unwanted"] += 1
            self.on_done(unwanted, None)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            self.on_bug(bug)

    async def _fly(self, batch: Batch) -> None:
        try:
            await self._deliver(batch.key, batch.group, batch.flights)
        finally:
            self._queue.ended(batch)
            self._send()

    async def _deliver(self, key: GroupKey, group: BatchGroup[Flight], flights: list[Flight]) -> None:
        """One call; where it fails for what is in it, it is halved until what fails is alone."""
        failed = await self._deliver_once(key, group, flights)
        if failed:
            group.distrust()
        else:
            group.trust()
        while failed:
            now, failed = failed[:_PARTS_AT_ONCE], failed[_PARTS_AT_ONCE:]
            parts = [part for part in map(self._wanted, now) if part]
            for halves in await asyncio.gather(*(self._deliver_once(key, group, part) for part in parts)):
                failed += halves

    async def _deliver_once(
        self, key: GroupKey, group: BatchGroup[Flight], flights: list[Flight]
    ) -> list[list[Flight]]:
        """The parts that are to be tried again; empty where each flight has its outcome."""
        outcome = await self._calls.call(key, flights)
        if outcome.error is None:
            try:
                rows = [flight.rows for flight in flights]
                outcome.parts = split_tensors(outcome.outputs, rows) if len(flights) > 1 else [outcome.outputs]
            except NotSplittableError:
                version = flights[0].version
                self._unsplittable.add((version.model_name, version.version, version.fingerprint))
                group.rows_max = 1
                return [[flight] for flight in flights]
        is_its_own = isinstance(outcome.error, InvalidTensor | ModelFailed)
        if is_its_own and len(flights) > 1:
            middle = len(flights) // 2
            return [flights[:middle], flights[middle:]]
        if is_its_own or (key.alone and outcome.error is None):
            self._judge(key, flights[0], guilty=is_its_own)
        self.on_done(flights, outcome)
        return []

    def _judge(self, key: GroupKey, flight: Flight, *, guilty: bool) -> None:
        """What failed by itself leaves alone from now on, until it is answered."""
        content = _content(key._replace(alone=False), flight)
        if not guilty:
            self._quarantined.pop(content, None)
            return
        self._quarantined[content] = None
        if len(self._quarantined) > _QUARANTINED_MAX:
            del self._quarantined[next(iter(self._quarantined))]

    def _wanted(self, flights: Sequence[Flight]) -> list[Flight]:
        """Those that somebody waits for; the others are done without a call."""
        if unwanted := [flight for flight in flights if not flight.is_wanted]:
            self.on_done(unwanted, None)
        return [flight for flight in flights if flight.is_wanted]


def _key_of(flight: Flight) -> GroupKey:
    version = flight.version
    if flight.parameters or flight.server_parameters:
        return _new_key(flight)
    layout = (flight.outputs_encoded, *[tensor[:3] for tensor in flight.tensors])
    key = version.group_keys.get(layout)
    if key is None:
        key = _new_key(flight)
        if len(version.group_keys) < _KEYS_REMEMBERED:
            version.group_keys[layout] = key
    return key


def _new_key(flight: Flight) -> GroupKey:
    version = flight.version
    return group_key(
        version.model_name,
        version.version,
        version.fingerprint,
        flight.tensors,
        flight.outputs_encoded,
        flight.all_parameters,
    )


def _content(key: GroupKey, flight: Flight) -> int:
    """What is in a flight, as a number: where two have the same, the worst is that one of them leaves alone."""
    return hash((key, *[tensor.raw for tensor in flight.tensors]))


def _nobody(flights: Sequence[Flight], outcome: Dispatched | None) -> None:
    raise RuntimeError("the dispatcher was given a flight before an engine was there to take its outcome")
