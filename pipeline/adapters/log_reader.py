"""Ranges of Kafka logs, read once, outside of any group."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka.structs import TopicPartition

# How often a reader asks whether anybody still wants what it reads.
_POLL_MS = 200


class LogReader:
    """Reads ranges of partitions, one range after the other.

    Args:
        options: how clients connect.
        record_bytes_max: the largest record.
    """

    def __init__(self, options: Mapping[str, Any], record_bytes_max: int) -> None:
        self._consumer = AIOKafkaConsumer(
            **options,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=record_bytes_max + (1 << 16),
        )

        self._scanning = asyncio.Lock()

    async def start(self) -> None:
        """Connects.

        Raises:
            KafkaError: Kafka does not answer.
        """
        await self._consumer.start()

    async def stop(self) -> None:
        """Closes the connection."""
        await self._consumer.stop()

    async def bounds(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """Where each partition's log begins, and its end.

        Raises:
            KafkaError: not reached, or a topic is gone.
        """
        wanted = list(partitions)
        begins = await self._consumer.beginning_offsets(wanted)
        ends = await self._consumer.end_offsets(wanted)
        return {partition: (begins[partition], ends[partition]) for partition in wanted}

    async def offsets_at(self, times_ms: Mapping[TopicPartition, int]) -> dict[TopicPartition, int | None]:
        """The first offset appended at that time or later, None where there is none.

        Raises:
            KafkaError: not reached, or a topic is gone.
        """
        found = await self._consumer.offsets_for_times(dict(times_ms))
        return {partition: None if place is None else place.offset for partition, place in found.items()}

    async def first(self, partition: TopicPartition, start: int, end: int) -> ConsumerRecord | None:
        """The first record of `[start, end)`, or None where there is none.

        Raises:
            KafkaError: as `scan`.
        """
        async with aclosing(self.scan({partition: (start, end)}, lambda: True)) as records:
            async for record in records:
                return record
        return None

    async def scan(
        self, ranges: Mapping[TopicPartition, tuple[int, int]], is_wanted: Callable[[], bool]
    ) -> AsyncGenerator[ConsumerRecord, None]:
        """The records of ranges `[start, end)`, each partition's in order; ends early once nobody wants them.

        Another scan waits until this one is read to its end, or closed (`contextlib.aclosing`).

        Raises:
            KafkaError: a range is not in the log (any more), or a topic is gone.
        """
        left = {partition: (start, end) for partition, (start, end) in ranges.items() if start < end}
        if not left:
            return
        consumer = self._consumer
        async with self._scanning:
            consumer.assign(list(left))
            try:
                for partition, (start, _) in left.items():
                    consumer.seek(partition, start)
                while left and is_wanted():
                    fetched = await consumer.getmany(*left, timeout_ms=_POLL_MS)
                    for partition, records in fetched.items():
                        for record in records:
                            if record.offset < left[partition][1]:
                                yield record
                    for partition in list(left):
                        if await consumer.position(partition) >= left[partition][1]:
                            del left[partition]
            finally:
                consumer.unsubscribe()
