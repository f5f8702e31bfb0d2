"""Lanes are opened: commits, bounds, results, the opening commit, and only then records, in every generation."""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError, RequestTimedOutError, TopicAuthorizationFailedError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP

from pipeline.adapters.log_reader import LogReader
from pipeline.core import ledger as ledger_module
from pipeline.core.commit_note import CommitNote
from pipeline.core.lane import WINDOW_OFFSETS, Lane
from pipeline.errors import TopicError
from pipeline.worker.lane_opening import LaneOpener, LedgerNames
from tests.simulation.virtual_time import simulated
from tests.worker.lanes import GROUP, TOPIC

RESULTS = "inference.results"
NOW_MS = 1_795_384_800_000
MINUTE_MS = 60_000
GENERATION = 7


def a_record(
    topic: str, offset: int, timestamp_ms: int, value: bytes = b"{}", **headers: bytes
) -> ConsumerRecord[Any, Any]:
    """A record of partition 0; underscores in the names of headers other than `ce_id` are hyphens."""
    named = tuple((name if name == "ce_id" else name.replace("_", "-"), text) for name, text in headers.items())
    return ConsumerRecord(
        topic=topic, partition=0, offset=offset, timestamp=timestamp_ms, timestamp_type=1, key=None, value=value,
        checksum=None, serialized_key_size=-1, serialized_value_size=len(value), headers=named,
    )  # fmt: skip


def a_result(
    offset: int, answers: int, created_ms: int = NOW_MS, value: bytes = b"{}", headers: Mapping[str, bytes] = {}
) -> ConsumerRecord[Any, Any]:
    """The answer to the request at an offset of partition 0, which came when the answer was created."""
    own = {
        "ce_id": b"r-%d" % answers, "request_offset": b"%d" % answers,
        "request_timestamp": b"%d" % created_ms, "request_digest": b"%032x" % answers,
        "worker_group": GROUP.encode(),
    }  # fmt: skip
    return a_record(RESULTS, offset, created_ms, value, **own | dict(headers))


class ScriptedLog(LogReader):
    """Partition 0 of requests and results, as lists of records; it tells what was asked, in order.

    Attributes:
        asked: the calls, by name.
        failures: what the next calls raise.
        on_scan: is called for every record that is read.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failures: list[KafkaError] = []
        self.on_scan: Callable[[], None] = lambda: None
        self.begins = {TOPIC: 0, RESULTS: 0}
        self.records: dict[str, list[ConsumerRecord[Any, Any]]] = {TOPIC: [], RESULTS: []}

    def end(self, topic: str) -> int:
        """The offset after the last record."""
        end: int = max([self.begins[topic], *(record.offset + 1 for record in self.records[topic])])
        return end

    async def bounds(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """Where the logs begin and end."""
        self.asked.append("bounds")
        if self.failures:
            raise self.failures.pop(0)
        return {place: (self.begins[place.topic], self.end(place.topic)) for place in partitions}

    async def offsets_at(self, times_ms: Mapping[TopicPartition, int]) -> dict[TopicPartition, int | None]:
        """The first records of these times or later."""
        self.asked.append("offsets_at")
        return {
            place: next((record.offset for record in self.records[place.topic] if record.timestamp >= time_ms), None)
            for place, time_ms in times_ms.items()
        }

    async def scan(
        self, ranges: Mapping[TopicPartition, tuple[int, int]], is_wanted: Callable[[], bool]
    ) -> AsyncGenerator[ConsumerRecord[Any, Any], None]:
        """The records of ranges."""
        self.asked.append("scan")
        for place, (start, end) in ranges.items():
            for record in self.records[place.topic]:
                if start <= record.offset < end and is_wanted():
                    self.on_scan()
                    yield record


class ScriptedConsumer:
    """One assigned partition and its group's commit.

    Args:
        log: is told of commits among the calls.
        commit: offset and metadata, if there is one.
    """

    def __init__(self, log: ScriptedLog, commit: tuple[int, str] | None = (0, "")) -> None:
        self.app = SimpleNamespace(consumer_generation_id=GENERATION)
        self.group = self
        self.lanes: dict[TP, Lane] = {}
        self.committed: list[tuple[int, CommitNote]] = []
        self.accepts = True
        self.commit = commit
        self._log = log

    def assignment(self) -> set[TP]:
        """Partition 0, and one of another topic."""
        return {TP(TOPIC, 0), TP("inference.models", 0)}

    async def fetch_commits(self, partitions: Iterable[TP]) -> dict[TP, OffsetAndMetadata]:
        """The group's commit."""
        self._log.asked.append("commits")
        return {} if self.commit is None else {tp: OffsetAndMetadata(*self.commit) for tp in partitions}

    async def commit_lanes(self, lanes: Iterable[Lane]) -> bool:
        """Commits, if the group still is the same."""
        self._log.asked.append("commit")
        for lane in lanes:
            place = lane.to_commit()
            assert place is not None, "the start of a lane counts"
            if self.accepts:
                self.committed.append(place)
                lane.committed(*place)
        return self.accepts

    @property
    def lane(self) -> Lane:
        """The lane of partition 0."""
        (lane,) = self.lanes.values()
        return lane


async def opened(log: ScriptedLog, consumer: ScriptedConsumer, generation: int = GENERATION) -> LaneOpener:
    """An opener that has opened."""
    opener = LaneOpener(log, LedgerNames(TOPIC, RESULTS, GROUP))
    as_consumer: Any = consumer
    await opener.open_all(as_consumer, generation)
    return opener


def is_answered(lane: Lane, offset: int, created_ms: int = NOW_MS) -> bool:
    """Whether the ledger has the answer to a request."""
    return bool(lane.ledger.take(offset, created_ms, f"r-{offset}"))


@simulated
async def test_start_is_committed_after_the_ledger_is_read() -> None:
    """Commits, bounds, results, then the commit that counts this start, then the lane: nothing is taken before."""
    log = ScriptedLog()
    log.records[TOPIC] = [a_record(TOPIC, offset, NOW_MS) for offset in range(6)]
    log.records[RESULTS] = [a_result(offset, offset) for offset in range(5)]
    note = CommitNote(results_from=2, generation=GENERATION - 1)
    consumer = ScriptedConsumer(log, (3, note.encode()))
    log.on_scan = lambda: log.asked.append("lane" if consumer.lanes else "no lane")
    await opened(log, consumer)
    assert log.asked[:3] == ["commits", "bounds", "bounds"]
    assert log.asked[-1] == "commit"
    assert "lane" not in log.asked
    assert consumer.committed == [(3, CommitNote(results_from=2, generation=GENERATION, starts=1))]
    assert [offset for offset in range(6) if is_answered(consumer.lane, offset)] == [3, 4]
    assert (consumer.lane.next_offset, len(consumer.lane.duplicates)) == (3, 5)


@pytest.mark.parametrize("when", ["before", "while reading", "at the commit"])
@simulated
async def test_generation_that_ended_opens_nothing(when: str) -> None:
    """A rebalance in the middle: no commit is made in the name of another generation, and no lane is opened."""
    log = ScriptedLog()
    log.records[TOPIC] = [a_record(TOPIC, offset, NOW_MS) for offset in range(6)]
    log.records[RESULTS] = [a_result(offset, offset) for offset in range(5)]
    consumer = ScriptedConsumer(log, (0, CommitNote(results_from=0).encode()))
    read: list[int] = []

    def next_generation() -> None:
        read.append(1)
        consumer.app.consumer_generation_id = GENERATION + 1

    if when == "before":
        next_generation()
    elif when == "while reading":
        log.on_scan = next_generation
    else:
        consumer.accepts = False
    await opened(log, consumer)
    assert consumer.lanes == {}
    assert consumer.committed == []
    assert ("commit" in log.asked) == (when == "at the commit")
    assert len(read) == (when != "at the commit"), "records were read on although nobody wants them"


@simulated
async def test_kafka_away_is_tried_again_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Retriable errors are waited out; the log says so once."""
    log = ScriptedLog()
    log.failures = [RequestTimedOutError() for _ in range(5)]
    consumer = ScriptedConsumer(log)
    await opened(log, consumer)
    assert consumer.lane.next_offset == 0
    assert len([record for record in caplog.records if "cannot be opened yet" in record.message]) == 1


@simulated
async def test_refusal_for_good_is_raised() -> None:
    """What waiting does not mend ends the worker."""
    log = ScriptedLog()
    log.failures = [TopicAuthorizationFailedError(RESULTS)]
    consumer = ScriptedConsumer(log)
    with pytest.raises(TopicAuthorizationFailedError):
        await opened(log, consumer)
    assert consumer.lanes == {}


@simulated
async def test_missing_commit_is_refused_unless_the_log_is_whole() -> None:
    """Without a commit a log from 0 is begun at 0; of a shortened one nobody knows what was answered."""
    log = ScriptedLog()
    log.records[TOPIC] = [a_record(TOPIC, offset, NOW_MS) for offset in range(6)]
    consumer = ScriptedConsumer(log, None)
    await opened(log, consumer)
    assert consumer.committed == [(0, CommitNote(results_from=0, generation=GENERATION, starts=1))]
    log.begins[TOPIC] = 2
    with pytest.raises(TopicError, match=f"group {GROUP} has no commit for {TOPIC}-0, whose log begins at 2") as raised:
        await opened(log, ScriptedConsumer(log, None))
    assert f"--topic {TOPIC}:0 " in str(raised.value)


@pytest.mark.parametrize("metadata", ["", "garbage", "[]", "null", '{"results":-1}', '{"results":"0"}', '{"starts":9}'])
@simulated
async def test_commit_by_hand_is_looked_up_by_time(metadata: str) -> None:
    """A commit without a note of ours, set back: every answer from there on is found, whenever it was given."""
    log = ScriptedLog()
    log.records[TOPIC] = [a_record(TOPIC, offset, NOW_MS + offset * 90 * MINUTE_MS) for offset in range(5)]
    log.records[RESULTS] = [a_result(offset, offset, NOW_MS + offset * 90 * MINUTE_MS) for offset in range(5)]
    consumer = ScriptedConsumer(log, (2, metadata))
    await opened(log, consumer)
    assert consumer.committed[0][1].results_from == 2, "more than an hour before the first request is not read"
    found = [offset for offset in range(5) if is_answered(consumer.lane, offset, NOW_MS + offset * 90 * MINUTE_MS)]
    assert found == [2, 3, 4]


@simulated
async def test_commit_set_far_back_is_known_to_the_next_owner() -> None:
    """More answers than one window: they are known after another start too, which finds a note."""
    log = ScriptedLog()
    end = 2 * WINDOW_OFFSETS
    log.records[TOPIC] = [a_record(TOPIC, offset, NOW_MS) for offset in (0, end - 1)]
    log.records[RESULTS] = [a_result(0, 0), a_result(1, end - 1)]
    consumer = ScriptedConsumer(log, (0, ""))
    await opened(log, consumer)
    ((offset, note),) = consumer.committed
    consumer = ScriptedConsumer(log, (offset, note.encode()))
    await opened(log, consumer)
    assert consumer.lane.may_be_known(end - 1)
    assert is_answered(consumer.lane, end - 1)


@simulated
async def test_commit_past_the_end_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    """A topic that was made anew, or lost records: from its begin, what is answered is looked up."""
    log = ScriptedLog()
    log.begins[TOPIC] = 1
    log.records[TOPIC] = [a_record(TOPIC, offset, NOW_MS) for offset in (1, 2)]
    log.records[RESULTS] = [a_result(0, 1)]
    consumer = ScriptedConsumer(log, (40, CommitNote(results_from=70).encode()))
    await opened(log, consumer)
    assert consumer.lane.next_offset == 1
    assert [offset for offset in (1, 2) if is_answered(consumer.lane, offset)] == [1]
    assert "the commit 40 is past the end 3" in caplog.text


@simulated
async def test_commit_before_the_begin_tells_what_was_lost(caplog: pytest.LogCaptureFixture) -> None:
    """Retention took records that nobody had answered."""
    log = ScriptedLog()
    log.begins[TOPIC] = 5
    consumer = ScriptedConsumer(log, (3, CommitNote(results_from=0).encode()))
    await opened(log, consumer)
    assert consumer.lane.next_offset == 5
    assert "records 3 to 4 were deleted" in caplog.text


@simulated
async def test_note_past_the_end_of_results_reads_all_of_them() -> None:
    """Results that were made anew have other offsets than the note knew."""
    log = ScriptedLog()
    log.records[TOPIC] = [a_record(TOPIC, offset, NOW_MS) for offset in range(3)]
    log.records[RESULTS] = [a_result(0, 2)]
    consumer = ScriptedConsumer(log, (2, CommitNote(results_from=9).encode()))
    await opened(log, consumer)
    assert is_answered(consumer.lane, 2)


@simulated
async def test_values_that_were_not_kept_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound in bytes a ledger keeps places alone; the value comes when its turn does."""
    monkeypatch.setattr(ledger_module, "VALUES_BYTES_MAX", 10)
    log = ScriptedLog()
    log.records[TOPIC] = [a_record(TOPIC, offset, NOW_MS) for offset in range(3)]
    log.records[RESULTS] = [a_result(offset, offset, value=b"value-%d" % offset) for offset in range(3)]
    consumer = ScriptedConsumer(log, (0, CommitNote(results_from=0).encode()))
    opener = await opened(log, consumer)
    ledger = consumer.lane.ledger
    assert [ledger.unread(offset) for offset in range(3)] == [[], [1], [2]]
    again = await opener.read_again(0, 2)
    assert again is not None
    ledger.supply(2, 2, again)
    assert ledger.unread(2) == []
    (answered,) = ledger.take(2, NOW_MS, "r-2")
    assert answered.value == b"value-2"
    assert await opener.read_again(0, 3) is None
    ledger.supply(1, 1, None)
    assert ledger.take(1, NOW_MS, "r-1") == []


@simulated
async def test_ids_of_the_window_are_restored_by_the_logs_own_time() -> None:
    """The 10 minutes before the youngest result are remembered, whatever a worker's clock says; older ones are not."""
    log = ScriptedLog()
    ages_m = [600, 30, 9, 5, 1, 0]
    log.records[TOPIC] = [a_record(TOPIC, n, NOW_MS - age * MINUTE_MS) for n, age in enumerate(ages_m)]
    log.records[RESULTS] = [a_result(n, n, NOW_MS - age * MINUTE_MS) for n, age in enumerate(ages_m)]
    consumer = ScriptedConsumer(log, (6, CommitNote(results_from=6).encode()))
    await opened(log, consumer)
    found = [n for n in range(6) if consumer.lane.duplicates.find(f"r-{n}", 6, NOW_MS) is not None]
    assert found == [2, 3, 4, 5]
    assert len(consumer.lane.ledger) == 0


@simulated
async def test_large_results_are_restored_as_far_as_their_bytes_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading must not take minutes: of large results only the youngest are read for their ids."""
    monkeypatch.setattr("pipeline.worker.lane_opening._RESTORE_BYTES", 30_000)
    log = ScriptedLog()
    log.records[TOPIC] = [a_record(TOPIC, offset, NOW_MS) for offset in range(20)]
    log.records[RESULTS] = [a_result(offset, offset, value=bytes(10_000)) for offset in range(20)]
    consumer = ScriptedConsumer(log, (20, CommitNote(results_from=20).encode()))
    await opened(log, consumer)
    assert [n for n in range(20) if consumer.lane.duplicates.find(f"r-{n}", 20, NOW_MS)] == [17, 18, 19]


@pytest.mark.parametrize(
    "strange",
    [{"request_offset": b"1" + b"0" * 30}, {"request_timestamp": b"9" * 25}, {"request_offset": b"-5"},
     {"ce_id": b"\xff"}, {"request_digest": b"z" * 32}, {"worker_group": b"another"}],
)  # fmt: skip
@simulated
async def test_foreign_records_in_results_say_nothing(strange: dict[str, bytes]) -> None:
    """However strange their headers: the lane opens, they answer nothing, and their ids are free."""
    log = ScriptedLog()
    log.records[TOPIC] = [a_record(TOPIC, offset, NOW_MS) for offset in range(3)]
    log.records[RESULTS] = [a_result(0, 1, headers=strange), a_record(RESULTS, 1, NOW_MS), a_result(2, 0)]
    consumer = ScriptedConsumer(log, (0, CommitNote(results_from=0).encode()))
    await opened(log, consumer)
    assert [offset for offset in range(3) if is_answered(consumer.lane, offset)] == [0]
    assert len(consumer.lane.duplicates) == 1


@simulated
async def test_recent_ids_stay_with_whoever_keeps_the_partition() -> None:
    """From one generation to the next they need not be read; after a gap another may have answered: they are."""
    log = ScriptedLog()
    log.records[TOPIC] = [a_record(TOPIC, 0, NOW_MS)]
    log.records[RESULTS] = [a_result(0, 0)]
    consumer = ScriptedConsumer(log, (1, CommitNote(results_from=1).encode()))
    await opened(log, consumer)
    first = consumer.lane
    for generation, kept in ((GENERATION + 1, True), (GENERATION + 3, False)):
        consumer.app.consumer_generation_id = generation
        before = consumer.lane
        await opened(log, consumer, generation)
        assert (consumer.lane.duplicates is before.duplicates) == kept
        assert consumer.lane.generation == generation
        assert len(consumer.lane.duplicates) == 1
    assert first is not consumer.lane


@simulated
async def test_same_generation_again_is_another_incarnation() -> None:
    """A process in the place of one of the same name: the generation stays, the incarnation counts them."""
    log = ScriptedLog()
    consumer = ScriptedConsumer(log)
    for incarnation in range(3):
        await opened(log, consumer)
        assert consumer.lane.incarnation == incarnation
        ((offset, note),) = consumer.committed[incarnation:]
        consumer.commit = (offset, note.encode())
