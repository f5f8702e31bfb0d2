"""Ids that were asked already: the same id again within the window gets no second answer."""

from collections import deque
from struct import Struct
from typing import NamedTuple

# The window of the contract, section 1: 10 minutes or 100,000 results, the smaller.
WINDOW_RECORDS = 100_000
WINDOW_MS = 600_000
# What one remembered id of 36 characters takes: its text, 32 bytes packed, its places in a dict and a deque.
ID_BYTES = 300

# Offset, append time, digest: 32 bytes instead of the 200 of a tuple of objects, for each of 100,000 ids a partition.
_FIRST = Struct("<qq16s")


class First(NamedTuple):
    """The first request with an id.

    Attributes:
        offset: its place in the requests partition.
        timestamp_ms: when it was appended, Unix milliseconds.
        digest: of its content, 16 bytes.
    """

    offset: int
    timestamp_ms: int
    digest: bytes


def duplicate_key(request_id: str, tenant: str | None) -> str:
    """What makes two ids the same: ids of tenants never meet. No id contains the separator."""
    return f"{request_id}\0{tenant}" if tenant else request_id


class DuplicateWindow:
    """The ids of one partition's recent requests.

    Times are the log's own (append timestamps), so that whoever reads the log again comes to the same verdicts.
    A full window of 36-character ids takes 30 MB.
    """

    def __init__(self, records_max: int = WINDOW_RECORDS, age_max_ms: int = WINDOW_MS) -> None:
        self._records_max = records_max
        self._age_max_ms = age_max_ms
        self._firsts: dict[str, bytes] = {}
        # A dict gives up its oldest key only after a walk over all that were deleted before it.
        self._order: deque[tuple[int, str]] = deque()

    def __len__(self) -> int:
        return len(self._firsts)

    def find(self, key: str, offset: int, timestamp_ms: int) -> First | None:
        """The request that had this id before the one at `offset`, or None where that is the first."""
        packed = self._firsts.get(key)
        if packed is None:
            return None
        first = First(*_FIRST.unpack(packed))
        if first.offset >= offset or timestamp_ms - first.timestamp_ms > self._age_max_ms:
            return None
        return first

    def add(self, key: str, first: First) -> None:
        """Takes note of a request; the lowest offset with an id is its first, unless its time is over."""
        packed = self._firsts.get(key)
        if packed is not None:
            known = First(*_FIRST.unpack(packed))
            if known.offset <= first.offset and first.timestamp_ms - known.timestamp_ms <= self._age_max_ms:
                return
        self._firsts[key] = _FIRST.pack(*first)
        self._order.append((first.timestamp_ms, key))
        oldest = first.timestamp_ms - self._age_max_ms
        while len(self._order) > self._records_max or self._order[0][0] < oldest:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        timestamp_ms, key = self._order.popleft()
        packed = self._firsts.get(key)
        # A younger entry of the same id has its own place in the order.
        if packed is not None and First(*_FIRST.unpack(packed)).timestamp_ms == timestamp_ms:
            del self._firsts[key]
