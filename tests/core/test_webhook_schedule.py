"""When callbacks are tried again, and when no more."""

import random
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import WebhookSettings
from pipeline.core.retry_after import retry_after_s
from pipeline.core.webhook_schedule import (
    BUSY_S_MAX,
    RETRY_AFTER_S_MAX,
    Answered,
    Delivered,
    GivenUp,
    Outcome,
    Refused,
    Retry,
    RetrySchedule,
    Unanswered,
    outcome_word,
    tier_name,
)

NOW = 1_795_384_800.0
SETTINGS = WebhookSettings()
SCHEDULE = RetrySchedule(SETTINGS.retry_delays_s, SETTINGS.tiers_s)
LAST = len(SCHEDULE.delays_s)
SHORTEST_S = SCHEDULE.tiers_s[0]
SEEDS = st.integers(min_value=0).map(random.Random)


def after(outcome: Outcome, attempt: int = 0) -> Delivered | Retry | GivenUp:
    """What comes of an attempt now."""
    return SCHEDULE.after(attempt, outcome, NOW, random.Random(1))


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
@pytest.mark.parametrize("attempt", [0, 5, LAST])
def test_2xx_is_delivered(status: int, attempt: int) -> None:
    """Any answer of the 200s says that the receiver has it, at whatever attempt."""
    assert after(Answered(status), attempt) == Delivered()


@pytest.mark.parametrize(
    "outcome",
    [Answered(status) for status in (100, 300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 408, 409, 413, 422, 429,
                                     500, 502, 503, 504, 599, 600, 999)]
    + [Unanswered(kind, "said") for kind in ("timeout", "dns", "connection", "tls", "protocol")],
)  # fmt: skip
def test_everything_else_is_tried_again(outcome: Outcome) -> None:
    """A failure of any kind is followed by nine more attempts, then by a dead letter that says what happened last."""
    for attempt in range(LAST):
        verdict = after(outcome, attempt)
        assert isinstance(verdict, Retry)
        assert verdict.due_at >= NOW + SCHEDULE.delays_s[attempt]
    last = after(outcome, LAST)
    assert isinstance(last, GivenUp)
    assert last.reason == "WEBHOOK_FAILED"
    assert "attempt 10 was the last" in last.error
    assert (str(outcome.status) if isinstance(outcome, Answered) else "said") in last.error


def test_gone_and_refused_are_given_up_at_once() -> None:
    """410 says that nobody will be there; what may not be called, or cannot be signed, does not mend by waiting."""
    assert after(Answered(410, "5")) == GivenUp("WEBHOOK_GONE", "the answer was 410")
    assert after(Refused("no secret")) == GivenUp("WEBHOOK_REFUSED", "no secret")


def test_redirects_say_why_they_failed() -> None:
    """Whoever moved a receiver reads that the new place was not asked."""
    verdict = after(Answered(308))
    assert isinstance(verdict, Retry)
    assert verdict.error == "the answer was 308: redirects are not followed"


def test_default_waits_are_the_standards() -> None:
    """Ten attempts within 75 h 35 min 5 s, jitter aside, as the standard's example has it."""
    assert LAST + 1 == 10
    assert sum(SCHEDULE.delays_s) == 75 * 3600 + 35 * 60 + 5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("999999999999999999999", 999_999_999_999.0),
        (format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True), 0.0),
        ("Sun, 22 Nov 2026 22:10:00", 600.0),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("١٢", None),
        ("Sun, 99 Nov 2026 22:10:00 GMT", None),
        ("Sun, 22 Nov 99999 22:10:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    """Both forms of the header are read, anything else is as if it were not there."""
    assert retry_after_s(text, NOW) == seconds


@given(st.text(max_size=40))
def test_retry_after_never_fails(text: str) -> None:
    """Whatever a receiver writes there, it is a time that is not negative, or nothing."""
    found = retry_after_s(text, NOW)
    assert found is None or found >= 0


@pytest.mark.parametrize("status", [429, 503, 500, 404, 302])
def test_retry_after_is_respected_within_bounds(status: int) -> None:
    """A receiver may ask for more time than the schedule's, up to a day, and not for less."""
    waits = {}
    for text in ("1", "60", "99999999", "nonsense"):
        verdict = after(Answered(status, text))
        assert isinstance(verdict, Retry)
        waits[text] = verdict.due_at - NOW
    assert waits == {"1": 5.0, "60": 60.0, "99999999": RETRY_AFTER_S_MAX, "nonsense": 5.0}


@given(st.integers(min_value=0, max_value=LAST - 1), SEEDS)
def test_jitter_is_at_most_a_tenth(attempt: int, rng: random.Random) -> None:
    """Nobody is called before the schedule's wait, nor later than a tenth of it."""
    verdict = SCHEDULE.after(attempt, Answered(500), NOW, rng)
    assert isinstance(verdict, Retry)
    delay_s = SCHEDULE.delays_s[attempt]
    assert delay_s <= verdict.due_at - NOW <= 1.1 * delay_s + 1e-6


def test_jitter_spreads_who_failed_together() -> None:
    """A hundred that failed at once come back at more than one time."""
    rng = random.Random(7)
    verdicts = [SCHEDULE.after(1, Answered(500), NOW, rng) for _ in range(100)]
    assert len({verdict.due_at for verdict in verdicts if isinstance(verdict, Retry)}) >= 5


def stays_of(wait_s: float) -> list[float]:
    """The tiers that a wait goes through; time passes in them alone."""
    stays: list[float] = []
    while (tier_s := SCHEDULE.tier_s(wait_s)) is not None:
        stays.append(tier_s)
        wait_s -= tier_s
    return stays


@given(st.floats(min_value=0.001, max_value=RETRY_AFTER_S_MAX))
def test_any_wait_is_made_of_stays_in_tiers(wait_s: float) -> None:
    """A callback is never due early, and at most the shortest tier late."""
    waited_s = sum(stays_of(wait_s))
    assert wait_s - 1e-6 <= waited_s < wait_s + SHORTEST_S


@given(st.integers(min_value=0, max_value=LAST - 1), SEEDS)
def test_schedule_needs_few_stays(attempt: int, rng: random.Random) -> None:
    """A wait of the schedule is ten records at most, its jitter included: each may have 8 MiB."""
    verdict = SCHEDULE.after(attempt, Answered(500), NOW, rng)
    assert isinstance(verdict, Retry)
    assert len(stays_of(round(verdict.due_at - NOW, 3))) <= 10


def test_schedule_without_jitter_needs_four_stays() -> None:
    """The tiers are chosen so: six of them make every wait of the schedule out of four stays or fewer."""
    assert max(len(stays_of(delay_s)) for delay_s in SCHEDULE.delays_s) == 4


def test_nothing_to_wait_for_is_due() -> None:
    """What is due, or was, goes through no tier."""
    assert SCHEDULE.tier_s(0.0) is None
    assert SCHEDULE.tier_s(-5.0) is None


def test_busy_hosts_are_asked_soon_and_failing_ones_ever_later() -> None:
    """Who answers is kept busy, every 30 s at least; who fails is left alone for up to half an hour."""

    def stays(*, is_failing: bool) -> list[float]:
        return [SCHEDULE.busy_tier_s(times, is_failing=is_failing) for times in range(6)]

    assert stays(is_failing=False) == [5, 30, 30, 30, 30, 30]
    assert stays(is_failing=True) == [5, 30, 300, 1800, 1800, 1800]
    assert RetrySchedule((1.0,), (2.0,)).busy_tier_s(9, is_failing=True) == 2.0
    assert abs(sum(SCHEDULE.delays_s) - BUSY_S_MAX) < 3600


@pytest.mark.parametrize(
    ("seconds", "name"),
    [(5, "5s"), (30.0, "30s"), (60, "1m"), (90, "90s"), (300, "5m"), (1800, "30m"), (7200, "2h"), (21_600, "6h"),
     (86_400, "24h"), (0.2, "200ms"), (1.5, "1500ms")],
)  # fmt: skip
def test_tiers_are_named_after_their_time(seconds: float, name: str) -> None:
    """A topic's name says how long its records stay."""
    assert tier_name(seconds) == name


@pytest.mark.parametrize(
    ("outcome", "word"),
    [(Answered(200), "2xx"), (Answered(308), "3xx"), (Answered(429), "4xx"), (Answered(599), "5xx"),
     (Answered(101), "other"), (Answered(999), "other"), (Unanswered("tls", ""), "tls"), (Refused(""), "refused")],
)  # fmt: skip
def test_outcomes_are_few_words(outcome: Outcome, word: str) -> None:
    """A metric's label has few values, whatever receivers answer."""
    assert outcome_word(outcome) == word
