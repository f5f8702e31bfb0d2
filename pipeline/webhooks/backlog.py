"""One assigned partition of a webhooks topic: what was fetched and waits, and what may be committed."""

import asyncio
from collections import deque
from collections.abc import Iterable

from aiokafka import ConsumerRecord, TopicPartition

from pipeline.core.offsets import OffsetTracker


class Backlog:
    """Records of one partition, in their order.

    Args:
        partition: which.
        tier_s: how long each record stays there; 0: it is due at once.

    Attributes:
        partition: which.
        offsets: of those that were begun.
        committed: what the group has committed, as far as this process knows.
        running: the tasks of those that were begun and are not done.
        turn: rises with every record that is begun here, of all partitions' the lowest is next.
    """

    def __init__(self, partition: TopicPartition, tier_s: float) -> None:
        self.partition = partition
        self.offsets = OffsetTracker()
        self.committed: int | None = None
        self.running: set[asyncio.Task[None]] = set()
        self.turn = 0
        self._tier_s = tier_s
        self._waiting: deque[ConsumerRecord] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, records: Iterable[ConsumerRecord]) -> None:
        """Takes what was fetched."""
        self._waiting.extend(records)

    @property
    def due_at(self) -> float | None:
        """When the first one's stay is over, Unix seconds; None where nothing waits."""
        return self._waiting[0].timestamp / 1e3 + self._tier_s if self._waiting else None

    @property
    def next_bytes(self) -> int:
        """The first one's size."""
        return len(self._waiting[0].value or b"")

    def begin(self) -> ConsumerRecord:
        """Takes the first one out; it must be finished in `offsets`."""
        record = self._waiting.popleft()
        self.offsets.begin(record.offset)
        return record

    def to_commit(self) -> int | None:
        """The offset to commit, where it is another than before."""
        offset = self.offsets.committable()
        return None if offset == self.committed else offset
