"""The sink end to end: real Kafka, real ClickHouse, crashes between them."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.config import ClickHouseSettings, KafkaSettings, Settings, SinkSettings
from pipeline.sink import run
from pipeline.sink.migrations import migrate
from tests.sink.event_records import end, event, record
from tests.sink.live import until_rows

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]
Database = tuple[ClickHouseSettings, ClickHouseEventStore]


@pytest.fixture
def settings(bootstrap_servers: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> Settings:
    prefix = f"t{uuid.uuid4().hex[:8]}."
    monkeypatch.setattr(run, "SINK_GROUP", f"{prefix}sink")
    return Settings(
        kafka=KafkaSettings(bootstrap_servers=bootstrap_servers, topic_prefix=prefix, session_timeout_s=6),
        clickhouse=database[0],
        sink=SinkSettings(batch_rows_max=200, batch_wait_s=0.1),
    )


async def make_topics(settings: Settings) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap_servers)
    await admin.start()
    try:
        topics = [NewTopic(settings.topic("events"), 2, 1), NewTopic(settings.topic("dead-letter"), 1, 1)]
        await admin.create_topics(topics)
    finally:
        await admin.close()


async def produce(settings: Settings, values: list[bytes]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
    await producer.start()
    try:
        for index, value in enumerate(values):
            await producer.send(settings.topic("events"), value, partition=index % 2)
        await producer.flush()
    finally:
        await producer.stop()


@asynccontextmanager
async def running_sink(settings: Settings) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(run.run_sink(settings, stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(30):
            await task


def records(first: int, count: int) -> list[bytes]:
    return [record(event(f"r-{i}"), end(f"r-{i}")) for i in range(first, first + count)]


async def counts(store: ClickHouseEventStore) -> list[tuple[int, ...]]:
    events = await store.query("SELECT count(), uniqExact(event_id) FROM events")
    requests = await store.query("SELECT count(), uniqExact(request_id) FROM requests")
    minutes = await store.query("SELECT sum(requests) FROM requests_per_minute")
    return [tuple(answer.rows[0]) for answer in (events, requests, minutes)]


async def test_events_arrive_once_over_a_restart(settings: Settings, database: Database) -> None:
    """Rows arrive, and a stopped sink's successor goes on where it left."""
    store = database[1]
    await make_topics(settings)
    await produce(settings, records(0, 500))
    async with running_sink(settings):
        await until_rows(store, "requests", 500)
    await produce(settings, records(500, 100))
    async with running_sink(settings):
        await until_rows(store, "requests", 600)
    assert await counts(store) == [(1200, 1200), (600, 600), (600,)]


async def test_crash_after_insert_leaves_no_double(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that dies between insert and commit has its range repeated as it was, with other limits and more rows."""
    store = database[1]
    await make_topics(settings)
    await produce(settings, records(0, 300))
    insert = ClickHouseEventStore.insert

    async def insert_and_die(self: ClickHouseEventStore, *args: object) -> None:
        await insert(self, *args)  # type: ignore[arg-type]
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(ClickHouseEventStore, "insert", insert_and_die)
        with pytest.raises(RuntimeError, match="killed"):
            await run.run_sink(settings, asyncio.Event())
    assert (await counts(store))[1][0] > 0
    await produce(settings, records(300, 300))
    other = settings.model_copy(update={"sink": SinkSettings(batch_rows_max=77, batch_wait_s=0.1)})
    async with running_sink(other):
        await until_rows(store, "requests", 600)
    assert await counts(store) == [(1200, 1200), (600, 600), (600,)]


async def test_bad_lines_reach_dead_letters(settings: Settings, database: Database) -> None:
    """A line that is no event is on the dead-letter topic with its origin; the lines beside it are rows."""
    store = database[1]
    await make_topics(settings)
    await produce(settings, [record(event("a")) + b"not an event\n" + record(end("b"))])
    consumer = AIOKafkaConsumer(
        settings.topic("dead-letter"),
        bootstrap_servers=settings.kafka.bootstrap_servers,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        async with running_sink(settings):
            await until_rows(store, "requests", 1)
            letter = await asyncio.wait_for(consumer.getone(), 20)
    finally:
        await consumer.stop()
    headers = dict(letter.headers)
    assert letter.value == b"not an event"
    assert headers["source-topic"] == settings.topic("events").encode()
    assert (headers["source-partition"], headers["source-offset"]) == (b"0", b"0")
    assert headers["reason"] == b"INVALID_EVENT"
    assert headers["error"]


async def test_missing_topic_and_tables_only_delay(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A sink that starts before topics and tables says what it waits for, once, and loses nothing."""
    store = database[1]
    await store.command(f"DROP DATABASE {settings.clickhouse.database}")
    with caplog.at_level(logging.WARNING, "pipeline.sink"):
        async with running_sink(settings):
            while "does not exist" not in caplog.text:  # noqa: ASYNC110 - the log is what is waited for
                await asyncio.sleep(0.05)
            await make_topics(settings)
            await produce(settings, records(0, 10))
            while "pipeline migrate" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await migrate(settings.clickhouse)
            await until_rows(store, "requests", 10)
    assert caplog.text.count("cannot be used") == 2
    assert caplog.text.count("can be used again") == 2
    assert await counts(store) == [(20, 20), (10, 10), (10,)]


async def test_two_sinks_share_partitions(settings: Settings, database: Database) -> None:
    """A second sink that joins and leaves moves partitions without a lost or a double row."""
    store = database[1]
    await make_topics(settings)
    async with running_sink(settings):
        await produce(settings, records(0, 200))
        async with running_sink(settings):
            await produce(settings, records(200, 400))
            await until_rows(store, "requests", 400)
        await produce(settings, records(600, 200))
        await until_rows(store, "requests", 800)
    assert await counts(store) == [(1600, 1600), (800, 800), (800,)]
