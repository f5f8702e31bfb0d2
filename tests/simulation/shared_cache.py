"""A shared cache that does as it is told, in virtual time; it keeps bytes, through the format of the real one."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from pipeline.core.answer import StoredAnswer, stored_answer
from pipeline.core.cache_key import CacheScope
from pipeline.core.shared_entry import RefusedEntryError, decode_entry, encode_entry, entry_name, entry_pattern
from pipeline.errors import PipelineError
from pipeline.ports import SharedAnswer
from tests.simulation.virtual_time import the_clock

_BODY_BYTES_MAX = 1 << 20


@dataclass
class FakeSharedServer:
    """What several `FakeSharedCache` share, as workers share a Redis. Its knobs may be turned at any time.

    Attributes:
        latency_s: how long a command takes; one that leaves later than the budget is late.
        down: nothing is answered, and nothing is written.
        lossy: the share of commands whose reply never comes; a lost write may have been done.
        full: writes are refused.
        clock_skew_s: its clock went so far ahead since the entries were stored, or back.
        rng: decides what is lost.
        entries: what it holds: bytes, and when they end by its clock.
    """

    latency_s: float = 0.0005
    down: bool = False
    lossy: float = 0.0
    full: bool = False
    clock_skew_s: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    entries: dict[str, tuple[bytes, float]] = field(default_factory=dict)

    def now(self) -> float:
        """Its own clock."""
        return the_clock().monotonic() + self.clock_skew_s

    def read(self, name: str) -> tuple[bytes, int] | None:
        """The bytes under a name, and how many milliseconds they live on."""
        held = self.entries.get(name)
        if held is None:
            return None
        left_ms = int((held[1] - self.now()) * 1000)
        if left_ms <= 0:
            del self.entries[name]
            return None
        return held[0], left_ms

    def write(self, name: str, entry: bytes, ttl_s: float, *, replace: bool) -> tuple[bytes, int] | None:
        """Stores, unless another was first: that one is returned."""
        first = None if replace else self.read(name)
        if first is None:
            self.entries[name] = (entry, self.now() + ttl_s)
        return first

    def restart_empty(self) -> None:
        """Everything is forgotten."""
        self.entries.clear()

    def is_lost(self) -> bool:
        """Whether this reply never comes."""
        return self.rng.random() < self.lossy


class FakeSharedCache:
    """One process's `SharedCache` on a `FakeSharedServer`.

    Args:
        server: what it shares with others.
        prefix: of its pipeline.
        budget_s: of one look-up.
        writes_max: how many writes may wait.

    Attributes:
        counts: look-ups and writes by outcome: hit, miss, late, not_asked, stored, not_first, dropped, failed; and the
            reasons of refused entries.
    """

    def __init__(
        self, server: FakeSharedServer, prefix: str = "t.", budget_s: float = 0.005, writes_max: int = 1000
    ) -> None:
        self.server = server
        self.counts: Counter[str] = Counter()
        self.usable = True
        self._prefix = prefix
        self._budget_s = budget_s
        self._writes_max = writes_max
        self._writes: dict[asyncio.TimerHandle, CacheScope] = {}
        self._look_ups: dict[asyncio.TimerHandle, Callable[[SharedAnswer | None], None]] = {}
        self._closed = False

    def look_up(self, key: bytes, scope: CacheScope, found: Callable[[SharedAnswer | None], None]) -> bool:
        """See `pipeline.ports.SharedCache.look_up`. `usable` False stands for an open breaker."""
        if self._closed or not self.usable:
            self.counts["not_asked"] += 1
            return False
        server = self.server
        late = server.down or server.latency_s > self._budget_s or server.is_lost()
        loop = asyncio.get_running_loop()

        def reply() -> None:
            del self._look_ups[timer]
            found(None if late or server.down else self._read(key, scope))

        if late:
            self.counts["late"] += 1
        timer = loop.call_later(self._budget_s if late else server.latency_s, reply)
        self._look_ups[timer] = found
        return True

    def store(
        self,
        key: bytes,
        scope: CacheScope,
        answer: StoredAnswer,
        ttl_s: float,
        *,
        replace: bool,
        winner: Callable[[SharedAnswer], None],
    ) -> None:
        """See `pipeline.ports.SharedCache.store`."""
        if self._closed:
            return
        if not self.usable or len(self._writes) >= self._writes_max:
            self.counts["dropped"] += 1
            return
        expires_at = the_clock().monotonic() + ttl_s

        def write() -> None:
            del self._writes[timer]
            self._write(key, scope, answer, expires_at, replace, winner)

        timer = asyncio.get_running_loop().call_later(self.server.latency_s, write)
        self._writes[timer] = scope

    def forget(self, wanted: Callable[[CacheScope], bool]) -> None:
        """See `pipeline.ports.SharedCache.forget`."""
        for timer, scope in list(self._writes.items()):
            if wanted(scope):
                timer.cancel()
                del self._writes[timer]

    async def clear(
        self, *, tenant: str | None = None, model_name: str | None = None, model_version: str | None = None
    ) -> int:
        """See `pipeline.ports.SharedCache.clear`."""
        await asyncio.sleep(self.server.latency_s)
        if self.server.down:
            raise PipelineError("the shared cache cannot be cleared: connection: refused")
        pattern = entry_pattern(self._prefix, tenant, model_name, model_version)
        names = [name for name in self.server.entries if fnmatchcase(name, pattern)]
        for name in names:
            del self.server.entries[name]
        return len(names)

    async def close(self) -> None:
        """See `pipeline.ports.SharedCache.close`."""
        if self._closed:
            return
        self._closed = True
        if self._writes and not self.server.down:
            await asyncio.sleep(self.server.latency_s)
        for timer in self._writes:
            timer.cancel()
        for timer, found in list(self._look_ups.items()):
            timer.cancel()
            found(None)
        self._look_ups.clear()

    def _read(self, key: bytes, scope: CacheScope) -> SharedAnswer | None:
        held = self.server.read(entry_name(self._prefix, scope, key))
        if held is None:
            self.counts["miss"] += 1
            return None
        try:
            shared = _shared(key, *held)
        except RefusedEntryError as refused:
            self.counts[refused.reason] += 1
            return None
        self.counts["hit"] += 1
        return shared

    def _write(
        self,
        key: bytes,
        scope: CacheScope,
        answer: StoredAnswer,
        expires_at: float,
        replace: bool,
        winner: Callable[[SharedAnswer], None],
    ) -> None:
        now = the_clock().monotonic()
        ttl_s = expires_at - now
        if self.server.down or self.server.full or ttl_s < 0.001:
            self.counts["failed"] += 1
            return
        entry, _ = encode_entry(key, answer, age_s=now - answer.stored_at, ttl_s=ttl_s)
        name = entry_name(self._prefix, scope, key)
        first = self.server.write(name, entry, ttl_s, replace=replace)
        if self.server.is_lost():
            self.counts["failed"] += 1
        elif first is None:
            self.counts["stored"] += 1
        else:
            self._lost(key, name, entry, ttl_s, first, winner)

    def _lost(
        self,
        key: bytes,
        name: str,
        entry: bytes,
        ttl_s: float,
        first: tuple[bytes, int],
        winner: Callable[[SharedAnswer], None],
    ) -> None:
        try:
            shared = _shared(key, *first)
        except RefusedEntryError as refused:
            self.counts[refused.reason] += 1
            self.server.write(name, entry, ttl_s, replace=True)
            self.counts["stored"] += 1
            return
        self.counts["not_first"] += 1
        winner(shared)


def _shared(key: bytes, entry_bytes: bytes, left_ms: int) -> SharedAnswer:
    entry = decode_entry(entry_bytes, key, body_bytes_max=_BODY_BYTES_MAX)
    age_s, left_s = entry.age_and_left(left_ms)
    stored_at = the_clock().monotonic() - age_s
    return SharedAnswer(stored_answer(entry.tensors, stored_at=stored_at, instance=entry.instance), age_s, left_s)
