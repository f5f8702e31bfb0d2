"""One partition's buffer: when a batch is due, how much is held, and what a plan demands."""

import asyncio

import pytest

from pipeline.core.event_batch import BatchLimits, EventBatch, Seen
from pipeline.core.sink_plan import Plan, Resumption
from pipeline.errors import TopicError
from pipeline.sink.lane import Lane, LaneOptions
from tests.sink.event_records import event, record

HOUR_S = 3600.0


def lane_of(rows_max: int = 10, wait_s: float = HOUR_S, start: int = 0, planned_end: int | None = None) -> Lane:
    plan = None if planned_end is None else Plan(planned_end, "", 0.0)
    options = LaneOptions(BatchLimits(rows_max, 1 << 20), wait_s)
    return Lane("inference.events", 0, Resumption(start, Seen(), plan), options)


def fill(lane: Lane, first: int, count: int) -> None:
    now = asyncio.get_running_loop().time()
    for offset in range(first, first + count):
        lane.append(offset, record(event(f"r-{offset}")).strip(), (), now)


async def take(lane: Lane) -> EventBatch:
    async with asyncio.timeout(5):
        return await lane.take()


async def test_full_batch_goes_at_once() -> None:
    """A batch that reached its limit does not wait, and what is left belongs to the next."""
    lane = lane_of()
    fill(lane, 0, 12)
    assert lane.is_full
    batch = await take(lane)
    assert (batch.start, batch.end, lane.start) == (0, 10, 10)
    assert not lane.is_full


async def test_small_batch_goes_after_its_wait() -> None:
    """A batch below its limits goes when its first record is old enough."""
    lane = lane_of(wait_s=0.01)
    fill(lane, 0, 3)
    assert (await take(lane)).end == 3


async def test_records_during_the_wait_are_taken() -> None:
    """A waiting batch is due as soon as it is full."""
    lane = lane_of()
    waiting = asyncio.create_task(take(lane))
    fill(lane, 0, 4)
    await asyncio.sleep(0)
    assert not waiting.done()
    fill(lane, 4, 6)
    assert (await waiting).end == 10


async def test_plan_is_waited_for_beyond_limits() -> None:
    """A repeated range is taken whole, however small the limits are by now."""
    lane = lane_of(rows_max=1, wait_s=0.01, start=5, planned_end=9)
    fill(lane, 5, 3)
    assert not lane.is_full
    fill(lane, 8, 4)
    batch = await take(lane)
    assert (batch.start, batch.end, batch.row_counts) == (5, 9, {"events": 4})
    assert lane.planned_end is None


async def test_plan_over_a_gap_ends_by_position() -> None:
    """A planned range whose last offsets hold no record ends once the consumer is past them."""
    lane = lane_of(start=5, planned_end=9)
    fill(lane, 5, 2)
    waiting = asyncio.create_task(take(lane))
    await asyncio.sleep(0)
    lane.reach(9)
    assert (await waiting).end == 9


async def test_fetched_again_is_taken_once() -> None:
    """A record that comes twice is one row."""
    lane = lane_of(wait_s=0.01)
    fill(lane, 0, 3)
    fill(lane, 0, 4)
    assert (await take(lane)).row_counts == {"events": 4}


async def test_topic_made_anew_is_noticed() -> None:
    """Offsets below the start mean another log: the sink stops instead of skipping it."""
    lane = lane_of(start=100)
    with pytest.raises(TopicError, match="made anew"):
        fill(lane, 0, 1)
