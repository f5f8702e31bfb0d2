"""The shared cache on a real Valkey that is down, killed, stopped, read-only, full, locked, or full of others' values.

Whatever happens, every look-up is told exactly once and within its budget, nothing is raised, and it works again after.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from pipeline.adapters.redis import RedisSharedCache
from pipeline.adapters.system import SystemClock
from pipeline.config import CacheSettings, RedisSettings
from pipeline.core.cache_key import CacheScope
from pipeline.core.shared_entry import entry_name
from pipeline.errors import PipelineError
from pipeline.ports import SharedAnswer
from tests.adapters.valkey_process import ValkeyProcess
from tests.adapters.valkey_wire import Wire
from tests.contracts.shared_cache import SCOPE, a_key, an_answer

pytestmark = pytest.mark.live

PREFIX = "live."
# A busy machine's: what is told late here is so because nobody answers, not because this process was paused.
BUDGET_S = 0.2
_WAIT_S = 10.0


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """One server for the module."""
    process = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    try:
        yield process
    finally:
        process.kill()


class Asking:
    """A cache, everything it was asked, and everything it told; `busy_s` is what its user does with each answer."""

    def __init__(self, redis: RedisSettings, **settings: Any) -> None:
        cache = CacheSettings(**{"shared_budget_ms": BUDGET_S * 1000} | settings)
        self.cache = RedisSharedCache(redis, cache, PREFIX, SystemClock(), random.Random(1))
        self.metrics = self.cache.metrics
        self.told: dict[int, int] = {}
        self.longest_s = 0.0
        self.busy_s = 0.0
        self._asked = 0

    def ask(self, number: int, scope: CacheScope = SCOPE) -> asyncio.Future[SharedAnswer | None] | None:
        """One look-up; None where it was not asked."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[SharedAnswer | None] = loop.create_future()
        order, asked_at = self._asked, loop.time()
        self._asked += 1

        def found(shared: SharedAnswer | None) -> None:
            self.told[order] = self.told.get(order, 0) + 1
            self.longest_s = max(self.longest_s, loop.time() - asked_at)
            if not future.done():
                future.set_result(shared)
            busy_until = loop.time() + self.busy_s
            while loop.time() < busy_until:
                pass

        if self.cache.look_up(a_key(number), scope, found):
            self.told[order] = 0
            return future
        return None

    async def find(self, number: int, scope: CacheScope = SCOPE) -> SharedAnswer | None:
        """What one look-up is told; None too where it was not asked."""
        future = self.ask(number, scope)
        return None if future is None else await future

    def store(self, number: int, size: int = 16, **changes: Any) -> None:
        """One answer to write."""
        answer = an_answer(number, SystemClock().monotonic(), size)
        arguments: dict[str, Any] = {
            "scope": SCOPE, "ttl_s": 60.0, "replace": False, "winner": lambda _: None,
        } | changes  # fmt: skip
        self.cache.store(a_key(number), answer=answer, **arguments)

    async def until(self, condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
        """Waits for a condition."""
        async with asyncio.timeout(_WAIT_S):
            while True:
                outcome = condition()
                if outcome if isinstance(outcome, bool) else await outcome:
                    return
                await asyncio.sleep(0.01)

    async def until_stored(self, number: int) -> None:
        """Stores until it is found."""

        async def is_found() -> bool:
            self.store(number)
            return await self.find(number) is not None

        await self.until(is_found)

    async def until_not_asked(self, number: int = 1) -> None:
        """Asks until the breaker is open."""

        async def is_refused() -> bool:
            future = self.ask(number)
            if future is not None:
                await future
            return future is None

        await self.until(is_refused)

    async def close(self) -> None:
        """Closes it, and looks at the promise."""
        await self.cache.close()
        assert set(self.told.values()) <= {1}, "a look-up was told not once"


@pytest.fixture
async def asking(valkey: ValkeyProcess) -> AsyncIterator[Asking]:
    """A cache on the server, which is as it was first."""
    valkey.reset()
    one = Asking(valkey.settings)
    yield one
    await one.close()


def is_of(number: int, found: SharedAnswer) -> bool:
    """Whether this is the answer that was stored under that number."""
    return found.answer.tensors == an_answer(number, 0.0).tensors


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the pipeline's own log says."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("pipeline")]


async def test_down_at_the_start(valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture) -> None:
    """A worker starts without its shared cache, asks it less and less, and uses it once it is there."""
    valkey.reset()
    valkey.kill()
    asking = Asking(valkey.settings)
    with caplog.at_level(logging.WARNING):
        await asking.until_not_asked()
        assert asking.longest_s < BUDGET_S * 5
        assert not asking.metrics.usable
        asking.store(1)
        valkey.start()
        await asking.until_stored(1)
    await asking.close()
    assert asking.metrics.usable
    assert asking.metrics.errors["connection",] >= 3
    assert asking.metrics.look_ups["failed",] >= 3
    assert asking.metrics.look_ups["not_asked",] >= 1
    opened, over = lines_of(caplog)
    assert "is not asked, tried again until it answers; answers are computed instead: connection" in opened
    assert asking_address(valkey) in opened
    assert "over after" in over


async def test_connecting_first_spares_the_first_look_up(valkey: ValkeyProcess) -> None:
    """Once connected a look-up opens no connection; where nobody answers, connecting ends all the same."""
    valkey.reset()
    valkey.kill()
    asking = Asking(valkey.settings)
    await asking.cache.connect()
    valkey.start()
    await asking.cache.connect()
    with valkey.admin as admin:
        before = admin.info("stats")["total_connections_received"]
        assert await asking.find(1) is None
        assert admin.info("stats")["total_connections_received"] == before
    await asking.close()
    assert asking.metrics.look_ups["miss",] == 1


def asking_address(valkey: ValkeyProcess) -> str:
    return valkey.url.removeprefix("redis://").partition("/")[0]


async def test_stopped_at_the_start(valkey: ValkeyProcess) -> None:
    """A server that takes connections and says nothing is given up after a second, and used once it speaks."""
    valkey.reset()
    valkey.pause()
    asking = Asking(valkey.settings)
    assert await asking.find(1) is None
    await asking.until(lambda: asking.metrics.errors["timeout",] > 0)
    valkey.go_on()
    await asking.until_stored(1)
    await asking.close()


async def test_killed_and_restarted_empty(asking: Asking, valkey: ValkeyProcess) -> None:
    """What it held is gone and is a miss; it fills again."""
    await asking.until_stored(1)
    valkey.kill()
    for number in range(5):
        assert await asking.find(number) is None
    valkey.start()

    async def is_a_miss() -> bool:
        before = asking.metrics.look_ups["miss",]
        assert await asking.find(1) is None
        return asking.metrics.look_ups["miss",] > before

    await asking.until(is_a_miss)
    await asking.until_stored(1)


async def test_killed_under_load(asking: Asking, valkey: ValkeyProcess) -> None:
    """Look-ups and writes that are out when it dies are told or counted, none hangs, none is told another's."""
    await asking.until_stored(1)
    futures = []
    for number in range(300):
        futures.append(asking.ask(number % 3))
        asking.store(number % 3)
        if number == 150:
            valkey.kill()
        if number % 10 == 0:
            await asyncio.sleep(0)
    answers = await asyncio.gather(*(future for future in futures if future is not None))
    assert all(a is None or a.answer.tensors[0].raw[:8] in {n.to_bytes(8, "little") for n in range(3)} for a in answers)
    valkey.start()
    await asking.until_stored(7)


async def test_stopped_server_costs_its_budget(
    asking: Asking, valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that hangs costs look-ups their budget until nobody asks any more; it is used again when it goes on."""
    await asking.until_stored(1)
    valkey.pause()
    with caplog.at_level(logging.WARNING):
        await asking.until_not_asked()
        assert asking.metrics.look_ups["late",] + asking.metrics.look_ups["failed",] >= 3
        assert asking.longest_s < BUDGET_S * 5
        # The pipeline that hangs is given up after a second, so that a server that is gone for good is met anew.
        await asking.until(lambda: asking.metrics.errors["timeout",] > 0)
        valkey.go_on()

        async def is_found() -> bool:
            return await asking.find(1) is not None

        await asking.until(is_found)
    assert len(lines_of(caplog)) == 2


async def test_one_slow_moment_opens_nothing(asking: Asking, valkey: ValkeyProcess) -> None:
    """However many look-ups are late together, a server that is slow once is asked on."""
    await asking.until_stored(1)
    valkey.pause()
    futures = [asking.ask(1) for _ in range(100)]
    assert await asyncio.gather(*(future for future in futures if future is not None)) == [None] * 100
    assert asking.metrics.usable
    valkey.go_on()
    assert asking.metrics.look_ups["late",] == 100
    assert asking.metrics.look_ups["not_asked",] == 0

    async def is_found() -> bool:
        return await asking.find(1) is not None

    await asking.until(is_found)


async def test_late_look_ups_leave_writes_alone(valkey: ValkeyProcess) -> None:
    """While look-ups are given up because their replies come late, answers are written all the same."""
    valkey.reset()
    asking = Asking(valkey.settings, shared_budget_ms=0.001)
    await asking.until_not_asked()
    assert not asking.metrics.errors
    asking.store(1)
    await asking.until(lambda: asking.metrics.writes["stored",] == 1)
    await asking.close()
    assert asking.metrics.writes["dropped",] == 0


async def test_late_replies_reach_nobody(asking: Asking, valkey: ValkeyProcess) -> None:
    """What comes after the budget is told to nobody, and the next look-up on that connection gets its own answer."""
    for number in (1, 2):
        await asking.until_stored(number)
    valkey.pause()
    assert await asking.find(1) is None
    assert asking.metrics.look_ups["late",] == 1
    valkey.go_on()
    found = await asking.find(2)
    assert found is not None
    assert found.answer.tensors == an_answer(2, 0.0).tensors
    assert asking.metrics.look_ups["late",] == 1


async def test_own_pause_is_not_the_servers(asking: Asking) -> None:
    """When this process was busy past the budget, the reply that lies there is still an answer."""
    await asking.until_stored(1)
    for _ in range(5):
        future = asking.ask(1)
        assert future is not None
        await asyncio.sleep(0)  # it leaves
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        busy_until = loop.time() + 1.5 * BUDGET_S
        while loop.time() < busy_until:
            pass
        assert await future is not None
    assert asking.metrics.look_ups["late",] == 0


@pytest.mark.parametrize(
    ("name", "setting", "kind"),
    [("min-replicas-to-write", 1, "no_replicas"), ("maxmemory", 1, "out_of_memory")],
)
async def test_refused_writes_leave_look_ups_alone(
    asking: Asking, valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture, name: str, setting: int, kind: str
) -> None:
    """A server that takes no writes, or is full, still answers look-ups; writes stop for a while, and come back."""
    await asking.until_stored(1)
    with valkey.admin as admin:
        before = admin.config_get(name)[name]
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set(name, setting)
        with caplog.at_level(logging.WARNING):

            async def is_dropped() -> bool:
                asking.store(2)
                found = await asking.find(1)
                assert found is not None
                return asking.metrics.writes["dropped",] > 0

            await asking.until(is_dropped)
            assert asking.metrics.errors[kind,] >= 3
            assert asking.metrics.usable
            admin.config_set(name, before)
            await asking.until_stored(2)
            await asking.until(lambda: len(lines_of(caplog)) == 2)
    opened, over = lines_of(caplog)
    assert f"is not written to, tried again until it answers; answers are computed instead: {kind}" in opened
    assert "over after" in over


async def test_replica_is_read_and_not_written(asking: Asking, valkey: ValkeyProcess) -> None:
    """A read-only replica answers look-ups; what is refused is counted as that."""
    await asking.until_stored(1)
    with valkey.admin as admin:
        admin.config_set("replica-serve-stale-data", "yes")
        admin.replicaof("127.0.0.1", 9)
        try:

            async def is_refused() -> bool:
                asking.store(2)
                assert await asking.find(1) is not None
                return asking.metrics.errors["read_only",] > 0

            await asking.until(is_refused)
            with pytest.raises(PipelineError, match="cannot be cleared, 0 answers are gone: read_only"):
                await asking.cache.clear()
        finally:
            admin.replicaof("NO", "ONE")
    await asking.until_stored(2)


async def test_wrong_password(valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture) -> None:
    """A password that is wrong, or missing, is said once, without the password, and answers go on."""
    valkey.reset()
    # A connection from before stays let in.
    with valkey.admin as admin:
        admin.config_set("requirepass", "correct-horse")
        try:
            for password in ("wrong-battery", None):
                caplog.clear()
                await _refused(valkey, caplog, None if password is None else SecretStr(password))
                assert "battery" not in caplog.text
                assert "horse" not in caplog.text
            asking = Asking(valkey.settings.model_copy(update={"password": SecretStr("correct-horse")}))
            await asking.until_stored(1)
            await asking.close()
        finally:
            admin.config_set("requirepass", "")


async def _refused(valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture, password: SecretStr | None) -> None:
    asking = Asking(valkey.settings.model_copy(update={"password": password}))
    with caplog.at_level(logging.DEBUG):
        await asking.until_not_asked()
        asking.store(1)
        with pytest.raises(PipelineError, match="auth"):
            await asking.cache.clear()
    await asking.close()
    assert asking.metrics.errors["auth",] >= 3
    assert len(lines_of(caplog)) == 1
    assert "auth" in lines_of(caplog)[0]


async def test_values_of_others_are_misses(asking: Asking, valkey: ValkeyProcess) -> None:
    """Lists, hashes, random, cut, old and endless values under our keys are misses, counted by reason, and healed."""
    await asking.until_stored(0)
    await asking.until(lambda: asking.metrics.queue_bytes == 0)
    name = {number: entry_name(PREFIX, SCOPE, a_key(number)) for number in range(10)}
    with valkey.admin as admin:
        entry = admin.get(name[0])
        admin.rpush(name[1], "a", "b")
        admin.hset(name[2], "field", "value")
        admin.set(name[3], random.Random(1).randbytes(300))
        admin.set(name[4], entry[:-1])
        admin.set(name[5], entry[:3] + b"\0" + entry[4:], ex=60)
        admin.set(name[6], entry, ex=60)
        admin.set(name[7], entry[:90] + bytes([entry[90] ^ 1]) + entry[91:], ex=60)
        admin.persist(name[0])
    for number in range(8):
        assert await asking.find(number) is None, number
    assert asking.metrics.usable
    assert dict(asking.metrics.refused_entries) == {
        ("foreign",): 4, ("truncated",): 1, ("format",): 1, ("key",): 1, ("checksum",): 1,
    }  # fmt: skip
    assert asking.metrics.look_ups["refused",] == 8
    for number in range(8):
        await asking.until_stored(number)
    assert not asking.metrics.errors


async def test_full_queue_drops(valkey: ValkeyProcess) -> None:
    """What finds the queue full is dropped and counted; what fits is written."""
    valkey.reset()
    asking = Asking(valkey.settings, shared_queue_bytes=20_000)
    await asking.find(1)
    for number in range(30):
        asking.store(number, size=4000)
    assert asking.metrics.queue_bytes <= 20_000
    assert asking.metrics.writes["dropped",] > 20
    await asking.until(lambda: asking.metrics.writes["stored",] == 30 - asking.metrics.writes["dropped",])
    assert asking.metrics.queue_bytes == 0
    await asking.close()


async def test_burst_is_answered_while_the_process_is_busy(asking: Asking, valkey: ValkeyProcess) -> None:
    """A thousand look-ups at once are all answered, though it takes this process five budgets to take the answers."""
    for number in range(1000):
        asking.store(number)
    await asking.until(lambda: asking.metrics.writes["stored",] == 1000)
    starting = Asking(valkey.settings, shared_budget_ms=100)
    starting.busy_s = 0.0005
    futures = [starting.ask(number) for number in range(1000)]
    answers = await asyncio.gather(*(future for future in futures if future is not None))
    assert dict(starting.metrics.look_ups) == {("hit",): 1000}
    assert [number for number, found in enumerate(answers) if found is None or not is_of(number, found)] == []
    assert starting.longest_s > 0.1, "the burst took no longer than the budget: this shows nothing"
    await starting.close()


async def test_burst_on_a_stopped_server_is_told_in_time(asking: Asking, valkey: ValkeyProcess) -> None:
    """Of a thousand look-ups none waits longer than the others, nor do those who ask afterwards."""
    await asking.until_stored(1)
    valkey.pause()
    for _ in range(3):
        futures = [asking.ask(number) for number in range(1000)]
        assert set(await asyncio.gather(*(future for future in futures if future is not None))) == {None}
    assert asking.longest_s < BUDGET_S * 3
    assert asking.metrics.look_ups["hit",] == 1
    valkey.go_on()


async def test_server_that_stops_while_it_answers(asking: Asking, valkey: ValkeyProcess) -> None:
    """What was read by then is an answer, everybody else is told nothing in time, and nobody the wrong one."""
    for number in range(1000):
        asking.store(number)
    await asking.until(lambda: asking.metrics.writes["stored",] == 1000)
    async with Wire(valkey.url) as wire:
        wire.replies_bytes_max = 40_000
        cut = Asking(wire.settings)
        futures = [cut.ask(number) for number in range(1000)]
        answers = await asyncio.gather(*(future for future in futures if future is not None))
        assert wire.held.is_set()
        told = [number for number, found in enumerate(answers) if found is not None and is_of(number, found)]
        assert told == list(range(len(told)))
        assert 20 < len(told) < 250
        assert cut.metrics.look_ups["late",] == 1000 - len(told)
        assert cut.longest_s < BUDGET_S * 3
        wire.let_go()
        found = await cut.find(999)
        assert found is not None
        assert is_of(999, found)
        await cut.close()


async def test_too_many_look_ups_are_not_asked(asking: Asking) -> None:
    """What waits is bounded, and those who are asked are all told."""
    await asking.until_stored(1)
    futures = [asking.ask(1) for _ in range(10_000)]
    asked = [future for future in futures if future is not None]
    assert 4096 <= len(asked) < 10_000
    assert None not in await asyncio.gather(*asked)
    assert asking.metrics.look_ups["not_asked",] == 10_000 - len(asked)


async def test_too_large_answer_is_not_written(asking: Asking) -> None:
    """What could not come back within a budget is left out."""
    asking.store(1, size=(1 << 20) + 8)
    assert asking.metrics.writes["too_large",] == 1
    assert await asking.find(1) is None


async def test_compressed_bytes_are_counted(asking: Asking) -> None:
    """Bytes written and read are those of the wire, and what compression saved stands beside them."""
    asking.store(1, size=100_000)
    await asking.until(lambda: asking.metrics.writes["stored",] == 1)
    assert await asking.find(1) is not None
    assert asking.metrics.bytes["out",] == asking.metrics.bytes["in",] < 2000
    assert asking.metrics.saved_bytes > 98_000


async def test_clearing_reaches_what_waits(asking: Asking) -> None:
    """An answer that was still to be written when it was cleared does not come afterwards."""
    await asking.until_stored(1)
    asking.store(2)
    assert await asking.cache.clear() == 1
    asking.store(3)
    await asking.until(lambda: asking.metrics.writes["stored",] == 2)
    assert await asking.find(3) is not None
    assert await asking.find(2) is None


OTHER = CacheScope("acme", "digits", "2", "f1")


async def test_write_on_its_way_does_not_outlive_a_clear(asking: Asking, valkey: ValkeyProcess) -> None:
    """A batch that reaches Redis after it was cleared writes nothing of what was cleared, and all the rest."""
    async with Wire(valkey.url) as wire:
        worker = Asking(wire.settings)
        wire.hold(entry_name(PREFIX, SCOPE, a_key(1)).encode())
        worker.store(1)
        worker.store(2, scope=OTHER)
        await asyncio.wait_for(wire.held.wait(), _WAIT_S)
        worker.cache.forget(lambda scope: scope == SCOPE)
        assert await asking.cache.clear(tenant="") == 0
        wire.let_go()
        await worker.until(lambda: worker.metrics.writes["stored",] > 0)
        assert await asking.find(1) is None
        assert await asking.find(2, OTHER) is not None
        assert dict(worker.metrics.writes) == {("stored",): 1}
        await worker.close()


async def test_cleared_answer_does_not_heal_an_entry(asking: Asking, valkey: ValkeyProcess) -> None:
    """What cannot be read is written anew, but not with an answer that was cleared while it was on its way."""
    name = entry_name(PREFIX, SCOPE, a_key(1))
    with valkey.admin as admin:
        admin.set(name, b"junk", ex=60)
        async with Wire(valkey.url) as wire:
            worker = Asking(wire.settings)
            wire.hold(name.encode())
            worker.store(1)
            await asyncio.wait_for(wire.held.wait(), _WAIT_S)
            worker.cache.forget(lambda _: True)
            wire.let_go()
            await worker.until(lambda: worker.metrics.refused_entries["foreign",] > 0)
            await worker.close()
        assert admin.get(name) == b"junk"


async def test_clears_in_a_row_lose_no_write(asking: Asking) -> None:
    """Writes that a clear sent back are written: of all that is stored while others are cleared nothing is lost."""
    for number in range(300):
        asking.store(number, scope=OTHER)
        if number % 10 == 0:
            await asking.cache.clear(model_name="none of them")
    await asking.until(lambda: asking.metrics.writes["stored",] == 300)
    assert dict(asking.metrics.writes) == {("stored",): 300}


async def test_full_server_can_be_cleared(asking: Asking, valkey: ValkeyProcess) -> None:
    """A server that takes no writes for want of memory is one that an operator wants to clear."""
    await asking.until_stored(1)
    with valkey.admin as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
        assert await asking.cache.clear() == 1


async def test_age_goes_on_in_redis(asking: Asking) -> None:
    """The time that an entry spends there is counted by its own clock, in milliseconds."""
    await asking.until_stored(1)
    first = await asking.find(1)
    assert first is not None

    async def is_older() -> bool:
        found = await asking.find(1)
        assert found is not None
        assert found.age_s + found.left_s == pytest.approx(first.age_s + first.left_s, abs=0.01)
        return found.age_s > first.age_s + 0.05

    await asking.until(is_older)


async def test_callers_mistake_stays_the_callers(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    """One who fails at being told does not keep the others from their answers."""
    await asking.until_stored(1)

    def fails(_: SharedAnswer | None) -> None:
        raise RuntimeError("mine")

    assert asking.cache.look_up(a_key(1), SCOPE, fails)
    future = asking.ask(1)
    assert future is not None
    assert await future is not None
    assert [record.exc_info is not None for record in caplog.records] == [True]
