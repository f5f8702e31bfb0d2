"""Rates: never more than the burst and what has come since, and never less where somebody keeps to it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.rate_limit import Policy, Rate, allowance_of, judge, policy_of, rate_of

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


@FAST
@given(RATES, st.lists(st.floats(0, 3), max_size=40))
def test_what_is_left_may_come_at_once(rate: Rate, pauses: list[float]) -> None:
    """After any history exactly as many pass at once as were told, and one more when that was told."""
    now, arrival = 1000.0, None
    for pause in pauses:
        now += pause / rate.per_s
        arrival, _ = judge(rate, arrival, now)
    left = allowance_of(rate, 0.0 if arrival is None else max(arrival - now, 0.0))
    assert 0 <= left.remaining <= rate.burst
    for _ in range(left.remaining):
        # A millionth of a step is what the clock of the shared count does not see.
        arrival, wait_s = judge(rate, arrival, now + 2e-6 / rate.per_s)
        assert wait_s == 0
    assert judge(rate, arrival, now).retry_after_s > 0
    assert judge(rate, arrival, now + left.more_in_s + 2e-6 / rate.per_s).retry_after_s == 0


def test_rate_is_told_in_whole_seconds() -> None:
    """A window in which a burst comes back, with what the rate allows in it: never less than a burst."""
    assert policy_of(rate_of(100, None)) == Policy(200, 2)
    assert policy_of(Rate(0.01, 2)) == Policy(2, 200)
    assert policy_of(Rate(1e6, 2)) == Policy(1_000_000, 1)
    assert policy_of(Rate(3, 10)) == Policy(12, 4)


@FAST
@given(RATES)
def test_window_holds_a_burst(rate: Rate) -> None:
    """Who reads the quota as so many in the window is never told less than may come at once, nor more than the rate."""
    quota, window_s = policy_of(rate)
    assert quota >= rate.burst
    assert quota <= max(rate.per_s * window_s, rate.burst)
