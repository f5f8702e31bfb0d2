"""More than a worker may take on: late answers, or OVERLOADED where the owner prefers that."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.live.asking import Answered, Asking, echo_request, event_lines
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.topics import TopicLog, prepare_topics
from tests.live.waiting import until

# 24 requests in fours, each four for 300 ms: the last would wait for 1.5 s.
REQUESTS = 24
DELAY_MS = 300
LIMITS = {
    "late": {"max_in_flight": 4},
    "refused": {"max_in_flight": 4, "overloaded_after_ms": 500},
    # A row of 4 floats has 16 bytes.
    "refused by bytes": {"max_in_flight_bytes": 64, "overloaded_after_ms": 500},
}


@pytest.mark.timeout(120)
async def test_requests_that_wait_too_long_are_refused(stack: LiveStack, processes: ProcessGroup) -> None:
    """With `overloaded_after_ms` they are OVERLOADED, retryable, with their events; without it all succeed, late."""
    outcomes = await asyncio.gather(*(outcome(stack, processes, limits) for limits in LIMITS.values()))
    late, *refusals = outcomes
    assert Counter(answer.error for answer in late) == {None: REQUESTS}
    assert max(answer.result.parameters.queue_ms or 0.0 for answer in late) > 500
    for answers in refusals:
        refused = [answer for answer in answers if answer.status != "succeeded"]
        assert {answer.error for answer in refused} == {"OVERLOADED"}
        assert 0 < len(refused) < REQUESTS
        for answer in refused:
            assert answer.result.error is not None
            assert answer.result.error.retryable
            assert (answer.result.parameters.queue_ms or 0.0) >= 500
            assert answer.result.parameters.inference_ms is None


async def outcome(stack: LiveStack, processes: ProcessGroup, limits: dict[str, Any]) -> list[Answered]:
    """The answers of a worker with these limits; their events are checked."""
    settings = stack.make_settings(worker=limits)
    await prepare_topics(settings, stack.models.values())
    await processes.start("worker", settings)
    async with Asking(settings) as asking, TopicLog(settings, "events") as events:
        request = {"parameters": {"delay_ms": DELAY_MS}, "enable_cache": False}
        answers = await asking.ask_all([echo_request(1.0, 2.0, 3.0, 4.0, **request) for _ in range(REQUESTS)], 60)
        wanted = {answer.result.id for answer in answers}

        async def told() -> bool:
            return {line.request_id for line in event_lines(events.records)} == wanted

        await until(told, 20, "the events")
        lines = event_lines(events.records)
    for answer in answers:
        types = {line.event_type for line in lines if line.request_id == answer.result.id}
        assert ("inference.failed" in types) == (answer.status == "failed")
        assert ("inference.started" in types) == (answer.status == "succeeded")
    return answers
