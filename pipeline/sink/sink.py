"""The events topic -> ClickHouse, without a lost or a double row.

One lane per assigned partition: fetch, collect a batch, then commit its plan, insert it, commit its end. Lanes run at
the same time, batches of one lane strictly one after the other. Whatever happens between plan and end, the range is
inserted again exactly as it was, and ClickHouse keeps one copy (`core/sink_delivery.py`). While ClickHouse is down the
lanes wait with what they hold, fetching pauses, and heartbeats go on.
"""

import asyncio
import logging
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import TopicPartition

from pipeline.core.event_batch import EventBatch
from pipeline.core.sink_delivery import deliver
from pipeline.core.sink_plan import LogRange, Plan, continued, is_continued, resume
from pipeline.errors import EventStoreError
from pipeline.outage import Outage, retry_pause_s
from pipeline.sink.commit_plan import CommitReader
from pipeline.sink.dead_letters import DeadLetters
from pipeline.sink.delivering import Deliverer
from pipeline.sink.lane import Lane, LaneOptions
from pipeline.sink.log_tables import LogTables
from pipeline.sink.metrics import SinkMetrics
from pipeline.sink.poison import LineReader
from pipeline.sink.self_check import SelfCheck

_log = logging.getLogger(__name__)

# How long one fetch may wait for records; also how soon a stop is noticed.
_POLL_MS = 200
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
        tables: where rows go.
        dead_letters: where lines go that cannot become rows.
        lines: reads a line again.
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
        tables: LogTables,
        dead_letters: DeadLetters,
        lines: LineReader,
        read_commit: CommitReader,
        lane_options: LaneOptions,
        metrics: SinkMetrics,
        rng: random.Random,
    ) -> None:
        self._consumer = consumer
        self._topic = topic
        self._tables = tables
        self._read_commit = read_commit
        self._lane_options = lane_options
        self._metrics = metrics
        self._rng = rng
        self._assignments: dict[TopicPartition, _Assignment] = {}
        self._failure: BaseException | None = None
        self._has_joined = False
        loop = asyncio.get_running_loop()
        self._clickhouse = Outage("ClickHouse", loop.time)
        self._kafka = Outage("Kafka", loop.time)
        self._self_check = SelfCheck(tables, metrics)
        self._deliverer = Deliverer(
            consumer, tables, dead_letters, lines, metrics, rng=rng, kafka=self._kafka, clickhouse=self._clickhouse
        )

    def ready(self) -> dict[str, str]:
        """Why rows do not flow, by the name of what is missing; empty when they do."""
        reasons = {"clickhouse": self._clickhouse.reason, "kafka": self._kafka.reason}
        if not self._has_joined:
            reasons["kafka"] = reasons["kafka"] or "the consumer group has not been joined yet"
        return {name: reason for name, reason in reasons.items() if reason}

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set; a running insert is finished and committed first.

        Raises:
            EventStoreError: ClickHouse refused more than single rows, which only a person can mend.
            KafkaError: Kafka refused for good, e.g. for want of a permission.
            TopicError: the topic was made anew under the sink.
        """
        self._consumer.subscribe([self._topic], listener=self)
        checking = asyncio.create_task(self._self_check.run(), name="self check")
        checking.add_done_callback(self._note_failure)
        try:
            while not stop.is_set() and self._failure is None:
                await self._poll()
        finally:
            checking.cancel()
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
                work.lane.append(record.offset, record.value, record.headers, now)
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
        lane, plan = await self._open(work)
        work.lane = lane
        upcoming = self._take_next(work, lane)
        try:
            while not work.closing.is_set():
                batch = await upcoming
                work.is_delivering = True
                upcoming = self._take_next(work, lane)
                await self._deliver(work, batch, plan)
                work.is_delivering, plan = False, None
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

    async def _open(self, work: _Assignment) -> tuple[Lane, Plan | None]:
        """The lane at the group's commit, the plan found there, and the consumer there too."""
        partition, attempt = work.partition, 0
        while True:
            try:
                commit = await self._read_commit(partition)
                first = (await self._consumer.beginning_offsets([partition]))[partition]
                end = (await self._consumer.end_offsets([partition]))[partition]
                log = LogRange(first, end)
                # A new partition has nothing to ask for: nobody can have inserted from it.
                has_rows = end > 0 and not is_continued(commit, log)
                if has_rows:
                    has_rows = await self._tables.has_rows(partition.topic, partition.partition)
                    self._clickhouse.over()
                break
            except (KafkaError, EventStoreError) as error:
                is_store = isinstance(error, EventStoreError)
                if not (error.retryable if isinstance(error, EventStoreError) else error.retriable):
                    raise
                (self._clickhouse if is_store else self._kafka).met(error)
                attempt += 1
                await asyncio.sleep(retry_pause_s(attempt, self._rng))
        resumption = resume(commit, log, self._partitions(), has_rows=has_rows, now=time.time())
        if resumption.told:
            _log.warning("%s: %s", partition, resumption.told)
        self._consumer.seek(partition, resumption.start)
        work.committed = resumption.start
        self._metrics.lag_records.labels(partition.partition).set(end - resumption.start)
        return Lane(partition.topic, partition.partition, resumption, self._lane_options), resumption.plan

    async def _deliver(self, work: _Assignment, batch: EventBatch, found: Plan | None) -> None:
        """Plan, insert, end: each committed before the next begins.

        Raises:
            CommitFailedError, IllegalStateError: the partition is somebody else's by now.
            EventStoreError: refused for good; nothing but the plan is committed.
        """
        batch, plan, repeated = continued(batch, found, time.time())
        if found is not None and not repeated:
            _log.warning(
                "%s: offsets %d to %d are not what was planned there: each row is looked up before it is inserted",
                work.partition, batch.start, batch.end,
            )  # fmt: skip
        delivery = deliver(batch, plan, self._partitions(), repeated=repeated)
        inserted = await self._deliverer.run(delivery, batch, work.closing)
        if inserted is None:
            return
        work.committed = batch.end
        self._self_check.note(inserted)
        self._metrics.batches.inc()

    def _partitions(self) -> int:
        return len(self._consumer.partitions_for_topic(self._topic) or ())

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
