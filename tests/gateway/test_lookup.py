"""A result is found where it is: memory, store, log; unknown is only what those who could know have denied."""

import asyncio
import random

import pytest

from pipeline.adapters.result_log import ClickHouseResultLog, LoggedResult
from pipeline.adapters.system import SystemClock
from pipeline.core.stored_result import Pending, StoredResult
from pipeline.errors import EventStoreError, ResultStoreError
from pipeline.gateway.delivery import lookup
from pipeline.gateway.delivery.lookup import LookUp, RecentReceipts, ResultGone
from pipeline.gateway.delivery.metrics import DeliveryMetrics
from pipeline.gateway.delivery.waiting import Asked
from tests.contracts.result_store import DIGEST, MemoryResultStore, a_name, a_result
from tests.simulation.virtual_time import FakeClock

ASKED = Asked(a_name(1), "acme", "r-1")
RECORD = b'{"id":"r-1"}'


class Log:
    """A log that has some rows, or is away, or says nothing."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str | None, str], LoggedResult] = {}
        self.away = False
        self.silent = False
        self.asked = 0

    async def find(self, tenant: str | None, request_id: str) -> LoggedResult | None:
        self.asked += 1
        if self.silent:
            await asyncio.Event().wait()
        if self.away:
            raise EventStoreError("ClickHouse is away", retryable=True)
        return self.rows.get((tenant, request_id))


class World:
    """A look-up and everything around it."""

    def __init__(self, *, with_store: bool = True, with_log: bool = True) -> None:
        self.clock = SystemClock()
        self.store, self.log = MemoryResultStore(), Log()
        self.receipts = RecentReceipts(60.0, self.clock)
        self.metrics = DeliveryMetrics()
        self.look_up = LookUp(
            self.receipts, self.store if with_store else None, self.log if with_log else None, self.clock,
            random.Random(1), self.metrics,
        )  # fmt: skip

    async def find(self) -> StoredResult | Pending | None:
        return await self.look_up.find(ASKED)


async def test_each_place_is_asked_until_one_knows() -> None:
    """A copy in memory, else the store's entry, else the log's row, else the receipt: the nearest one answers."""
    world = World()
    assert await world.find() is None
    world.receipts.note(ASKED.name, DIGEST, 0, comes_by_reply=True)
    assert await world.find() == Pending(DIGEST)
    world.log.rows["acme", "r-1"] = LoggedResult(RECORD)
    assert await world.find() == StoredResult(bytes(16), 0, RECORD)
    asked = world.log.asked
    await world.store.keep([(ASKED.name, a_result(1))])
    assert await world.find() == a_result(1)
    world.receipts.keep(ASKED.name, a_result(2))
    finds = world.store.finds
    assert await world.find() == a_result(2)
    assert (world.log.asked, world.store.finds) == (asked, finds), "what is near is not asked for afar"
    assert world.metrics.look_ups == {"unknown": 1, "pending": 1, "log": 1, "store": 1, "memory": 1}


async def test_pending_in_the_store_is_not_looked_for_in_the_log() -> None:
    """What the store has as pending costs ClickHouse nothing, however often it is asked for."""
    world = World()
    await world.store.reserve(ASKED.name, DIGEST)
    assert await world.find() == Pending(DIGEST)
    assert world.log.asked == 0


@pytest.mark.parametrize("away", ["raises", "silent"])
async def test_unknown_needs_the_stores_word(away: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the log the store's "nothing" counts; without the store nobody can say that an id is unknown."""
    monkeypatch.setattr(lookup, "_LOG_S_MAX", 0.01)
    world = World()
    world.log.away, world.log.silent = away == "raises", away == "silent"
    assert await world.find() is None
    world.store.away = True
    with pytest.raises(ResultStoreError, match="r-1"):
        await world.find()
    world.log.away = world.log.silent = False
    with pytest.raises(ResultStoreError):
        await world.find()
    world.log.rows["acme", "r-1"] = LoggedResult(RECORD)
    assert await world.find() == StoredResult(bytes(16), 0, RECORD)
    world.receipts.note(a_name(2), DIGEST, 0, comes_by_reply=False)
    assert await world.look_up.find(Asked(a_name(2), None, "r-2")) == Pending(DIGEST)


async def test_without_a_store_the_log_decides() -> None:
    """Where no Redis is configured the log's word is the last one; without its word it is an error."""
    world = World(with_store=False)
    assert await world.find() is None
    world.log.away = True
    with pytest.raises(ResultStoreError, match="ClickHouse"):
        await world.find()
    assert await World(with_store=False, with_log=False).find() is None


@pytest.mark.parametrize("value", [None, b"[redacted]", b'{"id": "r-1", "out', b"\xff"])
async def test_result_that_is_not_whole_is_gone(value: bytes | None) -> None:
    """A row without the record's bytes, or with others, is no result and not unknown: it is gone."""
    world = World()
    world.log.rows["acme", "r-1"] = LoggedResult(value)
    with pytest.raises(ResultGone):
        await world.find()
    assert world.metrics.look_ups == {"gone": 1}


async def test_binary_record_has_its_json_length() -> None:
    """Raw tensors behind the JSON are told from it, whatever bytes they are."""
    world = World()
    world.log.rows["acme", "r-1"] = LoggedResult(RECORD + b'\xff"}{\0')
    assert await world.find() == StoredResult(bytes(16), len(RECORD), RECORD + b'\xff"}{\0')


async def test_dead_log_costs_nothing_after_three_tries() -> None:
    """A log that does not answer is not asked by every request; whoever asks in its pause is answered at once."""
    world = World()
    world.log.away = True
    for _ in range(20):
        assert await world.find() is None
    assert world.log.asked == 3


async def test_waiters_are_looked_for_in_the_log_while_the_store_is_away() -> None:
    """With the store, all names are one question; without it the log is asked, and errors and gone ones are skipped."""
    world = World()
    asked = [Asked(a_name(number), None, f"r-{number}") for number in range(3)]
    await world.store.keep([(a_name(1), a_result(1))])
    await world.store.reserve(a_name(2), DIGEST)
    assert await world.look_up.results_of(asked) == {a_name(1): a_result(1)}
    world.store.away = True
    world.log.rows[None, "r-2"] = LoggedResult(RECORD)
    world.log.rows[None, "r-0"] = LoggedResult(None)
    assert await world.look_up.results_of(asked) == {a_name(2): StoredResult(bytes(16), 0, RECORD)}


def test_receipts_are_bounded_and_end() -> None:
    """The latest receipts are remembered, in number, in bytes of results and in time; the first copy counts."""
    clock = FakeClock()
    receipts = RecentReceipts(60.0, clock, count_max=3, bytes_max=250)
    for number in range(4):
        receipts.note(a_name(number), DIGEST, number, comes_by_reply=True)
    assert receipts.get(a_name(0)) is None
    assert not receipts.keep(a_name(0), a_result(0)), "not ours any more"
    for number in (1, 2, 3):
        assert receipts.keep(a_name(number), a_result(number))
    assert receipts.bytes_held == 200, "the oldest result left, its receipt stays"
    first, second = receipts.get(a_name(1)), receipts.get(a_name(2))
    assert first is not None
    assert (first.result, first.is_answered) == (None, True)
    receipts.keep(a_name(1), a_result(9))
    receipts.keep(a_name(2), a_result(9))
    assert first.result is None, "a later result of an id is none"
    assert second is not None
    assert second.result == a_result(2)
    clock.advance(60.0)
    assert receipts.get(a_name(3)) is None
    receipts.note(a_name(9), DIGEST, 0, comes_by_reply=False)
    assert (len(receipts), receipts.bytes_held) == (1, 0)


class Queries:
    """Answers with one row."""

    def __init__(self, rows: list[tuple[str, int]]) -> None:
        self.rows = rows

    async def query(self, sql: str, parameters: object = None) -> "Queries":
        assert parameters == {"request_id": "r", "tenant": ""}
        return self


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([], None),
        ([("eyJ9/w==", 0)], LoggedResult(b'{"}\xff')),
        ([("eyJ9/w==", 1)], LoggedResult(None)),
        ([("", 0)], LoggedResult(None)),
    ],
)
async def test_row_that_has_expired_has_no_result(rows: list[tuple[str, int]], found: LoggedResult | None) -> None:
    """A row's bytes are given exactly, but for one whose time is over or that has none."""
    assert await ClickHouseResultLog(Queries(rows)).find(None, "r") == found
