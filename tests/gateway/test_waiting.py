"""Who waits is woken by a copy, or by a look into the store; nothing is asked that need not be."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from pipeline.adapters.system import SystemClock
from pipeline.core.stored_result import StoredResult
from pipeline.gateway.delivery.metrics import DeliveryMetrics
from pipeline.gateway.delivery.waiting import Asked, Waiting
from tests.contracts.result_store import a_name, a_result
from tests.simulation.virtual_time import simulated, the_clock

LONG_S = 10.0


def asked(number: int) -> Asked:
    """A request that is waited for."""
    return Asked(a_name(number), "acme", f"r-{number}")


class Store:
    """What is asked for, and what it has."""

    def __init__(self) -> None:
        self.results: dict[bytes, StoredResult] = {}
        self.looks: list[set[bytes]] = []
        self.looked = asyncio.Event()

    async def ask(self, wanted: Sequence[Asked]) -> Mapping[bytes, StoredResult]:
        names = {one.name for one in wanted}
        self.looks.append(names)
        self.looked.set()
        return {name: result for name, result in self.results.items() if name in names}


@asynccontextmanager
async def waiting_on(store: Store, poll_s: float = 0.01, overdue_s: float = LONG_S) -> AsyncIterator[Waiting]:
    """A table whose task runs."""
    waiting = Waiting(store.ask, SystemClock(), DeliveryMetrics(), poll_s=poll_s, overdue_s=overdue_s)
    task = asyncio.create_task(waiting.run())
    try:
        yield waiting
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert len(waiting) == 0, "nobody is left in the table"


async def wait_for(waiting: Waiting, number: int, wait_s: float = LONG_S, *, by_reply: bool) -> StoredResult | None:
    """One who waits."""
    with waiting.awaiting(asked(number), comes_by_reply=by_reply) as awaited:
        return await awaited.wait(wait_s)


async def test_copy_wakes_all_who_wait() -> None:
    """A copy is given to everybody who waits for its name, and to nobody else; the store is not asked."""
    store = Store()
    async with waiting_on(store) as waiting:
        tasks = [asyncio.create_task(wait_for(waiting, number, by_reply=True)) for number in (1, 1, 2)]
        await asyncio.sleep(0)
        assert waiting.offer(a_name(1), a_result(1), "reply")
        assert not waiting.offer(a_name(1), a_result(9), "reply"), "the first one counts"
        assert await tasks[0] == await tasks[1] == a_result(1)
        assert not tasks[2].done()
        waiting.offer(a_name(2), a_result(2), "reply")
        assert await tasks[2] == a_result(2)
    assert store.looks == []


async def test_store_is_asked_for_all_at_once_until_it_has_them() -> None:
    """What no copy comes for is looked for again and again, everything that is waited for together."""
    store = Store()
    async with waiting_on(store) as waiting:
        tasks = [asyncio.create_task(wait_for(waiting, number, by_reply=False)) for number in range(50)]
        async with asyncio.timeout(LONG_S):
            while len(store.looks) < 2:
                store.looked.clear()
                await store.looked.wait()
        assert store.looks[1] == {a_name(number) for number in range(50)}
        store.results = {a_name(number): a_result(number) for number in range(50)}
        assert await asyncio.gather(*tasks) == [a_result(number) for number in range(50)]


@simulated
async def test_who_came_apart_is_looked_for_together() -> None:
    """Names that came one after the other share every look, however many there are."""
    store = Store()
    waiting = Waiting(store.ask, the_clock(), DeliveryMetrics(), poll_s=0.1)
    running = asyncio.create_task(waiting.run())
    tasks = []
    for number in range(5):
        tasks.append(asyncio.create_task(wait_for(waiting, number, by_reply=False)))
        await asyncio.sleep(0.015)
    await asyncio.sleep(0.5)
    for task in (*tasks, running):
        task.cancel()
    await asyncio.wait((*tasks, running))
    assert len(store.looks) > 3
    assert store.looks == [{a_name(number) for number in range(5)}] * len(store.looks)


async def test_overdue_copy_is_looked_for_in_the_store() -> None:
    """A copy that does not come (its partition moved) is replaced by a look after a while."""
    store = Store()
    store.results = {a_name(1): a_result(1)}
    async with waiting_on(store, poll_s=LONG_S, overdue_s=0.02) as waiting:
        assert await wait_for(waiting, 1, by_reply=True) == a_result(1)


async def test_who_polls_does_not_wait_for_who_does_not() -> None:
    """The same name, once with a copy on its way and once without, is asked for as often as the hastier needs it."""
    store = Store()
    store.results = {a_name(1): a_result(1)}
    async with waiting_on(store, poll_s=0.01, overdue_s=LONG_S) as waiting:
        patient = asyncio.create_task(wait_for(waiting, 1, by_reply=True))
        await asyncio.sleep(0)
        assert await wait_for(waiting, 1, by_reply=False) == a_result(1)
        assert await patient == a_result(1)


async def test_news_of_the_store_are_looked_at_without_a_pause() -> None:
    """Told that a name is in the store, who waits for it is told after one look, however rare looks are."""
    store = Store()
    async with waiting_on(store, poll_s=LONG_S) as waiting:
        task = asyncio.create_task(wait_for(waiting, 1, by_reply=False))
        await asyncio.sleep(0)
        store.results = {a_name(1): a_result(1)}
        waiting.stored([a_name(7), a_name(1)])
        assert await task == a_result(1)
    assert store.looks == [{a_name(1)}]


async def test_time_that_is_over_leaves_nothing_behind() -> None:
    """Who waited in vain is told None, and its name is asked for no more; the other one's waiting goes on."""
    store = Store()
    async with waiting_on(store) as waiting:
        other = asyncio.create_task(wait_for(waiting, 1, by_reply=True))
        assert await wait_for(waiting, 1, 0.01, by_reply=True) is None
        assert len(waiting) == 1
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other
        assert len(waiting) == 0
