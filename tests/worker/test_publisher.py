"""Group commit: results, then copies and events, then the offset; nothing of a closed lane; errors end it."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka.errors import KafkaError, KafkaTimeoutError

from pipeline.core.lane import Lane
from pipeline.core.result_record import ResultRecord
from pipeline.metrics import publish_seconds
from pipeline.worker import publisher as module
from pipeline.worker.publisher import EVENTS_PAUSE_S, Outgoing, PlainRecord, Publisher, TopicNames
from tests.simulation.topics import FakeProducer, RecordedTopic
from tests.simulation.virtual_time import settle, simulated
from tests.worker.lanes import SureMembership, new_lane

TOPICS = TopicNames("inference.results", "inference.replies", "inference.events", 2)


@dataclass
class Bench:
    """A publisher, its producers, and what was confirmed."""

    log: RecordedTopic
    results: FakeProducer
    events: FakeProducer
    publisher: Publisher
    confirmed: list[int] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None

    def add(self, lane: Lane, offset: int, **changes: Any) -> None:
        """One answered record of a lane."""
        lane.offsets.begin(offset)
        members: dict[str, Any] = {
            "key": b"k%d" % offset,
            "result": ResultRecord(b"result %d" % offset, [("request-offset", b"%d" % offset)], 8),
            "events": b'{"e":%d}\n' % offset,
            "others": (),
            "redelivered": False,
            "confirmed": lambda: self.confirmed.append(offset),
            **changes,
        }
        self.publisher.add(Outgoing(lane=lane, offset=offset, **members))

    def offsets(self, topic: str = "inference.results") -> list[bytes | None]:
        """Values written to a topic, in order."""
        return [record.value for record in self.log.of(topic)]


async def bench(**results: Any) -> Bench:
    """A running publisher."""
    log = RecordedTopic()
    made = Bench(
        log,
        (first := FakeProducer(log, **results)),
        (second := FakeProducer(log)),
        Publisher(first, second, TOPICS, SureMembership(), publish_seconds(None)),
    )
    made.task = asyncio.get_running_loop().create_task(made.publisher.run())
    await settle()
    return made


def lane(partition: int = 0, generation: int = 7) -> Lane:
    """A partition that is ours."""
    return new_lane(partition, generation)


@simulated
async def test_offset_finishes_after_results_and_events() -> None:
    """An offset may be committed only when result, events and copies are all confirmed, in this order."""
    made = await bench(confirm_after_s=None)
    made.events.confirm_after_s = None
    ours = lane()
    copy = PlainRecord("inference.replies", 3, b"r-1", b"copy", [])
    made.add(ours, 10, others=(copy,))
    await settle()
    assert [record.topic for record in made.log.records] == ["inference.results"]
    assert ours.offsets.committable() == 10
    made.results.confirm()
    await settle()
    assert [record.topic for record in made.log.records[1:]] == ["inference.replies"]
    await asyncio.sleep(2 * EVENTS_PAUSE_S)
    assert [record.topic for record in made.log.records[2:]] == ["inference.events"]
    made.events.confirm()
    await settle()
    assert (ours.offsets.committable(), made.confirmed, made.publisher.unconfirmed) == (10, [], 1)
    made.results.confirm()
    await settle()
    assert (ours.offsets.committable(), made.confirmed, made.publisher.unconfirmed) == (11, [10], 0)


@simulated
async def test_results_go_to_their_own_partition() -> None:
    """A result has its request's partition number and key; events the number modulo theirs, and the generation."""
    made = await bench()
    lanes = [lane(partition, generation=partition + 1) for partition in range(5)]
    for partition, ours in enumerate(lanes):
        made.add(ours, 100 + partition)
        made.add(ours, 200 + partition)
    await asyncio.sleep(1)
    for partition in range(5):
        records = made.log.of("inference.results", partition)
        offsets = [100 + partition, 200 + partition]
        assert [record.value for record in records] == [b"result %d" % offset for offset in offsets]
        assert [record.key for record in records] == [b"k%d" % offset for offset in offsets]
    events = made.log.of("inference.events")
    assert len(events) == 5
    for record in events:
        generation = int(dict(record.headers)["generation"])
        assert record.partition == (generation - 1) % 2
        assert record.key is None
        assert dict(record.headers)["content-type"] == b"application/x-ndjson"
        assert (record.value or b"").count(b"\n") == 2


@simulated
async def test_rounds_grow_while_one_is_out() -> None:
    """What is answered while a round is on its way leaves together in the next one."""
    made = await bench(confirm_after_s=0.010)
    ours = lane()
    made.add(ours, 0)
    await asyncio.sleep(0.001)
    for offset in range(1, 50):
        made.add(ours, offset)
        await asyncio.sleep(0.0001)
    await asyncio.sleep(1)
    assert made.results.batches == [1, 49]
    assert made.offsets() == [b"result %d" % offset for offset in range(50)]


@simulated
async def test_next_results_do_not_wait_for_events() -> None:
    """Slow events never hold up results; the offsets wait for them all the same."""
    made = await bench()
    made.events.confirm_after_s = None
    ours = lane()
    for offset in range(5):
        made.add(ours, offset)
        await asyncio.sleep(0.01)
    assert len(made.offsets()) == 5
    assert ours.offsets.committable() == 0
    for _ in range(5):
        made.events.confirm()
        await asyncio.sleep(EVENTS_PAUSE_S)
    assert ours.offsets.committable() == 5


@simulated
async def test_copies_do_not_wait_for_events() -> None:
    """Somebody waits for a copy: it leaves as soon as its result is in the log, however long events take."""
    made = await bench(confirm_after_s=0.001)
    made.events.confirm_after_s = None
    ours = lane()
    made.add(ours, 1)
    await asyncio.sleep(2 * EVENTS_PAUSE_S)
    assert [record.topic for record in made.log.records] == ["inference.results", "inference.events"]
    made.add(ours, 2, others=(PlainRecord("inference.replies", 0, b"r", b"copy", []),))
    await settle()
    assert made.offsets("inference.replies") == []
    await asyncio.sleep(0.002)
    assert made.offsets("inference.replies") == [b"copy"]


@pytest.mark.parametrize("when", ["before", "between"])
@simulated
async def test_closed_lane_publishes_nothing_more(when: str) -> None:
    """Once a partition is another's, neither results nor events nor copies of it leave; its chunk still ends."""
    made = await bench(confirm_after_s=0.010)
    lost, kept = lane(0), lane(1)
    made.add(lost, 1, others=(PlainRecord("inference.replies", 0, b"r", b"copy", []),))
    made.add(kept, 2)
    if when == "between":
        await asyncio.sleep(0.005)
    lost.closed = True
    await asyncio.sleep(1)
    assert made.offsets() == ([b"result 2"] if when == "before" else [b"result 1", b"result 2"])
    assert made.offsets("inference.events") == [b'{"e":2}\n']
    assert made.offsets("inference.replies") == []
    assert lost.offsets.committable() == 1
    assert kept.offsets.committable() == 3
    assert sorted(made.confirmed) == [1, 2]
    assert made.publisher.unconfirmed == 0


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("stage", ["results", "events"])
@simulated
async def test_failing_send_ends_the_publisher(stage: str, late: bool) -> None:
    """A record that Kafka refuses ends the run with Kafka's error; nothing of its round is finished."""
    made = await bench()
    ours = lane()
    producer = made.results if stage == "results" else made.events
    producer.fail_with, producer.fail_late = KafkaTimeoutError(), late
    made.add(ours, 5)
    made.add(ours, 6)
    assert made.task is not None
    with pytest.raises(ExceptionGroup) as raised:
        await made.task
    assert raised.group_contains(KafkaError)
    assert ours.offsets.committable() == 5
    assert made.confirmed == []


@simulated
async def test_batches_roll_over_at_their_bound() -> None:
    """A partition's round is cut into as many batches as it needs, in order, none larger than its bound."""
    made = await bench(batch_bytes=1000)
    ours = lane()
    sizes = [300, 300, 300, 50, 2500, 10, 10, 900, 990, 5]
    for offset, size in enumerate(sizes):
        made.add(ours, offset, result=ResultRecord(bytes([65 + offset]) * size, [], size))
    await asyncio.sleep(1)
    assert made.offsets() == [bytes([65 + offset]) * size for offset, size in enumerate(sizes)]
    assert made.results.batches == [2, 2, 1, 2, 1, 1, 1]
    assert ours.offsets.committable() == len(sizes)


@simulated
async def test_event_records_are_bounded() -> None:
    """Lines are joined up to the bound of an event record; a longer line is a record of its own."""
    made = await bench()
    ours = lane()
    line = b"x" * (module.EVENT_RECORD_BYTES // 3) + b"\n"
    long = b"y" * (module.EVENT_RECORD_BYTES + 10) + b"\n"
    for offset in range(5):
        made.add(ours, offset, events=long if offset == 3 else line)
    await asyncio.sleep(1)
    assert [len(value or b"") // len(line) for value in made.offsets("inference.events")] == [2, 1, 3, 1]
    assert b"".join(value or b"" for value in made.offsets("inference.events")) == line * 3 + long + line


@simulated
async def test_dead_letter_alone_is_confirmed() -> None:
    """A record without a result and events still finishes its offset, after its dead letter."""
    made = await bench()
    ours = lane()
    letter = PlainRecord("inference.dead-letter", None, b"k", None, [("reason", b"TOMBSTONE")])
    made.add(ours, 3, result=None, events=b"", others=(letter,))
    await asyncio.sleep(1)
    assert [record.topic for record in made.log.records] == ["inference.dead-letter"]
    assert made.log.records[0].value is None
    assert ours.offsets.committable() == 4
    assert made.confirmed == [3]


@simulated
async def test_room_ends_with_the_number_of_answers() -> None:
    """Past the bound on unconfirmed answers the intake waits, until enough of them are confirmed."""
    made = await bench(confirm_after_s=None)
    ours = lane()
    for offset in range(module.UNCONFIRMED_MAX - 1):
        made.add(ours, offset)
    await asyncio.wait_for(made.publisher.room(), 0.001)
    made.add(ours, module.UNCONFIRMED_MAX)
    waiting = asyncio.get_running_loop().create_task(made.publisher.room())
    await asyncio.sleep(5)
    assert not waiting.done()
    made.results.confirm()
    await asyncio.sleep(1)
    assert waiting.done()
    made.results.confirm()
    await asyncio.sleep(1)
    assert made.publisher.unconfirmed == 0


@pytest.mark.parametrize("kind", ["result", "events", "dead letter"])
@simulated
async def test_room_ends_with_the_bytes_of_answers(kind: str) -> None:
    """Bytes that wait are bounded too, whatever they are: results, events or dead letters."""
    made = await bench(confirm_after_s=None)
    made.events.confirm_after_s = None
    ours = lane()
    large = b"x" * (module.UNCONFIRMED_BYTES_MAX // 4)
    for offset in range(4):
        changes: dict[str, Any] = {"result": None, "events": b"", "others": ()}
        if kind == "result":
            changes["result"] = ResultRecord(large, [], len(large))
        elif kind == "events":
            changes["events"] = large
        else:
            changes["others"] = (PlainRecord("inference.dead-letter", None, None, large, []),)
        made.add(ours, offset, **changes)
    waiting = asyncio.get_running_loop().create_task(made.publisher.room())
    await asyncio.sleep(1)
    assert not waiting.done()
    for _ in range(4):
        made.results.confirm()
        made.events.confirm()
        await asyncio.sleep(1)
    assert waiting.done()
    assert made.publisher.unconfirmed == 0
