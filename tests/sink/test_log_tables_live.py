"""What the sink asks of the log's tables, and deliveries into them, on a real ClickHouse."""

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any

import pytest
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from prometheus_client import CollectorRegistry

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.config import ClickHouseSettings
from pipeline.core import sink_delivery
from pipeline.core.event_batch import BatchDraft, BatchLimits, EventBatch, EventRecord, RejectedLine
from pipeline.core.sink_delivery import deliver
from pipeline.core.sink_plan import Plan
from pipeline.errors import EventStoreError
from pipeline.outage import Outage
from pipeline.sink import delivering
from pipeline.sink.dead_letters import DeadLetters
from pipeline.sink.delivering import Deliverer
from pipeline.sink.log_tables import LogTables
from pipeline.sink.metrics import SinkMetrics
from pipeline.sink.poison import LineReader
from pipeline.sink.self_check import SelfCheck
from tests.sink.event_records import end, event, event_id, record

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]
Database = tuple[ClickHouseSettings, ClickHouseEventStore]
REDELIVERED = [("generation", b"1"), ("redelivered", b"1")]
OLD = 1.0  # a plan of 1970 is beyond every window
LIMITS = BatchLimits(100_000, 1 << 26)


def batch_of(names: list[str], start: int = 0, headers: list[tuple[str, bytes]] | None = None) -> EventBatch:
    """One record for each name; two days of expiry, in turn."""
    draft = BatchDraft("inference.events", 0, start, LIMITS)
    for offset, name in enumerate(names, start=start):
        day = f"2099-12-{10 + offset % 2}T22:00:00Z"
        of = {"expires_at": day, "instance": name.partition("-")[0]}
        lines = record(event(name, **of), end(name, requests_expires_at=day, **of))
        assert draft.offer(EventRecord.of(offset, lines, headers or [("generation", b"1")]))
    return draft.finish()


class Commits:
    """Takes commits as the consumer does."""

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Remembers nothing: one owner is all there is."""


class Letters(DeadLetters):
    """Dead letters in a list."""

    def __init__(self) -> None:
        self.sent: list[tuple[RejectedLine, str]] = []

    async def send(self, topic: str, partition: int, lines: Any, reason: str = "") -> None:
        """See `DeadLetters.send`."""
        self.sent += [(line, reason) for line in lines]


class Lines(LineReader):
    """Lines without a log."""

    def __init__(self) -> None:
        pass

    async def read(self, batch: EventBatch, reasons: Mapping[int, str]) -> list[RejectedLine]:
        """See `LineReader.read`."""
        return [RejectedLine(0, b"", reason) for reason in reasons.values()]


def deliverer_for(store: ClickHouseEventStore, metrics: SinkMetrics, letters: Letters | None = None) -> Deliverer:
    """A deliverer into a store, without Kafka."""
    clock = asyncio.get_running_loop().time
    return Deliverer(
        Commits(),
        LogTables(store),
        letters or Letters(),
        Lines(),
        metrics,
        rng=random.Random(1),
        kafka=Outage("Kafka", clock),
        clickhouse=Outage("ClickHouse", clock),
    )


async def bring(
    store: ClickHouseEventStore,
    batch: EventBatch,
    planned_at: float | None = None,
    letters: Letters | None = None,
) -> EventBatch:
    """Delivers a batch; as a repetition of a plan where its time is given."""
    plan = Plan(batch.end, batch.digest, planned_at or time.time())
    deliverer = deliverer_for(store, SinkMetrics.on(CollectorRegistry()), letters)
    inserted = await deliverer.run(deliver(batch, plan, 1, repeated=planned_at is not None), batch, asyncio.Event())
    assert inserted is not None
    return inserted


async def figures(store: ClickHouseEventStore) -> list[tuple[int, ...]]:
    """Rows and distinct ids of both tables, and what the view counts."""
    events = await store.query("SELECT count(), uniqExact(event_id) FROM events")
    requests = await store.query("SELECT count(), uniqExact(event_id) FROM requests")
    minutes = await store.query("SELECT sum(requests) FROM requests_per_minute")
    return [tuple(answer.rows[0]) for answer in (events, requests, minutes)]


def rows(requests: int) -> list[tuple[int, ...]]:
    """The figures of so many requests, each with an event and an end."""
    return [(2 * requests, 2 * requests), (requests, requests), (requests,)]


async def forget_tokens(store: ClickHouseEventStore) -> None:
    """Makes the tables forget every token."""
    for table in ("events", "requests", "requests_per_minute_states"):
        await store.command(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 1")
    await bring(store, batch_of(["other-1", "other-2", "other-3", "other-4"], start=1000))


async def test_redelivered_rows_are_left_out(database: Database) -> None:
    """Rows that a former batch brought are not inserted again; the others of the record are."""
    store = database[1]
    await bring(store, batch_of(["a", "b", "c"]))
    inserted = await bring(store, batch_of(["b", "c", "d"], start=3, headers=REDELIVERED))
    assert inserted.row_counts == {"events": 2, "requests": 1}
    assert await figures(store) == rows(4)


async def test_own_rows_are_no_reason_to_leave_out(database: Database) -> None:
    """A repeated batch of redelivered rows covers what it covered before, and stays one copy."""
    store = database[1]
    await bring(store, batch_of(["a"]))
    batch = batch_of(["a", "b"], start=1, headers=REDELIVERED)
    for planned_at in (None, time.time(), time.time()):
        await bring(store, batch, planned_at)
    assert await figures(store) == rows(2)


async def test_row_in_one_table_alone_is_completed(database: Database) -> None:
    """A batch that was given up between the tables leaves no gap: each table is asked for itself."""
    store = database[1]
    batch = batch_of(["a", "b"])
    await LogTables(store).insert({"events": batch.tables["events"]}, batch.token)
    await bring(store, batch_of(["a", "b"], start=2, headers=REDELIVERED))
    assert await figures(store) == rows(2)


async def test_late_insert_of_a_paused_sink_is_dropped(database: Database) -> None:
    """The insert that a replaced sink had sent lands behind its successor's: the same token, no second copy."""
    store = database[1]
    await bring(store, batch_of(["a"]))
    batch = batch_of(["a", "b", "c"], start=1, headers=REDELIVERED)
    present = await LogTables(store).present("requests", batch.suspects, batch.token)
    left_out = {"events": await LogTables(store).present("events", batch.suspects, batch.token), "requests": present}
    late = batch.without(left_out)
    await bring(store, batch, time.time())
    await LogTables(store).insert(late.tables, late.token)
    assert await figures(store) == rows(3)


@pytest.mark.parametrize("part", ["nothing", "events", "one day", "all", "no view"])
async def test_plan_beyond_the_window_is_completed_by_id(
    database: Database, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an old try had brought in: the tables hold each row once, and the view equals them."""
    monkeypatch.setattr(delivering, "_LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(sink_delivery, "INSERT_LASTS_S", 0.05)
    store = database[1]
    batch = batch_of([f"r-{i}" for i in range(20)])
    if part == "events":
        await LogTables(store).insert({"events": batch.tables["events"]}, batch.token)
    elif part == "one day":
        even = {event_id(f"r-{i}", kind).int for i in range(0, 20, 2) for kind in ("cache.hit", "result.published")}
        await LogTables(store).insert(batch.without({"events": even, "requests": even}).tables, batch.token)
    elif part in ("all", "no view"):
        await LogTables(store).insert(batch.tables, batch.token)
    if part == "no view":
        await store.command("TRUNCATE TABLE requests_per_minute_states")
    await forget_tokens(store)
    await bring(store, batch, OLD)
    assert await figures(store) == rows(24)


async def test_view_that_was_not_reached_is_mended(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that died between table and view, and remembers the token in both: the minutes are made anew."""
    monkeypatch.setattr(delivering, "_LOOK_AGAIN_S", 0.05)
    store = database[1]
    batch = batch_of([f"r-{i}" for i in range(30)])
    await bring(store, batch)
    expected = (await store.query("SELECT * FROM requests_per_minute ORDER BY ALL")).rows
    await store.query("ALTER TABLE requests_per_minute_states DELETE WHERE 1", settings={"mutations_sync": 2})
    assert (await figures(store))[2] == (0,)
    await bring(store, batch, time.time())
    assert (await store.query("SELECT * FROM requests_per_minute ORDER BY ALL")).rows == expected


async def test_rows_that_a_known_token_lost_are_inserted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that remembers a token without its rows gets them under a token of their own."""
    monkeypatch.setattr(delivering, "_LOOK_AGAIN_S", 0.05)
    store = database[1]
    batch = batch_of(["a", "b", "c"])
    await bring(store, batch)
    for table in ("events", "requests"):
        await store.query(f"ALTER TABLE {table} DELETE WHERE 1", settings={"mutations_sync": 2})
    await store.command("TRUNCATE TABLE requests_per_minute_states")
    await bring(store, batch, time.time())
    assert (await figures(store))[:2] == rows(3)[:2]
    assert (await store.query("SELECT uniqExact(batch) FROM events")).rows == [(1,)]


async def test_poison_rows_are_found_and_buried(database: Database) -> None:
    """Rows that a table refuses cost only themselves; both of their rows stay out, the reason is kept."""
    store = database[1]
    await store.command("ALTER TABLE requests MODIFY COLUMN instance FixedString(1)")
    letters = Letters()
    names = [f"r-{i}" for i in range(20)]
    names[7], names[13] = "poison-7", "poison-13"
    await bring(store, batch_of(names), letters=letters)
    assert len(letters.sent) == 2
    assert all("requests:" in line.error and reason == "POISON_ROW" for line, reason in letters.sent)
    assert (await figures(store))[1:] == [(18, 18), (18,)]
    assert [row[0] for row in (await store.query("SHOW TABLES LIKE '%probe'")).rows] == []


async def test_wrong_table_is_not_taken_for_poison(database: Database) -> None:
    """A table that takes nothing at all stops the sink; nothing is sent to the dead letters."""
    store = database[1]
    await store.command("ALTER TABLE requests DROP COLUMN instance")
    letters = Letters()
    with pytest.raises(EventStoreError) as refused:
        await bring(store, batch_of(["a"]), letters=letters)
    assert not refused.value.retryable
    assert letters.sent == []


async def test_rows_of_a_partition_are_noticed(database: Database) -> None:
    """Whether rows of a partition are there is told without a commit; a longer number is another partition."""
    store = database[1]
    tables = LogTables(store)
    assert not await tables.has_rows("inference.events", 0)
    await bring(store, batch_of(["a"]))
    assert await tables.has_rows("inference.events", 0)
    assert not await tables.has_rows("inference.events", 1)
    assert not await tables.has_rows("inference.event", 0)


async def test_self_check_counts_what_is_missing(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Rows that vanished after their acknowledgement are counted and named; complete batches are silent."""
    store = database[1]
    registry = CollectorRegistry()
    metrics = SinkMetrics.on(registry)
    check = SelfCheck(LogTables(store), metrics)
    whole, damaged = batch_of(["a", "b"]), batch_of(["c", "d"], start=2)
    for batch in (whole, damaged):
        check.note(await bring(store, batch))
    await store.query("ALTER TABLE requests DELETE WHERE request_id = 'c'", settings={"mutations_sync": 2})
    await check.look()
    wrong = {"table": "requests", "kind": "missing"}
    assert registry.get_sample_value("inference_sink_rows_wrong_total", wrong) == 1
    assert f"batch {damaged.token} has 1 rows, expected 2" in caplog.text
    assert whole.token not in caplog.text
    await check.look()
    assert registry.get_sample_value("inference_sink_rows_wrong_total", wrong) == 1


async def test_many_ids_are_looked_up(database: Database) -> None:
    """A look-up of more ids than one query carries finds them all."""
    store = database[1]
    batch = batch_of([f"r-{i}" for i in range(12_000)])
    await bring(store, batch)
    tables = LogTables(store)
    assert await tables.present("events", batch.ids("events"), "other") == batch.ids("events")
    assert await tables.present("events", batch.ids("events"), batch.token) == set()
