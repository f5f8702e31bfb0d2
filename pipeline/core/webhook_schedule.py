"""What comes of an attempt to deliver a callback: delivered, tried again and when, or given up. Pure.

The waits are those that Standard Webhooks 1.0 gives as its example, 75 hours in all. A wait is made of stays in delay
tiers, topics whose records all wait equally long, so that the first of one is always the first that is due: whatever
is longer than the longest tier, or in between, goes through several. Nobody is called early, and at most the shortest
tier late.

Which answers are tried again: all but 2xx and 410. Stripe and Svix do so, too (GitHub tries nothing again): a 404, 401
or 403 is most often a receiver that was deployed wrong, which its people mend within the hours that the schedule has.
410 alone says that nobody will be there (the standard, "Delivery success and failure"). Redirects are not followed:
where they lead was not checked.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.core.retry_after import retry_after_s

# Receivers that failed together do not come back together.
_JITTER = 0.1
# Of a wait, the steps that jitter comes in: finer ones would only mean more stays in short tiers.
_JITTER_GRAIN = 0.05
# The longest wait a receiver may ask for, the schedule's own longest.
RETRY_AFTER_S_MAX = 86_400.0
# A callback for which its host has had no time stays in the shortest tier, then in the second: a quick receiver with a
# backlog is kept busy so. Where the host fails, ever longer, up to the fourth (30 minutes): a thousand for one dead
# host, moved every 5 s, would be 200 records/s for nothing.
_BUSY_TIERS = 2
_FAILING_TIERS = 4
# As long as the default schedule tries: after that a host has more callbacks than it takes.
BUSY_S_MAX = 75 * 3600.0
_GONE = 410
_MINUTE_S, _HOUR_S = 60, 3600

WEBHOOK_FAILED = "WEBHOOK_FAILED"
WEBHOOK_GONE = "WEBHOOK_GONE"
WEBHOOK_REFUSED = "WEBHOOK_REFUSED"


class Answered(NamedTuple):
    """A receiver's answer.

    Attributes:
        retry_after: the header's text, where there is one.
    """

    status: int
    retry_after: str | None = None


class Unanswered(NamedTuple):
    """No answer: what happened instead.

    Attributes:
        kind: where it ended.
        text: a sentence for people.
    """

    kind: Literal["timeout", "dns", "connection", "tls", "protocol"]
    text: str


class Refused(NamedTuple):
    """Nothing was called, and nothing will be: no secret, an address that is not public, a record that is none.

    Attributes:
        text: a sentence for people.
    """

    text: str


Outcome = Answered | Unanswered | Refused


class Delivered(NamedTuple):
    """The receiver has it."""


class Retry(NamedTuple):
    """Another attempt.

    Attributes:
        due_at: Unix seconds; not before.
        error: what happened, in a sentence.
    """

    due_at: float
    error: str


class GivenUp(NamedTuple):
    """No further attempt.

    Attributes:
        reason: a stable word, the dead letter's.
        error: what happened last, in a sentence.
    """

    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """When to try again.

    Attributes:
        delays_s: seconds to wait after the first failed attempt, after the second, …
        tiers_s: how long records stay in each delay tier, the shortest first.
    """

    delays_s: Sequence[float]
    tiers_s: Sequence[float]

    def after(self, attempt: int, outcome: Outcome, now: float, rng: random.Random) -> Delivered | Retry | GivenUp:
        """What comes of an attempt.

        Args:
            attempt: how many there were before it.
            outcome: what it met.
            now: Unix seconds.
            rng: jitter.
        """
        if isinstance(outcome, Answered) and 200 <= outcome.status < 300:
            return Delivered()
        error = described(outcome)
        if isinstance(outcome, Refused):
            return GivenUp(WEBHOOK_REFUSED, error)
        if isinstance(outcome, Answered) and outcome.status == _GONE:
            return GivenUp(WEBHOOK_GONE, error)
        if attempt >= len(self.delays_s):
            return GivenUp(WEBHOOK_FAILED, f"{error}; attempt {attempt + 1} was the last")
        wait_s = self._with_jitter(self.delays_s[attempt], rng)
        if isinstance(outcome, Answered) and outcome.retry_after is not None:
            # What a receiver asks for is the least that it wants (RFC 9110, section 10.2.3); ours is the least we wait.
            wait_s = max(wait_s, min(retry_after_s(outcome.retry_after, now) or 0.0, RETRY_AFTER_S_MAX))
        return Retry(now + wait_s, error)

    def tier_s(self, wait_s: float) -> float | None:
        """The tier for a wait: the longest that is not longer, else the shortest. None: there is nothing to wait."""
        if wait_s <= 0:
            return None
        return next((tier for tier in reversed(self.tiers_s) if tier <= wait_s), self.tiers_s[0])

    def busy_tier_s(self, times: int, *, is_failing: bool) -> float:
        """Where a callback goes that its host has no time for, as often as it had none before.

        Args:
            times: how often.
            is_failing: whether the last attempt at that host failed.
        """
        tiers = _FAILING_TIERS if is_failing else _BUSY_TIERS
        return self.tiers_s[min(times, tiers - 1, len(self.tiers_s) - 1)]

    def _with_jitter(self, delay_s: float, rng: random.Random) -> float:
        grain_s = next((tier for tier in reversed(self.tiers_s) if tier <= delay_s * _JITTER_GRAIN), None)
        if grain_s is None:
            return delay_s
        return delay_s + rng.randint(0, int(delay_s * _JITTER / grain_s)) * grain_s


def described(outcome: Outcome) -> str:
    """What happened, in a sentence for people."""
    if isinstance(outcome, Answered):
        redirect = ": redirects are not followed" if 300 <= outcome.status < 400 else ""
        return f"the answer was {outcome.status}{redirect}"
    return outcome.text


def outcome_word(outcome: Outcome) -> str:
    """What happened, in one word of few: 2xx, 3xx, 4xx, 5xx, another status as `other`, timeout, dns, …, refused."""
    if isinstance(outcome, Answered):
        return f"{outcome.status // 100}xx" if 200 <= outcome.status < 600 else "other"
    return "refused" if isinstance(outcome, Refused) else outcome.kind


def tier_name(seconds: float) -> str:
    """A tier's name, the end of its topic's: 5s, 5m, 2h; below a second 200ms."""
    if seconds < 1 or seconds != int(seconds):
        return f"{round(seconds * 1000)}ms"
    if seconds % _HOUR_S == 0:
        return f"{int(seconds) // _HOUR_S}h"
    return f"{int(seconds) // _MINUTE_S}m" if seconds % _MINUTE_S == 0 else f"{int(seconds)}s"
