"""The worker process: wires engine, fleet, publisher and Faust together, runs until told to stop."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from time import monotonic
from typing import Any

import uvloop
from aiokafka import AIOKafkaProducer, ConsumerRecord
from prometheus_client import CollectorRegistry

from pipeline.adapters.control_topic import ControlFollower
from pipeline.adapters.kafka import client_options, unless_stopped
from pipeline.adapters.log_reader import LogReader
from pipeline.adapters.models_topic import ModelsFollower
from pipeline.adapters.status_http import StatusServer
from pipeline.adapters.system import SystemClock, rare_garbage_collections
from pipeline.adapters.tracing import OtelTracer, open_tracer
from pipeline.config import Settings
from pipeline.core.answer import StoredAnswer
from pipeline.core.catalog import ModelCatalog
from pipeline.core.event_lines import EventLines
from pipeline.core.lane import Lane
from pipeline.core.response_cache import ResponseCache
from pipeline.engine import InferenceEngine
from pipeline.errors import PipelineError, SettingsError
from pipeline.metrics import EngineMetrics, LabelledCounts, Reading, publish_seconds
from pipeline.worker.app import WorkerApp, create_app
from pipeline.worker.assembly import engine_of, fleet_of, shared_cache_of
from pipeline.worker.cache_upkeep import CacheUpkeep
from pipeline.worker.fleet_events import overloads_told
from pipeline.worker.intake import InFlight, Intake, IntakeSettings
from pipeline.worker.lane_opening import LaneOpener, LedgerNames
from pipeline.worker.membership import Membership
from pipeline.worker.preflight import wait_for_topics
from pipeline.worker.publisher import PRODUCE_BATCH_BYTES, Publisher, TopicNames
from pipeline.worker.record_spans import RecordSpans, record_spans_of
from pipeline.worker.request_reader import CallbackRules
from pipeline.worker.transport import ChunkConsumer, check_versions

logger = logging.getLogger(__name__)

# A worker whose view of the models topic is older than this waits before it resolves a default version.
_MODELS_LAG_MAX_S = 1.0
_MODELS_LOOK_S = 0.05
# Running misses get 5 s, then everything is confirmed; the local supervisor kills after 15 s. With Kafka gone, Faust
# waits for it without a limit: what is not confirmed by then is answered by the partitions' next owner.
_END_LIMIT_S = 12.0


def run_worker(settings: Settings) -> int:
    """Runs a worker until SIGTERM or SIGINT; returns the process's exit code.

    Raises:
        SettingsError: something it needs is not configured.
    """
    check_versions()
    settings.data_dir.mkdir(parents=True, exist_ok=True)  # Faust makes its own folder in it, and no other
    if not settings.triton.urls:
        raise SettingsError(
            "setting PIPELINE_TRITON__URLS is not set and no local stack runs: start one with `pipeline up`"
        )
    tracer = open_tracer("inference-worker")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Worker(settings, tracer).run())


class _Chunk:
    """Counts a chunk's answers; the last one acknowledges it to Faust."""

    def __init__(self, event: Any, records: int, on_progress: Callable[[], None]) -> None:
        self._event = event
        self._left = records
        self._on_progress = on_progress

    def confirmed(self) -> None:
        self._left -= 1
        self._on_progress()
        if not self._left:
            self._event.ack()


class _Worker:
    """One worker process."""

    def __init__(self, settings: Settings, tracer: OtelTracer | None) -> None:
        self._settings = settings
        self._tracer = tracer
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._registry = CollectorRegistry()
        self._in_flight = InFlight(settings.worker.max_in_flight, settings.worker.max_in_flight_bytes)
        self._progress = asyncio.Event()
        self._app: WorkerApp | None = None
        self._catalog = ModelCatalog()
        self._engine: InferenceEngine | None = None

    async def run(self) -> int:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _ask_to_stop, stop)
        async with AsyncExitStack() as resources:
            if self._tracer is not None:
                resources.push_async_callback(self._tracer.close)
            status = StatusServer(self._settings.worker.metrics_port, self._registry, self._not_ready, self._state)
            await resources.enter_async_context(status)
            partitions = await unless_stopped(stop, wait_for_topics(self._settings))
            return 0 if partitions is None else await self._serve(resources, stop, partitions)

    async def _serve(self, resources: AsyncExitStack, stop: asyncio.Event, partitions: Mapping[str, int]) -> int:
        settings = self._settings
        options = client_options(settings.kafka)
        self._follower = ModelsFollower(options, settings.topic("models"), self._catalog.apply, self._catalog.discard)
        await self._follower.start()
        resources.push_async_callback(self._follower.stop)
        servers = fleet_of(settings)
        for server in servers:
            resources.push_async_callback(server.close)
        shared = shared_cache_of(settings, self._registry)
        if shared is not None:
            resources.push_async_callback(shared.close)
            await shared.connect()
        metrics = EngineMetrics(self._registry)
        engine, cache = engine_of(settings, self._catalog, servers, metrics, shared, self._tracer)
        self._engine = engine
        resources.push_async_callback(engine.stop)
        self._bug = asyncio.get_running_loop().create_future()
        engine.report_bugs_to(self._note_bug)
        upkeep = CacheUpkeep(
            self._name,
            cache,
            metrics,
            SystemClock(),
            serves=self._catalog.serves,
            clear=engine.clear,
            partitions=self._partitions,
            shared=None if shared is None else shared.metrics,
            on_bug=self._note_bug,
        )
        await upkeep.start()
        resources.push_async_callback(upkeep.stop)
        control = ControlFollower(options, settings.topic("control"), upkeep.answer, upkeep.clear_after_gap)
        await control.start()
        resources.push_async_callback(control.stop)
        telling = overloads_told(settings, self._name, engine.fleet, metrics, self._note_bug)
        await resources.enter_async_context(telling)
        results = await self._producer(resources, options, settings.limits.record_bytes)
        events = await self._producer(resources, options, settings.limits.event_record_bytes)
        topics = TopicNames(
            settings.topic("results"), settings.topic("replies"), settings.topic("events"),
            partitions[settings.topic("events")],
        )  # fmt: skip
        membership = Membership(settings.kafka.session_timeout_s)
        spans = None if self._tracer is None else record_spans_of(settings, self._tracer)
        seconds, on_sent = publish_seconds(self._registry), None if spans is None else spans.sent
        self._publisher = Publisher(results, events, topics, membership, seconds, on_sent)
        self._intake = self._make_intake(engine, partitions[settings.topic("replies")], spans)
        self._export(cache)
        log = LogReader(options, settings.limits.record_bytes)
        await log.start()
        resources.push_async_callback(log.stop)
        names = LedgerNames(settings.topic("requests"), settings.topic("results"), settings.worker.group)
        self._opener = LaneOpener(log, names)
        self._app = create_app(
            settings, self._take_chunk, self._opener.open_all, self._progress.set, self._note_bug, membership
        )
        with rare_garbage_collections():
            return await self._run_app(stop)

    def _make_intake(self, engine: InferenceEngine, reply_partitions: int, spans: RecordSpans | None) -> Intake:
        settings = self._settings
        lines = EventLines(
            self._name,
            settings.retention.events_days,
            settings.retention.requests_days,
            settings.limits.event_record_bytes - (1 << 16),
        )
        names = IntakeSettings(
            worker=self._name,
            group=settings.worker.group,
            replies_topic=settings.topic("replies"),
            reply_partitions=reply_partitions,
            dead_letter_topic=settings.topic("dead-letter"),
            record_bytes_max=settings.limits.record_bytes,
            callbacks=CallbackRules(settings.topic("webhooks"), settings.webhooks.allow_http),
        )
        on_room = self._progress.set
        return Intake(engine, self._publisher, lines, SystemClock(), names, self._in_flight, on_room, spans)

    async def _producer(
        self, resources: AsyncExitStack, options: Mapping[str, Any], record_bytes: int
    ) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **options,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            # A topic's limit on a record is its limit on a batch too.
            max_batch_size=min(PRODUCE_BATCH_BYTES, record_bytes),
            max_request_size=record_bytes + (1 << 16),
        )
        await producer.start()
        resources.push_async_callback(producer.stop)
        return producer

    async def _run_app(self, stop: asyncio.Event) -> int:
        app = self._app
        assert app is not None
        publishing = asyncio.create_task(self._publisher.run())
        app.finalize()
        await app.start()
        crashed = asyncio.ensure_future(app._crashed.wait())
        stopped = asyncio.ensure_future(stop.wait())
        logger.info("worker %s serves group %s", self._name, self._settings.worker.group)
        await asyncio.wait([publishing, crashed, stopped, self._bug], return_when=asyncio.FIRST_COMPLETED)
        failure = _failure(app, publishing, self._bug)
        if failure is not None:
            # An error of ours says what to do; the others are for whoever reads the code.
            trace = None if isinstance(failure, PipelineError) else failure
            logger.error("worker %s ends: %s: %s", self._name, type(failure).__name__, failure, exc_info=trace)
            _limit_end()
        await app.stop()
        for task in (publishing, crashed, stopped):
            task.cancel()
        await asyncio.gather(publishing, crashed, stopped, return_exceptions=True)
        if failure is None:
            return 0
        # Once more, behind all that the libraries say while they are torn down: whoever looks at the end looks here.
        logger.error("worker %s ended: %s: %s", self._name, type(failure).__name__, failure)
        return 1

    def _note_bug(self, bug: BaseException) -> None:
        """A bug ends the process: whoever it left without an answer is read again."""
        if not self._bug.done():
            self._bug.set_result(bug)

    async def _take_chunk(self, consumer: ChunkConsumer, event: Any) -> None:
        message = event.message
        lane = consumer.lane(message)
        if lane is None:
            event.ack()  # given away since it was fetched: its next owner reads it
            return
        # The event lives until its last answer is confirmed; its records need not.
        records, message.value, event.value = message.value, (), ()
        chunk = _Chunk(event, len(records), self._progress.set)
        in_flight, publisher = self._in_flight, self._publisher
        await self._models_known(lane)
        for record in records:
            overloaded = False
            if in_flight.is_full(publisher.unconfirmed_bytes) or not lane.may_take(record.offset):
                overloaded = await self._room_for(lane, record)
            if lane.closed:
                return
            if lane.is_isolated(record.offset):
                await self._take_alone(consumer, lane, record, chunk)
                continue
            if record.offset in lane.ledger:
                await self._recall(lane, record.offset)
            lane.offsets.begin(record.offset)
            self._intake.take(record, lane, chunk.confirmed, overloaded=overloaded)
        await self._publisher.room()

    async def _room_for(self, lane: Lane, record: ConsumerRecord) -> bool:
        """Waits until a record may be taken; True where it waited for room longer than the settings allow."""
        limit_ms = self._settings.worker.overloaded_after_ms
        in_flight, publisher = self._in_flight, self._publisher
        while not lane.closed and (in_flight.is_full(publisher.unconfirmed_bytes) or not lane.may_take(record.offset)):
            left_s = None if limit_ms is None else limit_ms / 1e3 - (time.time() - record.timestamp / 1e3)
            if left_s is not None and left_s <= 0 and lane.may_take(record.offset):
                return True
            with suppress(TimeoutError):
                async with asyncio.timeout(None if left_s is None else max(left_s, 0.0)):
                    await self._more_progress()
        return False

    async def _more_progress(self) -> None:
        """Returns when anything was answered, confirmed, committed or given away from now on."""
        self._progress.clear()
        await self._progress.wait()

    async def _take_alone(self, consumer: ChunkConsumer, lane: Lane, record: ConsumerRecord, chunk: _Chunk) -> None:
        """One record, and nothing else in this process, with its offset in the commit while it runs."""
        while not lane.closed and any(len(other.offsets) for other in consumer.lanes.values() if not other.closed):
            await self._more_progress()
        lane.name_suspect(record.offset)
        await consumer.commit_lanes([lane])
        if lane.closed or not lane.is_named(record.offset):
            lane.closed = True  # the group went on without us: nothing runs that is not named, nor after it
            return
        await self._recall(lane, record.offset)
        lane.offsets.begin(record.offset)
        self._intake.take(record, lane, chunk.confirmed)
        while len(lane.offsets) and not lane.closed:
            await self._more_progress()
        await consumer.commit_lanes([lane])  # whatever ends workers from now on is not what ran alone until now

    async def _recall(self, lane: Lane, offset: int) -> None:
        """Reads answers again whose bytes were too many to keep."""
        for place in lane.ledger.unread(offset):
            lane.ledger.supply(offset, place, await self._opener.read_again(lane.partition, place))

    async def _models_known(self, lane: Lane) -> None:
        """Waits while the view of the models topic is too old to say which version is the default."""
        while not lane.closed and monotonic() - self._follower.last_poll_monotonic > _MODELS_LAG_MAX_S:  # noqa: ASYNC110
            await asyncio.sleep(_MODELS_LOOK_S)

    def _export(self, cache: ResponseCache[StoredAnswer]) -> None:
        register = self._registry.register
        register(LabelledCounts("pipeline_results", ("status", "code"), self._intake.results))
        register(Reading("pipeline_dead_letters", lambda: self._intake.dead_letters))
        register(Reading("pipeline_duplicates", lambda: self._intake.duplicates))
        register(Reading("pipeline_answers_repeated", lambda: self._intake.repeated))
        register(Reading("pipeline_cache_bytes", lambda: cache.bytes_used))
        register(Reading("pipeline_cache_entries", lambda: len(cache)))
        register(Reading("pipeline_cache_evictions", lambda: cache.stats.evicted))
        register(Reading("pipeline_cache_expired", lambda: cache.stats.expired))
        register(Reading("pipeline_cache_refused", lambda: cache.stats.refused))
        register(Reading("pipeline_cache_retired", lambda: cache.stats.retired))
        register(Reading("pipeline_in_flight", lambda: self._in_flight.count))
        register(Reading("pipeline_in_flight_bytes", lambda: self._in_flight.bytes))
        register(Reading("pipeline_partitions_assigned", lambda: len(self._partitions())))

    def _partitions(self) -> list[int]:
        # Before its first generation Faust's consumer is there, and refuses to say what it has.
        app = self._app
        if app is None or app._consumer is None or app.rebalancing or app.consumer_generation_id <= 0:
            return []
        topic = self._settings.topic("requests")
        return sorted(tp.partition for tp in app._consumer.assignment() if tp.topic == topic)

    def _not_ready(self) -> dict[str, str]:
        if self._app is None or self._app._consumer is None:
            return {"kafka": "not connected yet"}
        if self._app.rebalancing or self._app.consumer_generation_id <= 0:
            return {"kafka": "waits for its partitions"}
        if self._app.gone:
            return {"kafka": f"topics are gone: {', '.join(self._app.gone)}"}
        if not self._follower.caught_up:
            return {"models": "the models topic is not read yet"}
        return {}

    def _state(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "worker": self._name,
            "partitions": self._partitions(),
            "models": sorted(f"{version.model_name}/{version.version}" for version in self._catalog.versions()),
            "in_flight": self._in_flight.count,
            "fleet": self._engine.fleet().as_json() if self._engine is not None else {},
        }


def _ask_to_stop(stop: asyncio.Event) -> None:
    stop.set()
    _limit_end()


def _limit_end() -> None:
    """Whatever the end waits for, it comes; an end in time closes the loop, and this call with it."""
    asyncio.get_running_loop().call_later(_END_LIMIT_S, _give_up)


def _give_up() -> None:
    logger.error("the end took over %g s, the worker leaves as it is: is Kafka there?", _END_LIMIT_S)
    os._exit(1)


def _failure(
    app: WorkerApp, publishing: "asyncio.Task[None]", bug: "asyncio.Future[BaseException]"
) -> BaseException | None:
    """Why the worker cannot go on, or None where it was asked to stop."""
    if bug.done():
        return bug.result()
    if publishing.done() and not publishing.cancelled():
        return publishing.exception()
    if app.crashed:
        reason = app._crash_reason
        return reason if reason is not None else RuntimeError("the Faust app crashed without saying why")
    return None
