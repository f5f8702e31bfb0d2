"""What the engine does with its cache, cell by cell: enable_cache x cache_control x what it finds."""

import asyncio

import pytest

from pipeline.errors import ModelFailed
from tests.simulation.system import System, code_of, expected, make_system, outputs_of, request
from tests.simulation.virtual_time import settle, simulated

ASKED = request(7)
CONTROLS = (None, "no-cache", "no-store", "max-age=5", "only-if-cached")


async def outcome(system: System, control: str | None, *, enabled: bool) -> tuple[str, int]:
    """The cache status, or the error code, of one request, and how many calls it cost."""
    before = system.calls
    answer = await system.ask(request(7, cache_control=control, enable_cache=enabled))
    return code_of(answer) or str(answer.cache_status), system.calls - before


async def is_stored(system: System) -> bool:
    """Whether the request's answer is in the cache now."""
    return code_of(await system.ask(request(7, cache_control="only-if-cached"))) == ""


@pytest.mark.parametrize(
    ("control", "status", "calls", "stored"),
    [
        (None, "miss", 1, True),
        ("no-cache", "refresh", 1, True),
        ("no-store", "miss", 1, False),
        ("max-age=5", "miss", 1, True),
        ("only-if-cached", "CACHE_MISS", 0, False),
        ("no-cache, no-store", "refresh", 1, False),
        ("no-cache, only-if-cached", "CACHE_MISS", 0, False),
        ("MAX-AGE=5, unknown-word=3", "miss", 1, True),
    ],
)
@simulated
async def test_empty_cache_computes_and_stores(control: str | None, status: str, calls: int, stored: bool) -> None:
    """With nothing stored a request is computed and kept, unless its cache_control says otherwise."""
    system = make_system()
    assert await outcome(system, control, enabled=True) == (status, calls)
    assert await is_stored(system) is stored


@pytest.mark.parametrize(
    ("control", "age_s", "status", "calls"),
    [
        (None, 2, "hit", 0),
        (None, 10, "hit", 0),
        ("no-cache", 2, "refresh", 1),
        ("no-store", 2, "hit", 0),
        ("max-age=5", 2, "hit", 0),
        ("max-age=5", 5, "hit", 0),
        ("max-age=5", 10, "miss", 1),
        ("max-age=0", 2, "miss", 1),
        ("only-if-cached", 10, "hit", 0),
        ("only-if-cached, max-age=5", 10, "CACHE_MISS", 0),
        (None, 61, "miss", 1),
        ("only-if-cached", 61, "CACHE_MISS", 0),
    ],
)
@simulated
async def test_stored_answer_serves_who_accepts_it(control: str | None, age_s: float, status: str, calls: int) -> None:
    """A stored answer is given to everyone whose cache_control takes one of its age, until its ttl of 60 s."""
    system = make_system()
    await system.ask(ASKED)
    await asyncio.sleep(age_s)
    assert await outcome(system, control, enabled=True) == (status, calls)


@pytest.mark.parametrize(
    ("control", "status", "calls"),
    [
        (None, "coalesced", 0),
        ("no-cache", "refresh", 1),
        ("no-store", "coalesced", 0),
        ("max-age=5", "coalesced", 0),
        ("only-if-cached", "CACHE_MISS", 0),
    ],
)
@simulated
async def test_running_flight_serves_who_may_join(control: str | None, status: str, calls: int) -> None:
    """An equal request in flight answers those that may join it; no-cache and only-if-cached never do."""
    system = make_system()
    first = system.start(ASKED)
    await settle()
    assert await outcome(system, control, enabled=True) == (status, calls)
    assert (await first).cache_status == "miss"


@pytest.mark.parametrize("found", ["nothing", "stored", "running"])
@pytest.mark.parametrize("control", CONTROLS)
@simulated
async def test_disabled_cache_is_not_touched(control: str | None, found: str) -> None:
    """With enable_cache false nothing is read, stored or joined; only-if-cached still computes nothing."""
    system = make_system()
    if found == "stored":
        await system.ask(ASKED)
    first = system.start(ASKED) if found == "running" else None
    await settle()
    wanted = ("CACHE_MISS", 0) if control == "only-if-cached" else ("bypass", 1)
    assert await outcome(system, control, enabled=False) == wanted
    if first is not None:
        assert (await first).cache_status == "miss"
    assert await is_stored(system) is (found != "nothing")


@simulated
async def test_argument_overrides_the_requests_switch() -> None:
    """The function's own enable_cache counts more than the request's."""
    system = make_system()
    assert (await system.ask(request(7), enable_cache=False)).cache_status == "bypass"
    assert (await system.ask(request(7, enable_cache=False), enable_cache=True)).cache_status == "miss"
    assert (await system.ask(request(7, enable_cache=False))).cache_status == "bypass"
    assert (await system.ask(request(7))).cache_status == "hit"


@simulated
async def test_bypassed_requests_never_share_a_flight() -> None:
    """Two equal requests without the cache run twice, even at the same time."""
    system = make_system()
    both = await asyncio.gather(*(system.ask(request(7, enable_cache=False)) for _ in range(2)))
    assert [answer.cache_status for answer in both] == ["bypass", "bypass"]
    assert system.rows == 2
    assert all(answer.key is None for answer in both)


@simulated
async def test_uncacheable_model_is_bypassed() -> None:
    """A model whose owner switched the cache off is computed for every request."""
    system = make_system(cacheable=False)
    assert await outcome(system, None, enabled=True) == ("bypass", 1)
    assert await outcome(system, None, enabled=True) == ("bypass", 1)
    assert await outcome(system, "only-if-cached", enabled=True) == ("CACHE_MISS", 0)


@simulated
async def test_hit_tells_age_and_instance_of_origin() -> None:
    """A hit carries the stored bytes, their age, their key and who computed them, and no time in a model."""
    system = make_system()
    miss = await system.ask(ASKED)
    await asyncio.sleep(3)
    hit = await system.ask(ASKED)
    assert hit.outputs is miss.outputs
    assert outputs_of(hit) == expected("one", ASKED)
    assert hit.key == miss.key
    assert hit.key is not None
    assert len(hit.key) == 32
    assert hit.age_s == pytest.approx(3.0)
    assert hit.dispatched_at is None
    assert hit.inference_s == 0.0
    assert hit.outputs is not None
    assert hit.outputs.instance == "fake-0"


@pytest.mark.parametrize(("ttl", "alive_at", "gone_at"), [(None, 59.9, 60.1), (5.0, 4.9, 5.1), (600.0, 599.0, 600.1)])
@simulated
async def test_models_own_ttl_comes_first(ttl: float | None, alive_at: float, gone_at: float) -> None:
    """An answer lives as long as its model's owner says, else as long as the settings say."""
    system = make_system(cache_ttl_seconds=ttl)
    await system.ask(ASKED)
    await asyncio.sleep(alive_at)
    assert await is_stored(system)
    await asyncio.sleep(gone_at - alive_at)
    assert not await is_stored(system)


@simulated
async def test_refresh_replaces_the_stored_answer() -> None:
    """What no-cache computed is what everybody gets afterwards, with a new age."""
    system = make_system()
    old = await system.ask(ASKED)
    await asyncio.sleep(30)
    refreshed = await system.ask(request(7, cache_control="no-cache"))
    assert refreshed.outputs is not old.outputs
    await asyncio.sleep(40)
    later = await system.ask(ASKED)
    assert later.outputs is refreshed.outputs
    assert later.age_s == pytest.approx(40.0)


@simulated
async def test_older_flight_cannot_undo_a_refresh() -> None:
    """A slow flight that began before a no-cache request does not put its answer over the newer one."""
    system = make_system(servers=2)
    system.servers[0].latency_s = system.servers[1].latency_s = lambda _: 0.5 if system.calls == 1 else 0.01
    slow = system.start(ASKED)
    await settle()
    refreshed = await system.ask(request(7, cache_control="no-cache"))
    assert (await slow).cache_status == "miss"
    assert (await system.ask(ASKED)).outputs is refreshed.outputs


@simulated
async def test_default_request_joins_a_refreshing_flight() -> None:
    """A request that comes while no-cache computes gets that newer answer, not the older flight's."""
    system = make_system()
    system.server.latency_s = lambda _: 0.5 if system.calls == 1 else 0.01
    older = system.start(ASKED)
    await settle()
    newer = system.start(request(7, cache_control="no-cache"))
    await settle()
    joined = await system.ask(ASKED)
    assert joined.cache_status == "coalesced"
    assert joined.outputs is (await newer).outputs
    assert joined.outputs is not (await older).outputs
    assert system.engine.flights_running == 0


@simulated
async def test_one_storing_member_stores_for_all() -> None:
    """A flight begun by no-store keeps its answer if a member that may be stored joined it."""
    system = make_system()
    first = system.start(request(7, cache_control="no-store"))
    await settle()
    second = system.start(ASKED)
    assert (await first).cache_status == "miss"
    assert (await second).cache_status == "coalesced"
    assert await is_stored(system)


@simulated
async def test_errors_are_never_stored() -> None:
    """After a failure the next request computes again."""
    system = make_system()
    system.server.script.append(ModelFailed("fake-0", "no"))
    assert code_of(await system.ask(ASKED)) == "MODEL_ERROR"
    assert len(system.cache) == 0
    assert (await system.ask(ASKED)).cache_status == "miss"


@simulated
async def test_full_cache_still_answers() -> None:
    """A cache that can store nothing costs computing, never an answer."""
    system = make_system(cache_bytes=0)
    for _ in range(2):
        answer = await system.ask(ASKED)
        assert answer.cache_status == "miss"
        assert outputs_of(answer) == expected("one", ASKED)
    assert len(system.cache) == 0


@simulated
async def test_tenants_share_no_answer() -> None:
    """Equal requests of two tenants are computed twice, also at the same time."""
    system = make_system()
    answers = await asyncio.gather(*(system.ask(request(7, tenant=tenant)) for tenant in ("a", "b", None)))
    assert [answer.cache_status for answer in answers] == ["miss"] * 3
    assert len({answer.key for answer in answers}) == 3
    assert (await system.ask(request(7, tenant="a"))).cache_status == "hit"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (None, [{"name": "y"}, {"name": "text"}], True),
        (None, [], True),
        (None, [{"name": "text"}, {"name": "y"}], False),
        (None, [{"name": "y"}], False),
        ([{"name": "y"}], [{"name": "y", "parameters": {"binary_data": True}}], True),
        ([{"name": "y"}], [{"name": "y", "parameters": {"classification": 3}}], False),
    ],
)
@simulated
async def test_explicit_default_outputs_share_the_key(
    first: list[dict[str, object]] | None, second: list[dict[str, object]] | None, same: bool
) -> None:
    """Outputs asked for by name in the model's order are those of a request that names none."""
    system = make_system()
    one = await system.ask(request(7, outputs=first))
    two = await system.ask(request(7, outputs=second))
    assert (one.key == two.key) is same
    assert two.cache_status == ("hit" if same else "miss")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({}, {"binary_data_output": True}, True),
        ({}, {"priority": 3, "timeout": 1000}, True),
        ({"t": 1}, {"t": 1.0}, False),
        ({"t": 1}, {"t": True}, False),
        ({"t": "1"}, {"t": 1}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"t": 0.0}, {"t": -0.0}, False),
    ],
)
@simulated
async def test_only_model_parameters_are_keyed(first: dict[str, object], second: dict[str, object], same: bool) -> None:
    """What reaches the model is keyed with its type; transport and the server's own arguments are not."""
    system = make_system()
    one = await system.ask(request(7, parameters=first))
    two = await system.ask(request(7, parameters=second))
    assert (one.key == two.key) is same
    assert two.cache_status == ("hit" if same else "miss")
