"""The order in which entries go: what is read stays, what passes by does not, and a small queue decides."""

import random
from collections import OrderedDict
from dataclasses import dataclass

import pytest

from pipeline.core.cache_key import CacheScope
from pipeline.core.eviction import (
    ENTRY_BYTES,
    FREQUENCY_MAX,
    TENANT_BYTES,
    Entry,
    ScopeCount,
    TenantQueues,
)
from pipeline.core.ghost_keys import GhostKeys
from pipeline.core.response_cache import ResponseCache

SCOPE = CacheScope(None, "digits", "2", "f1")


@dataclass(frozen=True, slots=True)
class Answer:
    """A stored value of a size that the test chooses."""

    number: int
    size_bytes: int


def key(number: int) -> bytes:
    """Returns a key of 32 bytes."""
    return number.to_bytes(32, "big")


class Queues:
    """One tenant's queues, and the entries in it by number."""

    def __init__(self) -> None:
        self.queues: TenantQueues[Answer] = TenantQueues(None)
        self.count = ScopeCount(SCOPE, self.queues)
        self.entries: dict[int, Entry[Answer]] = {}

    def add(self, *numbers: int, size: int = 1000) -> None:
        """Stores entries of this size."""
        for number in numbers:
            entry = Entry(key(number), Answer(number, size - ENTRY_BYTES), 1.0, size, self.count)
            entry.older = entry.newer = entry
            self.queues.add(entry)
            self.entries[number] = entry

    def evict(self, bytes_allowed: int) -> int:
        """Which entry goes."""
        number = self.queues.evict(bytes_allowed).value.number
        del self.entries[number]
        return number


def test_unread_entries_go_in_the_order_they_came() -> None:
    """Without reads it is a plain queue."""
    tenant = Queues()
    tenant.add(1, 2, 3)
    assert [tenant.evict(1000) for _ in range(3)] == [1, 2, 3]


def test_read_entry_moves_to_main_and_stays() -> None:
    """What was read before its turn is passed over, while the small queue is above its tenth."""
    tenant = Queues()
    tenant.add(1, 2, 3, 4)
    tenant.entries[1].frequency = 1
    assert [tenant.evict(10_000) for _ in range(2)] == [2, 3]
    # 1,000 of 10,000 bytes are no more than a tenth: now main gives, whose entry was not read again.
    assert tenant.evict(10_000) == 1


def test_entry_in_main_goes_after_its_reads_are_used_up() -> None:
    """Each read in main is one more turn; the one with the fewest goes first, in the order they came."""
    tenant = Queues()
    tenant.add(1, 2, 3, 4)
    for number in (1, 2, 3):
        tenant.entries[number].frequency = 1
    assert tenant.evict(1000) == 4
    for number, reads in ((1, FREQUENCY_MAX), (2, 1), (3, 0)):
        tenant.entries[number].frequency = reads
    assert [tenant.evict(10_000) for _ in range(3)] == [3, 2, 1]


def test_reads_in_small_count_once() -> None:
    """However often it was read in the small queue, an entry starts in main as if unread."""
    tenant = Queues()
    tenant.add(1, 2, 3)
    for number, reads in ((1, FREQUENCY_MAX), (2, 1)):
        tenant.entries[number].frequency = reads
    assert [tenant.evict(1000) for _ in range(3)] == [3, 1, 2]


@pytest.mark.parametrize(("bytes_allowed", "first"), [(20_000, 1), (19_999, 3)])
def test_small_queue_keeps_a_tenth_of_what_is_allowed(bytes_allowed: int, first: int) -> None:
    """At a tenth of what the tenant may use now the small queue is left alone, one byte above it gives."""
    tenant = Queues()
    tenant.add(1, 2)
    tenant.entries[1].frequency = 1
    assert tenant.evict(1000) == 2
    tenant.add(3, 4)
    assert tenant.evict(bytes_allowed) == first


def test_key_that_left_unread_comes_back_into_main() -> None:
    """Whoever left unread and comes back is in main at once; not whoever left main, and not a second time."""
    tenant = Queues()
    tenant.add(*range(10))
    assert [tenant.evict(1) for _ in range(4)] == [0, 1, 2, 3]
    tenant.add(2, 77)
    assert (tenant.entries[2].in_main, tenant.entries[77].in_main) == (True, False)
    tenant.queues.remove(tenant.entries.pop(2))
    tenant.add(2)
    assert not tenant.entries[2].in_main


def test_remembered_keys_are_counted_and_shrink_with_the_entries() -> None:
    """The table that remembers is part of the tenant's bytes, and a few entries keep no large one alive."""
    tenant = Queues()
    tenant.add(*range(1000))
    tenant.evict(1)
    assert tenant.queues.bytes > TENANT_BYTES + 999 * 1000 + 1000 * 4
    for entry in list(tenant.entries.values())[10:]:
        tenant.queues.remove(entry)
    assert tenant.queues.entries == 10
    assert TENANT_BYTES + 10 * 1000 < tenant.queues.bytes < TENANT_BYTES + 10 * 1000 + 500


def test_ghost_keys_are_remembered_while_the_table_grows() -> None:
    """Growing loses none, whatever its size; shrinking loses some, and makes nobody known who was not."""
    ghosts = GhostKeys()
    drawn = random.Random(1)
    keys = [drawn.randbytes(32) for _ in range(10)]
    for at in keys:
        ghosts.remember(at)
    known = [ghosts.recall(at) for at in keys]
    assert sum(known) >= 6
    for at, was_known in zip(keys, known, strict=True):
        if was_known:
            ghosts.remember(at)
    ghosts.fit(5000)
    assert ghosts.bytes >= 4 * 5000
    assert [ghosts.recall(at) for at in keys] == known
    for at in keys:
        ghosts.remember(at)
    ghosts.fit(1)
    assert ghosts.bytes < 500
    assert not any(ghosts.recall(drawn.randbytes(32)) for _ in range(1000))


def test_most_ghosts_are_found_again_and_hardly_anybody_else() -> None:
    """Of as many keys as there are places about six in ten are known, of others one in thousands at most."""
    ghosts = GhostKeys()
    ghosts.fit(4096)
    drawn = random.Random(2)
    keys = [drawn.randbytes(32) for _ in range(4096)]
    for at in keys:
        ghosts.remember(at)
    assert sum(ghosts.recall(drawn.randbytes(32)) for _ in range(4096)) <= 2
    assert sum(ghosts.recall(at) for at in keys) > 2400


def test_entry_that_left_refers_to_nothing() -> None:
    """What is out of the queue holds no other entry: no garbage collection is needed to free it."""
    tenant = Queues()
    tenant.add(1, 2)
    gone = tenant.queues.evict(1)
    assert [name for name in ("earlier", "later", "older", "newer") if hasattr(gone, name)] == []


def test_returning_key_enters_main_at_once() -> None:
    """A key that was driven out and comes back soon outlives keys that were seen once."""
    cache: ResponseCache[Answer] = ResponseCache(40 * (100 + ENTRY_BYTES))
    for number in range(60):
        cache.put(key(number), Answer(number, 100), 10.0, SCOPE)
    gone = max(set(range(60)) - {number for number in range(60) if cache.get(key(number), 0.0)})
    for number in range(60):
        cache.discard(key(number))
    for number in range(60):
        cache.put(key(number), Answer(number, 100), 10.0, SCOPE)
    cache.put(key(gone), Answer(gone, 100), 10.0, SCOPE)
    for number in range(100, 200):
        cache.put(key(number), Answer(number, 100), 10.0, SCOPE)
    assert cache.get(key(gone), 0.0) == Answer(gone, 100)


def replay(trace: list[int], entries: int) -> tuple[int, int]:
    """Returns the hits of the cache and of a plain LRU with room for as many bytes, on one trace of keys."""
    cache: ResponseCache[Answer] = ResponseCache(entries * (1000 + ENTRY_BYTES))
    lru: OrderedDict[int, None] = OrderedDict()
    hits = lru_hits = 0
    for number in trace:
        if cache.get(key(number), 0.0) is not None:
            hits += 1
        else:
            cache.put(key(number), Answer(number, 1000), 1.0, SCOPE)
        if number in lru:
            lru_hits += 1
            lru.move_to_end(number)
        else:
            lru[number] = None
            if len(lru) > entries:
                lru.popitem(last=False)
    return hits, lru_hits


def test_scan_does_not_empty_the_cache() -> None:
    """A hundred popular keys keep their places through scans of a thousand; a plain LRU loses them each time."""
    popular = random.Random(20261122)
    trace: list[int] = []
    scanned = 1000
    for _ in range(10):
        trace += [popular.randrange(100) for _ in range(1000)]
        trace += range(scanned, scanned + 1000)
        scanned += 1000
    hits, lru_hits = replay(trace, entries=200)
    # 10,000 reads of popular keys: LRU misses about all 100 of them after each scan. The other has them from then on.
    assert lru_hits <= 9_000
    assert hits >= 9_700


def test_skewed_reads_hit_no_less_than_lru() -> None:
    """On reads by popularity (Zipf), where LRU is good, the cache is as good, the memory of its ghosts included."""
    drawn = random.Random(20261122)
    weights = [1 / rank for rank in range(1, 5001)]
    trace = drawn.choices(range(5000), weights, k=20_000)
    hits, lru_hits = replay(trace, entries=500)
    assert hits >= lru_hits
