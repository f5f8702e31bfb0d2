"""Dead letters: records that no worker or sink could take, with the reason; read without taking them from anybody."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError, KafkaError

from pipeline.adapters.topics import partition_counts
from pipeline.client.errors import KafkaUnavailable
from pipeline.client.request_ids import Headers, with_request_id
from pipeline.errors import PipelineError, TopicError
from schemas.request import is_request_id, readable_request

# Whoever buries a record adds these behind its own headers: the last of a name is ours, an earlier one the producer's.
_ADDED = ("reason", "error", "source-topic", "source-partition", "source-offset")
# What one poll may wait for; only how soon the limit is seen depends on it.
_READ_WAIT_MS = 500

# The first offset and the one after the last, by partition.
Span = Mapping[int, tuple[int, int]]


class DeadLetterNotFound(PipelineError):  # noqa: N818 - a state, not a mistake
    """No dead letter has this place (any more)."""


class Place(NamedTuple):
    """Where a letter is in the dead-letter topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


class Source(NamedTuple):
    """Where a record was before it became a dead letter."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the dead-letter topic.

    Attributes:
        place: where it is there.
        timestamp_ms: when it came there, epoch milliseconds.
        key: the original key.
        value: the original bytes; None for a tombstone.
        headers: the original headers.
        reason: a stable word; empty where whoever wrote the record gave none.
        error: a sentence for people.
        source: where it was; None where the record does not say so.
    """

    place: Place
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    reason: str
    error: str
    source: Source | None

    @classmethod
    def of(cls, record: ConsumerRecord) -> Self:
        """The letter that a record is."""
        own = {name: index for index, (name, _) in enumerate(record.headers) if name in _ADDED}
        texts = {name: (record.headers[index][1] or b"").decode("utf-8", "replace") for name, index in own.items()}
        return cls(
            place=Place(record.partition, record.offset),
            timestamp_ms=record.timestamp,
            key=record.key,
            value=record.value,
            headers=[header for index, header in enumerate(record.headers) if index not in own.values()],
            reason=texts.get("reason", ""),
            error=texts.get("error", ""),
            source=_source(texts),
        )

    @property
    def request_id(self) -> str | None:
        """The id its body has; of bytes that are no JSON object, the one in the header `ce_id`."""
        value = self.value or b""
        request_id = readable_request(value).request_id
        if request_id is not None or with_request_id(value, self.headers, "") is not None:
            return request_id
        named = next((text for name, text in self.headers if name == "ce_id" and text), b"").decode("ascii", "replace")
        return named if is_request_id(named) else None


def _source(texts: Mapping[str, str]) -> Source | None:
    topic, partition, offset = (texts.get(name, "") for name in _ADDED[2:])
    if not (topic and partition.isdecimal() and offset.isdecimal()):
        return None
    return Source(topic, int(partition), int(offset))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant; None for any.

    Attributes:
        since_ms: when the letter came at the earliest, epoch milliseconds.
        partition: of its source.
        offset: of its source.
    """

    reason: str | None = None
    since_ms: int | None = None
    source_topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    request_id: str | None = None

    def has(self, letter: DeadLetter) -> bool:
        """Whether a letter is meant."""
        topic, partition, offset = letter.source or (None, None, None)
        return (
            self.reason in (None, letter.reason)
            and (self.since_ms is None or letter.timestamp_ms >= self.since_ms)
            and self.source_topic in (None, topic)
            and self.partition in (None, partition)
            and self.offset in (None, offset)
            and (self.request_id is None or self.request_id == letter.request_id)
        )


@asynccontextmanager
async def kafka_answers(servers: str, timeout_s: float) -> AsyncIterator[None]:
    """Tells what a Kafka client meets inside as `KafkaUnavailable`; `timeout_s` is for everything inside."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise KafkaUnavailable(f"Kafka at {servers} gave no answer within {timeout_s:g} s") from None
    except KafkaConnectionError as error:
        raise KafkaUnavailable(f"Kafka at {servers} does not answer") from error
    except (KafkaError, OSError) as error:
        raise KafkaUnavailable(f"Kafka at {servers}: {error}") from error


class DeadLetterTopic:
    """The dead-letter topic, read without a consumer group. Use it as an async context manager.

    Args:
        options: of an aiokafka client (`adapters.kafka.client_options`).
        topic: the dead-letter topic.
        timeout_s: for connecting, and for each wait for the next letters.
    """

    def __init__(self, options: dict[str, Any], topic: str, *, timeout_s: float = 20.0) -> None:
        self._options = options
        self._topic = topic
        self._timeout_s = timeout_s
        self._consumer: AIOKafkaConsumer | None = None
        self._partitions = 0

    async def __aenter__(self) -> Self:
        """Connects.

        Raises:
            KafkaUnavailable: Kafka does not answer.
            TopicError: the topic does not exist.
        """
        async with self._answers():
            self._partitions = (await partitions_of(self._options, self._topic))[self._topic]
            # A reset happens only where the log was cut below us: what is left follows.
            consumer = AIOKafkaConsumer(**self._options, enable_auto_commit=False, auto_offset_reset="earliest")
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
        self._consumer = consumer
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    async def span(self, since_ms: int | None = None) -> Span:
        """What the topic holds now, from its start or from a time (epoch milliseconds) on.

        Raises:
            KafkaUnavailable: Kafka does not answer.
        """
        consumer = self._connected()
        partitions = [TopicPartition(self._topic, number) for number in range(self._partitions)]
        async with self._answers():
            starts = await consumer.beginning_offsets(partitions)
            ends = await consumer.end_offsets(partitions)
            if since_ms is not None:
                found = await consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))
                starts = {one: ends[one] if at is None else at.offset for one, at in found.items()}
        return {one.partition: (starts[one], ends[one]) for one in partitions}

    async def read(self, span: Span) -> AsyncIterator[DeadLetter]:
        """The letters of a span, in the order of their times; those of one partition in the order of the log.

        Held in memory: what one fetch of each partition brings, 1 MiB or a single letter.

        Raises:
            KafkaUnavailable: Kafka does not answer any more.
        """
        consumer = self._connected()
        ends = {TopicPartition(self._topic, number): end for number, (start, end) in span.items() if start < end}
        consumer.assign(list(ends))
        for partition in ends:
            consumer.seek(partition, span[partition.partition][0])
        waiting: dict[TopicPartition, deque[ConsumerRecord]] = {partition: deque() for partition in ends}
        while True:
            async with self._answers():
                await _fill(consumer, waiting, ends)
            if not waiting:
                return
            oldest = min(waiting, key=lambda partition: (waiting[partition][0].timestamp, partition.partition))
            yield DeadLetter.of(waiting[oldest].popleft())

    async def at(self, places: Sequence[Place]) -> AsyncIterator[DeadLetter]:
        """The letters at these places, in their order.

        Raises:
            DeadLetterNotFound: nothing is there, or nothing any more.
            KafkaUnavailable: Kafka does not answer.
        """
        held = await self.span()
        for place in places:
            start, end = held.get(place.partition, (0, 0))
            only = {place.partition: (place.offset, place.offset + 1)}
            letter = await anext(self.read(only), None) if start <= place.offset < end else None
            if letter is None:
                holds = f"the offsets {start} to {end - 1}" if start < end else "nothing"
                raise DeadLetterNotFound(
                    f"no dead letter at {place}: partition {place.partition} of {self._topic} holds {holds}"
                )
            yield letter

    def _answers(self) -> Any:
        return kafka_answers(self._options["bootstrap_servers"], self._timeout_s)

    def _connected(self) -> AIOKafkaConsumer:
        assert self._consumer is not None, "used as an async context manager"
        return self._consumer


async def _fill(
    consumer: AIOKafkaConsumer, waiting: dict[TopicPartition, deque[ConsumerRecord]], ends: Mapping[TopicPartition, int]
) -> None:
    """Gives each partition its next records; one that is read to its end is taken out."""
    while empty := [partition for partition, records in waiting.items() if not records]:
        for partition in list(empty):
            # Not the last record's offset: the log may end with a gap.
            if await consumer.position(partition) >= ends[partition]:
                del waiting[partition]
                empty.remove(partition)
        if not empty:
            return
        fetched = await consumer.getmany(*empty, timeout_ms=_READ_WAIT_MS)
        for partition, records in fetched.items():
            waiting[partition] += [record for record in records if record.offset < ends[partition]]


async def partitions_of(options: dict[str, Any], *topics: str) -> dict[str, int]:
    """How many partitions each of these topics has.

    Raises:
        TopicError: one does not exist.
        KafkaError: Kafka does not answer.
    """
    admin = AIOKafkaAdminClient(**options)
    try:
        await admin.start()
        found = await partition_counts(admin)
    finally:
        await admin.close()
    if missing := [topic for topic in topics if topic not in found]:
        raise TopicError(f"topic {', '.join(missing)} does not exist: make it with `pipeline topics create`")
    return {topic: found[topic] for topic in topics}
