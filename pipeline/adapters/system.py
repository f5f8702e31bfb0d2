"""This process's own time and memory."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

# A collection for each 50,000 allocations instead of 700 costs nothing visible.
_THRESHOLDS = (50_000, 20, 50)


@contextmanager
def rare_garbage_collections(thresholds: tuple[int, int, int] = _THRESHOLDS) -> Iterator[None]:
    """For a process that serves: what lives now lives for ever, and what a request makes dies young.

    By Python's defaults every full collection walks all modules, which stops a gateway's answers for 50-80 ms.

    Args:
        thresholds: of the three generations, as `gc.set_threshold` takes them.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class SystemClock:
    """The system's clocks."""

    def now(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds from an unknown start; never goes back."""
        return time.monotonic()
