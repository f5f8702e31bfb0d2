"""What the sink does with a past it does not know, or knows twice; and what the doctor says of it."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.adapters.kafka import client_options
from pipeline.config import ClickHouseSettings, Settings, SinkSettings
from pipeline.sink import audit as auditing
from pipeline.sink import delivering, run
from pipeline.sink.audit import audit
from pipeline.sink.commit_plan import read_commit
from tests.sink.event_records import end, event, record
from tests.sink.test_log_tables_live import figures, rows
from tests.sink.test_sink_live import make_topics, running_sink, settings

__all__ = ["settings"]

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]
Database = tuple[ClickHouseSettings, ClickHouseEventStore]
_GENERATION = [("generation", b"3")]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks at the view are two looks: nothing but the one sink of a test inserts, so none is at an insert."""
    monkeypatch.setattr(delivering, "_LOOK_AGAIN_S", 0.2)
    monkeypatch.setattr(auditing, "_LOOK_AGAIN_S", 0.2)


async def produce(settings: Settings, names: Sequence[str], headers: list[tuple[str, bytes]]) -> None:
    """One record for each name, with an event and an end, into partition 0."""
    now = datetime.now(UTC).isoformat()
    async with AIOKafkaProducer(**client_options(settings.kafka)) as producer:
        for name in names:
            value = record(event(name, occurred_at=now), end(name, occurred_at=now, completed_at=now))
            await producer.send(settings.topic("events"), value, partition=0, headers=headers)
        await producer.flush()


async def until_committed(settings: Settings, offset: int) -> None:
    """Waits for the sink's commit."""
    partition = TopicPartition(settings.topic("events"), 0)
    async with asyncio.timeout(30):
        while True:
            commit = await read_commit(client_options(settings.kafka), run.SINK_GROUP, partition)
            if commit is not None and commit.offset >= offset:
                return
            await asyncio.sleep(0.1)


async def set_offset(settings: Settings, offset: int, metadata: str) -> None:
    """Sets the sink's offset, as Kafka's tools do."""
    partition = TopicPartition(settings.topic("events"), 0)
    consumer = AIOKafkaConsumer(**client_options(settings.kafka), group_id=run.SINK_GROUP, enable_auto_commit=False)
    async with consumer:
        consumer.assign([partition])
        await consumer.commit({partition: OffsetAndMetadata(offset, metadata)})


@pytest.mark.parametrize("metadata", ["", "set by hand"])
async def test_offset_set_back_by_hand_leaves_no_double(
    settings: Settings, database: Database, metadata: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that are there are left out whatever the batches are now, missing ones are added, and a line says why."""
    store = database[1]
    await make_topics(settings)
    await produce(settings, [f"r-{i}" for i in range(300)], _GENERATION)
    async with running_sink(settings):
        await until_committed(settings, 300)
    for table, names in (("events", "'r-7'"), ("requests", "'r-7', 'r-9'")):
        await store.query(f"ALTER TABLE {table} DELETE WHERE request_id IN ({names})", settings={"mutations_sync": 2})
    await set_offset(settings, 5, metadata)
    await produce(settings, ["r-300"], _GENERATION)
    other = settings.model_copy(update={"sink": SinkSettings(batch_rows_max=77, batch_wait_s=0.1)})
    async with running_sink(other):
        await until_committed(settings, 301)
    assert await figures(store) == rows(301)
    assert "commit 5 was not made by the sink" in caplog.text


async def test_repeated_and_zombie_rows_come_once(settings: Settings, database: Database) -> None:
    """What a worker repeats, and what a replaced one writes behind its successor, is one row for each event."""
    store = database[1]
    await make_topics(settings)
    names = [f"r-{i}" for i in range(40)]
    async with running_sink(settings):
        await produce(settings, names[:20], _GENERATION)
        await until_committed(settings, 20)
        await produce(settings, names[10:30], [("generation", b"4"), ("redelivered", b"1")])
        await produce(settings, names[25:35], _GENERATION)
        await produce(settings, names[35:], [("generation", b"4")])
        await until_committed(settings, 55)
    # The zombie's own requests 30 to 34 are nobody else's: they stay.
    assert await figures(store) == rows(40)


async def test_doctor_finds_what_is_lost(settings: Settings, database: Database) -> None:
    """A log without faults is found so; missing and double rows and a wrong view are each told, with what to do."""
    store = database[1]
    await make_topics(settings)
    await produce(settings, [f"r-{i}" for i in range(30)], _GENERATION)
    async with running_sink(settings):
        await until_committed(settings, 30)
    await produce(settings, [f"r-{i}" for i in range(10)], [*_GENERATION, ("redelivered", b"1")])
    await produce(settings, [f"r-{i}" for i in range(30, 60)], _GENERATION)
    async with running_sink(settings):
        await until_committed(settings, 70)
    options = client_options(settings.kafka)

    async def wrong() -> dict[str, str]:
        found = await audit(store, options, run.SINK_GROUP)
        return {one.name: one.detail for one in found if one.mend}

    assert await wrong() == {}
    await store.query("INSERT INTO requests SELECT * FROM requests WHERE request_id = 'r-3'")
    await store.query("ALTER TABLE requests_per_minute_states DELETE WHERE 1", settings={"mutations_sync": 2})
    told = await wrong()
    assert set(told) == {"rows of requests", "requests_per_minute"}
    token = (await store.query("SELECT batch FROM events WHERE request_id = 'r-45'")).rows[0][0]
    await store.query(f"ALTER TABLE events DELETE WHERE batch = '{token}'", settings={"mutations_sync": 2})
    assert "rows beside offsets" in await wrong()
