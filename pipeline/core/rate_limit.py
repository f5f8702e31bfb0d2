"""How often somebody may come: a token bucket in the form of one number, the generic cell rate algorithm.

ITU-T I.371, annex A: each request moves the theoretical arrival time on by 1 / rate; one that comes so early that more
than a burst would have to be ahead of it is refused, and moves nothing. One number for each tenant is all that several
gateways have to share.
"""

import math
from typing import NamedTuple


class Rate(NamedTuple):
    """So many requests per second on average, and so many at once."""

    per_s: float
    burst: int


class Verdict(NamedTuple):
    """What becomes of one request.

    Attributes:
        arrival: the theoretical arrival time to keep, seconds.
        retry_after_s: 0 where it may pass; else when the next one may.
    """

    arrival: float
    retry_after_s: float


class Policy(NamedTuple):
    """A rate in the words of the RateLimit headers: so many requests in a window of whole seconds."""

    quota: int
    window_s: int


class Allowance(NamedTuple):
    """What is left of a rate.

    Attributes:
        remaining: requests that may come at once, now.
        more_in_s: when one more than these may.
    """

    remaining: int
    more_in_s: float


def rate_of(per_s: float, burst: int | None) -> Rate:
    """A rate with its burst: two seconds of it where none is given, at least one request."""
    return Rate(per_s, burst if burst is not None else max(round(2 * per_s), 1))


def judge(rate: Rate, arrival: float | None, now: float) -> Verdict:
    """One more request.

    Args:
        rate: what its tenant may.
        arrival: as the last verdict had it; None for the first.
        now: seconds of the clock that all who share `arrival` go by.
    """
    step = 1 / rate.per_s
    due = now if arrival is None else max(arrival, now)
    wait_s = due - now - (rate.burst - 1) * step
    # A sum of many steps is off by some of its last bits: nobody is to wait a nanosecond.
    if wait_s > 1e-9:
        return Verdict(due, wait_s)
    return Verdict(due + step, 0.0)


def policy_of(rate: Rate) -> Policy:
    """The shortest window of whole seconds in which a burst comes back, and what the rate allows in it."""
    window_s = max(math.ceil(rate.burst / rate.per_s), 1)
    # The product of what was divided may fall short of it by its last bit.
    return Policy(max(math.floor(rate.per_s * window_s), rate.burst), window_s)


def allowance_of(rate: Rate, ahead_s: float) -> Allowance:
    """What is left.

    Args:
        rate: of the tenant.
        ahead_s: how far the theoretical arrival time is ahead of the clock, after the verdict.
    """
    step = 1 / rate.per_s
    # A millionth of a request less than what is due is due: Redis keeps microseconds.
    remaining = min(max(math.floor(rate.burst - ahead_s / step + 1e-6), 0), rate.burst)
    return Allowance(remaining, max(ahead_s - (rate.burst - remaining - 1) * step, 0.0))
