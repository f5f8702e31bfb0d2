"""How long an attempt is waited for alone, what may be spent on others, and whose fault a pause was."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.attempts import PULSE_S, Attempts, Budget, Pulse

KIND = "a model"


def attempts_that_know(*seconds: float) -> Attempts:
    """Sixty-four calls of a kind were answered, as long as these in turn."""
    attempts = Attempts(20.0)
    for number in range(64):
        attempts.answered(KIND, seconds[number % len(seconds)])
    return attempts


def test_unknown_kind_is_waited_for_a_second() -> None:
    """The first calls of a model have no p99: another instance is asked after a second, or half of what is left."""
    attempts = Attempts(20.0)
    for _ in range(31):
        attempts.answered(KIND, 0.01)
    assert attempts.p99_s(KIND) is None
    assert attempts.patience_s(KIND, math.inf, 0) == 1.0
    assert attempts.patience_s(KIND, 0.4, 0) == 0.2
    assert attempts.patience_s(KIND, math.inf, 1) == 4.0


def test_patience_is_five_times_the_p99() -> None:
    """Within 50 ms and half of what is left; each further attempt of a call is waited for four times as long."""
    attempts = attempts_that_know(0.02)
    assert attempts.p99_s(KIND) == 0.02
    assert attempts.patience_s(KIND, math.inf, 0) == pytest.approx(0.1)
    assert attempts.patience_s(KIND, math.inf, 1) == pytest.approx(0.4)
    assert attempts.patience_s(KIND, 0.12, 0) == pytest.approx(0.06)
    assert attempts_that_know(0.001).patience_s(KIND, math.inf, 0) == 0.05


def test_half_of_what_is_left_is_enough_for_the_usual_call() -> None:
    """Where half of the time is less than twice the p99, the first attempt is not given a rival too soon."""
    assert attempts_that_know(0.02).patience_s(KIND, 0.05, 0) == pytest.approx(0.04)


def test_no_attempt_is_waited_for_alone_longer_than_half_its_limit() -> None:
    """However often a call was tried, there is time for another instance within the limit of one attempt."""
    assert attempts_that_know(0.5).patience_s(KIND, math.inf, 9) == 10.0


def test_one_long_call_in_a_hundred_is_not_the_p99() -> None:
    """A call that was slow by chance does not make everybody wait; when several are, it does."""
    attempts = attempts_that_know(0.01)
    attempts.answered(KIND, 3.0)
    for _ in range(159):
        attempts.answered(KIND, 0.01)
    assert attempts.p99_s(KIND) == 0.01
    for _ in range(32):
        attempts.answered(KIND, 3.0)
    assert attempts.p99_s(KIND) == 3.0


def test_kinds_are_apart_and_few() -> None:
    """Large batches are not measured by small ones, and kinds do not pile up: the oldest is forgotten."""
    attempts = attempts_that_know(0.01)
    assert attempts.p99_s("another") is None
    for number in range(1024):
        attempts.answered(number, 0.01)
    assert attempts.p99_s(KIND) is None


def test_probe_has_a_second_at_least() -> None:
    """An instance that has just started is slow at first, and back all the same; an unknown kind has all the time."""
    assert attempts_that_know(0.01).probe_s(KIND) == 1.0
    assert attempts_that_know(0.5).probe_s(KIND) == 2.5
    assert Attempts(20.0).probe_s(KIND) == 20.0


@given(st.lists(st.booleans(), max_size=300), st.floats(0.01, 1.0))
def test_budget_is_never_exceeded(steps: list[bool], share: float) -> None:
    """At any moment no more was spent than was saved up at first and earned since."""
    budget, earned, spent = Budget(share, 10.0), 10.0, 0
    for earns in steps:
        if earns:
            budget.earn()
            earned += share
        else:
            spent += budget.spend()
        assert spent <= earned + 1e-9
        assert 0.0 <= budget.tokens <= 10.0


def test_budget_of_retries_is_a_tenth_of_the_calls() -> None:
    """When everything fails, a hundred calls have ten retries, and those saved up."""
    retries = Attempts(20.0).retries
    retried = 0
    for _ in range(100):
        retries.earn()
        retried += retries.spend()
    assert 18 <= retried <= 20


def test_late_beat_is_a_pause_told_once() -> None:
    """A beat that comes 50 ms late or less is no pause; one that comes later tells how long, and then no more."""
    pulse = Pulse()
    assert pulse.late_s(100.0) == 0.0
    pulse.due_at = 1.0 + PULSE_S
    assert pulse.late_s(1.14) == 0.0
    assert pulse.late_s(4.1) == pytest.approx(3.0)
    assert pulse.late_s(4.11) == 0.0
    assert pulse.stood_still_s == pytest.approx(3.0)
