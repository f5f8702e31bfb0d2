"""Reading and committing in virtual time: nothing unfinished is passed, tiers are waited for, partitions take turns."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError

from pipeline.outage import Outage
from pipeline.webhooks.deliveries import Deliveries
from pipeline.webhooks.in_flight import HostLines, InHand
from tests.simulation.virtual_time import simulated, the_clock

MAIN, TIER = TopicPartition("webhooks", 0), TopicPartition("webhooks.5s", 0)


@dataclass
class ScriptedConsumer:
    """Hands out what is put into it, and notes commits and pauses."""

    waiting: dict[TopicPartition, list[ConsumerRecord]] = field(default_factory=dict)
    commits: list[dict[TopicPartition, int]] = field(default_factory=list)
    paused: set[TopicPartition] = field(default_factory=set)

    def subscribe(self, topics: list[str], listener: Any) -> None:
        """The test assigns by itself."""

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        """What waits on partitions that are not paused."""
        await asyncio.sleep(timeout_ms / 1000)
        return {one: self.waiting.pop(one) for one in list(self.waiting) if one not in self.paused}

    def pause(self, *partitions: TopicPartition) -> None:
        """Notes it."""
        self.paused |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        """Notes it."""
        self.paused -= set(partitions)

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Notes it."""
        self.commits.append(dict(offsets))

    def put(self, partition: TopicPartition, *offsets: int) -> None:
        """Records at these offsets, appended now."""
        stamp = int(the_clock().now() * 1e3)
        records = [
            ConsumerRecord(partition.topic, partition.partition, offset, stamp, 0, b"k", b"v", None, 1, 1, ())
            for offset in offsets
        ]
        self.waiting.setdefault(partition, []).extend(records)


@dataclass
class HeldDeliverer:
    """A deliverer whose records end when they are told to.

    Attributes:
        begun: the offsets, in their order.
        held: those that wait.
    """

    begun: list[tuple[str, int]] = field(default_factory=list)
    begun_at: list[float] = field(default_factory=list)
    held: dict[tuple[str, int], "asyncio.Future[None]"] = field(default_factory=dict)
    holds: bool = True

    async def deliver(self, record: ConsumerRecord) -> None:
        """Returns when the record is let go."""
        name = (record.topic, record.offset)
        self.begun.append(name)
        self.begun_at.append(the_clock().now())
        if self.holds:
            self.held[name] = asyncio.get_running_loop().create_future()
            await self.held[name]

    async def let_go(self, *offsets: int, topic: str = MAIN.topic) -> None:
        """These are done; returns after the next commit."""
        for offset in offsets:
            self.held.pop((topic, offset)).set_result(None)
        await asyncio.sleep(1)


class Bench:
    """Deliveries on fakes."""

    def __init__(self, count_max: int = 100) -> None:
        self.consumer, self.deliverer, self.stop = ScriptedConsumer(), HeldDeliverer(), asyncio.Event()
        consumer: Any = self.consumer
        deliverer: Any = self.deliverer
        self.deliveries = Deliveries(
            consumer, {MAIN.topic: 0.0, TIER.topic: 5.0}, deliverer, in_hand=InHand(count_max, 1 << 20),
            hosts=HostLines(9, 9, count_max=9, bytes_max=9), clock=the_clock(),
            kafka=Outage("Kafka", the_clock().monotonic),
        )  # fmt: skip

    @asynccontextmanager
    async def running(self) -> Any:
        """Runs, with both partitions; stops at the end."""
        await self.deliveries.on_partitions_assigned([MAIN, TIER])
        task = asyncio.create_task(self.deliveries.run(self.stop))
        async with AsyncExitStack() as ending:
            ending.push_async_callback(asyncio.wait, [task])
            ending.callback(self.stop.set)
            yield task
        task.result()


@simulated
async def test_commit_never_passes_what_is_unfinished() -> None:
    """Records end in any order: the lowest that has not is committed, and what was begun behind it is not."""
    made = Bench()
    async with made.running():
        made.consumer.put(MAIN, *range(10, 15))
        await asyncio.sleep(3)
        assert [offset for _, offset in made.deliverer.begun] == [10, 11, 12, 13, 14]
        assert made.consumer.commits == [{MAIN: 10}]
        await made.deliverer.let_go(11, 12, 14)
        assert made.consumer.commits == [{MAIN: 10}]
        await made.deliverer.let_go(10)
        assert made.consumer.commits[-1] == {MAIN: 13}
        await made.deliverer.let_go(13)
        assert made.consumer.commits[-1] == {MAIN: 15}


@simulated
async def test_tier_is_waited_for() -> None:
    """Each record stays in its tier for the tier's time, while other partitions go on; it is paused meanwhile."""
    made = Bench()
    made.deliverer.holds = False
    async with made.running():
        began = the_clock().now()
        made.consumer.put(TIER, 1, 2)
        await asyncio.sleep(2)
        assert made.consumer.paused == {TIER}
        made.consumer.put(TIER, 3)
        made.consumer.put(MAIN, 1)
        await asyncio.sleep(2)
        assert made.deliverer.begun == [(MAIN.topic, 1)]
        assert made.deliveries.oldest_due_s() == 0.0
        await asyncio.sleep(10)
    waited = [
        at - began
        for (topic, _), at in zip(made.deliverer.begun, made.deliverer.begun_at, strict=True)
        if topic == TIER.topic
    ]
    assert waited == pytest.approx([5.0, 5.0, 7.0], abs=0.01)
    assert made.consumer.commits[-1] == {TIER: 4}


@simulated
async def test_partitions_take_turns_where_there_is_no_room() -> None:
    """With room for two at a time a long partition does not keep the other's record waiting to its end."""
    made = Bench(count_max=2)
    async with made.running():
        made.consumer.put(MAIN, *range(10))
        await asyncio.sleep(1)
        made.consumer.put(TIER, 1)
        await asyncio.sleep(6)
        assert made.deliverer.begun == [(MAIN.topic, 0), (MAIN.topic, 1)]
        assert made.deliveries.oldest_due_s() > 5
        await made.deliverer.let_go(0)
        assert made.deliverer.begun[-1] == (TIER.topic, 1)
        await made.deliverer.let_go(1)
        made.deliverer.holds = False
        await made.deliverer.let_go(1, topic=TIER.topic)
        await made.deliverer.let_go(2)
    assert made.consumer.commits[-1] == {MAIN: 10}


@simulated
async def test_revoked_partition_is_left_where_it_is() -> None:
    """What does not end in time is given up and not committed; what ended is; nothing of it is begun any more."""
    made = Bench()
    async with made.running():
        made.consumer.put(MAIN, 1, 2, 3)
        await asyncio.sleep(1)
        await made.deliverer.let_go(1, 3)
        began = the_clock().monotonic()
        await made.deliveries.on_partitions_revoked([MAIN])
        assert the_clock().monotonic() - began == pytest.approx(5.0)
        assert made.consumer.commits[-1] == {MAIN: 2}
        made.consumer.put(MAIN, 4)
        await asyncio.sleep(2)
        assert [offset for _, offset in made.deliverer.begun] == [1, 2, 3]


@simulated
async def test_stop_lets_calls_end() -> None:
    """A stop waits for what is out, and commits it."""
    made = Bench()
    async with made.running():
        made.consumer.put(MAIN, 1)
        await asyncio.sleep(1)
        made.stop.set()
        asyncio.get_running_loop().call_later(3, made.deliverer.held[MAIN.topic, 1].set_result, None)
    assert made.consumer.commits[-1] == {MAIN: 2}


@simulated
async def test_failure_ends_the_process() -> None:
    """What Kafka refuses for good is raised, its record uncommitted."""
    made = Bench()
    await made.deliveries.on_partitions_assigned([MAIN])
    made.consumer.put(MAIN, 1, 2)
    task = asyncio.create_task(made.deliveries.run(made.stop))
    await asyncio.sleep(1)
    made.deliverer.held[MAIN.topic, 2].set_result(None)
    made.deliverer.held[MAIN.topic, 1].set_exception(TopicAuthorizationFailedError("no"))
    with pytest.raises(TopicAuthorizationFailedError):
        await task
    assert made.consumer.commits[-1] == {MAIN: 1}
