"""The breaker: when it opens, how long, who probes, and what closes it. Time is a number here."""

import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.circuit_breaker import (
    CIRCUIT_TRANSITIONS,
    BreakerPolicy,
    Circuit,
    CircuitBreaker,
    Signal,
)
from tests.schemas.records import FAST

POLICY = BreakerPolicy(failures_max=3, window=8, late_share_max=0.5, pause_s_first=1.0, pause_s_max=8.0)


def breaker(jitter: float = 0.0) -> CircuitBreaker:
    return CircuitBreaker(POLICY, lambda: jitter)


def opened(jitter: float = 0.0) -> CircuitBreaker:
    """One that opened at 0."""
    found = breaker(jitter)
    for _ in range(POLICY.failures_max):
        found.failed(0.0)
    assert found.state is Circuit.OPEN
    return found


def state_of(found: CircuitBreaker) -> Circuit:
    """Its state now: the type checker takes an attribute for unchanged by calls."""
    return found.state


def probe_fails(found: CircuitBreaker, now: float) -> None:
    assert found.allows(now)
    found.asking(now)
    found.failed(now)


def test_transitions_are_all_there_are() -> None:
    """Every state is entered and left, and no other pair changes anything."""
    assert {state for state, _ in CIRCUIT_TRANSITIONS} == set(Circuit) == set(CIRCUIT_TRANSITIONS.values())
    assert len(CIRCUIT_TRANSITIONS) == 4
    assert {signal for _, signal in CIRCUIT_TRANSITIONS} == set(Signal)
    assert len(list(product(Circuit, Signal))) == 12


def test_failures_in_a_row_open_it() -> None:
    """The third failure in a row opens it, and not the second."""
    found = breaker()
    found.failed(0.0)
    found.failed(0.0)
    assert found.allows(0.0)
    found.failed(0.0)
    assert not found.allows(0.0)


def test_an_answer_in_between_keeps_it_closed() -> None:
    """Failures that are not in a row never open it."""
    found = breaker()
    for _ in range(50):
        found.failed(0.0)
        found.failed(0.0)
        found.answered()
    assert state_of(found) is Circuit.CLOSED


@pytest.mark.parametrize(("late", "opens"), [(4, False), (5, True)])
def test_too_many_late_ones_open_it(late: int, opens: bool) -> None:
    """More than half of the last eight look-ups late opens it; half does not."""
    found = breaker()
    for number in range(8):
        if number < 8 - late:
            found.answered()
        else:
            found.late(0.0)
    assert (found.state is Circuit.OPEN) is opens


def test_only_the_last_ones_count() -> None:
    """However long it answered in time before, a window of late ones is enough; and late ones are forgotten."""
    found = breaker()
    for _ in range(1000):
        found.answered()
    for _ in range(4):
        found.late(0.0)
    for _ in range(8):
        found.answered()
    for _ in range(4):
        found.late(0.0)
    assert state_of(found) is Circuit.CLOSED
    found.late(0.0)
    assert state_of(found) is Circuit.OPEN


def test_few_late_ones_open_nothing() -> None:
    """The first look-ups of all are slow, for they connect: less than half a window says nothing."""
    found = breaker()
    for _ in range(3):
        found.late(0.0)
    assert state_of(found) is Circuit.CLOSED
    found.late(0.0)
    assert state_of(found) is Circuit.OPEN


def test_closed_again_it_counts_anew() -> None:
    """Late ones from before an outage neither open it again nor hide those after it."""
    found = breaker()
    for _ in range(4):
        found.late(0.0)
    found.asking(1.0)
    found.answered()
    for number in range(4):
        assert state_of(found) is Circuit.CLOSED, number
        found.late(2.0)
    assert state_of(found) is Circuit.OPEN


def test_pause_ends_with_one_probe() -> None:
    """After the pause one may ask, and nobody else until that one has its outcome."""
    found = opened()
    assert not found.allows(0.999)
    assert found.allows(1.0)
    found.asking(1.0)
    assert state_of(found) is Circuit.HALF_OPEN
    assert not any(found.allows(now) for now in (1.0, 5.0, 1000.0))
    found.answered()
    assert state_of(found) is Circuit.CLOSED
    assert found.allows(1.0)


def test_asking_too_early_is_no_probe() -> None:
    """Only time ends a pause."""
    found = opened()
    found.asking(0.5)
    assert state_of(found) is Circuit.OPEN


@pytest.mark.parametrize("outcome", ["failed", "late"])
def test_failed_probe_doubles_the_pause(outcome: str) -> None:
    """Each probe without an answer in time waits twice as long, up to the longest pause."""
    found, now, pauses = opened(), 0.0, []
    for _ in range(6):
        began = now
        while not found.allows(now):
            now += 0.125
        pauses.append(now - began)
        found.asking(now)
        found.failed(now) if outcome == "failed" else found.late(now)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_pause_starts_small_after_it_held() -> None:
    """A whole window closed forgets earlier outages; shorter, and the pause goes on growing."""
    for answers, pause_s in ((POLICY.window, 1.0), (POLICY.window - 1, 4.0)):
        found = opened()
        probe_fails(found, 1.0)
        assert found.allows(3.0)
        found.asking(3.0)
        found.answered()
        for _ in range(answers):
            found.answered()
        for _ in range(3):
            found.failed(10.0)
        assert not found.allows(10.0 + pause_s - 0.01)
        assert found.allows(10.0 + pause_s)


@pytest.mark.parametrize(("jitter", "pause_s"), [(0.0, 1.0), (0.5, 0.75), (1.0, 0.5)])
def test_jitter_shortens_the_pause(jitter: float, pause_s: float) -> None:
    """Those who failed together come back at different times, none later than the pause."""
    found = opened(jitter)
    assert not found.allows(pause_s - 0.01)
    assert found.allows(pause_s)


def test_lateness_alone_is_told_from_failures() -> None:
    """Opened by late answers it says so, until something fails or it closes; opened by failures it never does."""
    by_failures = CircuitBreaker(POLICY, lambda: 0.0)
    for _ in range(POLICY.failures_max):
        by_failures.failed(0.0)
    assert (state_of(by_failures), by_failures.is_merely_late) == (Circuit.OPEN, False)
    for end in ("failed", "answered"):
        found = CircuitBreaker(POLICY, lambda: 0.0)
        for _ in range(POLICY.window):
            found.late(0.0)
        assert (state_of(found), found.is_merely_late) == (Circuit.OPEN, True)
        found.asking(100.0)
        found.late(100.0)
        assert (state_of(found), found.is_merely_late) == (Circuit.OPEN, True)
        found.asking(200.0)
        found.failed(200.0) if end == "failed" else found.answered()
        assert not found.is_merely_late


def test_outcomes_from_before_change_nothing_while_open() -> None:
    """Replies and failures of what was asked earlier neither close it nor lengthen the pause."""
    found = opened()
    found.answered()
    found.late(0.5)
    found.failed(0.5)
    assert state_of(found) is Circuit.OPEN
    assert found.allows(1.0)


def test_it_works_for_years() -> None:
    """A thousand failed probes overflow nothing."""
    found, now = opened(), 0.0
    for _ in range(1000):
        now += 8.0
        probe_fails(found, now)
    assert found.allows(now + 8.0)


@FAST
@given(st.integers(0, 1 << 32))
def test_it_is_always_asked_again(seed: int) -> None:
    """Whatever happens, at most one asks while it is not closed, and nothing keeps it from asking after the pause."""
    rng = random.Random(seed)
    found, now, out = CircuitBreaker(POLICY, rng.random), 0.0, 0
    for _ in range(300):
        now += rng.random() * 2
        if found.allows(now):
            found.asking(now)
            out += 1
        if found.state is not Circuit.HALF_OPEN and rng.random() < 0.3:
            continue
        if out:
            out -= 1
            outcome = rng.randrange(3)
            found.answered() if not outcome else found.late(now) if outcome == 1 else found.failed(now)
    while out and found.state is Circuit.HALF_OPEN:
        found.failed(now)
    assert found.allows(now + POLICY.pause_s_max)
