"""The sink's process: clients made from the settings, topics waited for, everything closed again."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError
from prometheus_client import CollectorRegistry

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.adapters.kafka import client_options
from pipeline.adapters.system import rare_garbage_collections
from pipeline.config import MIB, Settings
from pipeline.core.event_batch import BatchLimits
from pipeline.outage import Outage, retry_pause_s
from pipeline.sink.commit_plan import read_commit
from pipeline.sink.dead_letters import DeadLetters
from pipeline.sink.lane import LaneOptions
from pipeline.sink.log_tables import LogTables
from pipeline.sink.metrics import SinkMetrics
from pipeline.sink.poison import LineReader
from pipeline.sink.sink import EventSink

_log = logging.getLogger(__name__)

SINK_GROUP = "inference-sink"
# A fetch of 4 MiB is some 4,000 lines, decoded in 30 ms; Kafka sends a larger record whole all the same.
_FETCH_BYTES = 4 * MIB
# Partitions that are added to the topic are noticed this soon.
_METADATA_AGE_MS = 30_000
# Rows are plain values without cycles: with batches of 50,000 lines, 16 us of CPU a line by Python's defaults, 12 so.
_GC_THRESHOLDS = (100_000, 50, 1000)

Readiness = Callable[[], Mapping[str, str]]


async def run_sink(
    settings: Settings,
    stop: asyncio.Event,
    *,
    registry: CollectorRegistry | None = None,
    on_ready: Callable[[Readiness], None] | None = None,
) -> None:
    """Moves events to ClickHouse until `stop` is set; then finishes the running inserts, commits and leaves.

    Kafka, ClickHouse, the topic and the tables may be missing at the start and at any time later: one line says so,
    and the sink goes on when they are there.

    Args:
        settings: addresses, limits, names.
        stop: set it, e.g. on SIGTERM, to end.
        registry: where to register the metrics; default a registry of its own.
        on_ready: is given the readiness function once, before anything is waited for.

    Raises:
        SettingsError: an address is missing or wrong.
        EventStoreError: ClickHouse refused rows for good; nothing of that batch is committed.
        KafkaError: Kafka refused for good.
    """
    options = client_options(settings.kafka)
    metrics = SinkMetrics.on(registry or CollectorRegistry())
    rng = random.Random()
    outage = Outage("Kafka", asyncio.get_running_loop().time)
    waiting = {"kafka": "the events topic is waited for"}
    readiness: list[Readiness] = [lambda: waiting]
    if on_ready is not None:
        on_ready(lambda: readiness[-1]())
    topic = settings.topic("events")
    dead_letters = DeadLetters(options, settings.topic("dead-letter"), settings.limits.event_record_bytes)
    async with AsyncExitStack() as stack:
        stack.enter_context(rare_garbage_collections(_GC_THRESHOLDS))
        store = await stack.enter_async_context(ClickHouseEventStore(settings.clickhouse))
        stack.push_async_callback(dead_letters.close)
        consumer = await stack.enter_async_context(_consumer(options, settings, topic, stop, outage, rng))
        if consumer is None:
            return
        sink = EventSink(
            consumer,
            topic,
            tables=LogTables(store),
            dead_letters=dead_letters,
            lines=LineReader(options),
            read_commit=partial(read_commit, options, SINK_GROUP),
            lane_options=LaneOptions(
                BatchLimits(settings.sink.batch_rows_max, settings.sink.batch_bytes_max),
                settings.sink.batch_wait_s,
            ),
            metrics=metrics,
            rng=rng,
        )
        readiness.append(sink.ready)
        _log.info("sink: %s -> ClickHouse database %s", topic, settings.clickhouse.database)
        await sink.run(stop)


@asynccontextmanager
async def _consumer(
    options: dict[str, Any], settings: Settings, topic: str, stop: asyncio.Event, outage: Outage, rng: random.Random
) -> AsyncIterator[AIOKafkaConsumer | None]:
    """A started consumer whose topic exists; None when `stop` was set before both were there."""
    attempt = 0
    while not stop.is_set():
        consumer = AIOKafkaConsumer(
            **options,
            group_id=SINK_GROUP,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=int(settings.kafka.session_timeout_s * 1000),
            heartbeat_interval_ms=int(settings.kafka.session_timeout_s * 1000 / 5),
            max_partition_fetch_bytes=_FETCH_BYTES,
            metadata_max_age_ms=_METADATA_AGE_MS,
        )
        try:
            cause = await _start(consumer, topic)
            if cause is None:
                outage.over()
                yield consumer
                return
        finally:
            await consumer.stop()
        attempt += 1
        outage.met(cause)
        try:
            async with asyncio.timeout(retry_pause_s(attempt, rng)):
                await stop.wait()
        except TimeoutError:
            continue
    yield None


async def _start(consumer: AIOKafkaConsumer, topic: str) -> str | None:
    """Connects; what is missing, or None."""
    try:
        await consumer.start()
        if topic in await consumer.topics():
            return None
    except KafkaConnectionError as error:
        return str(error)
    return f"topic {topic} does not exist (make it with `pipeline topics create`)"
