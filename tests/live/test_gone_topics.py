"""A requests topic that is deleted while workers read it, and made anew later."""

import asyncio
import signal
import time

import pytest

from pipeline.adapters.topics import create_topics
from pipeline.bench.rig import cpu_seconds
from tests.live.asking import Asking, echo_request
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.test_ledger import delete_topics
from tests.live.topics import prepare_topics
from tests.live.waiting import LOOK_S

# Left to itself aiokafka takes 0.45 to 0.55 of a core; 0.012 were measured. A tick of CPU time is 10 ms.
WATCHED_S = 3.0
CPU_SHARE_MAX = 0.05
# The whole limit of an end is 12 s, and then the exit code is 1.
END_S = 5.0


async def cpu_share(pid: int, seconds: float) -> float:
    """CPU time of a process per second, over so many."""
    began, used = time.monotonic(), cpu_seconds(pid)
    while (elapsed := time.monotonic() - began) < seconds:  # noqa: ASYNC110 - CPU time is read, no event tells of it
        await asyncio.sleep(LOOK_S)
    return (cpu_seconds(pid) - used) / elapsed


@pytest.mark.timeout(120)
async def test_workers_wait_for_a_topic_that_is_gone(stack: LiveStack, processes: ProcessGroup) -> None:
    """They say so in one line, are not ready, cost next to nothing, end when asked, and serve the topic made anew."""
    settings = stack.make_settings()
    await prepare_topics(settings, stack.models.values())
    workers = await asyncio.gather(*(processes.start("worker", settings) for _ in range(2)))
    ended, other = workers
    line = f"topics are gone: {settings.topic('requests')}; `pipeline topics create` makes them; waiting"
    async with Asking(settings) as asking:
        assert (await asking.ask(echo_request())).status == "succeeded"
    await delete_topics(settings, "requests")
    await asyncio.gather(*(worker.wait_log(line) for worker in workers))
    assert await cpu_share(other.pid, WATCHED_S) < CPU_SHARE_MAX
    status, body = await other.get("/health/ready")
    assert (status, settings.topic("requests") in body) == (503, True)
    ended.send(signal.SIGTERM)
    assert await ended.wait_exit(END_S) == 0
    await create_topics(settings)
    await other.wait_ready()
    async with Asking(settings) as asking:
        assert (await asking.ask(echo_request())).status == "succeeded"
    assert [worker.log.count(line) for worker in workers] == [1, 1]
