"""Every result reaches the store once, in order, through outages; nothing blocks the others for ever."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError
from aiokafka.structs import OffsetAndTimestamp

from pipeline.config import Settings
from pipeline.core.stored_result import Pending, StoredResult, name_of
from pipeline.errors import ResultStoreError
from pipeline.gateway.delivery import filler as filler_module
from pipeline.gateway.delivery.filler import Filler
from pipeline.gateway.delivery.metrics import DeliveryMetrics
from tests.contracts.result_store import DIGEST, MemoryResultStore
from tests.simulation.virtual_time import FakeClock, simulated, the_clock

PLACE = TopicPartition("inference.results", 0)
TTL_S = 3600.0


def a_record(offset: int, clock: FakeClock, *, age_s: float = 1.0, size: int = 20, **headers: bytes) -> ConsumerRecord:
    """A result of the request r-{offset}."""
    timestamp_ms = int((clock.now() - age_s) * 1000)
    named = {
        "ce_id": b"r-%d" % offset, "request-offset": b"0", "request-timestamp": b"0", "worker-group": b"w",
        "request-digest": DIGEST.hex().encode(),
    } | {name.replace("_", "-"): text for name, text in headers.items()}  # fmt: skip
    value = (b'{"offset":%d}' % offset).ljust(size)
    return ConsumerRecord(PLACE.topic, 0, offset, timestamp_ms, 1, None, value, 0, 0, 0, list(named.items()))


class Consumer:
    """A partition with commits and times."""

    def __init__(self, committed: int | None, first_of_time: int | None, end: int) -> None:
        self._committed, self._first, self._end = committed, first_of_time, end
        self.commits: list[int] = []
        self.seeks: list[int] = []
        self.asked_ms = 0
        self.refuses = False

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        if self.refuses:
            raise CommitFailedError("somebody else's")
        self.commits.append(offsets[PLACE])

    async def committed(self, partition: TopicPartition) -> int | None:
        return self._committed

    async def offsets_for_times(self, times: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        self.asked_ms = times[PLACE]
        return {PLACE: None if self._first is None else OffsetAndTimestamp(self._first, 0)}

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {PLACE: self._end}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.seeks.append(offset)

    def assignment(self) -> set[TopicPartition]:
        return {PLACE}


class World:
    """A filler, its store and its consumer."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.store, self.metrics = Store(), DeliveryMetrics()
        self.consumer = Consumer(0, 0, 100)
        self.told: list[bytes] = []
        self.passed: list[bytes] = []
        self.filler = Filler(
            Settings(), {}, "inference-result-store", self.store, clock, self.metrics, self.told.extend,
            lambda name, _: self.passed.append(name),
        )  # fmt: skip

    async def take(self, *records: ConsumerRecord) -> None:
        await self.filler.take(self.consumer, {PLACE: records})

    async def found(self, number: int) -> Pending | StoredResult | None:
        return (await self.store.find([name(number)]))[0]


class Store(MemoryResultStore):
    """One that remembers how much came at once, and is back after so many failed tries."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.failures = 0

    async def keep(self, results: Sequence[tuple[bytes, StoredResult]]) -> None:
        if self.failures:
            self.failures -= 1
            raise ResultStoreError("the store is away")
        self.calls.append(len(results))
        await super().keep(results)


def name(number: int, tenant: str | None = None) -> bytes:
    """The name of r-{number}."""
    return name_of(tenant, f"r-{number}")


@simulated
async def test_results_are_kept_and_then_committed() -> None:
    """A chunk's results are kept under tenant and id, with digest and JSON length; then their offset is committed."""
    clock = the_clock()
    world = World(clock)
    await world.store.reserve(name(1), DIGEST)
    binary = a_record(2, clock, tenant=b"acme", Inference_Header_Content_Length=b"5")
    plain, foreign = a_record(1, clock), a_record(3, clock, request_offset=b"no number")
    await world.take(plain, binary, foreign)
    assert await world.found(1) == StoredResult(DIGEST, 0, plain.value)
    assert (await world.store.find([name(2, "acme")]))[0] == StoredResult(DIGEST, 5, binary.value)
    assert world.consumer.commits == [4]
    assert world.metrics.kept == {"kept": 2, "foreign": 1}
    assert world.told == [name(1), name(2, "acme")]


@simulated
async def test_store_that_is_away_is_waited_for() -> None:
    """While the store is away nothing is committed, who waits here is told, and all is kept when it is back."""
    clock = the_clock()
    world = World(clock)
    world.store.failures = 30
    await world.take(a_record(1, clock), a_record(2, clock))
    assert [await world.found(1) is not None, await world.found(2) is not None] == [True, True]
    assert world.consumer.commits == [3]
    assert world.passed == [name(1), name(2)], "told once, not with every try"
    assert world.metrics.store_errors == {"keep": 30}
    assert world.consumer.seeks == []


@simulated
async def test_outage_of_hours_is_not_replayed() -> None:
    """What became too old while the store was away is passed over; the partition is read on from what is not."""
    clock = the_clock()
    world = World(clock)
    world.consumer = Consumer(2, 70, 100)
    world.store.failures = 1000
    await world.take(a_record(1, clock))
    assert await world.found(1) is None
    assert world.metrics.kept["expired"] == 1
    assert world.consumer.commits == [2]
    assert world.consumer.seeks == [70]
    assert world.consumer.asked_ms == int((clock.now() - TTL_S) * 1000)


@pytest.mark.parametrize(
    ("committed", "first", "start"),
    [(None, 40, 40), (None, None, 100), (60, 40, 60), (30, 40, 40), (30, None, 100)],
)
@simulated
async def test_start_is_the_commit_but_not_before_what_is_worth_it(
    committed: int | None, first: int | None, start: int
) -> None:
    """A partition is begun where the group has got to, or where results begin that the store would still have."""
    clock = the_clock()
    world = World(clock)
    world.consumer = Consumer(committed, first, 100)
    await world.filler.place(world.consumer, frozenset([PLACE]))
    assert world.consumer.seeks == [start]


class Growing(Consumer):
    """An empty partition that gets a result whenever it is asked about."""

    async def offsets_for_times(self, times: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        found = {PLACE: OffsetAndTimestamp(0, 0) if self._end else None}
        self._end += 1
        return found

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        self._end += 1
        return {PLACE: self._end - 1}


@simulated
async def test_first_result_of_a_partition_is_not_passed_over() -> None:
    """One that comes while the start is looked for is read, in a partition that nobody has read before."""
    world = World(the_clock())
    consumer = Growing(None, None, 0)
    await world.filler.place(cast("Any", consumer), frozenset([PLACE]))
    assert consumer.seeks == [0]


@simulated
async def test_result_without_room_holds_nobody_up() -> None:
    """A result that the store refuses is passed over at once, with its reservation; the others are kept."""
    clock = the_clock()
    world = World(clock)
    world.store.full = 1000
    await world.store.reserve(name(2), DIGEST)
    await world.take(a_record(1, clock), a_record(2, clock, size=2000), a_record(3, clock))
    assert [await world.found(number) is None for number in (1, 2, 3)] == [False, True, False]
    assert world.metrics.kept == {"kept": 2, "refused": 1}
    assert world.passed == [name(2)]
    assert world.consumer.commits == [4]


@simulated
async def test_result_that_is_too_large_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over the store's limit is passed over, and nobody finds it pending for ever."""
    monkeypatch.setattr(filler_module, "RESULT_BYTES_MAX", 1000)
    clock = the_clock()
    world = World(clock)
    await world.store.reserve(name(1), DIGEST)
    await world.take(a_record(1, clock, size=1001), a_record(2, clock, size=1000))
    assert [await world.found(1), await world.found(2) is None] == [None, False]
    assert world.metrics.kept == {"kept": 1, "too_large": 1}


@simulated
async def test_batches_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept by one call stays within the bound, but for a single larger result."""
    monkeypatch.setattr(filler_module, "BATCH_BYTES_MAX", 100)
    clock = the_clock()
    world = World(clock)
    await world.take(*(a_record(number, clock, size=size) for number, size in enumerate([40, 40, 40, 500, 60, 40, 1])))
    assert world.store.calls == [2, 1, 1, 2, 1]
    assert world.consumer.commits == [7]


@simulated
async def test_partition_that_moved_is_somebody_elses() -> None:
    """A commit that is refused as the partition has another owner ends nothing: the results are kept."""
    clock = the_clock()
    world = World(clock)
    world.consumer.refuses = True
    await world.take(a_record(1, clock))
    assert await world.found(1) is not None
