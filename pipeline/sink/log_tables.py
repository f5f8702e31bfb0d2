"""The log's tables as the sink asks them: what is there, under which token, and whether the view equals its base."""

import time
from collections.abc import Mapping, Set
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.core.event_batch import TIME_COLUMNS, Columns
from pipeline.core.sink_delivery import Held
from pipeline.ports import InsertBlock

# Ids of one look-up are text in its query: 20,000 are 740 kB. A look-up of more reads the column again.
_IDS_MAX = 20_000
_LOOK_SETTINGS = {
    "max_query_size": 4 << 20,
    # Where tables are replicated with a quorum, what another replica has acknowledged is seen.
    "select_sequential_consistency": 1,
}
_KEYS = "minute, model_name, model_version, status, cache_status, day"
_MINUTE = "toStartOfMinute(toDateTime(completed_at, 'UTC'))"
# Rows that expire today may be gone from one of the two already: their days are dropped part by part.
_DIFFERENCES = f"""
SELECT {_KEYS}, sum(n) AS requests_missing, sum(i), sum(o)
FROM
(
    SELECT {_MINUTE} AS minute, model_name, model_version, status, cache_status, toDate(expires_at) AS day,
        toInt64(count()) AS n, toInt64(sum(input_bytes)) AS i, toInt64(sum(output_bytes)) AS o
    FROM requests
    WHERE completed_at >= fromUnixTimestamp64Micro({{first:Int64}}, 'UTC')
        AND completed_at < fromUnixTimestamp64Micro({{end:Int64}}, 'UTC') AND toDate(expires_at) > toDate(now('UTC'))
    GROUP BY {_KEYS}
    UNION ALL
    SELECT minute, model_name, model_version, status, cache_status, toDate(expires_at) AS day,
        -toInt64(sum(requests)) AS n, -toInt64(sum(input_bytes)) AS i, -toInt64(sum(output_bytes)) AS o
    FROM requests_per_minute_states
    WHERE minute >= toDateTime(intDiv({{first:Int64}}, 1000000), 'UTC')
        AND minute < toDateTime(intDiv({{end:Int64}}, 1000000), 'UTC') AND toDate(expires_at) > toDate(now('UTC'))
    GROUP BY {_KEYS}
)
GROUP BY {_KEYS}
HAVING sum(n) != 0 OR sum(i) != 0 OR sum(o) != 0
ORDER BY ALL
"""  # noqa: S608 - constants
# As in migrations/0003_requests_per_minute.sql.
_STATES = f"""
INSERT INTO requests_per_minute_states
SELECT {_MINUTE} AS minute, r.model_name AS model_name, r.model_version AS model_version, r.status AS status,
    r.cache_status AS cache_status, count() AS requests, quantilesExactState(0.5, 0.95, 0.99)(r.total_us) AS total_us,
    sum(r.input_bytes) AS input_bytes, sum(r.output_bytes) AS output_bytes, max(r.expires_at) AS expires_at
FROM requests AS r
WHERE {_MINUTE} = toDateTime({{minute:UInt32}}, 'UTC') AND toDate(r.expires_at) = {{day:Date}}
GROUP BY minute, model_name, model_version, status, cache_status, toDate(r.expires_at)
"""  # noqa: S608 - constants
_MINUTE_US = 60_000_000


class Difference(NamedTuple):
    """A group of the view whose sums are not those of its base.

    Attributes:
        minute: Unix time in seconds.
        day: the day of expiry, YYYY-MM-DD.
        requests_missing: rows of the base less those that the view counts.
        figures: all that was compared, so that two looks can be.
    """

    minute: int
    day: str
    requests_missing: int
    figures: tuple[object, ...]


class LogTables:
    """The tables `events`, `requests` and the view's states.

    Args:
        store: the database they are in.

    All methods raise `EventStoreError`: refused, or not reached.
    """

    def __init__(self, store: ClickHouseEventStore) -> None:
        self._store = store

    async def insert(self, tables: Mapping[str, Columns], token: str) -> None:
        """Inserts each table's rows once, however often they are sent with the same token."""
        await self._store.insert([InsertBlock(table, columns) for table, columns in tables.items()], token)

    async def present(self, table: str, event_ids: Set[int], token: str) -> set[int]:
        """Which of these events the table has under another token."""
        found: set[int] = set()
        ids = iter(event_ids)
        while some := ",".join(str(UUID(int=event_id)) for event_id in islice(ids, _IDS_MAX)):
            answer = await self._store.query(
                f"SELECT DISTINCT event_id FROM {table} "  # noqa: S608 - a name and ids of our own
                f"WHERE event_id IN (SELECT toUUID(arrayJoin(splitByChar(',', '{some}')))) "
                "AND batch != {token:String}",
                {"token": token},
                _LOOK_SETTINGS,
            )
            found.update(event_id.int for (event_id,) in answer.rows)
        return found

    async def held(self, table: str, token: str, span: tuple[int, int]) -> Held:
        """What the table has under this token, between two times in microseconds since the epoch."""
        column = TIME_COLUMNS[table]
        rows = await self._store.query(
            f"SELECT event_id, _part FROM {table} WHERE batch = {{token:String}} "  # noqa: S608 - names of our own
            f"AND {column} >= fromUnixTimestamp64Micro({{first:Int64}}, 'UTC') "
            f"AND {column} <= fromUnixTimestamp64Micro({{last:Int64}}, 'UTC')",
            {"token": token, "first": span[0], "last": span[1]},
            _LOOK_SETTINGS,
        )
        newest = await self._store.query(
            "SELECT max(max_block_number) FROM system.parts "
            "WHERE database = currentDatabase() AND table = {table:String}",
            {"table": table},
        )
        event_ids = frozenset(event_id.int for event_id, _ in rows.rows)
        # A part is named partition_first-block_last-block_level.
        first = min((int(part.split("_")[1]) for _, part in rows.rows), default=0)
        return Held(event_ids, newest.rows[0][0] - first, time.time())

    async def has_rows(self, topic: str, partition: int) -> bool:
        """Whether any row came from this partition. Reads one column of the tables where none did."""
        for table in TIME_COLUMNS:
            answer = await self._store.query(
                f"SELECT 1 FROM {table} WHERE startsWith(batch, {{place:String}}) LIMIT 1",  # noqa: S608 - a constant
                {"place": f"{topic}/{partition}/"},
            )
            if answer.rows:
                return True
        return False

    async def counts(self, table: str, tokens: Set[str], span: tuple[int, int]) -> dict[str, int]:
        """Rows by token, between two times in microseconds since the epoch."""
        column = TIME_COLUMNS[table]
        answer = await self._store.query(
            f"SELECT batch, count() FROM {table} WHERE batch IN {{tokens:Array(String)}} "  # noqa: S608 - our names
            f"AND {column} >= fromUnixTimestamp64Micro({{first:Int64}}, 'UTC') "
            f"AND {column} <= fromUnixTimestamp64Micro({{last:Int64}}, 'UTC') GROUP BY batch",
            {"tokens": sorted(tokens), "first": span[0], "last": span[1]},
            _LOOK_SETTINGS,
        )
        return {batch: int(count) for batch, count in answer.rows}

    async def differences(self, span: tuple[int, int]) -> list[Difference]:
        """Groups of the minutes in this span of microseconds where the view is not equal to its base."""
        first = span[0] // _MINUTE_US * _MINUTE_US
        end = (span[1] // _MINUTE_US + 1) * _MINUTE_US
        answer = await self._store.query(_DIFFERENCES, {"first": first, "end": end}, _LOOK_SETTINGS)
        return [Difference(int(row[0].timestamp()), str(row[5]), row[6], tuple(row)) for row in answer.rows]

    async def rebuild(self, differences: list[Difference]) -> None:
        """Makes the view's states of these minutes anew from the base."""
        for minute, day in sorted({(one.minute, one.day) for one in differences}):
            await self._store.query(
                "ALTER TABLE requests_per_minute_states DELETE WHERE minute = toDateTime({minute:UInt32}, 'UTC') "
                "AND toDate(expires_at) = {day:Date}",
                {"minute": minute, "day": day},
                {"mutations_sync": 2},
            )
            await self._store.query(_STATES, {"minute": minute, "day": day}, {"insert_deduplicate": 0})

    async def probe(self, table: str, columns: Columns) -> None:
        """Returns if the table would take these rows: its twin takes them, which stores nothing."""
        twin = f"{table}_probe"
        await self._store.command(f"CREATE OR REPLACE TABLE {twin} AS {table} ENGINE = Null")
        try:
            await self._store.insert([InsertBlock(twin, columns)], "probe")
        finally:
            await self._store.command(f"DROP TABLE IF EXISTS {twin}")
