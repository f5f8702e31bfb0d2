"""Looks again at the batches of the last minutes: does ClickHouse have the rows that their commits promise?"""

import asyncio
import logging
import time
from collections import deque

from pipeline.core.event_batch import EventBatch
from pipeline.errors import EventStoreError
from pipeline.sink.log_tables import LogTables
from pipeline.sink.metrics import SinkMetrics

_log = logging.getLogger(__name__)

_INTERVAL_S = 60.0
# One partition at a batch per second for two minutes; a sink of more partitions looks at its latest batches alone.
_BATCHES_MAX = 120


class SelfCheck:
    """Compares row counts by token once a minute.

    A difference is an error of ours or of the server (rows lost after their acknowledgement), which nothing here
    mends: it is told once per batch, and counted.
    """

    def __init__(self, tables: LogTables, metrics: SinkMetrics) -> None:
        self._tables = tables
        self._metrics = metrics
        self._batches: deque[tuple[str, dict[str, tuple[int, tuple[int, int]]]]] = deque(maxlen=_BATCHES_MAX)

    def note(self, batch: EventBatch) -> None:
        """A batch was inserted and its end committed. Rows that expire before they are looked at are not counted."""
        living = time.time() + 3 * _INTERVAL_S
        expected = {
            table: (count, batch.span(table))
            for table, count in batch.row_counts.items()
            if min(batch.tables[table]["expires_at"]) > living
        }
        self._batches.append((batch.token, expected))

    async def run(self) -> None:
        """Looks until it is cancelled; a server that does not answer is asked again a minute later."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            try:
                await self.look()
            except EventStoreError as error:
                _log.debug("not looked at: %s", error)

    async def look(self) -> None:
        """Compares all noted batches, and forgets them.

        Raises:
            EventStoreError: refused, or not reached; they are looked at the next time.
        """
        noted = dict(self._batches)
        for table in ("events", "requests"):
            expected = {token: tables[table] for token, tables in noted.items() if table in tables}
            if not expected:
                continue
            spans = [span for _, span in expected.values()]
            whole = (min(first for first, _ in spans), max(last for _, last in spans))
            found = await self._tables.counts(table, expected.keys(), whole)
            for token, (count, _) in expected.items():
                self._compare(table, token, count, found.get(token, 0))
        self._batches = deque((one for one in self._batches if one[0] not in noted), _BATCHES_MAX)

    def _compare(self, table: str, token: str, expected: int, found: int) -> None:
        if found == expected:
            return
        kind = "missing" if found < expected else "double"
        self._metrics.rows_wrong.labels(table, kind).inc(abs(found - expected))
        _log.error(
            "%s: batch %s has %d rows, expected %d; `pipeline doctor` says what to do", table, token, found, expected
        )
