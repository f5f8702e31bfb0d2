"""Which of one tenant's answers go first when room is needed: S3-FIFO.

Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. New entries enter a small queue of a
tenth of the bytes; those that are read again before they reach its end move to the main queue, the others leave and
only their key is remembered, so that one that comes back soon enters the main queue at once. A read sets a counter and
moves nothing, which makes a hit cheaper than with LRU. docs/benchmarks.md has the rivals beside it.

A queue is a ring of entries that know their neighbours, with an entry that is none at its end: to enter and to leave
takes 60 ns where an `OrderedDict` takes 390, and 16 bytes where it takes 80 to 140. Neighbours refer to each other, so
an entry that leaves is cut off: the garbage collector, which runs rarely here, has nothing to find.
"""

from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from pipeline.core.cache_key import CacheScope
from pipeline.core.ghost_keys import GhostKeys


class Sized(Protocol):
    """What can be stored: it knows its own size."""

    @property
    def size_bytes(self) -> int:
        """Everything the entry holds on to, in bytes."""


Value = TypeVar("Value", bound=Sized)

# As the allocator gives them: a key of 32 bytes (80), its entry (128), its expiry (32), its size (32), and its place in
# the index: 20 bytes a slot, of which a third to two thirds are full while it grows, half as many where entries come
# and go: 30 to 120. With real answers of 0.1, 1.3 and 60 kB, for one tenant and for a thousand, what is counted is
# 0.99-1.08 of what Python asks for. Resident memory grows by 3 to 20 % more, most with answers of some kB whose sizes
# differ a little: holes that the allocator leaves, whoever fills it.
ENTRY_BYTES = 310
# The queues of a tenant (96), the ends of two of them (256), three counts (96), its place (105).
TENANT_BYTES = 560
# A scope's counts (128), the scope (80) with its canonical form (100 to 150), its place (60).
SCOPE_BYTES = 370

FREQUENCY_MAX = 3
# The small queue is a tenth of what the tenant may use, as in the paper. Measured on the traces of docs/benchmarks.md:
# a twentieth gains 0.5 points of hits where popularity stays and loses 2 where it shifts, a fifth the other way round.
_SMALL_PARTS = 10


@dataclass(slots=True, eq=False)
class ScopeCount(Generic[Value]):
    """What is held of one scope.

    Attributes:
        scope: of the entries.
        queues: of the scope's tenant.
        entries: how many there are.
        bytes: what they take, overhead included.
    """

    scope: CacheScope
    queues: "TenantQueues[Value]"
    entries: int = 0
    bytes: int = 0


@dataclass(slots=True, eq=False)
class Entry(Generic[Value]):
    """A stored value and its neighbours.

    Attributes:
        size: of the value and of the entry itself, bytes.
        count: of its scope.
        frequency: reads since it entered its queue, at most `FREQUENCY_MAX`.
        earlier, later: neighbours in its tenant's queue.
        older, newer: neighbours among all entries of the cache, by when they were stored.
    """

    key: bytes
    value: Value
    expires_at: float
    size: int
    count: ScopeCount[Value]
    frequency: int = 0
    in_main: bool = False
    earlier: "Entry[Value]" = field(init=False, repr=False)
    later: "Entry[Value]" = field(init=False, repr=False)
    older: "Entry[Value]" = field(init=False, repr=False)
    newer: "Entry[Value]" = field(init=False, repr=False)


def ring_end() -> Entry[Any]:
    """The entry that is none: both neighbours of the end of an empty ring are the end itself."""
    end: Entry[Any] = Entry.__new__(Entry)
    end.earlier = end.later = end.older = end.newer = end
    return end


class TenantQueues(Generic[Value]):
    """The entries of one tenant in the order in which they may go, and the keys of some that went.

    Attributes:
        tenant: whose.
        entries: how many there are.
        bytes: all that the tenant takes: entries, remembered keys, and what there is once for each tenant and scope.
    """

    __slots__ = ("_entries_min", "_ghosts", "_main", "_small", "_small_bytes", "bytes", "entries", "tenant")

    def __init__(self, tenant: str | None) -> None:
        self.tenant = tenant
        self.entries = 0
        self.bytes = TENANT_BYTES
        self._small: Entry[Value] = ring_end()
        self._main: Entry[Value] = ring_end()
        self._small_bytes = 0
        self._ghosts: GhostKeys | None = None
        self._entries_min = 0

    def add(self, entry: Entry[Value]) -> None:
        """Puts an entry at its queue's end: main for one whose key is remembered, else small."""
        size, count = entry.size, entry.count
        if self._ghosts is not None and self._ghosts.recall(entry.key):
            entry.in_main = True
            end = self._main
        else:
            self._small_bytes += size
            end = self._small
        last = end.earlier
        entry.earlier = last
        entry.later = end
        last.later = end.earlier = entry
        self.entries += 1
        self.bytes += size
        count.entries += 1
        count.bytes += size

    def remove(self, entry: Entry[Value]) -> None:
        """Takes an entry out of its queue and from among all entries, whatever its place."""
        size, count = entry.size, entry.count
        earlier, later, older, newer = entry.earlier, entry.later, entry.older, entry.newer
        earlier.later = later
        later.earlier = earlier
        older.newer = newer
        newer.older = older
        del entry.earlier, entry.later, entry.older, entry.newer
        if not entry.in_main:
            self._small_bytes -= size
        self.entries -= 1
        self.bytes -= size
        count.entries -= 1
        count.bytes -= size
        if self.entries < self._entries_min:
            self._fitting_ghosts()

    def evict(self, bytes_allowed: int) -> Entry[Value]:
        """Takes out the entry that goes first; there must be one.

        Args:
            bytes_allowed: what the tenant may use now: the small queue is a tenth of it.
        """
        small, main = self._small, self._main
        while True:
            first = small.later
            if first is not small and (self._small_bytes * _SMALL_PARTS > bytes_allowed or main.later is main):
                if not first.frequency:
                    self.remove(first)
                    ghosts = self._ghosts
                    if ghosts is None or self.entries > ghosts.entries_max:
                        ghosts = self._fitting_ghosts()
                    ghosts.remember(first.key)
                    return first
                first.frequency = 0
                first.in_main = True
                self._small_bytes -= first.size
            else:
                first = main.later
                if not first.frequency:
                    self.remove(first)
                    return first
                first.frequency -= 1
            _move(main, first)

    def _fitting_ghosts(self) -> GhostKeys:
        """The remembered keys, in a table of the size that the entries ask for."""
        ghosts = self._ghosts
        if ghosts is None:
            ghosts = self._ghosts = GhostKeys()
        else:
            self.bytes -= ghosts.bytes
        ghosts.fit(self.entries)
        self.bytes += ghosts.bytes
        self._entries_min = ghosts.entries_min
        return ghosts


def _move(end: Entry[Value], entry: Entry[Value]) -> None:
    """From where it is to a queue's end."""
    earlier, later = entry.earlier, entry.later
    earlier.later = later
    later.earlier = earlier
    last = end.earlier
    entry.earlier = last
    entry.later = end
    last.later = end.earlier = entry
