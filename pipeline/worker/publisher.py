"""Group commit: results, then copies and events, then the offset, each confirmed by all in-sync replicas.

Two stages, each one task. While one round of results is on its way the next fills, so batches grow with the load and no
result waits for a timer. Results come first because somebody waits for them. Somebody waits for a copy, too, which must
not be seen before its result is in the log: it leaves with the next results, in their connection. Events follow in
their own producer, so they never stand before a result in the same connection, and gather for a moment, since nobody
waits for them. An offset counts as answered only when all of it is confirmed. Both stages publish only what is
certainly ours: see `membership`.

Any failure ends the process: nothing unconfirmed is committed, and the records are read again.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from prometheus_client import Histogram

from pipeline.core.lane import Lane
from pipeline.core.result_record import Headers, ResultRecord
from pipeline.core.trace_context import Span
from pipeline.worker.membership import Membership

# Answers not yet confirmed, in number and bytes: past it the intake waits. 8,192 is 0.1 s at full speed.
UNCONFIRMED_MAX = 8192
UNCONFIRMED_BYTES_MAX = 64 << 20
# One event record: large enough that its own cost vanishes, small enough for any consumer.
EVENT_RECORD_BYTES = 512 * 1024
PRODUCE_BATCH_BYTES = 1 << 20
EVENTS_PAUSE_S = 0.01


@dataclass(slots=True, eq=False)
class TopicNames:
    """Where things go."""

    results: str
    replies: str
    events: str
    event_partitions: int


@dataclass(slots=True, eq=False)
class PlainRecord:
    """A record for some other topic: a copy of a result, a dead letter. Without a partition the key decides."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(slots=True, eq=False)
class Outgoing:
    """All that one answered request record puts into Kafka.

    Attributes:
        result: None where there is nothing to answer, or the answer is in the log already.
        redelivered: whether somebody may have published these events before.
        confirmed: is called once, when everything is in Kafka.
        sending: the span of the result on its way, where somebody follows it.
        size_bytes: bytes that wait in memory.
    """

    lane: Lane
    offset: int
    key: bytes | None
    result: ResultRecord | None
    events: bytes
    others: tuple[PlainRecord, ...]
    redelivered: bool
    confirmed: Callable[[], None]
    sending: Span | None = None
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        others = sum([len(record.value or b"") for record in self.others]) if self.others else 0
        self.size_bytes = len(self.events) + (len(self.result.value) if self.result is not None else 0) + others


class _Writing(NamedTuple):
    """What all lines of one event record have in common: the sink decides by it whether rows may be there already."""

    partition: int
    generation: int
    incarnation: int
    redelivered: bool

    @property
    def headers(self) -> Headers:
        headers: Headers = [("content-type", b"application/x-ndjson"), ("generation", b"%d" % self.generation)]
        if self.incarnation:
            headers.append(("incarnation", b"%d" % self.incarnation))
        if self.redelivered:
            headers.append(("redelivered", b"1"))
        return headers


# The confirmation of a produce batch, and how many records it has.
_Sent = tuple["asyncio.Future[Any]", int]


class Publisher:
    """Publishes answers in rounds.

    Args:
        results: the producer for results and their copies.
        events: the producer for everything else.
        topics: where things go.
        membership: says whether a lane is ours still.
        seconds: measures each round of results.
        on_sent: is told of each round's results when Kafka has them.

    Attributes:
        unconfirmed_bytes: of answers that Kafka has not confirmed.
    """

    def __init__(
        self,
        results: AIOKafkaProducer,
        events: AIOKafkaProducer,
        topics: TopicNames,
        membership: Membership,
        seconds: Histogram,
        on_sent: Callable[[Iterable[Outgoing]], None] | None = None,
    ) -> None:
        self._results = results
        self._events = events
        self._topics = topics
        self._membership = membership
        self._seconds = seconds
        self._on_sent = on_sent
        self._ready: list[Outgoing] = []
        self._answered: list[Outgoing] = []
        self._copies: list[asyncio.Future[object]] = []
        self._wake_results = asyncio.Event()
        self._wake_events = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._unconfirmed = 0
        self.unconfirmed_bytes = 0

    def add(self, outgoing: Outgoing) -> None:
        """Takes an answer; it leaves with the next round."""
        self._ready.append(outgoing)
        self._unconfirmed += 1
        self.unconfirmed_bytes += outgoing.size_bytes
        if self._unconfirmed >= UNCONFIRMED_MAX or self.unconfirmed_bytes >= UNCONFIRMED_BYTES_MAX:
            self._room.clear()
        self._wake_results.set()

    async def room(self) -> None:
        """Returns when there is room for more."""
        await self._room.wait()

    @property
    def unconfirmed(self) -> int:
        """Answers that are not yet confirmed."""
        return self._unconfirmed

    async def run(self) -> None:
        """Publishes until cancelled.

        Raises:
            ExceptionGroup: of the KafkaError of a record that could not be published; nothing of its round is
                committed.
        """
        async with asyncio.TaskGroup() as stages:
            stages.create_task(self._publish_results())
            stages.create_task(self._publish_events())

    async def _publish_results(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake_results.wait()
            self._wake_results.clear()
            round_, self._ready = self._ready, []
            started = loop.time()
            by_lane: defaultdict[Lane, list[Outgoing]] = defaultdict(list)
            for outgoing in round_:
                if outgoing.result is not None:
                    by_lane[outgoing.lane].append(outgoing)
            sent = [
                (lane, some, await self._send_results(lane.partition, some))
                for lane, some in by_lane.items()
                if await self._is_ours(lane)
            ]
            for lane, some, confirmations in sent:
                await _note_published(lane, some, confirmations)
                if self._on_sent is not None:
                    self._on_sent(some)
            self._seconds.observe(loop.time() - started)
            await self._send_copies(round_)
            self._answered += round_
            self._wake_events.set()

    async def _is_ours(self, lane: Lane) -> bool:
        return not lane.closed and (self._membership.is_fresh(lane) or await self._membership.hold(lane))

    async def _send_results(self, partition: int, some: Iterable[Outgoing]) -> list[_Sent]:
        sent: list[_Sent] = []
        batch, count = self._results.create_batch(), 0
        for outgoing in some:
            assert outgoing.result is not None
            value, headers, _ = outgoing.result
            if batch.append(key=outgoing.key, value=value, timestamp=None, headers=headers) is None:
                batch.close()
                confirmation = await self._results.send_batch(batch, self._topics.results, partition=partition)
                sent.append((confirmation, count))
                batch, count = self._results.create_batch(), 0
                batch.append(key=outgoing.key, value=value, timestamp=None, headers=headers)
            count += 1
        batch.close()
        sent.append((await self._results.send_batch(batch, self._topics.results, partition=partition), count))
        return sent

    async def _send_copies(self, round_: Iterable[Outgoing]) -> None:
        """Of results that are in the log. They are confirmed together with the events of their round."""
        for outgoing in round_:
            for record in outgoing.others:
                if record.topic == self._topics.replies and await self._is_ours(outgoing.lane):
                    self._copies.append(await _send(self._results, record))

    async def _publish_events(self) -> None:
        while True:
            await self._wake_events.wait()
            # Nobody waits for events: at low rates those of several requests share a produce request (0.2 ms of CPU).
            await asyncio.sleep(EVENTS_PAUSE_S)
            self._wake_events.clear()
            round_, self._answered = self._answered, []
            confirmations, self._copies = self._copies, []
            lines: defaultdict[tuple[Lane, bool], list[bytes]] = defaultdict(list)
            others: list[tuple[Lane, PlainRecord]] = []
            for outgoing in round_:
                if outgoing.events:
                    lines[outgoing.lane, outgoing.redelivered].append(outgoing.events)
                others += [(outgoing.lane, one) for one in outgoing.others if one.topic != self._topics.replies]
            for lane, record in others:
                if await self._is_ours(lane):
                    confirmations.append(await _send(self._events, record))
            by_record: defaultdict[_Writing, list[bytes]] = defaultdict(list)
            for (lane, redelivered), some in lines.items():
                if await self._is_ours(lane):
                    partition = lane.partition % self._topics.event_partitions
                    by_record[_Writing(partition, lane.generation, lane.incarnation, redelivered)] += some
            for writing, some in by_record.items():
                confirmations += await self._send_events(writing, some)
            for confirmation in confirmations:
                await confirmation
            self._confirm(round_)

    async def _send_events(self, writing: "_Writing", lines: list[bytes]) -> list["asyncio.Future[object]"]:
        confirmations: list[asyncio.Future[object]] = []
        for value in _joined(lines):
            record = PlainRecord(self._topics.events, writing.partition, None, value, writing.headers)
            confirmations.append(await _send(self._events, record))
        return confirmations

    def _confirm(self, round_: list[Outgoing]) -> None:
        for outgoing in round_:
            self._unconfirmed -= 1
            self.unconfirmed_bytes -= outgoing.size_bytes
            if not outgoing.lane.closed:
                outgoing.lane.offsets.finish(outgoing.offset)
            outgoing.confirmed()
        if self._unconfirmed < UNCONFIRMED_MAX and self.unconfirmed_bytes < UNCONFIRMED_BYTES_MAX:
            self._room.set()


async def _send(producer: AIOKafkaProducer, record: PlainRecord) -> "asyncio.Future[object]":
    sent: asyncio.Future[object] = await producer.send(
        record.topic, record.value, key=record.key, partition=record.partition, headers=record.headers
    )
    return sent


async def _note_published(lane: Lane, some: list[Outgoing], sent: list[_Sent]) -> None:
    """Waits for a lane's results, and tells the lane where they are in the log."""
    first, end = None, lane.results_end
    for confirmation, count in sent:
        offset = (await confirmation).offset
        if offset < 0:  # a repeated request whose first try had arrived: Kafka says so, and not where
            offset = end
        first = offset if first is None else first
        end = offset + count
    size = sum([len(outgoing.result.value) for outgoing in some if outgoing.result is not None])
    lane.published(end if first is None else first, end, max([outgoing.offset for outgoing in some]), size)


def _joined(lines: list[bytes]) -> Iterable[bytes]:
    """Event lines as the values of as few records as their size allows."""
    some: list[bytes] = []
    size = 0
    for line in lines:
        if some and size + len(line) > EVENT_RECORD_BYTES:
            yield b"".join(some)
            some, size = [], 0
        some.append(line)
        size += len(line)
    if some:
        yield b"".join(some)
