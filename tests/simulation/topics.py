"""Topics that remember what was written to them, and a producer that confirms when it is told to."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aiokafka.structs import RecordMetadata, TopicPartition

from schemas.event import Event, RequestEnd
from schemas.result import InferenceResult, decode_result
from tests.simulation.virtual_time import the_clock

Headers = Sequence[tuple[str, bytes]]
# What Kafka adds to a record in a batch, about.
_RECORD_OVERHEAD = 70


@dataclass(frozen=True)
class WrittenRecord:
    """One record, as the topic has it."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers
    written_at: float


@dataclass
class RecordedTopic:
    """Everything that was written, in the order it was handed over."""

    records: list[WrittenRecord] = field(default_factory=list)

    def of(self, topic: str, partition: int | None = None) -> list[WrittenRecord]:
        """The records of one topic, or of one partition of it."""
        return [
            record
            for record in self.records
            if record.topic == topic and (partition is None or record.partition == partition)
        ]

    def results(self) -> list[InferenceResult]:
        """The results, decoded."""
        return [decode_result(record.value or b"", record.headers) for record in self.of("inference.results")]

    def event_lines(self) -> list[Event]:
        """The events, decoded; lines that end a request are `RequestEnd`."""
        lines = [line for record in self.of("inference.events") for line in (record.value or b"").splitlines()]
        return [(RequestEnd if b'"status"' in line else Event).model_validate_json(line) for line in lines]


class FakeBatch:
    """A produce batch: bounded in bytes, its first record always fits, closed before it is sent."""

    def __init__(self, bytes_max: int) -> None:
        self.records: list[tuple[bytes | None, bytes | None, Headers]] = []
        self.closed = False
        self._bytes_max = bytes_max
        self._bytes = 0

    def append(
        self, *, key: bytes | None, value: bytes | None, timestamp: int | None, headers: Headers = ()
    ) -> object | None:
        """Takes a record, or returns None where it does not fit any more."""
        if self.closed:
            return None
        size = _RECORD_OVERHEAD + len(key or b"") + len(value or b"")
        if self.records and self._bytes + size > self._bytes_max:
            return None
        self.records.append((key, value, headers))
        self._bytes += size
        return self.records

    def close(self) -> None:
        """Nothing more is taken."""
        self.closed = True


@dataclass(eq=False)
class FakeProducer:
    """A producer into a `RecordedTopic`.

    Attributes:
        confirm_after_s: when Kafka confirms; None: when `confirm` is called.
        fail_with: the next send fails with this, at once or at its confirmation.
        fail_late: at its confirmation.
        batches: records in each batch that was sent.
    """

    log: RecordedTopic
    batch_bytes: int = 1 << 20
    confirm_after_s: float | None = 0.001
    fail_with: Exception | None = None
    fail_late: bool = False
    batches: list[int] = field(default_factory=list)
    on_write: Callable[[], None] = lambda: None
    _open: list[tuple["asyncio.Future[object]", RecordMetadata]] = field(default_factory=list)

    def create_batch(self) -> FakeBatch:
        """An empty batch."""
        return FakeBatch(self.batch_bytes)

    async def send_batch(self, batch: FakeBatch, topic: str, *, partition: int) -> "asyncio.Future[object]":
        """Writes a batch; the future is done when it is confirmed."""
        assert batch.closed, "a batch is closed before it is sent"
        assert batch.records, "an empty batch is not sent"
        self.batches.append(len(batch.records))
        return await self._write([(topic, partition, *record) for record in batch.records])

    async def send(
        self, topic: str, value: bytes | None, *, key: bytes | None, partition: int | None, headers: Headers
    ) -> "asyncio.Future[object]":
        """Writes one record; the future is done when it is confirmed."""
        return await self._write([(topic, partition, key, value, headers)])

    def confirm(self) -> None:
        """Everything written so far is confirmed now."""
        for future, place in self._open:
            _confirm(future, place)
        self._open.clear()

    async def _write(
        self, records: Sequence[tuple[str, int | None, bytes | None, bytes | None, Headers]]
    ) -> "asyncio.Future[object]":
        await asyncio.sleep(0)
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if self.fail_with is not None:
            error, self.fail_with = self.fail_with, None
            if not self.fail_late:
                raise error
            asyncio.get_running_loop().call_later(0.001, future.set_exception, error)
            return future
        now = the_clock().monotonic()
        topic, partition, *_ = records[0]
        offset = len(self.log.of(topic, partition))
        place = RecordMetadata(topic, partition or 0, TopicPartition(topic, partition or 0), offset, None, 0, 0)
        self.log.records += [WrittenRecord(*record, written_at=now) for record in records]
        self.on_write()
        if self.confirm_after_s is None:
            self._open.append((future, place))
        else:
            asyncio.get_running_loop().call_later(self.confirm_after_s, _confirm, future, place)
        return future


def _confirm(future: "asyncio.Future[object]", place: RecordMetadata) -> None:
    if not future.done():
        future.set_result(place)
