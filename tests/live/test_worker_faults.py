"""Workers that die, come and go under load."""

import asyncio
import signal

import pytest

from tests.live.asking import Asking
from tests.live.load import Load, place_of, places
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.topics import committed_offsets, end_offsets, prepare_topics

# The broker's least: a dead worker's partitions wait this long.
SESSION_S = 6
PER_S = 100


@pytest.mark.timeout(120)
async def test_killed_worker_loses_no_request(stack: LiveStack, processes: ProcessGroup) -> None:
    """SIGKILL of a worker under load: another takes over, every request is answered once, everything is committed."""
    settings = stack.make_settings(kafka={"session_timeout_s": SESSION_S})
    await prepare_topics(settings, stack.models.values())
    first, second = await asyncio.gather(*(processes.start("worker", settings) for _ in range(2)))
    await asyncio.gather(*(worker.wait_partitions(lambda found: len(found) == 2) for worker in (first, second)))
    async with Asking(settings) as asking:
        # Each runs longer than the time between two commits: whatever is committed, others run and would be lost.
        async with Load(asking, 15, parameters={"delay_ms": 600}) as load:
            await load.answered(30, 30)
            first.send(signal.SIGKILL)
            assert await first.wait_exit() == -signal.SIGKILL
            await second.wait_partitions(lambda found: len(found) == 4)
        results = await load.all_answered(30)
    assert set(results.values()) == {1}, "what the dead worker had answered was answered again"
    second.send(signal.SIGTERM)
    assert await second.wait_exit() == 0
    assert await committed_offsets(settings) == await end_offsets(settings, "requests")


@pytest.mark.timeout(120)
async def test_workers_join_and_leave_without_loss_or_repetition(stack: LiveStack, processes: ProcessGroup) -> None:
    """A worker joins, another leaves on SIGTERM, all under load: exit code 0, every request is answered once."""
    settings = stack.make_settings(kafka={"session_timeout_s": SESSION_S})
    await prepare_topics(settings, stack.models.values())
    first = await processes.start("worker", settings)
    async with Asking(settings) as asking:
        async with Load(asking, PER_S, parameters={"delay_ms": 10}) as load:
            await load.answered(50, 30)
            second = await processes.start("worker", settings)
            await asyncio.gather(*(worker.wait_partitions(lambda found: len(found) == 2) for worker in (first, second)))
            await load.answered(len(load.sent) + 50, 30)
            first.send(signal.SIGTERM)
            before = places(asking.results.records)
            assert await first.wait_exit() == 0
            await second.wait_partitions(lambda found: len(found) == 4)
            await load.answered(len(load.sent) + 50, 30)
        results = await load.all_answered(30)
        again = {place: count for place, count in results.items() if count > 1}
    assert not again.keys() & before, "answered before the stop, and again after it"
    assert not again, "nobody died, and yet there are second answers"
    second.send(signal.SIGTERM)
    assert await second.wait_exit() == 0
    assert await committed_offsets(settings) == await end_offsets(settings, "requests")


@pytest.mark.timeout(90)
async def test_stopped_workers_answers_are_found_by_the_next(stack: LiveStack, processes: ProcessGroup) -> None:
    """What came while no worker ran is answered by the next one, from the committed offset, once."""
    settings = stack.make_settings()
    await prepare_topics(settings, stack.models.values())
    async with Asking(settings) as asking:
        async with Load(asking, 200) as load:
            worker = await processes.start("worker", settings)
            await load.answered(100, 30)
            worker.send(signal.SIGTERM)
            assert await worker.wait_exit() == 0
        answered = places(asking.results.records)
        assert answered < set(load.sent)
        await processes.start("worker", settings)
        results = await load.all_answered(30)
    assert max(results.values()) == 1
    assert {place_of(record) for record in asking.results.records} == set(load.sent)


@pytest.mark.timeout(120)
async def test_paused_worker_loses_no_request(stack: LiveStack, processes: ProcessGroup) -> None:
    """A worker that is paused beyond its session (SIGSTOP) is replaced; when it goes on it takes part again."""
    settings = stack.make_settings(kafka={"session_timeout_s": SESSION_S})
    await prepare_topics(settings, stack.models.values())
    paused, other = await asyncio.gather(*(processes.start("worker", settings) for _ in range(2)))
    await asyncio.gather(*(worker.wait_partitions(lambda found: len(found) == 2) for worker in (paused, other)))
    async with Asking(settings) as asking:
        async with Load(asking, PER_S, parameters={"delay_ms": 10}) as load:
            await load.answered(100, 30)
            paused.send(signal.SIGSTOP)
            await other.wait_partitions(lambda found: len(found) == 4)
            paused.send(signal.SIGCONT)
            await other.wait_partitions(lambda found: len(found) == 2)
            await paused.wait_partitions(lambda found: len(found) == 2)
            await load.answered(len(load.sent) + 50, 30)
        await load.all_answered(30)
