"""Are the rows of the last hour those of the log? Asked by `pipeline doctor`, of ClickHouse and of Kafka."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.core.event_batch import TIME_COLUMNS, BatchDraft, BatchLimits, EventRecord
from pipeline.core.sink_coverage import OffsetRange, gaps_of
from pipeline.sink.log_tables import LogTables

# By the time of their event. At 10,000 rows a second an hour's ids are 0.6 GB for ClickHouse to count.
WINDOW_S = 3600
# Records of gaps that are read again from Kafka.
GAP_RECORDS_MAX = 2_000
# What differs at two looks so far apart is no insert between a table and its view.
_LOOK_AGAIN_S = 5.0
_FETCH_TIMEOUT_MS = 5_000
_NO_LIMITS = BatchLimits(1_000_000, 1 << 30)


class Finding(NamedTuple):
    """What one look found; `mend` says what to do, and is empty where all is well."""

    name: str
    detail: str
    mend: str = ""


async def audit(
    store: ClickHouseEventStore, kafka_options: dict[str, Any], group: str, *, window_s: int = WINDOW_S
) -> list[Finding]:
    """Looks at the rows of the last `window_s` seconds: single, complete, and counted by the view.

    Raises:
        EventStoreError: ClickHouse refused, or was not reached.
        KafkaError: Kafka refused, or was not reached.
    """
    tables = LogTables(store)
    now_us = int(time.time() * 1e6)
    span = (now_us - window_s * 1_000_000, now_us)
    return [
        *[await _single(store, table, span) for table in TIME_COLUMNS],
        await _complete(store, tables, kafka_options, group, span),
        await _counted(tables, span),
    ]


async def _single(store: ClickHouseEventStore, table: str, span: tuple[int, int]) -> Finding:
    column = TIME_COLUMNS[table]
    answer = await store.query(
        f"SELECT count(), uniqExact(event_id) FROM {table} "  # noqa: S608 - names of our own
        f"WHERE {column} >= fromUnixTimestamp64Micro({{first:Int64}}, 'UTC')",
        {"first": span[0]},
    )
    count, ids = answer.rows[0]
    mend = ""
    if count != ids:
        mend = f"group {table} by event_id HAVING count() > 1: the column batch names the inserts that brought them"
    return Finding(f"rows of {table}", f"{count} rows, {ids} distinct", mend)


async def _complete(
    store: ClickHouseEventStore, tables: LogTables, options: dict[str, Any], group: str, span: tuple[int, int]
) -> Finding:
    committed = await _committed(options, group)
    answer = await store.query(
        "SELECT DISTINCT batch FROM events WHERE occurred_at >= fromUnixTimestamp64Micro({first:Int64}, 'UTC')",
        {"first": span[0]},
    )
    tokens = [batch for (batch,) in answer.rows]
    gaps = gaps_of(tokens, committed)
    lost, unread = await _lost(tables, options, gaps)
    detail = f"{len(tokens)} inserts, {len(gaps)} gaps between them, {sum(lost.values())} rows missing"
    if unread:
        detail += f", {unread} records not looked at"
    if not lost:
        return Finding("rows beside offsets", detail)
    first = min(lost)
    mend = f"stop the sinks, set group {group} back to the start of {first}, start them: only what is missing is added"
    return Finding("rows beside offsets", detail, mend)


async def _counted(tables: LogTables, span: tuple[int, int]) -> Finding:
    found = await tables.differences(span)
    if found:
        await asyncio.sleep(_LOOK_AGAIN_S)
        again = await tables.differences(span)
        found = [one for one in found if one in again]
    detail = f"{len(found)} groups differ from requests"
    mend = ""
    if found:
        minutes = ", ".join(time.strftime("%H:%M", time.gmtime(one.minute)) for one in found[:5])
        detail += f", in minutes {minutes} UTC"
        mend = "set the sink's offsets back to before these minutes, by hand: rows stay, the minutes are made anew"
    return Finding("requests_per_minute", detail, mend)


async def _committed(options: dict[str, Any], group: str) -> dict[tuple[str, int], int]:
    admin = AIOKafkaAdminClient(**options)
    try:
        await admin.start()
        commits = await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    return {(place.topic, place.partition): commit.offset for place, commit in commits.items() if commit.offset >= 0}


async def _lost(
    tables: LogTables, options: dict[str, Any], gaps: Sequence[OffsetRange]
) -> tuple[dict[OffsetRange, int], int]:
    """Missing events by gap, and how many records of gaps were not read: gone from the log, or too many."""
    lost: dict[OffsetRange, int] = {}
    unread, left = 0, GAP_RECORDS_MAX
    if not gaps:
        return lost, unread
    async with AIOKafkaConsumer(**options, enable_auto_commit=False, auto_offset_reset="earliest") as consumer:
        for gap in gaps:
            records = await _read(consumer, gap, left)
            left -= len(records)
            unread += gap.end - gap.start - len(records)
            draft = BatchDraft(gap.topic, gap.partition, gap.start, _NO_LIMITS, gap.end)
            for record in records:
                draft.offer(record)
            ids = draft.finish().ids("events")
            if missing := len(ids) - len(await tables.present("events", ids, "")):
                lost[gap] = missing
    return lost, unread


async def _read(consumer: AIOKafkaConsumer, gap: OffsetRange, count: int) -> list[EventRecord]:
    partition = TopicPartition(gap.topic, gap.partition)
    consumer.assign([partition])
    consumer.seek(partition, gap.start)
    records: list[EventRecord] = []
    while len(records) < count and await consumer.position(partition) < gap.end:
        fetched = await consumer.getmany(partition, timeout_ms=_FETCH_TIMEOUT_MS, max_records=count - len(records))
        if not fetched:
            break
        found = [EventRecord.of(one.offset, one.value, one.headers) for one in fetched[partition]]
        records += [record for record in found if gap.start <= record.offset < gap.end]
    return records
