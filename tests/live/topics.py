"""Topics of one test: made, filled with the models' records, written to and read as any Kafka client would."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from pipeline.adapters.kafka import client_options
from pipeline.adapters.topics import create_topics
from pipeline.config import Settings
from schemas.registry import ModelRecord

Headers = Sequence[tuple[str, bytes]]


async def prepare_topics(settings: Settings, models: Iterable[ModelRecord]) -> None:
    """Makes the topics of these settings and announces models that the fleet serves already."""
    await create_topics(settings)
    producer = AIOKafkaProducer(**client_options(settings.kafka), acks="all")
    async with producer:
        for record in models:
            value = record.model_dump_json().encode()
            await producer.send_and_wait(settings.topic("models"), value, key=record.model_name.encode())


def header(record: ConsumerRecord, name: str) -> str | None:
    """The text of a record's first header of this name."""
    return next((value.decode() for found, value in record.headers if found == name), None)


class TopicLog:
    """Everything a topic gets while this is open, and before that too if wanted, in the order of each partition.

    Args:
        settings: where Kafka is, and the topics' prefix.
        name: the topic without its prefix.
        from_beginning: whether what is there already counts.
    """

    def __init__(self, settings: Settings, name: str, *, from_beginning: bool = True) -> None:
        self.records: list[ConsumerRecord] = []
        self._topic = settings.topic(name)
        self._from_beginning = from_beginning
        self._consumer = AIOKafkaConsumer(
            **client_options(settings.kafka), enable_auto_commit=False, auto_offset_reset="earliest"
        )
        self._gained = asyncio.Condition()
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        try:
            # A consumer without a group learns a topic's partitions once it has one of them.
            self._consumer.assign([TopicPartition(self._topic, 0)])
            await self._consumer.end_offsets([TopicPartition(self._topic, 0)])
            numbers = sorted(self._consumer.partitions_for_topic(self._topic) or ())
            partitions = [TopicPartition(self._topic, number) for number in numbers]
            self._consumer.assign(partitions)
            places = self._consumer.beginning_offsets if self._from_beginning else self._consumer.end_offsets
            for partition, offset in (await places(partitions)).items():
                self._consumer.seek(partition, offset)
        except BaseException:
            await self._consumer.stop()
            raise
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._reading is not None
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading
        await self._consumer.stop()

    async def until(
        self, enough: Callable[[list[ConsumerRecord]], Any], timeout_s: float, what: str
    ) -> list[ConsumerRecord]:
        """All records, once they are enough.

        Raises:
            AssertionError: they were not within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s), self._gained:
                await self._gained.wait_for(lambda: enough(self.records) or self._failed())
        except TimeoutError:
            raise AssertionError(
                f"{what}: not within {timeout_s:g} s; {len(self.records)} records of {self._topic}, the last: "
                f"{[record.value for record in self.records[-3:]]!r}"
            ) from None
        return self.records

    async def first(self, wanted: Callable[[ConsumerRecord], bool], timeout_s: float, what: str) -> ConsumerRecord:
        """The first record that is wanted."""
        records = await self.until(lambda records: any(map(wanted, records)), timeout_s, what)
        return next(filter(wanted, records))

    def _failed(self) -> bool:
        if self._reading is not None and self._reading.done():
            self._reading.result()
        return False

    async def _read(self) -> None:
        while True:
            fetched = await self._consumer.getmany(timeout_ms=200)
            async with self._gained:
                for records in fetched.values():
                    self.records += records
                self._gained.notify_all()


async def end_offsets(settings: Settings, name: str) -> dict[int, int]:
    """The end of every partition of a topic."""
    async with TopicLog(settings, name) as log:
        ends = await log._consumer.end_offsets(list(log._consumer.assignment()))
    return {partition.partition: offset for partition, offset in ends.items()}


async def committed_offsets(settings: Settings) -> Mapping[int, int]:
    """What the worker's group has committed, by partition of the requests topic; -1 for nothing."""
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(**client_options(settings.kafka))
    await admin.start()
    try:
        found = await admin.list_consumer_group_offsets(settings.worker.group)
    finally:
        await admin.close()
    topic = settings.topic("requests")
    return {place.partition: data.offset for place, data in found.items() if place.topic == topic}
