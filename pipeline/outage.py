"""One line in the log when something stops answering, one when it answers again, and the pauses between the tries."""

import logging
import random
from collections.abc import Callable

_log = logging.getLogger(__name__)

_PAUSE_S_FIRST = 0.25
# Long enough to leave a struggling server alone, short enough that rows are fresh half a minute after it is back.
_PAUSE_S_MAX = 30.0


def retry_pause_s(attempt: int, rng: random.Random) -> float:
    """Seconds before try number `attempt` + 1: doubled each time up to 30 s, then shortened by up to a half.

    The jitter keeps processes and partitions that failed together from coming back together.
    """
    longest = min(_PAUSE_S_MAX, _PAUSE_S_FIRST * 2.0 ** min(attempt - 1, 16))
    return float(longest * rng.uniform(0.5, 1.0))


class Outage:
    """Whether something answers, told once per change however many tries and partitions meet it.

    Args:
        name: what it is, for the log's lines.
        monotonic: seconds that never go back.
    """

    def __init__(self, name: str, monotonic: Callable[[], float]) -> None:
        self._name = name
        self._monotonic = monotonic
        self._since: float | None = None
        self._cause = ""

    @property
    def reason(self) -> str | None:
        """Why it is not usable now, or None."""
        if self._since is None:
            return None
        return f"no answer for {self._monotonic() - self._since:.0f} s: {self._cause}"

    def met(self, cause: object) -> None:
        """A try failed."""
        self._cause = str(cause)
        if self._since is None:
            self._since = self._monotonic()
            _log.warning("%s cannot be used; nothing is lost, tried again until it can: %s", self._name, cause)

    def over(self) -> None:
        """A try succeeded."""
        if self._since is not None:
            _log.warning("%s can be used again after %.1f s", self._name, self._monotonic() - self._since)
            self._since = None
