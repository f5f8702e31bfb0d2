"""How long to wait before something is tried again. Pure: clock and randomness are given."""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random


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


def retry_after_s(text: str | None, now: float) -> float:
    """A `Retry-After` header as seconds from `now` (Unix seconds); 0 where there is none that can be read.

    RFC 9110 section 10.2.3: a number of seconds, or a date.
    """
    if text is None:
        return 0.0
    text = text.strip()
    # Not float(): "1e9", "nan" and "-1" are no delay-seconds. 9 digits are 30 years.
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.fromtimestamp(now, UTC)
    return max(0.0, math.ceil(seconds.total_seconds()))
