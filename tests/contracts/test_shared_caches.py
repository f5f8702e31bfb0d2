"""The shared caches there are, each against the contract: the fake of the simulations, and the real one."""

import asyncio
import random
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from pipeline.adapters.redis import RedisSharedCache
from pipeline.adapters.system import SystemClock
from pipeline.config import CacheSettings
from pipeline.ports import SharedCache
from tests.adapters.valkey_process import ValkeyProcess
from tests.contracts.shared_cache import PREFIX, SCOPE, Scenario, SharedCacheContract, SharedWorld, a_key, an_answer
from tests.simulation.shared_cache import FakeSharedCache, FakeSharedServer
from tests.simulation.virtual_time import run_simulated, the_clock


class FakeWorld(SharedWorld):
    """The fake, in virtual time."""

    def __init__(self) -> None:
        super().__init__(the_clock().monotonic)
        self.server = FakeSharedServer()

    def make_cache(self, prefix: str = PREFIX) -> SharedCache:
        return FakeSharedCache(self.server, prefix)

    async def put_bytes(self, name: str, value: bytes) -> None:
        self.server.entries[name] = (value, self.server.now() + 60.0)

    async def get_bytes(self, name: str) -> bytes | None:
        held = self.server.read(name)
        return held[0] if held else None

    async def go_down(self) -> None:
        self.server.down = True


class TestFakeSharedCache(SharedCacheContract):
    """The fake, in virtual time."""

    def run(self, test: Scenario) -> None:
        async def scenario() -> None:
            world = FakeWorld()
            await test(world)
            assert not world.told_twice

        run_simulated(scenario())

    def test_slow_server_costs_the_budget(self) -> None:
        """A reply that would come later is told as nothing, when the budget is over and not before."""

        async def test(world: SharedWorld) -> None:
            assert isinstance(world, FakeWorld)
            cache = FakeSharedCache(world.server, PREFIX)
            await world.put(cache, 1)
            world.server.latency_s = 3.0
            began = world.monotonic()
            assert await world.find(cache, 1) is None
            assert world.monotonic() - began == pytest.approx(0.005)
            assert cache.counts["late"] == 1

        self.run(test)

    def test_full_server_still_answers(self) -> None:
        """Writes are refused, what is there is found."""

        async def test(world: SharedWorld) -> None:
            assert isinstance(world, FakeWorld)
            cache = FakeSharedCache(world.server, PREFIX)
            await world.put(cache, 1)
            world.server.full = True
            cache.store(a_key(2), SCOPE, an_answer(2, 0.0), 60.0, replace=True, winner=world.won.append)
            assert await world.find(cache, 1) is not None
            assert await world.find(cache, 2) is None
            assert cache.counts["failed"] == 1

        self.run(test)

    def test_lossy_server_loses_replies(self) -> None:
        """Some replies never come, those of writes that were done among them; everybody is told all the same."""

        async def test(world: SharedWorld) -> None:
            assert isinstance(world, FakeWorld)
            world.server.lossy = 0.3
            cache = FakeSharedCache(world.server, PREFIX)
            for number in range(100):
                await world.put(cache, number)
            found = [await world.find(cache, number) for number in range(100)]
            assert 50 < sum(shared is not None for shared in found) < 90
            assert cache.counts["failed"] > 10

        self.run(test)

    def test_clock_that_goes_back_makes_nothing_younger(self) -> None:
        """The server's clock may jump: ages are never negative, and never below that at the storing."""

        async def test(world: SharedWorld) -> None:
            assert isinstance(world, FakeWorld)
            cache = FakeSharedCache(world.server, PREFIX)
            await world.put(cache, 1, answer=an_answer(1, world.monotonic() - 30.0))
            world.server.clock_skew_s = -1000.0
            found = await world.find(cache, 1)
            assert found is not None
            assert (found.age_s, found.left_s) == pytest.approx((30.0, 60.0), abs=0.01)
            world.server.clock_skew_s = 1000.0
            assert await world.find(cache, 1) is None

        self.run(test)


class RedisWorld(SharedWorld):
    """A private Valkey, and caches on it. The budget is a busy machine's: these tests are not about it."""

    def __init__(self, valkey: ValkeyProcess) -> None:
        super().__init__(SystemClock().monotonic)
        self._valkey = valkey
        self._caches: list[RedisSharedCache] = []
        self._client = Redis.from_url(valkey.url)

    def make_cache(self, prefix: str = PREFIX) -> SharedCache:
        cache = RedisSharedCache(
            self._valkey.settings, CacheSettings(shared_budget_ms=2000), prefix, SystemClock(), random.Random(1)
        )
        self._caches.append(cache)
        return cache

    async def put_bytes(self, name: str, value: bytes) -> None:
        await self._client.set(name, value, ex=60)

    async def get_bytes(self, name: str) -> bytes | None:
        value = await self._client.get(name)
        assert value is None or isinstance(value, bytes)
        return value

    async def go_down(self) -> None:
        self._valkey.kill()

    async def close(self) -> None:
        """Everything is closed."""
        for cache in self._caches:
            await cache.close()
        await self._client.aclose()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """One server for the module."""
    process = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    try:
        yield process
    finally:
        process.kill()


@pytest.mark.live
class TestRedisSharedCache(SharedCacheContract):
    """The real one."""

    @pytest.fixture(autouse=True)
    def _server(self, valkey: ValkeyProcess) -> None:
        valkey.reset()
        self.valkey = valkey

    def run(self, test: Scenario) -> None:
        async def scenario() -> None:
            lost: list[str] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(str(context)))
            world = RedisWorld(self.valkey)
            try:
                await test(world)
            finally:
                await world.close()
            assert not lost
            assert not world.told_twice

        asyncio.run(scenario())


def test_caches_are_of_the_port() -> None:
    """Both are what the engine is given: the type checker reads this."""
    caches: list[type[SharedCache]] = [FakeSharedCache, RedisSharedCache]
    assert all(hasattr(cache, "look_up") for cache in caches)
