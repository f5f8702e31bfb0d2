"""The cache: bounded in bytes, honest about its size, not emptied by a scan."""

import gc
import os
import random
import sys
import tracemalloc
from collections import OrderedDict
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.core.cache_key import CacheScope
from pipeline.core.eviction import ENTRY_OVERHEAD_BYTES, S3FifoCache
from tests.schemas.records import FAST

SCOPE = CacheScope(None, "digits", "2", "f1")
ENTRY = ENTRY_OVERHEAD_BYTES
KEYS = st.integers(0, 30).map(lambda number: number.to_bytes(32, "big"))


@dataclass(frozen=True, slots=True)
class Answer:
    """A stored value of a size that the test chooses."""

    number: int
    size_bytes: int


def key(number: int) -> bytes:
    """Returns a key of 32 bytes."""
    return number.to_bytes(32, "big")


class CacheMachine(RuleBasedStateMachine):
    """Random use of a cache beside a dictionary of what was stored last under each key."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[bytes, tuple[Answer, float]] = {}
        self.now = 0.0
        self.count = 0
        self.cache: S3FifoCache[Answer] = S3FifoCache(0)

    @initialize(bytes_max=st.sampled_from([0, ENTRY - 1, ENTRY, ENTRY + 100, 2000, 5000, 50_000]))
    def make(self, bytes_max: int) -> None:
        self.cache = S3FifoCache(bytes_max)

    @rule(at=KEYS, size=st.sampled_from([0, 1, 100, 1000, 4640, 60_000]), ttl_s=st.integers(-1, 20))
    def put(self, at: bytes, size: int, ttl_s: int) -> None:
        self.count += 1
        answer = Answer(self.count, size)
        self.cache.put(at, answer, self.now + ttl_s, SCOPE)
        self.stored[at] = (answer, self.now + ttl_s)
        if size + ENTRY > self.cache.bytes_max:
            del self.stored[at]

    @rule(at=KEYS)
    def get(self, at: bytes) -> None:
        found = self.cache.get(at, self.now)
        if found is not None:
            answer, expires_at = self.stored[at]
            assert found is answer
            assert expires_at > self.now

    @rule(at=KEYS)
    def discard(self, at: bytes) -> None:
        self.cache.discard(at)
        self.stored.pop(at, None)
        assert self.cache.get(at, self.now) is None

    @rule(seconds=st.integers(0, 10))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.stored.clear()
        assert (len(self.cache), self.cache.bytes_used) == (0, 0)

    @invariant()
    def bytes_stay_below_the_bound(self) -> None:
        """I1: the bound holds after every step, and what is held is counted."""
        assert len(self.cache) * ENTRY <= self.cache.bytes_used <= self.cache.bytes_max

    @invariant()
    def nothing_is_held_that_was_not_stored(self) -> None:
        """I2: there are never more values than keys that were stored."""
        assert len(self.cache) <= len(self.stored)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(FAST, max_examples=60, stateful_step_count=40)


def test_values_live_until_their_time() -> None:
    """A value is found before its time is up, not at it, and its room is free then."""
    cache: S3FifoCache[Answer] = S3FifoCache(10_000)
    answer = Answer(1, 100)
    cache.put(key(1), answer, 10.0, SCOPE)
    assert (cache.get(key(1), 9.999), cache.get(key(1), 10.0), cache.get(key(1), 9.0)) == (answer, None, None)
    assert (len(cache), cache.bytes_used, cache.stats.expired) == (0, 0, 1)


def test_newer_value_takes_the_place() -> None:
    """A value stored under the same key replaces the older one, size and time too."""
    cache: S3FifoCache[Answer] = S3FifoCache(10_000)
    cache.put(key(1), Answer(1, 5000), 10.0, SCOPE)
    cache.put(key(1), Answer(2, 100), 20.0, SCOPE)
    assert (cache.get(key(1), 15.0), len(cache), cache.bytes_used) == (Answer(2, 100), 1, 100 + ENTRY)


def test_value_above_the_bound_is_refused() -> None:
    """A value larger than the whole bound is not stored and drives nothing out, but the older one is gone."""
    cache: S3FifoCache[Answer] = S3FifoCache(2000)
    cache.put(key(1), Answer(1, 100), 10.0, SCOPE)
    cache.put(key(2), Answer(2, 100), 10.0, SCOPE)
    cache.put(key(2), Answer(3, 2001 - ENTRY), 10.0, SCOPE)
    assert (cache.get(key(1), 0.0), cache.get(key(2), 0.0)) == (Answer(1, 100), None)
    assert (cache.stats.refused, cache.stats.evicted) == (1, 0)


def test_value_as_large_as_the_bound_fits() -> None:
    """A value that fills the bound exactly is stored."""
    cache: S3FifoCache[Answer] = S3FifoCache(2000)
    cache.put(key(1), Answer(1, 2000 - ENTRY), 10.0, SCOPE)
    assert (cache.get(key(1), 0.0), cache.bytes_used) == (Answer(1, 2000 - ENTRY), 2000)


def test_bound_of_zero_stores_nothing() -> None:
    """With no room there is no cache, not even for an empty value."""
    cache: S3FifoCache[Answer] = S3FifoCache(0)
    cache.put(key(1), Answer(1, 0), 10.0, SCOPE)
    assert (cache.get(key(1), 0.0), len(cache), cache.bytes_used, cache.stats.refused) == (None, 0, 0, 1)


def test_returning_key_enters_main_at_once() -> None:
    """A key that was driven out and comes back soon outlives keys that were seen once."""
    cache: S3FifoCache[Answer] = S3FifoCache(40 * (100 + ENTRY))
    for number in range(60):
        cache.put(key(number), Answer(number, 100), 10.0, SCOPE)
    gone = max(set(range(60)) - {number for number in range(60) if cache.get(key(number), 0.0)})
    cache.clear()
    for number in range(60):
        cache.put(key(number), Answer(number, 100), 10.0, SCOPE)
    cache.put(key(gone), Answer(gone, 100), 10.0, SCOPE)
    for number in range(100, 200):
        cache.put(key(number), Answer(number, 100), 10.0, SCOPE)
    assert cache.get(key(gone), 0.0) == Answer(gone, 100)


def replay(trace: list[int], entries: int) -> tuple[int, int]:
    """Returns the hits of the cache and of a plain LRU with room for as many bytes, on one trace of keys."""
    cache: S3FifoCache[Answer] = S3FifoCache(entries * (1000 + ENTRY))
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


class Blob:
    """A value of real bytes that knows what it holds on to."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @property
    def size_bytes(self) -> int:
        """The object and its bytes."""
        return sys.getsizeof(self) + sys.getsizeof(self.raw)


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("bytes_max", [2 << 20, 10 << 20])
@pytest.mark.parametrize("fills", [0.5, 3.0])
def test_accounting_is_real_memory(bytes_max: int, fills: float) -> None:
    """What the cache says it uses is within a tenth of what it holds, while it fills and when it evicts."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cache: S3FifoCache[Blob] = S3FifoCache(bytes_max)
        for number in range(int(fills * bytes_max / (1300 + ENTRY))):
            cache.put(os.urandom(32), Blob(os.urandom(1300)), 1e6 + number, SCOPE)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.9 <= cache.bytes_used / held <= 1.1
