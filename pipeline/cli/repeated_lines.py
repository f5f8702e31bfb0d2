"""A log line that a library repeats many times a second, told once in a while with how often it was left out."""

import logging
import time
from collections.abc import Callable

# The same line again this soon says nothing new: a Kafka that is away brings some 20 a second.
PAUSE_S = 10.0
# Different lines remembered; the library has some dozens.
_LINES_MAX = 256


class RepeatedLines(logging.Filter):
    """Lets a line of one library through once in 10 s. Lines are the same when their unformatted text is.

    Args:
        library: the name its loggers begin with; lines of others pass.
        clock: monotonic seconds.
    """

    def __init__(self, library: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(library)
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is told."""
        if not super().filter(record):
            return True
        now = self._clock()
        line = (record.name, str(record.msg))
        told_at, left_out = self._seen.get(line, (None, 0))
        if told_at is not None and now - told_at < PAUSE_S:
            self._seen[line] = (told_at, left_out + 1)
            return False
        if left_out:
            record.msg = f"{record.msg} (and {left_out} times more since the last such line)"
        if len(self._seen) >= _LINES_MAX:
            self._seen.clear()
        self._seen[line] = (now, 0)
        return True
