"""Keys of what left not long ago, in 4 bytes each.

A table of 32 bits of each key, at the place that their last bits name. A newer key takes an older one's place, so with
as many places as there are entries a key is remembered for about as many departures as there are entries. The key
itself in a queue and a set is 200 bytes: with answers of 1 kB that is room for a seventh more of them, 1 to 2 points of
hit ratio. What is forgotten early, or taken for another (one in 16,000 and less), costs one entry its place in line.
"""

from array import array
from struct import Struct

_last_bits = Struct(">28xI").unpack
_FIRST_PLACES = 16
_EMPTY = array("I", [0xFFFF_FFFF])
# The table with its object, and this one.
_FIXED_BYTES = 160


class GhostKeys:
    """Remembers keys of 32 bytes, the newer the surer.

    Attributes:
        bytes: what it takes.
        entries_min: with fewer entries than this the table is to be halved.
        entries_max: with more than this it is to be doubled.
    """

    __slots__ = ("_mask", "_places", "bytes", "entries_max", "entries_min")

    def __init__(self) -> None:
        self._places = _EMPTY * _FIRST_PLACES
        self._measure()

    def remember(self, key: bytes) -> None:
        """Notes a key."""
        (mark,) = _last_bits(key)
        self._places[mark & self._mask] = mark

    def recall(self, key: bytes) -> bool:
        """Whether a key is remembered; it is no more after that."""
        (mark,) = _last_bits(key)
        place = mark & self._mask
        if self._places[place] != mark:
            return False
        self._places[place] = 0xFFFF_FFFF
        return True

    def fit(self, entries: int) -> None:
        """Makes the table as large as so many entries ask for: a power of two, at most twice as many places."""
        while entries > self.entries_max:
            # Each mark is now at both places that its longer end may name, and is found at the right one.
            self._places *= 2
            self._measure()
        while entries < self.entries_min:
            del self._places[len(self._places) // 2 :]
            self._measure()

    def _measure(self) -> None:
        places = len(self._places)
        self._mask = places - 1
        self.entries_max = places
        # A quarter, not a half: around a size it would go up and down.
        self.entries_min = places // 4 if places > _FIRST_PLACES else 0
        self.bytes = _FIXED_BYTES + self._places.itemsize * places
