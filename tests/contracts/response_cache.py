"""What every cache of answers does, whatever keeps them: the port `pipeline.ports.AnswerCache`."""

import random

import pytest

from pipeline.core.answer import StoredAnswer, stored_answer
from pipeline.core.cache_key import CacheScope
from pipeline.ports import AnswerCache
from schemas.tensor import Tensor

SCOPE = CacheScope(None, "digits", "2", "f1")


def an_answer(number: int, size: int = 16) -> StoredAnswer:
    """An answer that is told from others by its bytes, of about this size."""
    raw = number.to_bytes(8, "little") * max(size // 8, 1)
    return stored_answer([Tensor("y", "UINT8", (len(raw),), raw)], stored_at=float(number), instance="t")


def a_key(number: int) -> bytes:
    """A key as the engine builds them: 32 bytes."""
    return number.to_bytes(32, "big")


class ResponseCacheContract:
    """Inherit, and make the cache. Times are the caller's: nothing here waits."""

    def make_cache(self, bytes_max: int = 1 << 20) -> AnswerCache:
        """An empty cache that holds about so many bytes."""
        raise NotImplementedError

    def bytes_held(self, cache: AnswerCache) -> int | None:
        """How much it holds now, overhead included; None where it cannot tell."""
        return None

    def test_unknown_key_is_a_miss(self) -> None:
        """What was never stored is None, not an error and not an empty answer."""
        assert self.make_cache().get(a_key(1), 0.0) is None

    def test_stored_bytes_come_back(self) -> None:
        """A hit gives the very answer that was stored, every time."""
        cache, stored = self.make_cache(), an_answer(1)
        cache.put(a_key(1), stored, 10.0, SCOPE)
        for _ in range(3):
            found = cache.get(a_key(1), 5.0)
            assert found is not None
            assert (found.tensors, found.stored_at, found.instance) == (stored.tensors, 1.0, "t")

    def test_keys_are_compared_whole(self) -> None:
        """Keys that differ in one bit, anywhere, are different keys."""
        cache = self.make_cache()
        key = bytes(32)
        cache.put(key, an_answer(1), 10.0, SCOPE)
        for position in range(32):
            for bit in range(8):
                other = bytearray(key)
                other[position] ^= 1 << bit
                assert cache.get(bytes(other), 0.0) is None

    @pytest.mark.parametrize(("now", "found"), [(0.0, True), (9.999, True), (10.0, False), (11.0, False)])
    def test_answer_ends_at_its_time(self, now: float, found: bool) -> None:
        """An answer is given until its time is up, and not in that very moment."""
        cache = self.make_cache()
        cache.put(a_key(1), an_answer(1), 10.0, SCOPE)
        assert (cache.get(a_key(1), now) is not None) is found

    def test_expired_answer_stays_gone(self) -> None:
        """Once found expired, an answer does not come back, even for a clock that is behind."""
        cache = self.make_cache()
        cache.put(a_key(1), an_answer(1), 10.0, SCOPE)
        assert cache.get(a_key(1), 20.0) is None
        assert cache.get(a_key(1), 5.0) is None

    def test_later_answer_replaces_the_earlier(self) -> None:
        """Storing again gives the newer answer with its own time."""
        cache = self.make_cache()
        cache.put(a_key(1), an_answer(1), 10.0, SCOPE)
        cache.put(a_key(1), an_answer(2), 20.0, SCOPE)
        found = cache.get(a_key(1), 15.0)
        assert found is not None
        assert found.tensors == an_answer(2).tensors

    def test_answer_too_large_is_refused_quietly(self) -> None:
        """What can never fit is not stored, disturbs nothing else, and leaves no older answer of its key behind."""
        cache = self.make_cache(10_000)
        cache.put(a_key(1), an_answer(1), 10.0, SCOPE)
        cache.put(a_key(2), an_answer(2), 10.0, SCOPE)
        cache.put(a_key(2), an_answer(3, size=100_000), 10.0, SCOPE)
        assert cache.get(a_key(1), 0.0) is not None
        assert cache.get(a_key(2), 0.0) is None

    def test_cache_of_nothing_stores_nothing(self) -> None:
        """With no room at all every look-up is a miss."""
        cache = self.make_cache(0)
        cache.put(a_key(1), an_answer(1), 10.0, SCOPE)
        assert cache.get(a_key(1), 0.0) is None

    def test_bound_holds_whatever_comes(self) -> None:
        """However many answers of whatever size are stored, what is held stays within the bound."""
        rng = random.Random(5)
        cache = self.make_cache(50_000)
        for number in range(3000):
            cache.put(
                a_key(rng.randrange(400)), an_answer(number, size=rng.choice([8, 200, 5000, 60_000])), 10.0, SCOPE
            )
            cache.get(a_key(rng.randrange(400)), 0.0)
            held = self.bytes_held(cache)
            assert held is None or held <= 50_000

    def test_popular_answer_survives_a_scan(self) -> None:
        """Answers that are asked for again and again outlive any number that nobody asks for twice."""
        cache = self.make_cache(100_000)
        for number in range(10):
            cache.put(a_key(number), an_answer(number), 10.0, SCOPE)
        for number in range(10_000, 15_000):
            for popular in range(10):
                cache.get(a_key(popular), 0.0)
            cache.put(a_key(number), an_answer(number), 10.0, SCOPE)
        assert all(cache.get(a_key(popular), 0.0) is not None for popular in range(10))

    def test_found_answer_is_never_anothers(self) -> None:
        """Under any load, what is found under a key is the last that was stored under it, or nothing."""
        rng = random.Random(11)
        cache = self.make_cache(20_000)
        last: dict[int, int] = {}
        for number in range(5000):
            key = rng.randrange(60)
            if rng.random() < 0.5:
                cache.put(a_key(key), an_answer(number), 10.0, SCOPE)
                last[key] = number
            elif (found := cache.get(a_key(key), 0.0)) is not None:
                assert found.stored_at == float(last[key])
