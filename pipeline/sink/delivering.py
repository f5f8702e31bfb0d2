"""Performs the steps of `core/sink_delivery.py` with Kafka and ClickHouse, one step after the other."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from pipeline.core.event_batch import EventBatch, RejectedLine
from pipeline.core.sink_delivery import (
    Bury,
    BuryRows,
    Commit,
    Delivery,
    Insert,
    LookUp,
    MatchMinutes,
    Probe,
    Settle,
    Step,
    Trace,
)
from pipeline.errors import EventStoreError
from pipeline.outage import Outage, retry_pause_s
from pipeline.sink.dead_letters import INVALID_EVENT, POISON_ROW, DeadLetters
from pipeline.sink.log_tables import Difference, LogTables
from pipeline.sink.metrics import SinkMetrics
from pipeline.sink.poison import LineReader

_log = logging.getLogger(__name__)

# Inserts at a time: ClickHouse writes each with a thread of its own, and rows of more are only held in memory longer.
_INSERTS_MAX = 4
# After a plan's commit the partition is ours for a session timeout (6 s at least). An insert that begins later than
# this commits the plan again first: a process that was paused finds out that it was replaced.
_PLAN_TRUSTED_S = 3.0
# The view lags behind its base while an insert runs, 2 s at most where things are well. What differs in the same way
# at two looks so far apart differs for good.
_LOOK_AGAIN_S = 5.0
_LOOKS_MAX = 6


class Deliverer:
    """Brings batches in; used by all lanes at the same time.

    Args:
        consumer: whose commits they are.
        tables: where rows go.
        dead_letters: where lines go that cannot become rows.
        lines: reads a line again.
        metrics: collectors.
        rng: jitter of retries.
        kafka: told when Kafka fails and answers again.
        clickhouse: likewise.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        tables: LogTables,
        dead_letters: DeadLetters,
        lines: LineReader,
        metrics: SinkMetrics,
        *,
        rng: random.Random,
        kafka: Outage,
        clickhouse: Outage,
    ) -> None:
        self._consumer = consumer
        self._tables = tables
        self._dead_letters = dead_letters
        self._lines = lines
        self._metrics = metrics
        self._rng = rng
        self._kafka = kafka
        self._clickhouse = clickhouse
        self._inserts = asyncio.Semaphore(_INSERTS_MAX)
        self._alone = asyncio.Lock()

    async def run(self, delivery: Delivery, batch: EventBatch, closing: asyncio.Event) -> EventBatch | None:
        """Runs a delivery to its end; the batch as inserted, or None once `closing` ended its retries.

        Raises:
            CommitFailedError, IllegalStateError: the partition is somebody else's by now.
            EventStoreError: refused for good; nothing but the plan is committed.
        """
        performing = _Performing(TopicPartition(batch.topic, batch.partition), batch)
        attempt = 0
        step = next(delivery)
        while True:
            try:
                outcome = await self._perform(performing, step)
                if isinstance(step, Insert):
                    attempt = 0
                    self._clickhouse.over()
                step = delivery.send(outcome)
            except StopIteration as ended:
                self._clickhouse.over()  # also where nothing was left to insert
                inserted: EventBatch = ended.value
                return inserted
            except (EventStoreError, KafkaError) as error:
                is_store = isinstance(error, EventStoreError)
                retryable = error.retryable if isinstance(error, EventStoreError) else error.retriable
                if not retryable and not is_store:
                    raise
                if retryable:
                    attempt += 1
                    (self._clickhouse if is_store else self._kafka).met(error)
                    self._metrics.retries.inc()
                    if not await self._paused(attempt, closing):
                        return None
                if is_store:
                    try:
                        step = delivery.throw(error)
                    except StopIteration as ended:  # pragma: no cover - a delivery never ends by an error
                        raise RuntimeError("a delivery ended at an error") from ended

    async def _paused(self, attempt: int, closing: asyncio.Event) -> bool:
        """Waits before the next try; False once the partition is to be left."""
        try:
            async with asyncio.timeout(retry_pause_s(attempt, self._rng)):
                await closing.wait()
        except TimeoutError:
            return True
        return False

    async def _perform(self, performing: "_Performing", step: Step) -> Any:
        match step:
            case Commit():
                await self._commit(performing, step)
            case Insert():
                await self._insert(performing, step)
            case LookUp(table, event_ids, token):
                present = await self._tables.present(table, event_ids, token)
                self._metrics.rows_looked_up.labels(table).inc(len(event_ids))
                self._metrics.rows_left_out.labels(table).inc(len(present))
                return present
            case Trace(table, token, span):
                return await self._tables.held(table, token, span)
            case Settle(seconds):
                await asyncio.sleep(seconds)
            case MatchMinutes(span):
                await self._match_minutes(span)
            case Probe(table, columns):
                await self._tables.probe(table, columns)
            case Bury(lines):
                await self._bury(performing, lines, INVALID_EVENT)
            case BuryRows(reasons):
                lines = tuple(await self._lines.read(performing.batch, reasons))
                await self._bury(performing, lines, POISON_ROW)
        return None

    async def _commit(self, performing: "_Performing", step: Commit) -> None:
        await self._consumer.commit({performing.partition: OffsetAndMetadata(step.offset, step.metadata)})
        performing.committed, performing.committed_at = step, asyncio.get_running_loop().time()

    async def _insert(self, performing: "_Performing", step: Insert) -> None:
        loop = asyncio.get_running_loop()
        async with self._inserts:
            if performing.committed is not None and loop.time() - performing.committed_at > _PLAN_TRUSTED_S:
                await self._commit(performing, performing.committed)
            began_at = loop.time()
            await self._tables.insert(step.tables, step.token)
            self._metrics.insert_seconds.observe(loop.time() - began_at)
        for table, columns in step.tables.items():
            self._metrics.rows.labels(table).inc(len(columns["batch"]))

    async def _bury(self, performing: "_Performing", lines: tuple[RejectedLine, ...], reason: str) -> None:
        partition = performing.partition
        await self._dead_letters.send(partition.topic, partition.partition, lines, reason)
        self._kafka.over()
        self._metrics.dead_lines.inc(len(lines))
        _log.warning(
            "%s: %d lines sent to the dead letters (%s); the first, at offset %d: %s",
            partition, len(lines), reason, lines[0].offset, lines[0].error,
        )  # fmt: skip

    async def _match_minutes(self, span: tuple[int, int]) -> None:
        before: list[Difference] = []
        for _ in range(_LOOKS_MAX):
            async with self._no_insert():
                found = await self._tables.differences(span)
                if not found:
                    return
                if found == before:
                    _log.warning("requests_per_minute: %d groups differ from requests: made anew", len(found))
                    await self._tables.rebuild(found)
                    self._metrics.minutes_rebuilt.inc(len({one.minute for one in found}))
                    if not await self._tables.differences(span):
                        return
            before = found
            await asyncio.sleep(_LOOK_AGAIN_S)
        _log.error(
            "requests_per_minute: %d groups differ from requests and keep changing; `pipeline doctor` looks again",
            len(before),
        )

    @asynccontextmanager
    async def _no_insert(self) -> AsyncIterator[None]:
        """Keeps this process's inserts away: between its base table and its view, each of them is a difference."""
        async with self._alone:
            for _ in range(_INSERTS_MAX):
                await self._inserts.acquire()
            try:
                yield
            finally:
                for _ in range(_INSERTS_MAX):
                    self._inserts.release()


class _Performing:
    """A delivery that runs: its partition, and its last commit."""

    def __init__(self, partition: TopicPartition, batch: EventBatch) -> None:
        self.partition = partition
        self.batch = batch
        self.committed: Commit | None = None
        self.committed_at = 0.0
