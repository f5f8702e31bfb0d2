"""How long to wait before something is tried again. Pure: clock and randomness are given."""

import math
from random import Random

from pipeline.core.retry_after import retry_after_s

# More are 30 years: nobody means that.
_DIGITS_MAX = 9


class Backoff:
    """Growing pauses with full jitter, so that clients that failed together do not come back together.

    Args:
        random: of the jitter.
        first_s: the longest first pause; each next one may be twice as long.
        most_s: the longest of all.
    """

    def __init__(self, random: Random, *, first_s: float = 0.1, most_s: float = 5.0) -> None:
        self._random = random
        self._first_s = first_s
        self._most_s = most_s
        self._longest_s = first_s

    def next_s(self, at_least_s: float = 0.0) -> float:
        """The next pause in seconds: a random part of the growing bound, behind what the other side asked for."""
        pause_s = self._random.uniform(0, self._longest_s)
        self._longest_s = min(2 * self._longest_s, self._most_s)
        return at_least_s + pause_s

    def reset(self) -> None:
        """The other side is well again: the next pause is a first one."""
        self._longest_s = self._first_s


def asked_for_s(header: str | None, now: float) -> float:
    """The seconds that a `Retry-After` asks for, whole ones; 0 where there is none that can be meant.

    Args:
        header: its text.
        now: Unix seconds.
    """
    text = (header or "").strip()
    if text.isdigit() and len(text) > _DIGITS_MAX:
        return 0.0
    return math.ceil(retry_after_s(text, now) or 0.0)
