"""The result store on a real Valkey that is killed, stopped, read-only, full, restarted empty, or has others' values.

Whatever happens, a call returns what is true or raises ResultStoreError within its time, and works again after.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator

import pytest

from pipeline.adapters.redis_result_store import RedisResultStore, ResultRefused
from pipeline.adapters.system import SystemClock
from pipeline.core.stored_result import Pending
from pipeline.errors import ResultStoreError
from pipeline.ports import ResultStore
from tests.adapters.valkey_process import ValkeyProcess
from tests.contracts.result_store import DIGEST, ResultStoreContract, a_name, a_result

pytestmark = pytest.mark.live

PREFIX = "live."
_WAIT_S = 10.0


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """One server for the module."""
    process = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture(autouse=True)
def fresh(valkey: ValkeyProcess) -> None:
    """Running and empty before each test."""
    valkey.reset()


def store_of(valkey: ValkeyProcess, ttl_s: float = 60.0) -> RedisResultStore:
    """A store there."""
    return RedisResultStore(valkey.settings, PREFIX, ttl_s, SystemClock(), random.Random(1))


async def until_true(look: Callable[[], Awaitable[bool]]) -> None:
    """Returns when it is true; a store that is not asked at present is looked at again."""
    async with asyncio.timeout(_WAIT_S):
        while True:
            try:
                if await look():
                    return
            except ResultStoreError:
                pass
            await asyncio.sleep(0.01)


class TestRedisResultStore(ResultStoreContract):
    """On Valkey."""

    @pytest.fixture(autouse=True)
    def _server(self, valkey: ValkeyProcess) -> None:
        self._valkey = valkey

    async def make_store(self) -> ResultStore:
        return store_of(self._valkey)


async def test_entries_end_at_their_time(valkey: ValkeyProcess) -> None:
    """Reservations and results are given so long and no longer, and Redis itself drops them."""
    store = store_of(valkey, ttl_s=0.2)
    await store.reserve(a_name(1), DIGEST)
    await store.keep([(a_name(2), a_result(2))])

    async def all_gone() -> bool:
        return await store.find([a_name(1), a_name(2)]) == [None, None]

    await until_true(all_gone)
    with valkey.admin as admin:
        assert admin.dbsize() == 0
    await store.close()


async def test_many_callers_share_pipelines(valkey: ValkeyProcess) -> None:
    """A thousand calls at once are each answered with their own reply, over a handful of connections."""
    store = store_of(valkey)
    numbers = range(1000)
    before = await asyncio.gather(*(store.reserve(a_name(number), DIGEST) for number in numbers))
    again = await asyncio.gather(*(store.reserve(a_name(number), bytes(16)) for number in numbers))
    assert set(before) == {None}
    assert set(again) == {Pending(DIGEST)}
    with valkey.admin as admin:
        assert admin.info("clients")["connected_clients"] <= 4
    await store.close()


async def test_cancelled_caller_leaves_others_theirs(valkey: ValkeyProcess) -> None:
    """Who gives up in the middle of a pipeline shifts nobody's reply."""
    store = store_of(valkey)
    await store.keep([(a_name(number), a_result(number)) for number in range(20)])
    asking = [asyncio.create_task(store.find([a_name(number)])) for number in range(20)]
    await asyncio.sleep(0)
    for task in asking[::3]:
        task.cancel()
    told = await asyncio.gather(*asking, return_exceptions=True)
    for number, found in enumerate(told):
        assert isinstance(found, asyncio.CancelledError) if number % 3 == 0 else found == [a_result(number)]
    await store.close()


@pytest.mark.parametrize("fault", ["killed", "stopped"])
async def test_server_that_is_away_costs_a_second_and_then_nothing(valkey: ValkeyProcess, fault: str) -> None:
    """A dead or silent Redis is an error within its second, soon one at once; back again it is used, and knows it."""
    store = store_of(valkey)
    await store.keep([(a_name(1), a_result(1))])
    valkey.kill() if fault == "killed" else valkey.pause()
    async with asyncio.timeout(_WAIT_S):
        for number in range(3):
            with pytest.raises(ResultStoreError):
                await store.reserve(a_name(number), DIGEST)
    with pytest.raises(ResultStoreError, match="not asked at present"):
        await store.reserve(a_name(1), DIGEST)
    valkey.start() if fault == "killed" else valkey.go_on()

    async def answers() -> bool:
        # What was sent while it was stopped may have been done by now; a result stays what it is.
        found = (await store.find([a_name(1)]))[0]
        return found == (None if fault == "killed" else a_result(1))

    await until_true(answers)
    await store.close()


async def test_full_server_refuses_results_and_answers(valkey: ValkeyProcess) -> None:
    """Out of memory is said as such, at once and every time; what is there is found, and room ends it."""
    store = store_of(valkey)
    await store.keep([(a_name(1), a_result(1))])
    with valkey.admin as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
    for _ in range(5):
        with pytest.raises(ResultRefused):
            await store.keep([(a_name(2), a_result(2))])
        with pytest.raises(ResultStoreError):
            await store.reserve(a_name(3), DIGEST)
    assert await store.find([a_name(1), a_name(2)]) == [a_result(1), None]
    with valkey.admin as admin:
        admin.config_set("maxmemory", 512 << 20)
    await store.keep([(a_name(2), a_result(2))])
    assert await store.find([a_name(2)]) == [a_result(2)]
    await store.close()


async def test_server_that_takes_no_writes_is_not_full(valkey: ValkeyProcess) -> None:
    """Without enough replicas Redis takes no writes for now: an error that is worth another try, and no lost result."""
    store = store_of(valkey)
    with valkey.admin as admin:
        admin.config_set("min-replicas-to-write", 1)
    with pytest.raises(ResultStoreError) as told:
        await store.keep([(a_name(1), a_result(1))])
    assert not isinstance(told.value, ResultRefused)
    with valkey.admin as admin:
        admin.config_set("min-replicas-to-write", 0)

    async def kept() -> bool:
        await store.keep([(a_name(1), a_result(1))])
        return await store.find([a_name(1)]) == [a_result(1)]

    await until_true(kept)
    await store.close()


async def test_others_value_under_a_name_is_none_of_ours(valkey: ValkeyProcess) -> None:
    """A list, or a text of another format, under a name of ours is no entry, and harms no other name."""
    store = store_of(valkey)
    with valkey.admin as admin:
        admin.rpush(f"{PREFIX}result:{a_name(1).hex()}", "x")
        admin.set(f"{PREFIX}result:{a_name(2).hex()}", "X" * 30)
    await store.keep([(a_name(1), a_result(1)), (a_name(2), a_result(2)), (a_name(3), a_result(3))])
    assert await store.find([a_name(1), a_name(2), a_name(3)]) == [None, a_result(2), a_result(3)]
    with pytest.raises(ResultStoreError, match="of others"):
        await store.reserve(a_name(1), DIGEST)
    await store.close()


async def test_closed_store_tells_who_waits(valkey: ValkeyProcess) -> None:
    """Closing ends a call that waits for a silent server with an error."""
    store = store_of(valkey)
    await store.find([a_name(1)])
    valkey.pause()
    waiting = asyncio.create_task(store.find([a_name(1)]))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(ResultStoreError):
        await waiting
