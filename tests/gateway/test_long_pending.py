"""A request that the store has pending for ever, for it lost the result: the log is asked, seldom, and answers."""

import random
from datetime import UTC, datetime

import pytest

from pipeline.adapters.result_log import LoggedResult
from pipeline.core.stored_result import Pending, StoredResult
from pipeline.gateway.delivery.lookup import LongPending, LookUp, RecentReceipts
from pipeline.gateway.delivery.metrics import DeliveryMetrics
from pipeline.gateway.delivery.waiting import Asked
from tests.contracts.result_store import DIGEST, MemoryResultStore, a_name
from tests.gateway.test_lookup import Log
from tests.simulation.virtual_time import FakeClock

ASKED = Asked(a_name(1), "acme", "r-1")


def a_row(completed_at: float) -> LoggedResult:
    """A request that ended then, Unix seconds."""
    return LoggedResult(
        b'{"id":"r-1","completed_at":"%b"}' % datetime.fromtimestamp(completed_at, UTC).isoformat().encode()
    )


class World:
    """A look-up whose store has the request pending, and whose log may know better."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store, self.log = MemoryResultStore(), Log()
        receipts = RecentReceipts(3600.0, self.clock)
        self.look_up = LookUp(receipts, self.store, self.log, self.clock, random.Random(1), DeliveryMetrics())

    async def found(self, *, waits: bool) -> StoredResult | Pending | None:
        """What is known of it; by who waits, or by who looks once."""
        if not waits:
            return await self.look_up.find(ASKED)
        return (await self.look_up.results_of([ASKED])).get(ASKED.name, Pending(DIGEST))


@pytest.mark.parametrize("waits", [False, True])
async def test_lost_result_is_found_in_the_log(waits: bool) -> None:
    """Pending for five seconds, it is looked for in the log; once it was found there, at once."""
    world = World()
    await world.store.reserve(ASKED.name, DIGEST)
    assert await world.found(waits=waits) == Pending(DIGEST)
    row = world.log.rows["acme", "r-1"] = a_row(world.clock.now() - 1)
    assert await world.found(waits=waits) == Pending(DIGEST)
    assert world.log.asked == 0
    world.clock.advance(5.0)
    for asked in (1, 2):
        assert await world.found(waits=waits) == StoredResult(bytes(16), 0, row.value or b"")
        assert world.log.asked == asked


async def test_answer_of_an_earlier_request_is_not_taken() -> None:
    """What ended before the time in which an id that comes again gets no answer is another request's."""
    world = World()
    await world.store.reserve(ASKED.name, DIGEST)
    world.log.rows["acme", "r-1"] = a_row(world.clock.now() - 700)
    await world.found(waits=False)
    world.clock.advance(5.0)
    assert await world.found(waits=False) == Pending(DIGEST)
    assert world.log.asked == 1


def test_log_is_asked_more_seldom_each_time() -> None:
    """A minute and a half of looks, ten a second, are four questions; names are bounded."""
    long_pending = LongPending(count_max=2)
    asked = [now / 10 for now in range(900) if long_pending.is_due(b"a", now / 10)]
    assert asked == [5.0, 15.0, 35.0, 75.0]
    for name in (b"b", b"c", b"d"):
        long_pending.is_due(name, 100.0)
    assert len(long_pending) == 2
