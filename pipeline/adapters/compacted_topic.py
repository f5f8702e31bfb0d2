"""Compacted topics that are small, read outside of any group: all partitions, always from the beginning.

Such a topic is a table: the newest record of each key is its row, and one without a value deletes it. It is read anew
at every start. Kafka access comes as client options: `pipeline/adapters/kafka.py` makes them.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.adapters.kafka import all_partitions, cancel_until_ended
from pipeline.errors import TopicError

logger = logging.getLogger(__name__)

# How long the broker may hold an empty fetch. A worker must know within a second that it has seen everything; five
# answers a second cost a broker nothing.
FETCH_WAIT_S = 0.2
RECONNECT_PAUSE_S = 0.5

Row = TypeVar("Row")
Decode = Callable[[bytes | None, bytes], Row | None]
"""A record's key and value as a row; None (and a line in the log) for what is none."""


async def read_table(
    kafka_options: Mapping[str, Any], topic: str, decode: Decode[Row], timeout_s: float = 30.0
) -> dict[str, Row]:
    """The newest valid row of every key, read to the end the topic has now.

    Raises:
        TopicError: there is no such topic, or its end was not reached in `timeout_s`.
        KafkaError: no broker answers.
    """
    consumer = AIOKafkaConsumer(**_consumer_options(kafka_options))
    table: dict[str, Row] = {}
    try:
        async with asyncio.timeout(timeout_s):
            await consumer.start()
            partitions = await _assign_all(consumer, topic)
            ends = await consumer.end_offsets(partitions)
            while not await _reached(consumer, ends):
                for key, row in _decoded(await consumer.getmany(timeout_ms=int(FETCH_WAIT_S * 1000)), decode):
                    _apply(table, key, row)
    except TimeoutError:
        raise TopicError(f"{topic} was not read to its end in {timeout_s:.0f} s") from None
    finally:
        await consumer.stop()
    return table


class TableFollower(Generic[Row]):
    """Follows a compacted topic for as long as it runs, and reconnects by itself.

    While it reads up to the end it hands out nothing, then the newest row of each key: nobody sees one that was
    replaced long ago. After a reconnection it reads from the beginning again, and hands out what differs.

    Args:
        kafka_options: for an aiokafka client.
        topic: the topic's full name.
        decode: makes a row of a record.
        on_row: called in this event loop with each new row. An exception from it ends the follower.
        on_removed: called with a key when its row was deleted.
        monotonic: the clock of `last_poll_monotonic`.
    """

    def __init__(
        self,
        kafka_options: Mapping[str, Any],
        topic: str,
        decode: Decode[Row],
        on_row: Callable[[Row], None],
        on_removed: Callable[[str], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = _consumer_options(kafka_options)
        self._topic = topic
        self._decode = decode
        self._on_row = on_row
        self._on_removed = on_removed
        self._monotonic = monotonic
        self._delivered: dict[str, Row] = {}
        self._caught_up = asyncio.Event()
        self._last_poll = float("-inf")
        self._task: asyncio.Task[None] | None = None
        # What the log was told of the outage that lasts.
        self._told: type[Exception] | None = None

    @property
    def caught_up(self) -> bool:
        """Whether everything the topic held at the start was handed out. Never false again afterwards."""
        return self._caught_up.is_set()

    @property
    def last_poll_monotonic(self) -> float:
        """Everything appended before this moment was handed out; minus infinity before anything was.

        A moment too early rather than too late: it is taken before the broker's answer was looked for.
        """
        return self._last_poll

    async def start(self) -> None:
        """Starts following; returns at once. `wait_caught_up` waits."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"follow {self._topic}")

    async def stop(self) -> None:
        """Stops; idempotent.

        Raises:
            Exception: what `on_row` raised, if that ended the follower.
        """
        task, self._task = self._task, None
        if task is not None:
            await cancel_until_ended(task)
            if not task.cancelled():
                task.result()

    async def wait_caught_up(self) -> None:
        """Waits until `caught_up`.

        Raises:
            TopicError: it is not started.
            Exception: what `on_row` raised.
        """
        if self._task is None:
            raise TopicError(f"nobody follows {self._topic}: start() was not called")
        reached = asyncio.create_task(self._caught_up.wait())
        try:
            await asyncio.wait({reached, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reached.cancel()
        if not self.caught_up:
            self._task.result()

    async def _run(self) -> None:
        while True:
            consumer = AIOKafkaConsumer(**self._options)
            try:
                await consumer.start()
                await self._follow(consumer)
            except (KafkaError, TopicError, OSError) as error:
                if self._told is not type(error):  # it is tried twice a second
                    logger.warning("%s cannot be followed, trying again: %s", self._topic, error)
                self._told = type(error)
            finally:
                await consumer.stop()
            await asyncio.sleep(RECONNECT_PAUSE_S)

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        partitions = await _assign_all(consumer, self._topic)
        asked = self._monotonic()
        ends = await consumer.end_offsets(partitions)
        found: dict[str, Row] = {}
        while not await _reached(consumer, ends):
            for key, row in _decoded(await consumer.getmany(timeout_ms=int(FETCH_WAIT_S * 1000)), self._decode):
                _apply(found, key, row)
        self._last_poll = max(self._last_poll, asked)
        self._deliver_state(found)
        polls: dict[TopicPartition, tuple[int | None, float]] = dict.fromkeys(partitions, (None, asked))
        before = self._monotonic()
        while True:
            records = await consumer.getmany(timeout_ms=int(FETCH_WAIT_S * 500))
            for key, row in _decoded(records, self._decode):
                self._deliver(key, row)
            for partition in partitions:
                stamp = consumer.last_poll_timestamp(partition)
                behind = (consumer.highwater(partition) or 0) > await consumer.position(partition)
                if stamp is not None and stamp != polls[partition][0] and not behind:
                    polls[partition] = (stamp, before)
            self._last_poll = min(moment for _, moment in polls.values())
            before = self._monotonic()

    def _deliver_state(self, found: Mapping[str, Row]) -> None:
        for key in self._delivered.keys() - found.keys():
            self._deliver(key, None)
        for key, row in found.items():
            self._deliver(key, row)
        self._caught_up.set()
        self._told = None

    def _deliver(self, key: str, row: Row | None) -> None:
        if self._delivered.get(key) == row:
            return
        _apply(self._delivered, key, row)
        if row is not None:
            self._on_row(row)
        elif self._on_removed is not None:
            self._on_removed(key)


def _consumer_options(kafka_options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **kafka_options,
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "fetch_max_wait_ms": int(FETCH_WAIT_S * 1000),
    }


async def _assign_all(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    # `topics` fetches metadata without making a topic that is not there.
    if topic not in await consumer.topics():
        raise TopicError(f"there is no topic {topic}: `pipeline topics create` makes it")
    partitions = await all_partitions(consumer, topic)
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    return partitions


async def _reached(consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> bool:
    for partition, end in ends.items():
        if await consumer.position(partition) < end:
            return False
    return True


def _decoded(batches: Mapping[TopicPartition, Sequence[Any]], decode: Decode[Row]) -> list[tuple[str, Row | None]]:
    """Key and row, in order; None for a deleted one."""
    found: list[tuple[str, Row | None]] = []
    for records in batches.values():
        for record in records:
            key = (record.key or b"").decode(errors="replace")
            if record.value is None:
                found.append((key, None))
            elif (row := decode(record.key, record.value)) is not None:
                found.append((key, row))
    return found


def _apply(table: dict[str, Row], key: str, row: Row | None) -> None:
    if row is None:
        table.pop(key, None)
    else:
        table[key] = row
