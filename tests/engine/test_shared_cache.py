"""The engine with a shared cache behind its own: asked before anything is computed, and never in the way."""

import asyncio

import pytest

from pipeline.core.answer import Answer
from pipeline.core.cache_key import CacheScope
from tests.simulation.fleet import FakeVersion
from tests.simulation.shared_cache import FakeSharedCache, FakeSharedServer
from tests.simulation.system import System, code_of, make_system, outputs_of, request
from tests.simulation.virtual_time import settle, simulated

ASKED = request(7)
# A moment in which every look-up and every write behind has ended, and no call to the fleet of 1 s has.
MOMENT_S = 0.1


def worker(server: FakeSharedServer, loaded: FakeVersion | None = None) -> System:
    """Returns a worker of its own on a shared cache."""
    return make_system(shared=FakeSharedCache(server), loaded={"1": loaded} if loaded else None)


def met(answer: Answer) -> str:
    """Returns the cache status of an answer, or its error code."""
    return code_of(answer) or str(answer.cache_status)


async def ask(system: System, **changes: object) -> Answer:
    """Asks, and lets what is written behind arrive."""
    answer = await system.ask(request(7, **changes))
    await asyncio.sleep(MOMENT_S)
    return answer


def everything(scope: CacheScope) -> bool:
    """Every scope is wanted."""
    return True


@simulated
async def test_stored_answer_serves_other_workers() -> None:
    """What one worker computed is a hit for another, with the same bytes and its true age."""
    server = FakeSharedServer()
    first, second = worker(server), worker(server)
    computed = await ask(first)
    await asyncio.sleep(3.0)
    found = await ask(second)
    assert (met(computed), met(found), second.calls) == ("miss", "hit", 0)
    assert outputs_of(found) == outputs_of(computed)
    assert found.age_s == pytest.approx(3.0, abs=0.2)


@simulated
async def test_shared_hit_lives_here_as_long_as_there() -> None:
    """A hit from the shared cache is kept here, ages on, and ends when the stored answer ends."""
    server = FakeSharedServer()
    await ask(worker(server))
    await asyncio.sleep(40.0)
    second = worker(server)
    await ask(second)
    server.restart_empty()
    await asyncio.sleep(10.0)
    own = await ask(second)
    assert (met(own), second.calls) == ("hit", 0)
    assert own.age_s == pytest.approx(50.0, abs=0.5)
    await asyncio.sleep(11.0)
    assert met(await ask(second)) == "miss"


@simulated
async def test_equal_requests_look_up_once() -> None:
    """Fifty equal requests make one look-up, and one inference where it finds nothing."""
    server = FakeSharedServer()
    system = worker(server)
    for asked, calls in ((ASKED, 1), (ASKED, 1)):
        shared = system.engine._cache._shared
        assert isinstance(shared, FakeSharedCache)
        shared.counts.clear()
        tasks = [system.start(asked) for _ in range(50)]
        answers = await asyncio.gather(*tasks)
        assert sum(shared.counts[kind] for kind in ("hit", "miss", "late", "not_asked")) == 1
        assert system.calls == calls
        assert len({outputs_of(answer) for answer in answers}) == 1
        system.cache.clear()
        await asyncio.sleep(MOMENT_S)


@pytest.mark.parametrize("trouble", ["down", "slow", "lossy", "unusable"])
@simulated
async def test_broken_shared_cache_is_a_miss(trouble: str) -> None:
    """Away, slow, losing replies, or given up: requests are computed, none fails, and none waits beyond the budget."""
    server = FakeSharedServer(
        down=trouble == "down", latency_s=9.0 if trouble == "slow" else 0.0005, lossy=1.0 if trouble == "lossy" else 0.0
    )
    system = worker(server)
    shared = system.engine._cache._shared
    assert isinstance(shared, FakeSharedCache)
    shared.usable = trouble != "unusable"
    began = system.clock.monotonic()
    answer = await system.ask(ASKED)
    assert (met(answer), system.calls) == ("miss", 1)
    assert system.clock.monotonic() - began < 0.1


@simulated
async def test_first_writers_bytes_are_everybodys() -> None:
    """Two workers that computed at the same time replay the answer of the one that stored first, both of them."""
    server = FakeSharedServer()
    first = worker(server, FakeVersion("one", row_depends_on_batch=True))
    second = worker(server, FakeVersion("one", row_depends_on_batch=True))
    answers = await asyncio.gather(first.ask(ASKED), second.ask(ASKED), second.ask(request(8)), second.ask(request(9)))
    await asyncio.sleep(MOMENT_S)
    computed = {outputs_of(answers[0]), outputs_of(answers[1])}
    assert len(computed) == 2
    replayed = {outputs_of(await ask(system)) for system in (first, second, worker(server))}
    assert len(replayed) == 1
    assert replayed < computed


@simulated
async def test_refresh_replaces_the_shared_answer() -> None:
    """What no-cache computed is what other workers find."""
    server = FakeSharedServer()
    first = worker(server)
    await ask(first)
    await asyncio.sleep(20.0)
    await ask(first, cache_control="no-cache")
    found = await ask(worker(server))
    assert met(found) == "hit"
    assert found.age_s == pytest.approx(MOMENT_S, abs=0.1)


@simulated
async def test_answer_too_old_for_one_is_replaced_for_all() -> None:
    """A max-age that the shared answer does not meet computes a newer one, which then is everybody's."""
    server = FakeSharedServer()
    await ask(worker(server))
    await asyncio.sleep(20.0)
    assert met(await ask(worker(server), cache_control="max-age=10")) == "miss"
    assert met(await ask(worker(server), cache_control="max-age=10")) == "hit"


@simulated
async def test_each_waits_for_what_it_may_have() -> None:
    """One look-up serves a request that takes any age, fails one that only takes stored ones, and computes a third."""
    server = FakeSharedServer()
    await ask(worker(server))
    await asyncio.sleep(20.0)
    system = worker(server)
    controls = (None, "only-if-cached, max-age=10", "max-age=10")
    answers = await asyncio.gather(*[system.ask(request(7, cache_control=control)) for control in controls])
    assert [met(answer) for answer in answers] == ["hit", "CACHE_MISS", "miss"]
    assert system.calls == 1


@simulated
async def test_deadline_passes_during_a_look_up() -> None:
    """A request that expires while the shared cache is asked is told so then, and nothing is executed."""
    server = FakeSharedServer(latency_s=0.004)
    system = worker(server)
    answer = await system.ask(request(7, timeout_ms=2))
    await asyncio.sleep(MOMENT_S)
    assert (met(answer), system.calls) == ("EXPIRED", 0)
    assert system.engine.flights_running == 0


@simulated
async def test_refresh_overtakes_a_look_up() -> None:
    """Those who wait for a look-up that finds nothing join the no-cache request that computes meanwhile."""
    server = FakeSharedServer(latency_s=0.004)
    system = worker(server)
    system.server.latency_s = 1.0
    waiting = system.start(ASKED)
    await settle()
    refreshing = system.start(request(7, cache_control="no-cache"))
    answers = [await waiting, await refreshing]
    assert [met(answer) for answer in answers] == ["coalesced", "refresh"]
    assert system.calls == 1


@pytest.mark.parametrize("when", ["looking", "computing"])
@simulated
async def test_cleared_answer_does_not_come_back(when: str) -> None:
    """What was on its way when the cache was cleared is answered, and stored nowhere."""
    server = FakeSharedServer(latency_s=0.004)
    if when == "looking":
        await ask(worker(server))
    system = worker(server)
    system.server.latency_s = 1.0
    waiting = system.start(ASKED)
    await settle()
    if when == "computing":
        await asyncio.sleep(MOMENT_S)
    there = dict(server.entries)
    system.engine.clear(everything)
    assert met(await waiting) == "miss"
    await asyncio.sleep(MOMENT_S)
    assert (len(system.cache), server.entries) == (0, there)


@simulated
async def test_tenants_and_models_stay_apart() -> None:
    """An answer is shared within its tenant, and with nobody else."""
    server = FakeSharedServer()
    await ask(worker(server), tenant="a")
    other, same = worker(server), worker(server)
    assert met(await ask(other, tenant="b")) == "miss"
    assert met(await ask(other)) == "miss"
    assert met(await ask(same, tenant="a")) == "hit"


@simulated
async def test_bypass_never_meets_the_shared_cache() -> None:
    """With enable_cache false nothing is asked there and nothing is stored."""
    server = FakeSharedServer()
    system = worker(server)
    await ask(system, enable_cache=False)
    shared = system.engine._cache._shared
    assert isinstance(shared, FakeSharedCache)
    assert (server.entries, dict(shared.counts)) == ({}, {})


@simulated
async def test_cleared_answer_is_not_written_behind() -> None:
    """What waited to be written to the shared cache when this one was cleared does not reach it afterwards."""
    server = FakeSharedServer(latency_s=0.004)
    system = worker(server)
    await system.ask(ASKED)
    system.engine.clear(everything)
    await asyncio.sleep(MOMENT_S)
    assert (len(system.cache), server.entries) == (0, {})
