"""What may be committed: offsets of a contiguous prefix of finished requests, per partition and generation."""


class OffsetTracker:
    """Offsets of one assigned partition: begun in order, finished in any order.

    Kafka's committed offset is the next one to read, so everything below it must be finished: a crash re-reads what
    is above, and nothing below is lost.

    Attributes:
        next_offset: the offset after the last that was begun; None before the first.
    """

    def __init__(self) -> None:
        self._running: dict[int, None] = {}
        self.next_offset: int | None = None

    def __len__(self) -> int:
        return len(self._running)

    def begin(self, offset: int) -> None:
        """An offset was taken on. Offsets may have gaps (compaction, transaction markers) but never go back.

        Raises:
            ValueError: the offset is not above the last one.
        """
        if self.next_offset is not None and offset < self.next_offset:
            raise ValueError(f"offset {offset} begins after {self.next_offset - 1}")
        self._running[offset] = None
        self.next_offset = offset + 1

    def finish(self, offset: int) -> None:
        """An offset's request is answered and its answer confirmed.

        Raises:
            KeyError: the offset is not running.
        """
        del self._running[offset]

    def committable(self) -> int | None:
        """The offset to commit: the lowest that is not finished, or the one after the last. None before the first."""
        return next(iter(self._running), self.next_offset)
