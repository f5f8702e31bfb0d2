"""One cache of two levels: this process's own, and the shared one behind it where there is one.

The shared level is asked only by those who wait for an inference otherwise, and told of every answer that is stored.
Whoever was first there wins: its answer replaces ours here too, so that all workers replay the same bytes.
"""

from collections.abc import Callable
from functools import partial

from pipeline.core.answer import StoredAnswer
from pipeline.core.cache_key import CacheScope
from pipeline.core.response_cache import Cleared
from pipeline.ports import AnswerCache, Clock, SharedAnswer, SharedCache


class CacheLevels:
    """Stored answers, near and far.

    Args:
        own: this process's.
        shared: all processes', or None.
        clock: time.
    """

    def __init__(self, own: AnswerCache, shared: SharedCache | None, clock: Clock) -> None:
        self._own = own
        self._shared = shared
        self._clock = clock

    def get(self, key: bytes, now: float) -> StoredAnswer | None:
        """What this process has; `now` is monotonic seconds."""
        return self._own.get(key, now)

    def ask_shared(self, key: bytes, scope: CacheScope, found: Callable[[SharedAnswer | None], None]) -> bool:
        """As `SharedCache.look_up`; False where there is none."""
        return self._shared is not None and self._shared.look_up(key, scope, found)

    def adopt(self, key: bytes, scope: CacheScope, found: SharedAnswer) -> None:
        """Keeps what the shared level had, unless this process has an answer by now."""
        now = self._clock.monotonic()
        if self._own.get(key, now) is None:
            self._own.put(key, found.answer, now + found.left_s, scope)

    def keep(self, key: bytes, scope: CacheScope, answer: StoredAnswer, ttl_s: float, *, replace: bool) -> None:
        """Stores an answer at both levels.

        Args:
            key: the cache key.
            scope: whose answer, and of what.
            answer: just computed.
            ttl_s: how long it may be given, from when it was computed.
            replace: it is to replace whatever is stored, elsewhere too.
        """
        self._own.put(key, answer, answer.stored_at + ttl_s, scope)
        if self._shared is not None:
            winner = partial(self._give_way, key, scope, answer)
            self._shared.store(key, scope, answer, ttl_s, replace=replace, winner=winner)

    def clear_own(self, wanted: Callable[[CacheScope], bool]) -> Cleared:
        """Forgets what this process has stored for these scopes, and what it was about to store for all."""
        if self._shared is not None:
            self._shared.forget(wanted)
        return self._own.clear(wanted)

    def _give_way(self, key: bytes, scope: CacheScope, ours: StoredAnswer, winner: SharedAnswer) -> None:
        """Another worker stored its answer first. What is not here any more was cleared, evicted, or replaced."""
        now = self._clock.monotonic()
        if self._own.get(key, now) is ours:
            self._own.put(key, winner.answer, now + winner.left_s, scope)
