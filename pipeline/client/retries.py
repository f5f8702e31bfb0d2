"""Sending dead letters again: requests under a new id, event lines as they are, each to the partition it came from."""

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from pipeline.adapters.topics import RECORD_OVERHEAD_BYTES
from pipeline.client.dead_letters import DeadLetter, Place, kafka_answers, partitions_of
from pipeline.client.errors import KafkaUnavailable
from pipeline.client.request_ids import Headers, with_request_id
from pipeline.core.event_rows import decode_line
from pipeline.errors import PipelineError
from schemas.errors import WireError
from schemas.request import UndecodableRecordError, decode_request


class NotRetryable(PipelineError):  # noqa: N818 - a state, not a mistake
    """A letter that is not sent again; the message says why.

    Attributes:
        can_be_forced: whether `RetryRules.force` sends it all the same.
    """

    def __init__(self, reason: str, *, can_be_forced: bool = False) -> None:
        super().__init__(reason)
        self.can_be_forced = can_be_forced


@dataclass(frozen=True, slots=True)
class RetryRecord:
    """What is sent for a letter.

    Attributes:
        topic: the source topic.
        partition: the source's: the same cache, and for an event the one partition where it may be repeated.
        retry_of: the id it had, or its source's place; also the header `retry-of`.
        request_id: the new id; None for an event, whose `event_id` is its identity.
    """

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: Headers
    retry_of: str
    request_id: str | None


@dataclass(frozen=True, slots=True)
class RetryRules:
    """Which letters are sent again, and how.

    Attributes:
        requests_topic: where requests come from.
        events_topic: where event lines come from.
        webhooks_topic: where callbacks come from, its delay tiers included.
        headers: set on every record, in place of the original's: what its producer left out or got wrong.
        force: send also what will come back as a dead letter.
    """

    requests_topic: str
    events_topic: str
    webhooks_topic: str
    headers: Headers = ()
    force: bool = False

    def record(self, letter: DeadLetter, request_id: str) -> RetryRecord:
        """What to send for a letter; `request_id` becomes its id where it is a request.

        Raises:
            NotRetryable: it is not sent again; the message says why.
        """
        if letter.source is None:
            raise NotRetryable("its headers do not say where it came from")
        if not letter.value:
            raise NotRetryable("it has no value: there is nothing to send")
        headers = _replaced(letter.headers, self.headers)
        if letter.source.topic == self.requests_topic:
            return self._request(letter, letter.value, headers, request_id)
        if letter.source.topic == self.events_topic:
            return self._event(letter, letter.value, headers)
        if letter.source.topic == self.webhooks_topic or letter.source.topic.startswith(f"{self.webhooks_topic}."):
            return self._callback(letter, letter.value, headers)
        raise NotRetryable(f"it came from {letter.source.topic}; only requests, events and callbacks are sent again")

    def _request(self, letter: DeadLetter, value: bytes, headers: Headers, request_id: str) -> RetryRecord:
        assert letter.source is not None
        try:
            # A request that is read but refused has an answer: its error result, under the new id.
            with contextlib.suppress(WireError):
                decode_request(value, headers)
        except UndecodableRecordError as error:
            self._refuse(error)
        value, headers = with_request_id(value, headers, request_id) or (value, headers)
        retry_of = letter.request_id or str(letter.source)
        headers = _replaced(headers, [("ce_id", request_id.encode()), ("retry-of", retry_of.encode())])
        return RetryRecord(
            letter.source.topic, letter.source.partition, letter.key, value, headers, retry_of, request_id
        )

    def _event(self, letter: DeadLetter, value: bytes, headers: Headers) -> RetryRecord:
        assert letter.source is not None
        try:
            decode_line(value)
        except ValueError as error:
            self._refuse(error)
        retry_of = str(letter.source)
        # The row may be in ClickHouse already, from an earlier retry of a repeated letter: the sink looks before it
        # inserts. Generation 0 is below any worker's, so that no worker is taken for a replaced one.
        generation = [] if any(name == "generation" for name, _ in headers) else [("generation", b"0")]
        added = [("content-type", b"application/x-ndjson"), *generation, ("redelivered", b"1")]
        headers = _replaced(headers, [*added, ("retry-of", retry_of.encode())])
        return RetryRecord(letter.source.topic, letter.source.partition, letter.key, value, headers, retry_of, None)

    def _callback(self, letter: DeadLetter, value: bytes, headers: Headers) -> RetryRecord:
        """A first attempt again, due at once, under its old id: its receiver knows it by that."""
        assert letter.source is not None
        counts = {"webhook-attempt", "webhook-due", "webhook-busy"}
        retry_of = str(letter.source)
        kept = [header for header in headers if header[0] not in counts]
        headers = _replaced(kept, [("retry-of", retry_of.encode())])
        return RetryRecord(self.webhooks_topic, letter.source.partition, letter.key, value, headers, retry_of, None)

    def _refuse(self, error: Exception) -> None:
        if not self.force:
            raise NotRetryable(f"it would be a dead letter again: {error}", can_be_forced=True) from error


def _replaced(headers: Headers, others: Headers) -> list[tuple[str, bytes]]:
    """The headers, those with the names of the others (in any case of letters) replaced by them."""
    names = {name.lower() for name, _ in others}
    return [header for header in headers if header[0].lower() not in names] + list(others)


@dataclass(frozen=True, slots=True)
class Retried:
    """What became of one letter: `record` was sent, or would be; or `refusal` says why not.

    Attributes:
        place: of the letter.
        offset: of the record in its topic; None where nothing was sent.
    """

    place: Place
    record: RetryRecord | None
    offset: int | None
    refusal: NotRetryable | None


async def retry(
    letters: AsyncIterable[DeadLetter],
    rules: RetryRules,
    send: Callable[[RetryRecord], Awaitable[int]] | None,
    fresh_id: Callable[[], str],
) -> AsyncIterator[Retried]:
    """Sends letters again, one after the other, each confirmed before the next.

    Args:
        letters: which.
        rules: how.
        send: `RetryTopics.send`; None to send nothing and only say what would be.
        fresh_id: makes the new ids.

    Raises:
        PipelineError: as `send` and the reading of the letters; those yielded before are sent.
    """
    async for letter in letters:
        try:
            record = rules.record(letter, fresh_id())
            outcome = Retried(letter.place, record, None if send is None else await send(record), None)
        except NotRetryable as refusal:
            outcome = Retried(letter.place, None, None, refusal)
        yield outcome


class RetryTopics:
    """Writes to the topics that letters came from. Use it as an async context manager.

    Args:
        options: of an aiokafka client (`adapters.kafka.client_options`).
        topics: those that may be written to.
        record_bytes_max: of the largest value.
        timeout_s: for connecting, and for each record.
    """

    def __init__(
        self, options: dict[str, Any], topics: Sequence[str], *, record_bytes_max: int, timeout_s: float = 20.0
    ) -> None:
        self._options = options
        self._topics = topics
        self._record_bytes_max = record_bytes_max
        self._timeout_s = timeout_s
        self._partitions: dict[str, int] = {}
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        """Connects.

        Raises:
            KafkaUnavailable: Kafka does not answer.
            TopicError: a topic does not exist.
        """
        async with kafka_answers(self._options["bootstrap_servers"], self._timeout_s):
            self._partitions = await partitions_of(self._options, *self._topics)
            producer = AIOKafkaProducer(
                **self._options, acks="all", enable_idempotence=True,
                max_request_size=self._record_bytes_max + RECORD_OVERHEAD_BYTES,
            )  # fmt: skip
            try:
                await producer.start()
            except BaseException:
                await producer.stop()
                raise
        self._producer = producer
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def send(self, record: RetryRecord) -> int:
        """Sends a record; returns its offset once every in-sync replica has it.

        Raises:
            NotRetryable: the topic has no such partition, or takes no record of that size.
            KafkaUnavailable: not confirmed in time; it may still be taken in.
        """
        assert self._producer is not None, "used as an async context manager"
        if record.partition >= self._partitions[record.topic]:
            raise NotRetryable(
                f"{record.topic} has {self._partitions[record.topic]} partitions and none with its number, "
                f"{record.partition}"
            )
        try:
            async with kafka_answers(self._options["bootstrap_servers"], self._timeout_s):
                sent = await self._send(record)
        except KafkaUnavailable as error:
            raise KafkaUnavailable(
                f"{error}; the retry of {record.retry_of} was not confirmed and may still be taken in"
            ) from error
        offset: int = sent.offset
        return offset

    async def _send(self, record: RetryRecord) -> Any:
        assert self._producer is not None
        try:
            return await self._producer.send_and_wait(
                record.topic, record.value, record.key, record.partition, headers=list(record.headers)
            )
        except MessageSizeTooLargeError as error:
            raise NotRetryable(f"{record.topic} takes no record of {len(record.value)} bytes") from error
