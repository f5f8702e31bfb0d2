"""Workers with names of their own (static membership): they come back to their partitions without a rebalance."""

import asyncio
import signal

import pytest

from pipeline.config import Settings
from tests.live.asking import Asking, event_lines
from tests.live.load import Load
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.topics import TopicLog, prepare_topics
from tests.live.waiting import until

PER_S = 100


def named(settings: Settings, instance_id: str) -> Settings:
    """The same settings for a worker of this name."""
    return settings.model_copy(update={"worker": settings.worker.model_copy(update={"instance_id": instance_id})})


@pytest.mark.timeout(120)
async def test_named_workers_come_back_without_a_rebalance(stack: LiveStack, processes: ProcessGroup) -> None:
    """One is killed, one is stopped, both start again under load: same generation, every request answered once."""
    settings = stack.make_settings(kafka={"session_timeout_s": 40})
    await prepare_topics(settings, stack.models.values())
    members = [named(settings, name) for name in ("one", "two")]
    workers = await asyncio.gather(*(processes.start("worker", member) for member in members))
    await asyncio.gather(*(worker.wait_partitions(lambda found: len(found) == 2) for worker in workers))
    async with Asking(settings) as asking, TopicLog(settings, "events", from_beginning=False) as events:
        async with Load(asking, PER_S, parameters={"delay_ms": 10}) as load:
            for worker, member, number in zip(workers, members, (signal.SIGKILL, signal.SIGTERM), strict=True):
                await load.answered(len(load.sent) + 50, 30)
                before = await worker.wait_partitions(lambda found: len(found) == 2)
                worker.send(number)
                assert await worker.wait_exit() == (0 if number == signal.SIGTERM else -number)
                again = await processes.start("worker", member)
                assert await again.wait_partitions(lambda found: len(found) == 2) == before
            await load.answered(len(load.sent) + 50, 30)
        results = await load.all_answered(30)
        lines = event_lines(events.records)
    assert set(results.values()) == {1}
    assert {line.incarnation for line in lines} == {0, 1}
    assert len({line.generation for line in lines}) == 1, "the group went through a rebalance"


@pytest.mark.timeout(120)
async def test_second_process_of_a_name_ends_the_first(stack: LiveStack, processes: ProcessGroup) -> None:
    """Two live processes under one name: the first says why and ends, the second serves on; no taking turns."""
    settings = named(stack.make_settings(), "one")
    await prepare_topics(settings, stack.models.values())
    first = await processes.start("worker", settings)
    async with Asking(settings) as asking, TopicLog(settings, "events") as events:
        async with Load(asking, PER_S, parameters={"delay_ms": 10}) as load:
            await load.answered(50, 30)
            second = await processes.start("worker", settings)

            async def one_ended() -> bool:
                return first.exit_code is not None or second.exit_code is not None

            await until(one_ended, 30, "one of two workers of one name ends")
            await load.answered(len(load.sent) + 50, 30)
        await load.all_answered(30)
        lines = event_lines(events.records)
    second.check_running()
    assert first.exit_code == 1
    assert "another process joined the group as PIPELINE_WORKER__INSTANCE_ID=one" in first.log
    assert {(line.generation, line.incarnation) for line in lines} == {(1, 0), (1, 1)}
