"""Tritons that die, hang, or are not there."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from tests.live.asking import Asking, echo_request
from tests.live.gate import Gate
from tests.live.load import Load
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.topics import prepare_topics
from tests.live.triton_statistics import TritonStatistics
from tests.live.waiting import until


@pytest.fixture
async def fleet(stack: LiveStack, statistics: TritonStatistics) -> AsyncIterator[LiveStack]:
    """The stack, whose Tritons may be hurt: both serve again before the next test."""
    yield stack

    async def both_serve() -> bool:
        try:
            stack.pid("triton-0")
            stack.pid("triton-1")
            await statistics.runs("echo")
        except (KeyError, OSError):
            return False
        return True

    await until(both_serve, 30, "both Tritons serve echo again")


@pytest.mark.timeout(90)
async def test_killed_instance_fails_no_request(asking: Asking, fleet: LiveStack) -> None:
    """SIGKILL of one of two Tritons under load: no request fails, and the instance comes back."""
    killed = fleet.pid("triton-0")
    async with Load(asking, 100, parameters={"delay_ms": 10}) as load:
        await load.answered(30, 20)
        os.kill(killed, signal.SIGKILL)
        await load.answered(200, 30)
        await until(lambda: back(fleet, "triton-0", killed), 30, "the supervisor has started triton-0 again")
    await load.all_answered(30)


@pytest.mark.timeout(90)
async def test_stopped_instance_fails_no_request(asking: Asking, fleet: LiveStack) -> None:
    """A Triton that hangs (SIGSTOP) with calls of ours: they are given to the other one, none fails."""
    stopped = fleet.pid("triton-1")
    try:
        async with Load(asking, 100, parameters={"delay_ms": 10}) as load:
            await load.answered(30, 20)
            os.kill(stopped, signal.SIGSTOP)
            await load.answered(200, 30)
        await load.all_answered(40)
    finally:
        os.kill(stopped, signal.SIGCONT)


@pytest.mark.timeout(120)
async def test_requests_wait_for_a_dead_fleet(asking: Asking, fleet: LiveStack) -> None:
    """Both Tritons are killed: requests wait, and are answered when the supervisor has them back."""
    killed = [fleet.pid(name) for name in ("triton-0", "triton-1")]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    answers = await asking.ask_all([echo_request() for _ in range(20)], timeout_s=40)
    assert {answer.status for answer in answers} == {"succeeded"}
    assert {answer.cache_status for answer in answers} == {"miss"}


@pytest.mark.timeout(90)
async def test_fleet_absent_at_the_start_is_waited_for(stack: LiveStack, processes: ProcessGroup) -> None:
    """No Triton when the worker starts: INFERENCE_UNAVAILABLE after the limit; who has more time is answered later."""
    async with Gate(stack.triton_urls[0]) as gate:
        settings = stack.make_settings(triton={"urls": gate.address}, worker={"unavailable_timeout_ms": 1000})
        await prepare_topics(settings, stack.models.values())
        await processes.start("worker", settings)
        async with Asking(settings) as asking:
            patient = asyncio.create_task(asking.ask(echo_request(timeout_ms=30_000), timeout_s=40))
            answer = await asking.ask(echo_request())
            assert (answer.status, answer.error) == ("failed", "INFERENCE_UNAVAILABLE")
            assert answer.result.error is not None
            assert answer.result.error.retryable
            late = await asking.ask(echo_request(timeout_ms=500))
            assert late.error == "INFERENCE_UNAVAILABLE"
            assert not patient.done()
            await gate.open()
            assert (await patient).status == "succeeded"
            assert (await asking.ask(echo_request())).status == "succeeded"


async def back(stack: LiveStack, part: str, killed: int) -> bool:
    """Whether another process serves in the place of a killed one."""
    try:
        return stack.pid(part) != killed
    except KeyError:
        return False
