"""Other eviction policies, each as small as it can be and still be itself, and the optimum that none can reach.

All are bounded in bytes and end values at their time, as the cache does, and count the same for an entry. LRU with an
`OrderedDict` is what one writes without a thought: it is the yardstick.
"""

from collections import OrderedDict
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Protocol

from pipeline.core.cache_key import CacheScope
from pipeline.core.eviction import ENTRY_BYTES


class Sized:
    """A value that is nothing but its size."""

    __slots__ = ("size_bytes",)

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


class Policy(Protocol):
    """What is compared: `pipeline.ports.AnswerCache` of any value."""

    def get(self, key: bytes, now: float) -> Sized | None:
        """The stored value, or None."""

    def put(self, key: bytes, value: Sized, expires_at: float, scope: CacheScope) -> None:
        """Stores a value whose key is not there."""


_Held = tuple[Sized, float, int]


class Lru:
    """Least recently used goes first."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max
        self._held: OrderedDict[bytes, _Held] = OrderedDict()

    def get(self, key: bytes, now: float) -> Sized | None:
        """See `Policy`."""
        held = self._held.get(key)
        if held is None:
            return None
        if held[1] <= now:
            self._left += self._held.pop(key)[2]
            return None
        self._held.move_to_end(key)
        return held[0]

    def put(self, key: bytes, value: Sized, expires_at: float, scope: CacheScope) -> None:
        """See `Policy`."""
        size = value.size_bytes + ENTRY_BYTES
        self._held[key] = (value, expires_at, size)
        self._left -= size
        while self._left < 0:
            self._left += self._held.popitem(last=False)[1][2]


class _Node:
    __slots__ = ("expires_at", "key", "newer", "older", "size", "value", "visited")

    key: bytes
    value: Sized
    expires_at: float
    size: int
    visited: bool
    newer: "_Node"
    older: "_Node"


class Sieve:
    """One queue and a hand that goes from old to new: read since it last passed stays. Zhang et al., NSDI 2024."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max
        self._held: dict[bytes, _Node] = {}
        self._end = _Node()
        self._end.newer = self._end.older = self._hand = self._end

    def get(self, key: bytes, now: float) -> Sized | None:
        """See `Policy`."""
        node = self._held.get(key)
        if node is None:
            return None
        if node.expires_at <= now:
            self._remove(node)
            return None
        node.visited = True
        return node.value

    def put(self, key: bytes, value: Sized, expires_at: float, scope: CacheScope) -> None:
        """See `Policy`."""
        size = value.size_bytes + ENTRY_BYTES
        self._left -= size
        while self._left < 0 and self._held:
            self._evict()
        node = self._held[key] = _Node()
        node.key, node.value, node.expires_at, node.size, node.visited = key, value, expires_at, size, False
        end, newest = self._end, self._end.older
        node.older, node.newer = newest, end
        newest.newer = end.older = node

    def _evict(self) -> None:
        hand = self._hand
        while hand is self._end or hand.visited:
            if hand is not self._end:
                hand.visited = False
            hand = hand.newer
        self._hand = hand.newer
        self._remove(hand)

    def _remove(self, node: _Node) -> None:
        if self._hand is node:
            self._hand = node.newer
        node.older.newer, node.newer.older = node.newer, node.older
        del self._held[node.key], node.older, node.newer
        self._left += node.size


class _Sketch:
    """Count-min with four rows of counters up to 15, halved after ten times as many additions as a row is wide."""

    def __init__(self, entries: int) -> None:
        self.width = 1 << max(entries - 1, 15).bit_length()
        self._rows = [bytearray(self.width) for _ in range(4)]
        self._added = 0

    def _places(self, key: bytes) -> tuple[int, int, int, int]:
        digest, mask = int.from_bytes(key[:16], "little"), self.width - 1
        return digest & mask, digest >> 32 & mask, digest >> 64 & mask, digest >> 96 & mask

    def add(self, key: bytes) -> None:
        """Counts a request."""
        for row, place in zip(self._rows, self._places(key), strict=True):
            if row[place] < 15:
                row[place] += 1
        self._added += 1
        if self._added >= 10 * self.width:
            self._rows = [bytearray(count >> 1 for count in row) for row in self._rows]
            self._added //= 2

    def count(self, key: bytes) -> int:
        """How often it came, at least, of late."""
        return min(row[place] for row, place in zip(self._rows, self._places(key), strict=True))


class WTinyLfu:
    """A window (1 %) for the new; what leaves it stays only if it came oftener than what goes in its place.

    Behind the window segmented LRU, four fifths of it for what was read again. Einziger et al., ACM ToS 2017. Memory of
    the sketch is not charged: 4 bytes for each entry.
    """

    def __init__(self, bytes_max: int, entries: int) -> None:
        self._left = bytes_max
        self._window: OrderedDict[bytes, _Held] = OrderedDict()
        self._probation: OrderedDict[bytes, _Held] = OrderedDict()
        self._protected: OrderedDict[bytes, _Held] = OrderedDict()
        self._window_left = bytes_max // 100
        self._protected_left = (bytes_max - bytes_max // 100) * 4 // 5
        self._sketch = _Sketch(entries)

    def get(self, key: bytes, now: float) -> Sized | None:
        """See `Policy`."""
        self._sketch.add(key)
        for queue in (self._protected, self._window, self._probation):
            held = queue.get(key)
            if held is not None:
                break
        else:
            return None
        if held[1] <= now:
            self._expire(queue, key, held[2])
            return None
        if queue is not self._probation:
            queue.move_to_end(key)
            return held[0]
        self._protected[key] = self._probation.pop(key)
        self._protected_left -= held[2]
        while self._protected_left < 0:
            older, moved = self._protected.popitem(last=False)
            self._protected_left += moved[2]
            self._probation[older] = moved
        return held[0]

    def _expire(self, queue: OrderedDict[bytes, _Held], key: bytes, size: int) -> None:
        del queue[key]
        self._left += size
        if queue is self._window:
            self._window_left += size
        elif queue is self._protected:
            self._protected_left += size

    def put(self, key: bytes, value: Sized, expires_at: float, scope: CacheScope) -> None:
        """See `Policy`."""
        size = value.size_bytes + ENTRY_BYTES
        self._window[key] = (value, expires_at, size)
        self._window_left -= size
        self._left -= size
        while self._window_left < 0:
            candidate, held = self._window.popitem(last=False)
            self._window_left += held[2]
            self._admit(candidate, held)

    def _admit(self, candidate: bytes, held: _Held) -> None:
        """Room is made of those behind the window, one by one, while the candidate came oftener than each of them."""
        count = self._sketch.count(candidate)
        while self._left < 0:
            queue = self._probation or self._protected
            victim = next(iter(queue), None)
            if victim is None or self._sketch.count(victim) >= count:
                self._left += held[2]
                return
            size = queue.pop(victim)[2]
            self._left += size
            if queue is self._protected:
                self._protected_left += size
        self._probation[candidate] = held


def belady_hits(keys: Sequence[int], sizes: Sequence[int], bytes_max: int) -> list[bool]:
    """Which requests hit if what is asked for again last always goes first, or is not stored at all.

    With equal sizes no policy has more hits (Belady, 1966). With others it is only a policy that knows the future: to
    find the best one is NP-hard, and one that also looks at sizes can have more hits.
    """
    never = len(keys)
    following, last = [never] * len(keys), dict.fromkeys(keys, never)
    for index in range(len(keys) - 1, -1, -1):
        following[index] = last[keys[index]]
        last[keys[index]] = index
    held: dict[int, int] = {}
    latest: list[tuple[int, int]] = []
    left, hits = bytes_max, []
    for index, key in enumerate(keys):
        hits.append(key in held)
        again = following[index]
        if key not in held:
            left -= sizes[key] + ENTRY_BYTES
        held[key] = again
        heappush(latest, (-again, key))
        while left < 0 or (latest and latest[0][0] == -never):
            again, victim = heappop(latest)
            if held.get(victim) == -again:
                del held[victim]
                left += sizes[victim] + ENTRY_BYTES
    return hits
