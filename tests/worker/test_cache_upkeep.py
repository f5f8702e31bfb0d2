"""A worker's upkeep of its cache: sweeping in slices, and what an operator's commands come to; time is virtual."""

import asyncio
import itertools
from collections.abc import Callable
from typing import get_args

import pytest

from pipeline.core.answer import StoredAnswer, stored_answer
from pipeline.core.cache_key import CacheScope, scopes_of
from pipeline.core.catalog import ModelCatalog
from pipeline.core.response_cache import ResponseCache
from pipeline.metrics import EngineMetrics, SharedCacheMetrics
from pipeline.worker.cache_upkeep import FREEING_PAUSE_S, PAUSE_S_MAX, ROUND_S, SLICE_ENTRIES, CacheUpkeep
from schemas.control import (
    COMMANDS,
    REPLIES,
    USAGE_MAX,
    CacheClearCommand,
    CacheClearReply,
    CacheRequests,
    CacheStatsCommand,
    CacheStatsReply,
    CacheUsage,
)
from schemas.result import CacheStatus
from tests.simulation.system import MODEL, model_record
from tests.simulation.virtual_time import MONOTONIC_START, FakeClock, run_simulated, simulated, the_clock

FIRST = CacheScope(None, MODEL, "1", "one")
ACME = CacheScope("acme", MODEL, "1", "one")
SECOND = CacheScope("acme", MODEL, "2", "two")
OTHER = CacheScope("acme", "other", "2", "three")
SCOPES = (FIRST, ACME, SECOND, OTHER)


class WatchedCache(ResponseCache[StoredAnswer]):
    """A cache that notes its sweeps: when, how many steps, and whether that was a round's end."""

    def __init__(self) -> None:
        super().__init__(1 << 30)
        self.slices: list[tuple[float, int, bool]] = []

    def sweep(self, now: float, is_kept: Callable[[CacheScope], bool], steps: int) -> bool:
        """See `ResponseCache.sweep`."""
        done = super().sweep(now, is_kept, steps)
        self.slices.append((now, steps, done))
        return done


class Kept:
    """A cache with its upkeep, on a catalog that serves versions 1 and 2."""

    def __init__(self, clock: FakeClock, shared: SharedCacheMetrics | None = None) -> None:
        self.catalog = ModelCatalog([model_record({"1": "one", "2": "two"}, "2")])
        self.cache = WatchedCache()
        self.metrics = EngineMetrics()
        self.bugs: list[BaseException] = []
        self._keys = itertools.count()
        self.upkeep = CacheUpkeep(
            "w-1",
            self.cache,
            self.metrics,
            clock,
            serves=self.catalog.serves,
            clear=self.cache.clear,
            partitions=lambda: [0, 2],
            shared=shared,
            on_bug=self.bugs.append,
        )

    def fill(self, scope: CacheScope, count: int, left_s: float = 1e9) -> None:
        """Stores answers of a scope."""
        answer = stored_answer((), stored_at=0.0, instance="triton-0")
        for _ in range(count):
            self.cache.put(next(self._keys).to_bytes(32, "big"), answer, MONOTONIC_START + left_s, scope)

    def stats(self) -> CacheStatsReply:
        """What it answers to `cache.stats`, as it arrives."""
        reply = REPLIES.validate_json(self.upkeep.obey(CacheStatsCommand(id="s")).model_dump_json())
        assert isinstance(reply, CacheStatsReply)
        return reply


@pytest.mark.parametrize("entries", [1, SLICE_ENTRIES, 12 * SLICE_ENTRIES, 20 * SLICE_ENTRIES + 1])
@simulated
async def test_retired_version_leaves_within_two_rounds(entries: int) -> None:
    """Whatever the cache's size, and wherever a round stands, retired answers are gone after two; others stay."""
    kept = Kept(the_clock())
    kept.fill(ACME, entries)
    kept.fill(SECOND, 1)
    await kept.upkeep.start()
    await asyncio.sleep(1.5 * PAUSE_S_MAX)
    kept.catalog.apply(model_record({"2": "two"}, "2"))
    retired_at = the_clock().monotonic()
    while kept.cache.stats.retired < entries:
        await asyncio.sleep(0.1)
        assert the_clock().monotonic() - retired_at <= 2 * ROUND_S + 0.2
    assert (set(kept.cache.usage()), kept.stats().retired) == ({SECOND}, entries)
    await kept.upkeep.stop()


@pytest.mark.parametrize(("entries", "slices"), [(200 * SLICE_ENTRIES, 200), (20 * SLICE_ENTRIES + 1, 21)])
@simulated
async def test_round_is_slices_with_pauses(entries: int, slices: int) -> None:
    """A round of many entries takes 15 s, by 1,000 of them, with a pause between any two slices."""
    kept = Kept(the_clock())
    kept.fill(FIRST, entries)
    began = the_clock().monotonic()
    await kept.upkeep.start()
    await asyncio.sleep(ROUND_S + 0.01)  # the next round's first slice is later
    await kept.upkeep.stop()
    times = [now for now, _, _ in kept.cache.slices]
    assert {steps for _, steps, _ in kept.cache.slices} == {SLICE_ENTRIES}
    assert [done for _, _, done in kept.cache.slices] == [False] * (slices - 1) + [True]
    assert times[-1] - began == pytest.approx(ROUND_S)
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) == pytest.approx(ROUND_S / slices)


@simulated
async def test_expired_answers_leave_without_being_asked_for() -> None:
    """What nobody asks for any more does not wait for room to be needed."""
    kept = Kept(the_clock())
    kept.fill(FIRST, 5, left_s=3)
    kept.fill(FIRST, 1)
    await kept.upkeep.start()
    await asyncio.sleep(3 + 1.1 * PAUSE_S_MAX)
    await kept.upkeep.stop()
    assert (len(kept.cache), kept.stats().expired) == (1, 5)


@simulated
async def test_other_content_under_the_same_number_is_retired() -> None:
    """A version whose content was replaced is another one: its old answers leave, whatever its number."""
    kept = Kept(the_clock())
    kept.fill(ACME, 2)
    kept.catalog.apply(model_record({"1": "replaced", "2": "two"}, "2"))
    await kept.upkeep.start()
    await asyncio.sleep(1.1 * PAUSE_S_MAX)
    await kept.upkeep.stop()
    assert kept.stats().retired == 2


def test_bug_in_the_sweep_is_told() -> None:
    """A sweep that fails does not stop in silence, and its end is an end all the same."""
    clock = FakeClock()
    kept = Kept(clock)
    bug = ZeroDivisionError("a bug")

    def broken(_: CacheScope) -> bool:
        raise bug

    async def scenario() -> None:
        kept.upkeep._serves = broken
        kept.fill(FIRST, 1)
        await kept.upkeep.start()
        await asyncio.sleep(2 * PAUSE_S_MAX)
        await kept.upkeep.stop()
        await kept.upkeep.stop()

    run_simulated(scenario(), clock)
    assert kept.bugs == [bug]


@pytest.mark.parametrize(
    ("filters", "meant"),
    [
        ({}, set(SCOPES)),
        ({"tenant": ""}, {FIRST}),
        ({"tenant": "acme"}, {ACME, SECOND, OTHER}),
        ({"model_name": MODEL}, {FIRST, ACME, SECOND}),
        ({"model_name": MODEL, "model_version": "2"}, {SECOND}),
        ({"model_version": "2"}, {SECOND, OTHER}),
        ({"model_name": MODEL, "tenant": "acme"}, {ACME, SECOND}),
        ({"tenant": "nobody"}, set()),
        ({"model_name": ""}, set()),
    ],
)
def test_command_means_the_scopes_of_its_filters(filters: dict[str, str], meant: set[CacheScope]) -> None:
    """Each filter narrows; the empty tenant is that of requests without one, an absent filter means all."""
    command = CacheClearCommand.model_validate({"id": "c", **filters})
    wanted = scopes_of(command.tenant, command.model_name, command.model_version)
    assert {scope for scope in SCOPES if wanted(scope)} == meant


def test_clear_drops_exactly_what_is_meant() -> None:
    """The reply says how many entries and bytes are dropped, and who dropped them; the rest is still there."""
    kept = Kept(FakeClock())
    for scope, count in zip(SCOPES, (1, 2, 3, 4), strict=True):
        kept.fill(scope, count)
    held = kept.cache.usage()
    reply = kept.upkeep.obey(CacheClearCommand(id="c", tenant="acme", model_name=MODEL))
    assert reply == CacheClearReply(
        id="c", worker="w-1", partitions=(0, 2), entries=5, bytes=held[ACME].bytes + held[SECOND].bytes
    )
    assert reply.bytes > 0
    assert {scope: usage.entries for scope, usage in kept.cache.usage().items()} == {FIRST: 1, OTHER: 4}
    assert kept.stats().cleared == 5


@simulated
async def test_cleared_memory_is_freed_in_slices() -> None:
    """What 100,000 cleared answers hold is free within two seconds, 500 at a time, with a pause after each slice."""
    kept = Kept(the_clock())
    kept.fill(FIRST, 100_000)
    await kept.upkeep.start()
    await asyncio.sleep(ROUND_S / 2)
    kept.upkeep.obey(CacheClearCommand(id="c"))
    assert (len(kept.cache), kept.cache.holds_cleared) == (0, True)
    cleared_at = the_clock().monotonic()
    await asyncio.sleep(2.0)
    await kept.upkeep.stop()
    assert (kept.cache.holds_cleared, kept.cache.bytes_used) == (False, 0)
    times = [now for now, _, _ in kept.cache.slices if now >= cleared_at]
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) == pytest.approx(FREEING_PAUSE_S)


def test_gap_clears_all(caplog: pytest.LogCaptureFixture) -> None:
    """Where commands may have been missed nothing is kept, and that is told; an empty cache is nothing to tell of."""
    kept = Kept(FakeClock())
    kept.upkeep.clear_after_gap()
    assert caplog.messages == []
    kept.fill(FIRST, 3)
    kept.upkeep.clear_after_gap()
    assert len(kept.cache) == 0
    assert caplog.messages == ["cleared 3 answers: commands to clear them may have been missed"]


def test_stats_tell_what_is_held() -> None:
    """Entries and bytes in all, and by tenant, model and version; contents of one version are told as one."""
    kept = Kept(FakeClock())
    kept.fill(FIRST, 1)
    kept.fill(ACME, 4)
    kept.fill(CacheScope("acme", MODEL, "1", "earlier"), 3)
    stats = kept.stats()
    held = kept.cache.usage()
    assert (stats.worker, stats.partitions, stats.entries) == ("w-1", (0, 2), 8)
    assert (stats.bytes, stats.bytes_max) == (kept.cache.bytes_used, 1 << 30)
    acme = sum(usage.bytes for scope, usage in held.items() if scope.tenant == "acme")
    assert stats.usage == (
        CacheUsage(tenant="acme", model_name=MODEL, model_version="1", entries=7, bytes=acme),
        CacheUsage(tenant="", model_name=MODEL, model_version="1", entries=1, bytes=held[FIRST].bytes),
    )
    assert (stats.usage_left_off, stats.shared) == (0, None)


def test_stats_list_the_largest() -> None:
    """With more tenants than a reply lists, those that hold most are in it, and the others are counted."""
    kept = Kept(FakeClock())
    for number in range(USAGE_MAX + 5):
        kept.fill(CacheScope(f"t-{number}", MODEL, "1", "one"), 1 + (number >= 5))
    stats = kept.stats()
    assert (len(stats.usage), stats.usage_left_off, stats.entries) == (USAGE_MAX, 5, 2 * USAGE_MAX + 5)
    assert {held.entries for held in stats.usage} == {2}


def test_stats_count_requests_by_model() -> None:
    """Every way in which a request can meet the cache has its own count."""
    kept = Kept(FakeClock())
    for times, status in enumerate(get_args(CacheStatus), start=1):
        for _ in range(times):
            kept.metrics.count(MODEL, status)
    kept.metrics.count_hit("other", 5.0)
    counts = dict(zip(get_args(CacheStatus), range(1, 6), strict=True))
    assert kept.stats().requests == (
        CacheRequests(
            model_name=MODEL, hits=counts["hit"], misses=counts["miss"], coalesced=counts["coalesced"],
            refreshes=counts["refresh"], bypassed=counts["bypass"],
        ),
        CacheRequests(model_name="other", hits=1),
    )  # fmt: skip


def test_stats_list_the_models_most_asked() -> None:
    """Models are cut likewise: whoever asks for names that nobody serves makes no reply too large."""
    kept = Kept(FakeClock())
    for number in range(USAGE_MAX + 5):
        for status in ("miss", "hit") if number >= 5 else ("bypass",):
            kept.metrics.count(f"m-{number}", status)
    stats = kept.stats()
    assert (len(stats.requests), stats.requests_left_off) == (USAGE_MAX, 5)
    assert {(met.hits, met.misses, met.bypassed) for met in stats.requests} == {(1, 1, 0)}


def test_stats_tell_of_the_shared_cache() -> None:
    """Where there is a shared cache, what this worker counted of it comes along, by its own words."""
    shared = SharedCacheMetrics()
    shared.look_ups["hit",] += 3
    shared.writes["dropped",] += 2
    shared.bytes["out",] += 700
    shared.usable = False
    found = Kept(FakeClock(), shared).stats().shared
    assert found is not None
    assert (found.look_ups, found.writes, found.bytes) == ({"hit": 3}, {"dropped": 2}, {"out": 700})
    assert not found.usable


@pytest.mark.parametrize(
    "text",
    [
        '{"command": "cache.clear", "id": "c", "model": "digits"}',
        '{"command": "cache.clear", "id": "c", "model_version": 2}',
        '{"command": "cache.drop", "id": "c"}',
        '{"command": "cache.clear"}',
        '{"id": "c"}',
    ],
)
def test_command_with_an_unknown_member_is_none(text: str) -> None:
    """What a command may mean that this program does not know is not done without it: it might be to clear less."""
    with pytest.raises(ValueError, match="validation error"):
        COMMANDS.validate_json(text)


def test_reply_is_read_as_it_is_meant() -> None:
    """A number in a text is none: a reply of another form is refused rather than guessed at."""
    reply = CacheClearReply(id="c", worker="w-1", partitions=(0,), entries=5, bytes=7).model_dump_json()
    assert REPLIES.validate_json(reply).id == "c"
    with pytest.raises(ValueError, match="valid integer"):
        REPLIES.validate_json(reply.replace('"entries":5', '"entries":"5"'))
