"""The cache: never a wrong value, bounded in bytes, honest about them, fair to tenants, swept without a pause."""

import gc
import os
import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.bench.process_memory import resident_bytes
from pipeline.core.answer import StoredAnswer, stored_answer
from pipeline.core.cache_key import CacheScope
from pipeline.core.eviction import ENTRY_BYTES, SCOPE_BYTES, TENANT_BYTES
from pipeline.core.response_cache import CacheStats, Cleared, ResponseCache, Usage
from schemas.tensor import Tensor
from tests.schemas.records import FAST

ROOT = Path(__file__).parents[2]
TENANTS = (None, "acme", "brand", "co")
SCOPES = [CacheScope(tenant, "digits", version, "f") for tenant in TENANTS for version in ("1", "2")]
SCOPE = SCOPES[0]
ONCE = SCOPE_BYTES + TENANT_BYTES
KEYS = st.integers(0, 40).map(lambda number: number.to_bytes(32, "big"))


@dataclass(frozen=True, slots=True)
class Answer:
    """A stored value of a size that the test chooses."""

    number: int
    size_bytes: int


def key(number: int) -> bytes:
    """Returns a key of 32 bytes."""
    return number.to_bytes(32, "big")


def all_kept(_: CacheScope) -> bool:
    """No scope is retired."""
    return True


def free(cache: ResponseCache[Answer]) -> None:
    """Frees what was cleared."""
    while cache.holds_cleared:
        cache.sweep(0.0, all_kept, 1000)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the model knows of a key: the last value, its time, its scope."""

    answer: Answer
    expires_at: float
    scope: CacheScope


class CacheMachine(RuleBasedStateMachine):
    """Random use of a cache beside a dictionary of what was stored last under each key."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[bytes, Stored] = {}
        self.retired: set[CacheScope] = set()
        # What the sweep under way has to meet, and how many steps it may still take.
        self.due: list[tuple[bytes, Stored]] | None = None
        self.steps_left = 0
        self.cleared_since = False
        self.now = 0.0
        self.count = 0
        self.cache: ResponseCache[Answer] = ResponseCache(0)

    @initialize(bytes_max=st.sampled_from([0, ENTRY_BYTES + ONCE - 1, ENTRY_BYTES + ONCE, 3000, 12_000, 50_000]))
    def make(self, bytes_max: int) -> None:
        self.cache = ResponseCache(bytes_max)

    @rule(
        at=KEYS,
        size=st.sampled_from([0, 1, 100, 1000, 4640, 60_000]),
        ttl_s=st.integers(-1, 20),
        scope=st.sampled_from(SCOPES),
    )
    def put(self, at: bytes, size: int, ttl_s: int, scope: CacheScope) -> None:
        self.count += 1
        answer = Answer(self.count, size)
        older = self.stored.get(at)
        before, given_before = dict(self.cache.usage_by_tenant()), self.given()
        self.cache.put(at, answer, self.now + ttl_s, scope)
        self.stored[at] = Stored(answer, self.now + ttl_s, scope)
        if size + ENTRY_BYTES + ONCE > self.cache.bytes_max:
            del self.stored[at]
        self.check_shares(before, given_before, scope.tenant, older)

    def given(self) -> Counter[str | None]:
        """Each tenant's entries, without those that were cleared."""
        counts: Counter[str | None] = Counter()
        for scope, usage in self.cache.usage().items():
            counts[scope.tenant] += usage.entries
        return counts

    def check_shares(
        self,
        before: dict[str | None, Usage],
        given_before: Counter[str | None],
        asking: str | None,
        older: Stored | None,
    ) -> None:
        """Whoever lost entries to another was above its share, and lost no more than what brought it down to that."""
        after, given = self.cache.usage_by_tenant(), self.given()
        # While room is made tenants only go: with all of them the share is as small as it was in that call.
        smallest_share = self.cache.bytes_max / len(before.keys() | {asking})
        largest_entry = 60_000 + ENTRY_BYTES + ONCE
        for tenant, held in before.items():
            left = after.get(tenant, Usage(0, 0))
            replaced = older is not None and older.scope.tenant == tenant
            if tenant == asking or given_before[tenant] - given[tenant] <= replaced:
                continue
            assert held.bytes > smallest_share
            assert left.bytes > smallest_share - largest_entry

    @rule(at=KEYS)
    def get(self, at: bytes) -> None:
        found = self.cache.get(at, self.now)
        if found is not None:
            stored = self.stored[at]
            assert found is stored.answer
            assert stored.expires_at > self.now

    @rule(at=KEYS)
    def discard(self, at: bytes) -> None:
        self.cache.discard(at)
        self.stored.pop(at, None)
        assert self.cache.get(at, self.now) is None

    @rule(seconds=st.integers(0, 10))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(scopes=st.none() | st.sets(st.sampled_from(SCOPES)))
    def clear(self, scopes: set[CacheScope] | None) -> None:
        wanted: Callable[[CacheScope], bool] | None = None if scopes is None else scopes.__contains__
        usage, held = self.cache.usage(), self.cache.bytes_used
        cleared = self.cache.clear(wanted)
        gone = [found for scope, found in usage.items() if scopes is None or scope in scopes]
        assert cleared == Cleared(sum(found.entries for found in gone), sum(found.bytes for found in gone))
        assert self.cache.bytes_used == held
        self.cleared_since = True
        self.stored = {
            at: stored for at, stored in self.stored.items() if scopes is not None and stored.scope not in scopes
        }
        left = {scope: found for scope, found in usage.items() if scopes is not None and scope not in scopes}
        assert self.cache.usage() == left

    @rule(scope=st.sampled_from(SCOPES))
    def retire(self, scope: CacheScope) -> None:
        self.retired.add(scope)

    @rule(steps=st.integers(0, 12))
    def sweep(self, steps: int) -> None:
        if self.due is None:
            self.due = [
                (at, stored)
                for at, stored in self.stored.items()
                if stored.scope in self.retired or stored.expires_at <= self.now
            ]
            self.steps_left = sum(held.entries for held in self.cache.usage_by_tenant().values())
            self.cleared_since = False
        self.steps_left -= steps
        if not self.cache.sweep(self.now, lambda scope: scope not in self.retired, steps):
            assert self.steps_left > 0
            return
        for at, stored in self.due:
            assert self.cache.get(at, -1.0) is not stored.answer
        assert self.cleared_since or not self.cache.holds_cleared
        self.due = None
        self.retired.clear()

    @rule()
    def look_at_everything(self) -> None:
        """What is counted by scope is what a walk over all keys finds."""
        walked: dict[CacheScope, Usage] = {}
        for at, stored in self.stored.items():
            if self.cache.get(at, self.now) is stored.answer:
                entries, held = walked.get(stored.scope, Usage(0, 0))
                walked[stored.scope] = Usage(entries + 1, held + stored.answer.size_bytes + ENTRY_BYTES)
        assert self.cache.usage() == walked

    @invariant()
    def bytes_stay_below_the_bound(self) -> None:
        """I1: the bound holds after every step, and what is held is counted."""
        assert len(self.cache) * ENTRY_BYTES <= self.cache.bytes_used <= self.cache.bytes_max

    @invariant()
    def sums_agree(self) -> None:
        """I2: entries and bytes of tenants and scopes add up to the whole, and an empty cache holds nothing.

        What was cleared and is not freed yet counts for its tenant, and for no scope.
        """
        tenants, scopes = self.cache.usage_by_tenant(), self.cache.usage()
        assert sum(held.bytes for held in tenants.values()) == self.cache.bytes_used
        unfreed = sum(held.entries for held in tenants.values()) - len(self.cache)
        assert (unfreed > 0) is self.cache.holds_cleared
        assert sum(held.entries for held in scopes.values()) == len(self.cache)
        assert {scope.tenant for scope in scopes} <= set(tenants)
        assert unfreed or {scope.tenant for scope in scopes} == set(tenants)
        assert all(held.entries for held in [*tenants.values(), *scopes.values()])
        assert len(self.cache) <= len(self.stored)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(FAST, max_examples=100, stateful_step_count=60)


def test_values_live_until_their_time() -> None:
    """A value is found before its time is up, not at it, and its room is free then."""
    cache: ResponseCache[Answer] = ResponseCache(10_000)
    answer = Answer(1, 100)
    cache.put(key(1), answer, 10.0, SCOPE)
    assert (cache.get(key(1), 9.999), cache.get(key(1), 10.0), cache.get(key(1), 9.0)) == (answer, None, None)
    assert (len(cache), cache.bytes_used, cache.stats.expired) == (0, 0, 1)


def test_newer_value_takes_the_place() -> None:
    """A value stored under the same key replaces the older one, size, time and scope too."""
    cache: ResponseCache[Answer] = ResponseCache(10_000)
    cache.put(key(1), Answer(1, 5000), 10.0, SCOPE)
    cache.put(key(1), Answer(2, 100), 20.0, SCOPES[1])
    assert (cache.get(key(1), 15.0), len(cache)) == (Answer(2, 100), 1)
    assert (cache.bytes_used, list(cache.usage())) == (100 + ENTRY_BYTES + ONCE, [SCOPES[1]])


def test_value_above_the_bound_is_refused() -> None:
    """A value larger than the whole bound is not stored and drives nothing out, but the older one is gone."""
    cache: ResponseCache[Answer] = ResponseCache(3000)
    cache.put(key(1), Answer(1, 100), 10.0, SCOPE)
    cache.put(key(2), Answer(2, 100), 10.0, SCOPE)
    cache.put(key(2), Answer(3, 3001 - ENTRY_BYTES - ONCE), 10.0, SCOPE)
    assert (cache.get(key(1), 0.0), cache.get(key(2), 0.0)) == (Answer(1, 100), None)
    assert (cache.stats.refused, cache.stats.evicted) == (1, 0)


def test_value_as_large_as_the_bound_fits() -> None:
    """A value that fills the bound exactly is stored."""
    cache: ResponseCache[Answer] = ResponseCache(3000)
    cache.put(key(1), Answer(1, 3000 - ENTRY_BYTES - ONCE), 10.0, SCOPE)
    assert (len(cache), cache.bytes_used) == (1, 3000)


def test_bound_of_zero_stores_nothing() -> None:
    """With no room there is no cache, not even for an empty value."""
    cache: ResponseCache[Answer] = ResponseCache(0)
    cache.put(key(1), Answer(1, 0), 10.0, SCOPE)
    assert (cache.get(key(1), 0.0), len(cache), cache.bytes_used, cache.stats.refused) == (None, 0, 0, 1)


def filled(cache: ResponseCache[Answer], scope: CacheScope, numbers: range, size: int = 700) -> list[bytes]:
    """Stores answers of this size under these numbers; returns their keys."""
    keys = [key(number) for number in numbers]
    for number in numbers:
        cache.put(key(number), Answer(number, size), 1000.0, scope)
    return keys


def found(cache: ResponseCache[Answer], keys: list[bytes]) -> int:
    """How many of these are there."""
    return sum(cache.get(at, 0.0) is not None for at in keys)


def scope_of(tenant: str | None) -> CacheScope:
    """A tenant's scope."""
    return CacheScope(tenant, "digits", "1", "f")


def test_flood_of_one_tenant_leaves_the_others_whole() -> None:
    """A tenant within its share keeps every entry, read or not, whatever another one stores and reads."""
    cache: ResponseCache[Answer] = ResponseCache(1_000_000)
    quiet = [filled(cache, scope_of(f"quiet-{n}"), range(n * 1000, n * 1000 + 200)) for n in range(3)]
    for number in range(100_000, 110_000):
        cache.put(key(number), Answer(number, 700), 1000.0, scope_of("loud"))
        cache.get(key(number), 0.0)
    assert [found(cache, keys) for keys in quiet] == [200, 200, 200]


def test_idle_room_is_anybodys() -> None:
    """A tenant uses what others leave, and gives it back, down to its share and no further, as they come."""
    cache: ResponseCache[Answer] = ResponseCache(1_000_000)
    filled(cache, scope_of("first"), range(2000))
    assert cache.usage_by_tenant()["first"].bytes > 990_000
    filled(cache, scope_of("second"), range(10_000, 12_000))
    shares = cache.usage_by_tenant()
    # Within one entry and one remembered key of half.
    assert [abs(shares[tenant].bytes - 500_000) < 1500 for tenant in ("first", "second")] == [True, True]


def test_tenant_above_its_share_pays_for_itself() -> None:
    """Room is taken from the tenant that asks before any other, though another is further above its share."""
    cache: ResponseCache[Answer] = ResponseCache(1_000_000)
    large = filled(cache, scope_of("large"), range(580))
    filled(cache, scope_of("small"), range(10_000, 10_020))
    filled(cache, scope_of("asking"), range(20_000, 22_000))
    assert found(cache, large) == 580


def test_small_queue_is_a_tenth_of_what_the_tenant_has() -> None:
    """While others leave their room, newcomers of the one who uses it have a tenth of that, not of its share."""
    cache: ResponseCache[Answer] = ResponseCache(1_000_000)
    filled(cache, scope_of("idle"), range(1))
    for number in range(2000, 5000):
        cache.put(key(number), Answer(number, 700), 1000.0, scope_of("busy"))
        cache.get(key(number), 0.0)
    # 99 entries of 1,010 bytes are a tenth of all there is; of half of it they would be 49.
    unread = filled(cache, scope_of("busy"), range(10_000, 11_000))
    assert found(cache, unread[-95:]) == 95
    assert found(cache, unread[:-103]) == 0


def test_tenant_that_is_gone_leaves_its_share() -> None:
    """Shares are those of tenants that have entries: who has none any more, has none, and remembers no key."""
    cache: ResponseCache[Answer] = ResponseCache(200_000)
    for number in range(5):
        filled(cache, scope_of(f"t{number}"), range(number * 1000, number * 1000 + 300))
    for number in range(1, 5):
        cache.clear(lambda scope, number=number: scope.tenant == f"t{number}")  # type: ignore[misc]
        free(cache)
    assert list(cache.usage_by_tenant()) == ["t0"]
    filled(cache, scope_of("t0"), range(300))
    assert cache.bytes_used > 198_000


def test_every_one_of_many_tenants_has_its_share() -> None:
    """Of a thousand tenants that all want more than their share none ends more than an entry below it."""
    cache: ResponseCache[Answer] = ResponseCache(20_000_000)
    rng = random.Random(5)
    scopes = [scope_of(f"t{number}") for number in range(1000)]
    for number in range(60_000):
        cache.put(key(number), Answer(number, 700), 1000.0, rng.choice(scopes))
    held = [usage.bytes for usage in cache.usage_by_tenant().values()]
    assert len(held) == 1000
    assert min(held) > 20_000 - (700 + ENTRY_BYTES)


def test_clear_drops_what_is_wanted_and_no_more() -> None:
    """By scope or all at once: what is dropped is told, the rest stays, and the sweep frees the room."""
    cache: ResponseCache[Answer] = ResponseCache(100_000)
    kept = filled(cache, SCOPES[0], range(10))
    filled(cache, SCOPES[3], range(100, 105))
    gone = cache.clear(lambda scope: scope.tenant == "acme")
    assert gone == Cleared(5, 5 * (700 + ENTRY_BYTES))
    assert (found(cache, kept), len(cache)) == (10, 10)
    assert (cache.clear().entries, len(cache), cache.stats.cleared) == (10, 0, 15)
    free(cache)
    assert (cache.bytes_used, cache.stats) == (0, CacheStats(cleared=15))


def test_cleared_answers_are_not_given_though_they_are_held() -> None:
    """From the clear on no look-up gives them, whatever is freed by then; what is stored afterwards is given."""
    cache: ResponseCache[Answer] = ResponseCache(1_000_000)
    gone = filled(cache, SCOPES[0], range(100))
    cache.clear()
    held = cache.bytes_used
    assert found(cache, gone[:10]) == 0
    later = filled(cache, SCOPES[0], range(50, 150))
    assert cache.usage() == {SCOPES[0]: Usage(100, 100 * (700 + ENTRY_BYTES))}
    for _ in range(10):
        assert (found(cache, gone[10:50]), found(cache, later)) == (0, 100)
        cache.sweep(0.0, all_kept, 20)
    assert not cache.holds_cleared
    assert (len(cache), cache.bytes_used) == (100, held)
    assert cache.stats == CacheStats(cleared=100)


def test_clearing_does_not_grow_with_the_entries() -> None:
    """Clearing asks once for each scope, and touches no entry: a sweep's slice does, as many as it is allowed."""
    cache: ResponseCache[Answer] = ResponseCache(10_000_000)
    filled(cache, SCOPES[0], range(2000))
    asked: list[CacheScope] = []
    before = cache.bytes_used

    def wanted(scope: CacheScope) -> bool:
        asked.append(scope)
        return True

    cache.clear(wanted)
    assert (len(asked), cache.bytes_used) == (1, before)
    freed = []
    while cache.holds_cleared:
        before = cache.bytes_used
        cache.sweep(0.0, all_kept, 500)
        freed.append((before - cache.bytes_used) // (700 + ENTRY_BYTES))
    assert freed == [500] * 4


def test_cleared_answers_make_room_uncounted() -> None:
    """Where room is needed before they are freed, cleared answers go and are not told as evicted."""
    cache: ResponseCache[Answer] = ResponseCache(20 * (700 + ENTRY_BYTES))
    filled(cache, SCOPE, range(19))
    cache.clear()
    filled(cache, SCOPE, range(100, 117))
    assert (len(cache), cache.stats) == (17, CacheStats(cleared=19))


def test_sweep_drops_retired_and_expired_in_small_steps() -> None:
    """A round of short steps meets every entry once: what is retired or expired goes, the rest stays."""
    cache: ResponseCache[Answer] = ResponseCache(1_000_000)
    kept = filled(cache, SCOPES[1], range(100))
    filled(cache, SCOPES[0], range(200, 300))
    for number in range(300, 350):
        cache.put(key(number), Answer(number, 700), 5.0, SCOPES[1])
    rounds = [cache.sweep(5.0, lambda scope: scope.model_version == "2", 100) for _ in range(3)]
    assert rounds == [False, False, True]
    assert (len(cache), found(cache, kept)) == (100, 100)
    assert (cache.stats.retired, cache.stats.expired) == (100, 50)


def test_sweep_ends_whatever_comes_meanwhile() -> None:
    """What is stored during a round lies behind it: a round takes no more steps than there were entries."""
    cache: ResponseCache[Answer] = ResponseCache(10_000_000)
    filled(cache, SCOPE, range(100))
    for turn in range(10):
        filled(cache, SCOPE, range(1000 + turn * 100, 1100 + turn * 100))
        assert cache.sweep(0.0, all_kept, 20) is (turn == 9)


def test_sweep_of_nothing_is_complete() -> None:
    """An empty cache is swept at once, also when it became empty under the sweep."""
    cache: ResponseCache[Answer] = ResponseCache(100_000)
    assert cache.sweep(0.0, all_kept, 10)
    filled(cache, SCOPE, range(10))
    assert not cache.sweep(0.0, all_kept, 5)
    for number in range(10):
        cache.discard(key(number))
    assert cache.sweep(0.0, all_kept, 0)


def an_answer(size: int, number: int) -> StoredAnswer:
    """An answer as the Triton client brings it: its tensor's name and datatype are strings of its own."""
    raw = os.urandom(size)
    tensor = Tensor(str(b"label", "ascii"), str(b"UINT8", "ascii"), (1, size), raw)
    return stored_answer([tensor], stored_at=float(number), instance="triton-0")


def filled_with_answers(size: int, bytes_max: int, tenants: int, fills: float) -> ResponseCache[StoredAnswer]:
    """A cache that so many times its room of real answers was stored in."""
    cache: ResponseCache[StoredAnswer] = ResponseCache(bytes_max)
    for number in range(int(fills * bytes_max / (an_answer(size, 0).size_bytes + ENTRY_BYTES))):
        cache.put(os.urandom(32), an_answer(size, number), 1e6 + number, scope_of(f"tenant-{number % tenants}"))
    return cache


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("fills", [0.5, 3.0])
@pytest.mark.parametrize("tenants", [1, 1000])
@pytest.mark.parametrize(
    ("size", "bytes_max"),
    [(100, 4 << 20), (100, 12 << 20), (1300, 4 << 20), (1300, 12 << 20), (60_000, 12 << 20)],
)
def test_accounting_is_real_memory(size: int, bytes_max: int, tenants: int, fills: float) -> None:
    """What the cache says it uses is within a tenth of what it holds, while it fills and when it evicts."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cache = filled_with_answers(size, bytes_max, tenants, fills)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.9 <= cache.bytes_used / held <= 1.1


def resident_ratio(size: int, tenants: int) -> float:
    """What the cache says to what this process grew by; of worth in a process that did nothing else."""
    filled_with_answers(size, 1 << 20, 10, 3.0)
    before = resident_bytes(os.getpid())
    cache = filled_with_answers(size, 32 << 20, tenants, 3.0)
    return cache.bytes_used / (resident_bytes(os.getpid()) - before)


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("tenants", [1, 1000])
@pytest.mark.parametrize("size", [100, 1300])
def test_accounting_is_resident_memory(size: int, tenants: int) -> None:
    """A process grows by what the cache says and at most a third more: the holes between blocks are the allocator's."""
    code = f"from tests.core.test_response_cache import resident_ratio; print(resident_ratio({size}, {tenants}))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 0.75 <= float(child.stdout) <= 1.1
