"""Records of one partition between fetch and insert: in order, and never more than one batch ahead."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.event_batch import BatchDraft, BatchLimits, EventBatch, EventRecord
from pipeline.core.sink_plan import Resumption
from pipeline.errors import TopicError

Headers = Sequence[tuple[str, bytes | None]]

# Decoding 50,000 lines takes 0.4 s; heartbeats and fetches want the loop every 10 ms or so, which is about this many
# bytes.
_BYTES_BETWEEN_YIELDS = 512 * 1024


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """How large and how old a lane's batches become.

    Attributes:
        limits: where batches end at the latest.
        wait_s: how long after its first record a smaller batch goes.
    """

    limits: BatchLimits
    wait_s: float


class Lane:
    """One partition's buffer and position.

    Args:
        topic: the events topic.
        partition: its number.
        resumption: where the first batch begins, where an earlier try of it ended, and what was met before.
        options: how large and how old batches become.
    """

    def __init__(self, topic: str, partition: int, resumption: Resumption, options: LaneOptions) -> None:
        start = resumption.start
        self._topic = topic
        self._partition = partition
        self._start = start
        self._planned_end = resumption.plan.end if resumption.plan is not None else None
        self._seen = resumption.seen
        self._limits = options.limits
        self._wait_s = options.wait_s
        self._records: deque[EventRecord] = deque()
        self._bytes = 0
        self._lines = 0
        self._opened_at = start
        self._reached = start
        self._first_at: float | None = None
        self._changed = asyncio.Event()

    @property
    def start(self) -> int:
        """The first offset of the next batch: what is committed once the one before it is in."""
        return self._start

    @property
    def planned_end(self) -> int | None:
        """Where the next batch must end, while it is a repetition."""
        return self._planned_end

    @property
    def is_full(self) -> bool:
        """Whether a batch is complete without more records, so that fetching should pause."""
        if self._planned_end is not None:
            return self._reached >= self._planned_end
        return self._bytes >= self._limits.bytes_max or self._lines >= self._limits.rows_max

    def append(self, offset: int, value: bytes | None, headers: Headers, now: float) -> None:
        """Takes a fetched record; one that was taken before is ignored (a fetch that a seek overtook).

        Raises:
            TopicError: the log begins anew: the topic was deleted and made again under a running sink.
        """
        if offset < self._opened_at:
            raise TopicError(
                f"{self._topic}-{self._partition}: offset {offset} after {self._reached}: the topic was made anew"
            )
        if offset < self._reached:
            return
        record = EventRecord.of(offset, value, headers)
        self._records.append(record)
        self._bytes += record.size
        self._lines += record.line_count
        self._reached = offset + 1
        if self._first_at is None:
            self._first_at = now
        self._changed.set()

    def reach(self, position: int) -> None:
        """The consumer is past everything below `position`, whether there were records or not."""
        if position > self._reached:
            self._reached = position
            self._changed.set()

    async def take(self) -> EventBatch:
        """Waits for the next batch: full, or `wait_s` old, or as long as planned."""
        await self._until_due()
        draft = BatchDraft(self._topic, self._partition, self._start, self._limits, self._planned_end, self._seen)
        since_yield = 0
        while self._records and draft.offer(self._records[0]):
            record = self._records.popleft()
            self._bytes -= record.size
            self._lines -= record.line_count
            since_yield += record.size
            if since_yield >= _BYTES_BETWEEN_YIELDS:
                since_yield = 0
                await asyncio.sleep(0)
        batch = draft.finish()
        self._start, self._planned_end, self._seen = batch.end, None, batch.seen
        # What is left came while the batch before it was waited for: its time runs from now.
        self._first_at = asyncio.get_running_loop().time() if self._records else None
        return batch

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.is_full:
            self._changed.clear()
            remaining = None
            if self._planned_end is None and self._first_at is not None:
                remaining = self._first_at + self._wait_s - loop.time()
                if remaining <= 0:
                    return
            try:
                async with asyncio.timeout(remaining):
                    await self._changed.wait()
            except TimeoutError:
                return
