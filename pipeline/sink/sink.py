"""The events topic -> ClickHouse, without a lost or a double row.

One lane per assigned partition: fetch, collect a batch, then commit its plan, insert it, commit its end. Lanes run at
the same time, batches of one lane strictly one after the other. Whatever happens between plan and end, the range is
inserted again exactly as it was, and ClickHouse keeps one copy (see `commit_plan`). While ClickHouse is down the lanes
wait with what they hold, fetching pauses, and heartbeats go on.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from pipeline.core.event_batch import EventBatch
from pipeline.errors import EventStoreError
from pipeline.ports import EventStore, InsertBlock
from pipeline.sink.commit_plan import CommitReader, plan_metadata
from pipeline.sink.dead_letters import DeadLetters
from pipeline.sink.lane import Lane, LaneOptions
from pipeline.sink.metrics import SinkMetrics
from pipeline.sink.outage import Outage, retry_pause_s

_log = logging.getLogger(__name__)

# How long one fetch may wait for records; also how soon a stop is noticed.
_POLL_MS = 200
# Inserts at a time: ClickHouse writes each with a thread of its own, and rows of more are only held in memory longer.
_INSERTS_MAX = 4
# An insert takes 2 s at most where things are well. A revoked partition waits this long for it, well below the session
# timeout; then its successor repeats it.
_REVOKE_WAIT_S = 5.0


@dataclass(slots=True)
class _Assignment:
    """One assigned partition at work."""

    partition: TopicPartition
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    lane: Lane | None = None
    task: asyncio.Task[None] | None = None
    is_delivering: bool = False
    committed: int | None = None


class EventSink(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no type information
    """Moves event records of the partitions it is assigned.

    Args:
        consumer: started, in the sink's group, without automatic commits, not subscribed yet.
        topic: the events topic.
        store: where rows go.
        dead_letters: where lines go that are no events.
        read_commit: reads the group's commit of a partition.
        lane_options: batch limits and wait.
        metrics: collectors.
        rng: jitter of retries.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        topic: str,
        *,
        store: EventStore,
        dead_letters: DeadLetters,
        read_commit: CommitReader,
        lane_options: LaneOptions,
        metrics: SinkMetrics,
        rng: random.Random,
    ) -> None:
        self._consumer = consumer
        self._topic = topic
        self._store = store
        self._dead_letters = dead_letters
        self._read_commit = read_commit
        self._lane_options = lane_options
        self._metrics = metrics
        self._rng = rng
        self._assignments: dict[TopicPartition, _Assignment] = {}
        self._inserts = asyncio.Semaphore(_INSERTS_MAX)
        self._failure: BaseException | None = None
        self._has_joined = False
        loop = asyncio.get_running_loop()
        self._clickhouse = Outage("ClickHouse", loop.time)
        self._kafka = Outage("Kafka", loop.time)

    def ready(self) -> dict[str, str]:
        """Why rows do not flow, by the name of what is missing; empty when they do."""
        reasons = {"clickhouse": self._clickhouse.reason, "kafka": self._kafka.reason}
        if not self._has_joined:
            reasons["kafka"] = reasons["kafka"] or "the consumer group has not been joined yet"
        return {name: reason for name, reason in reasons.items() if reason}

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set; a running insert is finished and committed first.

        Raises:
            EventStoreError: ClickHouse refused rows that were validated, which only a person can mend.
            KafkaError: Kafka refused for good, e.g. for want of a permission.
            TopicError: the topic was made anew under the sink.
        """
        self._consumer.subscribe([self._topic], listener=self)
        try:
            while not stop.is_set() and self._failure is None:
                await self._poll()
        finally:
            await self._close(list(self._assignments))
        if self._failure is not None:
            raise self._failure

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Opens a lane for each partition; nothing is fetched before its commit was read."""
        self._has_joined = True
        partitions = list(assigned)
        self._consumer.pause(*partitions)
        for partition in partitions:
            work = _Assignment(partition)
            work.task = asyncio.create_task(self._run_lane(work), name=f"lane {partition.partition}")
            work.task.add_done_callback(self._note_failure)
            self._assignments[partition] = work

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Lets running inserts finish and commit, within limits, while the commits still count."""
        await self._close(revoked)

    async def _poll(self) -> None:
        try:
            fetched = await self._consumer.getmany(timeout_ms=_POLL_MS)
        except KafkaError as error:
            if not error.retriable:
                raise
            self._kafka.met(error)
            await asyncio.sleep(_POLL_MS / 1000)
            return
        self._kafka.over()
        now = asyncio.get_running_loop().time()
        for partition, records in fetched.items():
            work = self._assignments.get(partition)
            if work is None or work.lane is None:
                continue  # revoked since the fetch; whoever owns it next seeks to the commit
            for record in records:
                work.lane.append(record.offset, record.value, now)
            if work.lane.is_full:
                self._consumer.pause(partition)
        for work in list(self._assignments.values()):
            await self._look_at(work)

    async def _look_at(self, work: _Assignment) -> None:
        """Lag, and the position: a gap at the end of a planned range shows only there."""
        lane = work.lane
        if lane is None:
            return
        highwater = self._consumer.highwater(work.partition)
        if highwater is not None and work.committed is not None:
            self._metrics.lag_records.labels(work.partition.partition).set(max(0, highwater - work.committed))
        if lane.planned_end is not None and not lane.is_full:
            try:
                async with asyncio.timeout(_POLL_MS / 1000):
                    lane.reach(await self._consumer.position(work.partition))
            except (TimeoutError, IllegalStateError):
                return  # being reset, or revoked: the next round sees it

    async def _run_lane(self, work: _Assignment) -> None:
        """Inserts batch after batch; the next one is fetched and decoded meanwhile, and not one more."""
        lane = work.lane = await self._open(work)
        upcoming = self._take_next(work, lane)
        try:
            while not work.closing.is_set():
                batch = await upcoming
                work.is_delivering = True
                upcoming = self._take_next(work, lane)
                await self._deliver(work, batch)
                work.is_delivering = False
        except (CommitFailedError, IllegalStateError) as error:
            _log.info("%s: left to its next owner: %s", work.partition, error)
        finally:
            upcoming.cancel()

    def _take_next(self, work: _Assignment, lane: Lane) -> asyncio.Task[EventBatch]:
        async def take() -> EventBatch:
            self._consumer.resume(work.partition)
            batch = await lane.take()
            self._consumer.pause(work.partition)
            return batch

        return asyncio.create_task(take(), name=f"batch of {work.partition.partition}")

    async def _open(self, work: _Assignment) -> Lane:
        """The lane at the group's commit, and the consumer there too."""
        partition = work.partition
        while True:
            try:
                commit = await self._read_commit(partition)
                first = (await self._consumer.beginning_offsets([partition]))[partition]
                end = (await self._consumer.end_offsets([partition]))[partition]
                break
            except KafkaError as error:
                if not error.retriable:
                    raise
                self._kafka.met(error)
                await asyncio.sleep(retry_pause_s(2, self._rng))
        start, planned_end = commit if commit is not None else (first, None)
        if start > end:
            _log.warning(
                "%s: commit %d is past its end %d: the topic was made anew, begun again", partition, start, end
            )
            start, planned_end = first, None
        self._consumer.seek(partition, start)
        work.committed = start
        self._metrics.lag_records.labels(partition.partition).set(end - start)
        return Lane(partition.topic, partition.partition, start, planned_end, self._lane_options)

    async def _deliver(self, work: _Assignment, batch: EventBatch) -> None:
        """Plan, insert, end: each committed before the next begins.

        Raises:
            CommitFailedError, IllegalStateError: the partition is somebody else's by now.
            EventStoreError: refused for good; nothing but the plan is committed.
        """
        await self._commit(work.partition, batch.start, plan_metadata(batch.end))
        if batch.rejected and not await self._retried(work, self._kafka, lambda: self._bury(batch)):
            return
        if not await self._retried(work, self._clickhouse, lambda: self._insert(batch)):
            return
        await self._commit(work.partition, batch.end, "")
        work.committed = batch.end
        self._metrics.batches.inc()

    async def _commit(self, partition: TopicPartition, offset: int, metadata: str) -> None:
        await self._consumer.commit({partition: OffsetAndMetadata(offset, metadata)})

    async def _retried(self, work: _Assignment, outage: Outage, step: Callable[[], Awaitable[None]]) -> bool:
        """Runs a step until it succeeds, or answers False once the partition is to be left."""
        attempt = 0
        while True:
            try:
                await step()
            except (EventStoreError, KafkaError) as error:
                if not (error.retryable if isinstance(error, EventStoreError) else error.retriable):
                    raise
                attempt += 1
                outage.met(error)
                self._metrics.retries.inc()
                try:
                    async with asyncio.timeout(retry_pause_s(attempt, self._rng)):
                        await work.closing.wait()
                except TimeoutError:
                    continue
                return False
            outage.over()
            return True

    async def _bury(self, batch: EventBatch) -> None:
        await self._dead_letters.send(batch.topic, batch.partition, batch.rejected)
        self._metrics.dead_lines.inc(len(batch.rejected))
        first = batch.rejected[0]
        _log.warning(
            "%s-%d: %d lines are no events, sent to the dead letters; the first, at offset %d: %s",
            batch.topic, batch.partition, len(batch.rejected), first.offset, first.error,
        )  # fmt: skip

    async def _insert(self, batch: EventBatch) -> None:
        loop = asyncio.get_running_loop()
        async with self._inserts:
            began_at = loop.time()
            blocks = [InsertBlock(table, columns) for table, columns in batch.tables.items()]
            await self._store.insert(blocks, batch.token)
            self._metrics.insert_seconds.observe(loop.time() - began_at)
        for table, rows in batch.row_counts.items():
            self._metrics.rows.labels(table).inc(rows)

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self._failure is None:
            self._failure = error

    async def _close(self, partitions: Iterable[TopicPartition]) -> None:
        tasks = set()
        for partition in partitions:
            work = self._assignments.pop(partition, None)
            if work is None or work.task is None:
                continue
            work.closing.set()
            if not work.is_delivering:
                work.task.cancel()
            tasks.add(work.task)
            if work.committed is not None:
                self._metrics.lag_records.remove(partition.partition)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_REVOKE_WAIT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # failures are kept by `_note_failure`
