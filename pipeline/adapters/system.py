"""This process's own time."""

import time


class SystemClock:
    """The system's clocks."""

    def now(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds from an unknown start; never goes back."""
        return time.monotonic()
