"""Reading the results topic: everybody's answers pass by, and whose they are is said by a header."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError, KafkaError

from pipeline.client.errors import KafkaUnavailable
from pipeline.client.pending import ResultRecord
from pipeline.errors import TopicError

# What one read may wait for; only how soon a stop is seen depends on it.
_READ_WAIT_MS = 500
_FETCH_RECORDS = 2000


class ResultsTopic(Protocol):
    """Where answers come from."""

    async def start(self) -> None:
        """Connects; answers to whatever is sent from now on will be read.

        Raises:
            KafkaUnavailable: no connection.
            TopicError: the topic does not exist.
        """

    async def read(self) -> Sequence[ResultRecord]:
        """The next records, in the order of their partitions; empty after a short wait without any.

        Raises:
            KafkaUnavailable: the connection cannot be used any more.
        """

    async def stop(self) -> None:
        """Disconnects. Idempotent."""


def header(headers: Iterable[tuple[str, bytes]], name: str) -> bytes | None:
    """The first header of this name."""
    for found, value in headers:
        if found == name:
            return value
    return None


class KafkaResults:
    """The results topic on Kafka, read without a consumer group: every reader sees every answer.

    Args:
        options: of an aiokafka client (`adapters.kafka.client_options`).
        topic: the results topic.
        from_beginning: start at the oldest record instead of the end.
        timeout_s: for connecting.
    """

    def __init__(
        self, options: dict[str, Any], topic: str, *, from_beginning: bool = False, timeout_s: float = 10.0
    ) -> None:
        self._options = options
        self._topic = topic
        self._from_beginning = from_beginning
        self._timeout_s = timeout_s
        self._consumer: AIOKafkaConsumer | None = None

    async def start(self) -> None:
        """Connects and takes its places, all partitions at their end or their beginning."""
        # A reset happens only where the log was cut below us: reading it again is harmless, skipping is not.
        self._consumer = AIOKafkaConsumer(
            **self._options, enable_auto_commit=False, auto_offset_reset="earliest", max_poll_records=_FETCH_RECORDS
        )
        servers = self._options["bootstrap_servers"]
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._consumer.start()
                await self._take_places(self._consumer)
        except TimeoutError:
            raise KafkaUnavailable(f"Kafka at {servers} gave no answer within {self._timeout_s:g} s") from None
        except KafkaConnectionError as error:
            raise KafkaUnavailable(f"Kafka at {servers} does not answer") from error
        except (KafkaError, OSError) as error:
            raise KafkaUnavailable(f"Kafka at {servers}: {error}") from error

    async def _take_places(self, consumer: AIOKafkaConsumer) -> None:
        count = await self._count_partitions()
        partitions = [TopicPartition(self._topic, number) for number in range(count)]
        consumer.assign(partitions)
        starts = consumer.beginning_offsets if self._from_beginning else consumer.end_offsets
        for partition, offset in (await starts(partitions)).items():
            consumer.seek(partition, offset)

    async def _count_partitions(self) -> int:
        admin = AIOKafkaAdminClient(**self._options)
        try:
            await admin.start()
            # All topics are asked for: asking for one by name makes it, on brokers that create topics by themselves.
            for topic in await admin.describe_topics():
                if topic["topic"] == self._topic:
                    return len(topic["partitions"])
        finally:
            await admin.close()
        raise TopicError(f"topic {self._topic} does not exist: make it with `pipeline topics create`")

    async def end_offsets(self) -> dict[int, int]:
        """The end of every partition now: the offset that the next record will have."""
        assert self._consumer is not None, "started"
        ends = await self._consumer.end_offsets(list(self._consumer.assignment()))
        return {partition.partition: offset for partition, offset in ends.items()}

    async def read(self) -> list[ResultRecord]:
        """The next records of all partitions."""
        assert self._consumer is not None, "started"
        try:
            chunks = await self._consumer.getmany(timeout_ms=_READ_WAIT_MS)
        except KafkaError as error:
            raise KafkaUnavailable(f"reading {self._topic}: {error}") from error
        return [
            ResultRecord(record.partition, record.offset, record.value or b"", record.headers)
            for records in chunks.values()
            for record in records
        ]

    async def stop(self) -> None:
        """Disconnects."""
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            await consumer.stop()
