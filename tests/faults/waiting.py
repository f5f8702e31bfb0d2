"""Waiting for a condition, with a limit."""

import time
from collections.abc import Callable

LOOK_S = 0.1


class NotInTimeError(Exception):
    """A condition did not come true within its limit."""


def wait_until(holds: Callable[[], bool], timeout_s: float, what: str, look_s: float = LOOK_S) -> float:
    """Looks again and again; returns the seconds it took.

    Raises:
        NotInTimeError: the condition did not hold within `timeout_s`; names what was waited for.
    """
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > timeout_s:
            raise NotInTimeError(f"{what}: not within {timeout_s:g} s")
        time.sleep(look_s)
    return time.monotonic() - began
