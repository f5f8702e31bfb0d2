"""Whether a lane still is ours: what heartbeats say, and what is asked before anything is published."""

import asyncio

import pytest

from pipeline.worker.membership import Membership
from tests.simulation.virtual_time import settle, simulated, the_clock
from tests.worker.lanes import new_lane

SESSION_S = 10.0
GENERATION = 7


class ScriptedGroup:
    """Answers heartbeats: one answer after the other, the last for ever.

    Args:
        answers: generations; None for "Kafka gave no answer".
        takes_s: how long an answer takes.
    """

    def __init__(self, *answers: int | None, takes_s: float = 0.001) -> None:
        self.sent_at: list[float] = []
        self.takes_s = takes_s
        self._answers = list(answers)

    async def send(self) -> int | None:
        """One heartbeat."""
        self.sent_at.append(the_clock().monotonic())
        await asyncio.sleep(self.takes_s)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def membership_of(group: ScriptedGroup) -> Membership:
    """A member of this group, on the virtual clock."""
    membership = Membership(SESSION_S, the_clock().monotonic)
    membership.send_with(group.send)
    return membership


@simulated
async def test_fresh_heartbeat_is_enough() -> None:
    """Less than half a session after a heartbeat began nothing is asked; from then on it is."""
    membership = membership_of(group := ScriptedGroup(GENERATION))
    lane = new_lane(generation=GENERATION)
    membership.note(GENERATION, the_clock().monotonic())
    the_clock().advance(SESSION_S / 2 - 0.001)
    assert membership.is_fresh(lane)
    assert await membership.hold(lane)
    assert group.sent_at == []
    the_clock().advance(0.001)
    assert not membership.is_fresh(lane)
    assert await membership.hold(lane)
    assert len(group.sent_at) == 1
    assert membership.is_fresh(lane)


@simulated
async def test_nothing_holds_before_the_first_heartbeat() -> None:
    """A member that has not heard of its group yet asks first."""
    membership = membership_of(group := ScriptedGroup(GENERATION))
    assert not membership.is_fresh(new_lane(generation=GENERATION))
    assert await membership.hold(new_lane(generation=GENERATION))
    assert len(group.sent_at) == 1


@pytest.mark.parametrize("answer", [GENERATION + 1, -1])
@simulated
async def test_lane_of_another_generation_is_closed(answer: int) -> None:
    """After a pause heartbeats of a new generation, or of none, succeed: they hold nothing of the old one."""
    membership = membership_of(ScriptedGroup(answer))
    lane = new_lane(generation=GENERATION)
    membership.note(GENERATION, the_clock().monotonic())
    the_clock().advance(SESSION_S)
    assert not await membership.hold(lane)
    assert lane.closed


@simulated
async def test_newer_heartbeat_makes_an_old_lane_stale() -> None:
    """A heartbeat of the next generation says nothing of a lane of the one before, however young it is."""
    membership = membership_of(ScriptedGroup(GENERATION + 1))
    membership.note(GENERATION + 1, the_clock().monotonic())
    old, new = new_lane(generation=GENERATION), new_lane(generation=GENERATION + 1)
    assert not membership.is_fresh(old)
    assert membership.is_fresh(new)
    assert not await membership.hold(old)
    assert (old.closed, new.closed) == (True, False)


@simulated
async def test_kafka_away_is_asked_until_it_answers() -> None:
    """No answer is no verdict: the lane stays open, unpublished, until there is one."""
    membership = membership_of(group := ScriptedGroup(None, None, None, GENERATION))
    lane = new_lane(generation=GENERATION)
    holding = asyncio.ensure_future(membership.hold(lane))
    await settle()
    assert not holding.done()
    assert await holding
    assert len(group.sent_at) == 4
    assert min(b - a for a, b in zip(group.sent_at, group.sent_at[1:], strict=False)) >= 0.1, "a busy loop"


@simulated
async def test_lane_that_is_closed_meanwhile_is_not_held() -> None:
    """A rebalance closes the lane while Kafka is asked: the asking ends."""
    membership = membership_of(group := ScriptedGroup(None))
    lane = new_lane(generation=GENERATION)
    holding = asyncio.ensure_future(membership.hold(lane))
    await asyncio.sleep(1)
    lane.closed = True
    assert not await holding
    sent = len(group.sent_at)
    await asyncio.sleep(10)
    assert len(group.sent_at) == sent


@simulated
async def test_freshness_counts_from_the_beginning_of_a_heartbeat() -> None:
    """An answer that took half a session says what was true when it was asked for: another is needed."""
    membership = membership_of(group := ScriptedGroup(GENERATION, takes_s=SESSION_S / 2))
    lane = new_lane(generation=GENERATION)
    holding = asyncio.ensure_future(membership.hold(lane))
    await asyncio.sleep(SESSION_S / 2 + 1)
    assert not holding.done()
    group.takes_s = 0.001
    assert await holding
    assert len(group.sent_at) == 3
