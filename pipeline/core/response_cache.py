"""The worker's own cache: answers by key, bounded in bytes, with an equal share of the room for every tenant.

Shares. Every tenant that has entries has the same share of the bound, and whoever comes may use what others leave idle.
When room is needed, it comes from the tenant that asks if it is above its share, else from one that is: a hand goes
round the tenants and stays with one until that is down to its share. What a tenant holds within its share no other can
push out, whatever that one does; with one tenant there is nothing to share, and all of it is `core/eviction.py`.

Everything counts: values, keys, tables, remembered keys, and what there is once for each tenant and for each scope.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple

from pipeline.core.cache_key import CacheScope
from pipeline.core.eviction import (
    ENTRY_BYTES,
    FREQUENCY_MAX,
    SCOPE_BYTES,
    TENANT_BYTES,
    Entry,
    ScopeCount,
    Sized,
    TenantQueues,
    Value,
    ring_end,
)

__all__ = ["CacheStats", "Cleared", "ResponseCache", "Sized", "Usage"]


@dataclass(slots=True)
class CacheStats:
    """Counts since the start, of entries.

    Attributes:
        evicted: had to make room.
        expired: their time was up.
        refused: too large to be stored at all.
        cleared: by `clear`.
        retired: by `sweep`, of scopes that are not kept any more.
    """

    evicted: int = 0
    expired: int = 0
    refused: int = 0
    cleared: int = 0
    retired: int = 0


class Usage(NamedTuple):
    """Entries, and their bytes with all that is counted for them."""

    entries: int
    bytes: int


class Cleared(NamedTuple):
    """What `clear` dropped: entries, and their bytes, which are free a little later."""

    entries: int
    bytes: int


class ResponseCache(Generic[Value]):
    """Values by key, at most `bytes_max` of them, each until its time is up.

    Nothing here blocks, raises, or reads a clock. Not for several threads.

    Args:
        bytes_max: the bound, with everything that is held. 0 stores nothing.

    Attributes:
        bytes_used: bytes held now, everything counted.
        stats: what left, and why.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0
        self.stats = CacheStats()
        self._entries: dict[bytes, Entry[Value]] = {}
        self._scopes: dict[bytes, ScopeCount[Value]] = {}
        # Scopes as they were cleared: what is left of their entries is given to nobody.
        self._cleared: set[ScopeCount[Value]] = set()
        # The hand points at the first.
        self._tenants: OrderedDict[str | None, TenantQueues[Value]] = OrderedDict()
        # All entries by when they were stored. A sweep goes from the newest to the oldest, so that what is stored while
        # it is under way lies behind it and a round has an end; where it stopped, the mark stands among the entries.
        self._all: Entry[Value] = ring_end()
        self._mark: Entry[Value] = ring_end()

    def __len__(self) -> int:
        return len(self._entries) - sum([count.entries for count in self._cleared])

    @property
    def holds_cleared(self) -> bool:
        """Whether memory is still held by entries that were cleared: `sweep` frees it."""
        return bool(self._cleared)

    def get(self, key: bytes, now: float) -> Value | None:
        """The stored value, or None. `now` is in the seconds of `put`'s `expires_at`."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_at <= now or (self._cleared and entry.count in self._cleared):
            self.stats.expired += entry.count not in self._cleared
            self._drop(entry)
            return None
        if entry.frequency < FREQUENCY_MAX:
            entry.frequency += 1
        return entry.value

    def put(self, key: bytes, value: Value, expires_at: float, scope: CacheScope) -> None:
        """Stores a value, in place of an older one; one larger than the whole bound is refused, the older one gone.

        Args:
            key: 32 bytes, the last of them as good as random.
            value: may leave at once: one larger than a tenth of what its tenant may use stays where there is room, and
                else when it comes a second time.
            expires_at: from then on it is not given.
            scope: whose it is: the tenant whose share it counts against, and what `clear`, `sweep` and `usage` go by.
        """
        older = self._entries.get(key)
        size = value.size_bytes + ENTRY_BYTES
        if size + SCOPE_BYTES + TENANT_BYTES > self.bytes_max:
            self.stats.refused += 1
            if older is not None:
                self._drop(older)
            return
        if older is not None:
            self._take_out(older)
        count = self._scopes.get(scope.encoded)
        if count is None:
            count = self._count_of(scope)
        entry = self._entries[key] = Entry(key, value, expires_at, size, count)
        end = self._all
        newest = end.older
        entry.older = newest
        entry.newer = end
        newest.newer = end.older = entry
        count.queues.add(entry)
        self.bytes_used += size
        if older is not None and not older.count.entries:
            self._forget(older.count)
        while self.bytes_used > self.bytes_max:
            self._make_room(count.queues)

    def discard(self, key: bytes) -> None:
        """Forgets a value, if it is there."""
        entry = self._entries.get(key)
        if entry is not None:
            self._drop(entry)

    def clear(self, wanted: Callable[[CacheScope], bool] | None = None) -> Cleared:
        """Forgets the entries of the scopes that are wanted: none of them is given from now on.

        It takes as long as there are scopes, however many entries they have: 1 us for each. The entries' memory is
        freed by `sweep`, or where room is needed.

        Args:
            wanted: asked once for each scope; None for all of them. It leaves the cache alone.
        """
        gone = [count for count in self._scopes.values() if wanted is None or wanted(count.scope)]
        for count in gone:
            del self._scopes[count.scope.encoded]
        self._cleared.update(gone)
        cleared = Cleared(sum([count.entries for count in gone]), sum([count.bytes for count in gone]))
        self.stats.cleared += cleared.entries
        return cleared

    def sweep(self, now: float, is_kept: Callable[[CacheScope], bool], steps: int) -> bool:
        """Goes on over the entries from where it stopped, and drops what is of no use any more, or was cleared.

        Any use of the cache between two calls is fine: a round meets every entry that was there when it began, and
        takes no more steps than there were.

        Args:
            now: in the seconds of `expires_at`: what has expired is dropped.
            is_kept: whether a scope's entries may stay, asked at most once for each in a call. It leaves the cache
                alone.
            steps: how many entries are looked at, 0.1 us each, 1 us for one that is dropped: 200,000 entries by
                1,000 every 100 ms are 20 s, with pauses of 1 ms at most.

        Returns:
            True when a round is complete; the next call begins another.
        """
        entry = self._resume()
        verdicts: dict[ScopeCount[Value], bool] = {}
        for _ in range(steps):
            if entry is self._all:
                break
            older, count = entry.older, entry.count
            kept = verdicts.get(count)
            if kept is None:
                kept = verdicts[count] = count not in self._cleared and is_kept(count.scope)
            if not kept and count in self._cleared:
                self._drop(entry)
            elif entry.expires_at <= now:
                self.stats.expired += 1
                self._drop(entry)
            elif not kept:
                self.stats.retired += 1
                self._drop(entry)
            entry = older
        if entry is self._all:
            return True
        self._pause_before(entry)
        return False

    def usage(self) -> Mapping[CacheScope, Usage]:
        """What is held by scope; remembered keys belong to none.

        Takes as long as there are scopes, however many entries they have: 1 us for each.
        """
        return {count.scope: Usage(count.entries, count.bytes) for count in self._scopes.values()}

    def usage_by_tenant(self) -> Mapping[str | None, Usage]:
        """What counts against each tenant's share, remembered keys too: all together it is `bytes_used`."""
        return {tenant: Usage(queues.entries, queues.bytes) for tenant, queues in self._tenants.items()}

    def _count_of(self, scope: CacheScope) -> ScopeCount[Value]:
        """A scope's counts, and its tenant's queues if this is the first of its scopes."""
        queues = self._tenants.get(scope.tenant)
        if queues is None:
            queues = self._tenants[scope.tenant] = TenantQueues(scope.tenant)
            self.bytes_used += queues.bytes
        count = self._scopes[scope.encoded] = ScopeCount(scope, queues)
        queues.bytes += SCOPE_BYTES
        self.bytes_used += SCOPE_BYTES
        return count

    def _make_room(self, asking: TenantQueues[Value]) -> None:
        """One entry goes: of the tenant that asks if it is above its share, else of the next one that is."""
        bytes_max = self.bytes_max
        queues = asking if asking.bytes * len(self._tenants) > bytes_max else self._above_share()
        held = queues.bytes
        # What it may use is what it has: it gives only what others are entitled to. Alone it is the bound.
        entry = queues.evict(min(held, bytes_max))
        self.bytes_used += queues.bytes - held
        self.stats.evicted += entry.count not in self._cleared
        del self._entries[entry.key]
        if not entry.count.entries:
            self._forget(entry.count)

    def _above_share(self) -> TenantQueues[Value]:
        """The tenant under the hand, or the next one above its share: together they are above the bound."""
        tenants = self._tenants
        while True:
            tenant, queues = next(iter(tenants.items()))
            if queues.bytes * len(tenants) > self.bytes_max:
                return queues
            tenants.move_to_end(tenant)

    def _drop(self, entry: Entry[Value]) -> None:
        self._take_out(entry)
        if not entry.count.entries:
            self._forget(entry.count)

    def _take_out(self, entry: Entry[Value]) -> None:
        queues = entry.count.queues
        held = queues.bytes
        queues.remove(entry)
        self.bytes_used += queues.bytes - held
        del self._entries[entry.key]

    def _forget(self, count: ScopeCount[Value]) -> None:
        """A scope without entries goes, and a tenant without entries with the keys that it remembers."""
        queues = count.queues
        if count in self._cleared:
            self._cleared.remove(count)
        else:
            del self._scopes[count.scope.encoded]
        queues.bytes -= SCOPE_BYTES
        self.bytes_used -= SCOPE_BYTES
        if not queues.entries:
            del self._tenants[queues.tenant]
            self.bytes_used -= queues.bytes

    def _resume(self) -> Entry[Value]:
        """Takes the mark away; returns the entry behind it, or the newest where it stood nowhere."""
        end, mark = self._all, self._mark
        older, newer = mark.older, mark.newer
        if older is mark:
            return end.older
        older.newer = newer
        newer.older = older
        mark.older = mark.newer = mark
        return older

    def _pause_before(self, entry: Entry[Value]) -> None:
        mark, newer = self._mark, entry.newer
        mark.older, mark.newer = entry, newer
        entry.newer = newer.older = mark
