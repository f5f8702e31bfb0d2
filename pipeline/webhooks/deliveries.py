"""The webhooks topics, read as they are due: many callbacks at a time, the lowest unfinished offset committed.

No record holds up its partition: what waits for a receiver is finished in any order. Only a delay tier is waited for,
at its first record, as those behind it wait as long and came later. Partitions take turns, so that a flood in one
leaves the others their share.
"""

import asyncio
import itertools
import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from pipeline.outage import Outage
from pipeline.ports import Clock
from pipeline.webhooks.backlog import Backlog
from pipeline.webhooks.deliverer import Deliverer
from pipeline.webhooks.in_flight import HostLines, InHand

_log = logging.getLogger(__name__)

# How long one fetch may wait for records; also how soon a stop is noticed.
_POLL_MS = 200
# What is not committed is delivered again after a crash: half a second of it.
_COMMIT_S = 0.5
# Most receivers answer at once. One that does not is called again by whoever has the partition next.
_REVOKE_WAIT_S = 5.0
# Below the 15 s after which the local supervisor kills.
_STOP_WAIT_S = 10.0


class Deliveries(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no type information
    """Takes callbacks of the partitions it is assigned when they are due.

    Args:
        consumer: started, in the group, without automatic commits, not subscribed yet.
        tiers_s: how long records stay in each topic, by its full name.
        deliverer: what becomes of each.
        in_hand: the bound on records.
        hosts: calls that are out.
        clock: time.
        kafka: told what reading and committing meet.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        tiers_s: Mapping[str, float],
        deliverer: Deliverer,
        *,
        in_hand: InHand,
        hosts: HostLines,
        clock: Clock,
        kafka: Outage,
    ) -> None:
        self._consumer = consumer
        self._tiers_s = tiers_s
        self._deliverer = deliverer
        self._in_hand = in_hand
        self._hosts = hosts
        self._clock = clock
        self._kafka = kafka
        self._backlogs: dict[TopicPartition, Backlog] = {}
        self._wake = asyncio.Event()
        self._turns = itertools.count(1)
        self._failure: BaseException | None = None
        self._has_joined = False

    def not_ready(self) -> dict[str, str]:
        """Why nothing is delivered, by the name of what is missing; empty where it is."""
        reason = self._kafka.reason
        if reason is None and not self._has_joined:
            reason = "the consumer group has not been joined yet"
        return {} if reason is None else {"kafka": reason}

    def state(self) -> dict[str, Any]:
        """What `/status` says."""
        return {
            "partitions": sorted(f"{one.topic}:{one.partition}" for one in self._backlogs),
            "in_flight": self._hosts.calls,
            "in_hand": self._in_hand.count,
            "hosts": self._hosts.hosts,
        }

    def oldest_due_s(self) -> float:
        """For how long the callback that has been due for longest has been due, of those that were fetched."""
        due = [at for backlog in self._backlogs.values() if (at := backlog.due_at) is not None]
        return max(0.0, self._clock.now() - min(due)) if due else 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set; calls that are out get a moment to end.

        Raises:
            KafkaError: Kafka refused for good, e.g. for want of a permission.
        """
        self._consumer.subscribe(list(self._tiers_s), listener=self)
        tasks = [asyncio.create_task(self._take()), asyncio.create_task(self._commit_often())]
        for task in tasks:
            task.add_done_callback(self._note_failure)
        try:
            while not stop.is_set() and self._failure is None:
                await self._poll()
        finally:
            for task in tasks:
                task.cancel()
            self._hosts.close()
            await self._close(list(self._backlogs), _STOP_WAIT_S)
        if self._failure is not None:
            raise self._failure

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Begins each partition at its commit."""
        self._has_joined = True
        for partition in assigned:
            self._backlogs[partition] = Backlog(partition, self._tiers_s[partition.topic])

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Lets calls end, within limits, while commits still count."""
        await self._close(list(revoked), _REVOKE_WAIT_S)

    async def _poll(self) -> None:
        try:
            fetched = await self._consumer.getmany(timeout_ms=_POLL_MS)
        except KafkaError as error:
            if not error.retriable:
                raise
            self._kafka.met(error)
            await asyncio.sleep(_POLL_MS / 1000)
            return
        for partition, records in fetched.items():
            backlog = self._backlogs.get(partition)
            if backlog is None:
                continue  # revoked since the fetch; whoever owns it next begins at the commit
            backlog.append(records)
            self._consumer.pause(partition)
        if fetched:
            self._kafka.over()
            self._wake.set()

    async def _take(self) -> None:
        """Begins what is due whenever something was fetched, was done with, or became due."""
        while True:
            self._wake.clear()
            wait_s = self._begin_due()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    def _begin_due(self) -> float | None:
        """Begins what is due and has room; returns seconds until more is due, None where nothing waits for time."""
        while True:
            now = self._clock.now()
            waiting = [(backlog, at) for backlog in self._backlogs.values() if (at := backlog.due_at) is not None]
            due = [backlog for backlog, at in waiting if at <= now]
            if not due:
                return min((at - now for _, at in waiting), default=None)
            for backlog in sorted(due, key=lambda one: one.turn):
                if self._in_hand.is_full(backlog.next_bytes):
                    return None
                self._begin(backlog)

    def _begin(self, backlog: Backlog) -> None:
        backlog.turn = next(self._turns)
        size = backlog.next_bytes
        record = backlog.begin()
        self._in_hand.begin(size)
        task = asyncio.create_task(self._deliver(backlog, record, size))
        backlog.running.add(task)
        task.add_done_callback(backlog.running.discard)
        task.add_done_callback(self._note_failure)
        if not backlog:
            self._consumer.resume(backlog.partition)

    async def _deliver(self, backlog: Backlog, record: ConsumerRecord, size: int) -> None:
        try:
            await self._deliverer.deliver(record)
            backlog.offsets.finish(record.offset)
        finally:
            self._in_hand.end(size)
            self._wake.set()

    async def _commit_often(self) -> None:
        while True:
            await asyncio.sleep(_COMMIT_S)
            await self._commit(list(self._backlogs.values()))

    async def _commit(self, backlogs: Collection[Backlog]) -> None:
        offsets = {one.partition: offset for one in backlogs if (offset := one.to_commit()) is not None}
        if not offsets:
            return
        try:
            await self._consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            _log.info("what was delivered last is left to its next owner: %s", error)
            return
        except KafkaError as error:
            if not error.retriable:
                raise
            self._kafka.met(error)
            return
        self._kafka.over()
        for backlog in backlogs:
            backlog.committed = offsets.get(backlog.partition, backlog.committed)

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self._failure is None:
            self._failure = error

    async def _close(self, partitions: Iterable[TopicPartition], wait_s: float) -> None:
        backlogs = [backlog for one in partitions if (backlog := self._backlogs.pop(one, None)) is not None]
        if running := [task for backlog in backlogs for task in backlog.running]:
            _, late = await asyncio.wait(running, timeout=wait_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)  # failures are kept by `_note_failure`
        await self._commit(backlogs)
