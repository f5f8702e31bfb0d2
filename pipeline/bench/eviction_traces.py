"""Requests in the orders that tell eviction policies apart, made from a seed: keys as numbers, and a size for each.

Skew (Zipf) rewards whoever keeps the popular; a scan punishes whoever lets the new push out the proven; a loop longer
than the cache punishes whoever drops the oldest; and popularity that shifts punishes whoever remembers too long.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]

_SEED = 20261122
# A hit ratio needs requests for most keys: five for each on average.
_REQUESTS_PER_KEY = 5
_SIZE = 1000
# Median 600 bytes, mean 1.2 kB, one in a hundred above 9.8 kB: answers with a few long ones among them.
_SIZE_MEDIAN, _SIZE_SIGMA = 600.0, 1.2
_SIZE_MAX = 60_000
LOOP_TO_CACHE = 1.2


@dataclass(frozen=True, slots=True)
class Trace:
    """One order of requests.

    Attributes:
        keys: what is asked for, in order.
        sizes: bytes of each key's value.
    """

    keys: list[int]
    sizes: list[int]

    @property
    def footprint(self) -> list[int]:
        """The sizes of all that is ever asked for."""
        return [self.sizes[key] for key in set(self.keys)]


class _Orders:
    """The orders of one length.

    Args:
        length: requests.
        cache_part: of the keys that fit into the cache, for loops that just do not.
    """

    def __init__(self, length: int, cache_part: float) -> None:
        self._rng = np.random.default_rng(_SEED)
        self._length = length
        self._population = max(length // _REQUESTS_PER_KEY, 10)
        self._loop = max(int(self._population * cache_part * LOOP_TO_CACHE), 4)
        self._fresh = self._population

    def zipf(self, alpha: float, length: int | None = None) -> Numbers:
        """Independent requests, the key of rank r with weight r^-alpha."""
        weights = np.arange(1, self._population + 1, dtype=np.float64) ** -alpha
        drawn = self._rng.random(self._length if length is None else length)
        return np.searchsorted(np.cumsum(weights / weights.sum()), drawn).clip(0, self._population - 1).astype(np.int64)

    def scan(self) -> Numbers:
        """Zipf 1.0 with nine scans between, each a thirtieth of the whole, of keys that never come again."""
        parts = []
        for _ in range(10):
            parts += [self.zipf(1.0, self._length // 15), self._once(self._length // 30)]
        return np.concatenate(parts)

    def loop(self) -> Numbers:
        """Round and round over a fifth more than the cache holds."""
        return np.arange(self._length, dtype=np.int64) % self._loop

    def mixed(self) -> Numbers:
        """Zipf 0.9 whose ranks shift by a tenth of the keys ten times, each time with a scan and three loops after."""
        parts = []
        for turn in range(10):
            shifted = (self.zipf(0.9, self._length * 8 // 100) + turn * self._population // 10) % self._population
            loop = np.tile(self._once(min(self._loop, self._length // 300)), 3)
            parts += [shifted, self._once(self._length // 100), loop]
        return np.concatenate(parts)

    def _once(self, count: int) -> Numbers:
        """Keys that nobody asked for before."""
        self._fresh += count
        return np.arange(self._fresh - count, self._fresh, dtype=np.int64)


ORDERS: Mapping[str, Callable[[_Orders], Numbers]] = {
    "Zipf 0.8": lambda orders: orders.zipf(0.8),
    "Zipf 1.0": lambda orders: orders.zipf(1.0),
    "Zipf 1.2": lambda orders: orders.zipf(1.2),
    "scan": _Orders.scan,
    "loop": _Orders.loop,
    "mixed": _Orders.mixed,
}


def make_trace(name: str, length: int, cache_part: float, *, equal_sizes: bool) -> Trace:
    """The same requests at every call.

    Args:
        name: one of `ORDERS`.
        length: requests, about.
        cache_part: how much of the keys fits into the cache.
        equal_sizes: 1,000 bytes each; else lognormal, by key.
    """
    keys = ORDERS[name](_Orders(length, cache_part))
    distinct = int(keys.max()) + 1
    if equal_sizes:
        return Trace(keys.tolist(), [_SIZE] * distinct)
    drawn = np.random.default_rng(_SEED).lognormal(np.log(_SIZE_MEDIAN), _SIZE_SIGMA, distinct)
    return Trace(keys.tolist(), drawn.clip(1, _SIZE_MAX).astype(np.int64).tolist())
