"""Rates: never more than the burst and what has come since, and never less where somebody keeps to it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.rate_limit import Rate, judge, rate_of

FAST = settings(max_examples=200, deadline=None)
RATES = st.builds(Rate, st.floats(0.01, 1e4), st.integers(1, 50))


@FAST
@given(RATES, st.lists(st.floats(0, 3), max_size=80))
def test_any_window_holds_the_burst_and_what_has_come_since(rate: Rate, pauses: list[float]) -> None:
    """In no stretch of time pass more than the burst and the rate's share of that time."""
    now, arrival = 1000.0, None
    passed: list[float] = []
    for pause in pauses:
        now += pause / rate.per_s
        arrival, wait_s = judge(rate, arrival, now)
        if not wait_s:
            passed.append(now)
    for first, start in enumerate(passed):
        for last in range(first, len(passed)):
            count = last - first + 1
            assert count <= rate.burst + (passed[last] - start) * rate.per_s + 1e-6


@FAST
@given(RATES, st.integers(1, 60))
def test_who_keeps_to_the_rate_is_never_refused(rate: Rate, count: int) -> None:
    """Requests at the rate's own distance all pass, after any burst that may be."""
    now, arrival = 50.0, None
    for _ in range(rate.burst):
        arrival, wait_s = judge(rate, arrival, now)
        assert wait_s == 0
    for _ in range(count):
        now += 1 / rate.per_s
        arrival, wait_s = judge(rate, arrival, now)
        assert wait_s == 0


@FAST
@given(RATES, st.integers(1, 10))
def test_refusal_says_when_to_come_again(rate: Rate, early: int) -> None:
    """Whoever waits as long as was said passes, refusals in between cost nothing, and a moment sooner is too soon."""
    now, arrival = 50.0, None
    for _ in range(rate.burst):
        arrival, _ = judge(rate, arrival, now)
    for _ in range(early):
        arrival, wait_s = judge(rate, arrival, now)
        assert 0 < wait_s <= 1 / rate.per_s + 1e-9
    assert judge(rate, arrival, now + 0.9 * wait_s).retry_after_s > 0
    assert judge(rate, arrival, now + wait_s).retry_after_s == 0


def test_burst_is_two_seconds_unless_it_is_given() -> None:
    """A rate without a burst allows what comes in two seconds, and one request at least."""
    assert rate_of(5.0, None) == Rate(5.0, 10)
    assert rate_of(0.1, None) == Rate(0.1, 1)
    assert rate_of(5.0, 3) == Rate(5.0, 3)
