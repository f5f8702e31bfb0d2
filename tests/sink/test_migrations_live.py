"""The log's tables on a real ClickHouse: migrations, deduplication, expiry, the view's figures."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.config import ClickHouseSettings
from pipeline.core.event_batch import BatchDraft, BatchLimits, EventBatch, EventRecord
from pipeline.errors import EventStoreError
from pipeline.ports import InsertBlock
from pipeline.sink.migrations import load_migrations, migrate
from tests.sink.event_records import binary_end, binary_result, end, event, record

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]
Database = tuple[ClickHouseSettings, ClickHouseEventStore]


def batch_of(*values: bytes, start: int = 0) -> EventBatch:
    draft = BatchDraft("inference.events", 0, start, BatchLimits(100_000, 1 << 26))
    for offset, value in enumerate(values, start=start):
        assert draft.offer(EventRecord.of(offset, value))
    return draft.finish()


async def insert(store: ClickHouseEventStore, batch: EventBatch) -> None:
    await store.insert([InsertBlock(table, columns) for table, columns in batch.tables.items()], batch.token)


async def test_migrations_run_twice(database: Database) -> None:
    """A second run, and two at once, change nothing."""
    settings, store = database
    assert await migrate(settings) == []
    await asyncio.gather(migrate(settings), migrate(settings))
    answer = await store.query("SELECT count(), uniqExact(number) FROM schema_migrations FINAL")
    assert answer.rows == [(len(load_migrations()), len(load_migrations()))]


async def test_runners_at_once_agree(clickhouse_url: str) -> None:
    """Two first runs at the same time leave one set of tables."""
    settings = ClickHouseSettings(url=clickhouse_url, database="test_at_once")
    try:
        await asyncio.gather(migrate(settings), migrate(settings))
        assert await migrate(settings) == []
    finally:
        async with ClickHouseEventStore(settings, database="") as server:
            await server.command("DROP DATABASE IF EXISTS test_at_once")


async def test_changed_migration_is_refused(database: Database) -> None:
    """A file that differs from what was applied stops the run and is named."""
    settings, _ = database
    first, *rest = load_migrations()
    with pytest.raises(EventStoreError, match=r"0001_events\.sql differs") as refused:
        await migrate(settings, [replace(first, checksum="0" * 64), *rest])
    assert not refused.value.retryable


async def test_repeated_insert_keeps_one_copy(database: Database) -> None:
    """A block that is sent three times is there once, in the base tables and in the view."""
    _, store = database
    values = [record(event(f"r-{i}"), end(f"r-{i}", total_us=i)) for i in range(500)]
    batch = batch_of(*values)
    for _ in range(3):
        await insert(store, batch)
    assert (await store.query("SELECT count(), uniqExact(event_id) FROM events")).rows == [(1000, 1000)]
    assert (await store.query("SELECT count(), uniqExact(request_id) FROM requests")).rows == [(500, 500)]
    assert (await store.query("SELECT sum(requests) FROM requests_per_minute")).rows == [(500,)]
    assert (await store.query("SELECT DISTINCT batch FROM requests")).rows == [(batch.token,)]


async def test_interrupted_insert_is_completed(database: Database) -> None:
    """A crash between the tables of a batch leaves nothing double when the batch is repeated."""
    _, store = database
    batch = batch_of(*[record(event(f"r-{i}"), end(f"r-{i}")) for i in range(20)])
    await store.insert([InsertBlock("events", batch.tables["events"])], batch.token)
    await insert(store, batch)
    assert (await store.query("SELECT count() FROM events")).rows == [(40,)]
    assert (await store.query("SELECT sum(requests) FROM requests_per_minute")).rows == [(20,)]


async def test_stored_bytes_are_the_record(database: Database) -> None:
    """The result's bytes, raw tensors included, come back as they were."""
    _, store = database
    raw = bytes(range(256))
    await insert(store, batch_of(record(binary_end("r-1", raw))))
    answer = await store.query_raw("SELECT hex(result) FROM requests", "TabSeparated")
    assert bytes.fromhex(answer.decode()) == binary_result("r-1", raw)
    answer = await store.query_raw("SELECT source_ip, requested_at, event_id FROM requests, events", "TabSeparated")
    assert answer.startswith(b"::ffff:203.0.113.7\t2026-11-22 22:00:00.123456\t")


async def test_expired_rows_leave_all_tables(database: Database) -> None:
    """Rows whose time is over go from both tables and from the view; the others stay."""
    _, store = database
    past = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    for table in ("events", "requests", "requests_per_minute_states"):
        await store.command(f"ALTER TABLE {table} MODIFY SETTING merge_with_ttl_timeout = 0")
    old = [record(end(f"old-{i}", expires_at=past, requests_expires_at=past)) for i in range(10)]
    await insert(store, batch_of(*old, *[record(end(f"live-{i}")) for i in range(3)]))
    for table in ("events", "requests", "requests_per_minute_states"):
        await store.command(f"OPTIMIZE TABLE {table} FINAL")
    assert (await store.query("SELECT count() FROM events")).rows == [(3,)]
    assert (await store.query("SELECT count() FROM requests")).rows == [(3,)]
    assert (await store.query("SELECT sum(requests) FROM requests_per_minute")).rows == [(3,)]


async def test_view_equals_recomputation(database: Database) -> None:
    """Each figure of `requests_per_minute` is what the base table gives, before and after merges."""
    _, store = database
    began = datetime(2026, 11, 22, 22, tzinfo=UTC)
    for start in range(0, 900, 300):
        values = [
            record(
                end(
                    f"r-{i}",
                    total_us=i * 7919 % 1000,
                    completed_at=(began + timedelta(seconds=i)).isoformat(),
                    model_name=f"m-{i % 3}",
                    requests_expires_at=f"2099-12-{22 + i % 2}T22:00:00Z",
                )
            )
            for i in range(start, start + 300)
        ]
        await insert(store, batch_of(*values, start=start))
    recomputed = """SELECT toStartOfMinute(toDateTime(completed_at, 'UTC')) AS m, model_name, model_version, status,
        cache_status, count(), quantileExact(0.5)(total_us), quantileExact(0.95)(total_us),
        quantileExact(0.99)(total_us), sum(input_bytes), sum(output_bytes)
        FROM requests GROUP BY m, model_name, model_version, status, cache_status ORDER BY ALL"""
    expected = (await store.query(recomputed)).rows
    assert len(expected) == 45
    assert (await store.query("SELECT * FROM requests_per_minute ORDER BY ALL")).rows == expected
    await store.command("OPTIMIZE TABLE requests_per_minute_states FINAL")
    assert (await store.query("SELECT * FROM requests_per_minute ORDER BY ALL")).rows == expected


async def test_hit_rates_are_those_of_the_requests(database: Database) -> None:
    """`cache_per_minute` counts each way of meeting the cache; its rate is of those that asked it, NULL where none."""
    _, store = database
    began = datetime(2026, 11, 22, 22, tzinfo=UTC)
    met = {
        ("digits", 0): {"hit": 6, "miss": 2, "coalesced": 1, "refresh": 1, "bypass": 7, "": 2},
        ("digits", 1): {"hit": 3},
        ("echo", 0): {"bypass": 4},
        ("echo", 1): {"": 1},
    }
    values = [
        record(
            end(
                f"{model}-{minute}-{status}-{number}",
                model_name=model,
                cache_status=status,
                # Failures among the hits and misses have rows of their own in the view beneath.
                status="failed" if number == 0 else "succeeded",
                completed_at=(began + timedelta(minutes=minute, seconds=number)).isoformat(),
            )
        )
        for (model, minute), counts in met.items()
        for status, count in counts.items()
        for number in range(count)
    ]
    await insert(store, batch_of(*values))
    columns = "model_name, minute, requests, hits, coalesced, misses, refreshes, bypassed, hit_rate"
    found = (await store.query(f"SELECT {columns} FROM cache_per_minute ORDER BY model_name, minute")).rows
    later = began + timedelta(minutes=1)
    assert [(row[0], row[1].replace(tzinfo=UTC), *row[2:]) for row in found] == [
        ("digits", began, 19, 6, 1, 2, 1, 7, 0.6),
        ("digits", later, 3, 3, 0, 0, 0, 0, 1.0),
        ("echo", began, 4, 0, 0, 0, 0, 4, None),
        ("echo", later, 1, 0, 0, 0, 0, 0, None),
    ]
