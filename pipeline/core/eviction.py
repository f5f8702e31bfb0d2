"""A cache bounded in bytes that a scan cannot empty: S3-FIFO.

Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. New entries enter a small queue of a
tenth of the bytes; those that are read again before they reach its end move to the main queue, the others leave and
only their key is remembered, so that one that comes back soon enters the main queue at once. A read sets a counter and
moves nothing, which makes a hit cheaper than with LRU.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pipeline.core.cache_key import CacheScope


class Sized(Protocol):
    """What can be stored: it knows its own size."""

    @property
    def size_bytes(self) -> int:
        """Everything the entry holds on to, in bytes."""


Value = TypeVar("Value", bound=Sized)

# A key of 32 bytes (65 as an object), its slot (88), its place in a queue and in the index (about 200).
ENTRY_OVERHEAD_BYTES = 360
# Remembered keys of entries that left: as many as there are entries. A key and its place are 200 bytes; the tables of a
# cache that evicts are half empty, which is counted here: with answers of 1 kB, memory is within 10 % of `bytes_used`.
_GHOST_BYTES = 300
_FREQUENCY_MAX = 3
_SMALL_SHARE = 0.1


@dataclass(slots=True)
class _Slot(Generic[Value]):
    value: Value
    expires_at: float
    size: int
    scope: CacheScope
    frequency: int = 0
    in_main: bool = False


@dataclass(slots=True)
class EvictionStats:
    """Counts since the start."""

    evicted: int = 0
    expired: int = 0
    refused: int = 0


class S3FifoCache(Generic[Value]):
    """Values by key, at most `bytes_max` of them, each until its time is up.

    Args:
        bytes_max: the bound, overhead and remembered keys included. 0 stores nothing.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.stats = EvictionStats()
        self._slots: dict[bytes, _Slot[Value]] = {}
        self._small: OrderedDict[bytes, None] = OrderedDict()
        self._main: OrderedDict[bytes, None] = OrderedDict()
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()
        self._small_bytes = 0
        self._main_bytes = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def bytes_used(self) -> int:
        """Bytes held now, overhead and remembered keys included."""
        return self._small_bytes + self._main_bytes + len(self._ghosts) * _GHOST_BYTES

    def get(self, key: bytes, now: float) -> Value | None:
        """The stored value, or None. `now` is in the seconds of `put`'s `expires_at`."""
        slot = self._slots.get(key)
        if slot is None:
            return None
        if slot.expires_at <= now:
            self.stats.expired += 1
            self.discard(key)
            return None
        if slot.frequency < _FREQUENCY_MAX:
            slot.frequency += 1
        return slot.value

    def put(self, key: bytes, value: Value, expires_at: float, scope: CacheScope) -> None:
        """Stores a value, in place of an older one; one larger than the whole bound is refused, the older one gone."""
        self.discard(key)
        size = value.size_bytes + ENTRY_OVERHEAD_BYTES
        if size > self.bytes_max:
            self.stats.refused += 1
            return
        in_main = key in self._ghosts
        if in_main:
            del self._ghosts[key]
            self._main[key] = None
            self._main_bytes += size
        else:
            self._small[key] = None
            self._small_bytes += size
        self._slots[key] = _Slot(value, expires_at, size, scope, in_main=in_main)
        while self.bytes_used > self.bytes_max:
            self._evict()

    def discard(self, key: bytes) -> None:
        """Forgets a value, if it is there."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return
        if slot.in_main:
            del self._main[key]
            self._main_bytes -= slot.size
        else:
            del self._small[key]
            self._small_bytes -= slot.size

    def clear(self) -> None:
        """Forgets everything."""
        self._slots.clear()
        self._small.clear()
        self._main.clear()
        self._ghosts.clear()
        self._small_bytes = self._main_bytes = 0

    def _evict(self) -> None:
        """Makes some room: one step of the algorithm."""
        if self._small and (self._small_bytes > self.bytes_max * _SMALL_SHARE or not self._main):
            self._evict_small()
        elif self._main:
            self._evict_main()
        else:
            self._ghosts.popitem(last=False)

    def _evict_small(self) -> None:
        key, _ = self._small.popitem(last=False)
        slot = self._slots[key]
        self._small_bytes -= slot.size
        if slot.frequency:
            slot.frequency = 0
            slot.in_main = True
            self._main[key] = None
            self._main_bytes += slot.size
            return
        del self._slots[key]
        self.stats.evicted += 1
        self._remember(key)

    def _evict_main(self) -> None:
        key, _ = self._main.popitem(last=False)
        slot = self._slots[key]
        if slot.frequency:
            slot.frequency -= 1
            self._main[key] = None
            return
        self._main_bytes -= slot.size
        del self._slots[key]
        self.stats.evicted += 1

    def _remember(self, key: bytes) -> None:
        self._ghosts[key] = None
        while len(self._ghosts) > max(len(self._slots), 1):
            self._ghosts.popitem(last=False)
