"""More than a worker, or an instance, may take on: late answers, OVERLOADED where preferred, events that say who."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.bench.slow_link import SlowLink
from pipeline.config import Settings
from pipeline.sink.migrations.runner import migrate
from tests.live.asking import Answered, Asking, echo_request, event_lines
from tests.live.load import Load
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.topics import TopicLog, prepare_topics
from tests.live.waiting import until

# 24 requests in fours, each four for 300 ms: the last would wait for 1.5 s.
REQUESTS = 24
DELAY_MS = 300
# Two hundred times what echo takes: too late for a probe, too.
SLOW_S = 4.0
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


@pytest.mark.timeout(180)
async def test_slow_instance_is_told(stack: LiveStack, processes: ProcessGroup) -> None:
    """One of two Tritons answers 4 s late: ClickHouse has an event that says which, why, and how few calls it has."""
    async with SlowLink(stack.triton_urls[1]).opened() as link:
        settings = stack.make_settings(triton={"urls": f"{stack.triton_urls[0]},{link.address}"})
        async with observed(settings, stack, processes) as worker, Asking(settings) as asking:
            async with TopicLog(settings, "events") as events, Load(asking, 60) as load:
                await load.answered(120, 30)
                link.delay_s = SLOW_S
                await events.until(tells_overload, 120, "the event")
            await load.all_answered(30)
            found = await until(lambda: overloads(settings), 20, "the row")
        await asyncio.to_thread(processes.stop)
        await until(lambda: idle(link), 10, "nobody is connected through the link any more")
        await asyncio.sleep(SLOW_S)  # what was under way has arrived by then, and its connection is closed
    assert {row[0] for row in found} == {"triton-1"}
    assert {row[1] for row in found} == {worker}
    assert found[0][2] in {"silent", "slow"}
    assert found[0][3] < 0.25 * 0.5
    assert found[0][4] == settings.retention.events_days * 86400


@pytest.mark.timeout(120)
async def test_full_queue_is_told_of_all_instances(stack: LiveStack, processes: ProcessGroup) -> None:
    """Requests that the fleet's queue has no room for are OVERLOADED, and each instance in use has one event."""
    settings = stack.make_settings(triton={"queue_max": 4}, worker={"batches_in_flight": 1})
    async with observed(settings, stack, processes), Asking(settings) as asking:
        request = {"parameters": {"delay_ms": DELAY_MS}, "enable_cache": False}
        answers = await asking.ask_all([echo_request(1.0, **request) for _ in range(60)], 60)
        assert {answer.error for answer in answers} == {None, "OVERLOADED"}
        await until(lambda: overloads(settings), 20, "the events")
        found = await overloads(settings)
    assert [(row[0], row[2]) for row in found] == [("triton-0", "queue"), ("triton-1", "queue")]
    refused = sum(answer.error == "OVERLOADED" for answer in answers)
    assert {0 < row[5] <= refused for row in found} == {True}


def tells_overload(records: list[ConsumerRecord]) -> bool:
    """Whether any of the event records has such a line."""
    return any(b'"instance.overloaded"' in record.value for record in records)


async def idle(link: SlowLink) -> bool:
    """Whether both ends of all connections are gone."""
    return not link._tasks


@asynccontextmanager
async def observed(settings: Settings, stack: LiveStack, processes: ProcessGroup) -> AsyncIterator[str]:
    """A worker, whose name it gives, and a sink on topics and a database of their own."""
    await prepare_topics(settings, stack.models.values())
    await migrate(settings.clickhouse)
    await processes.start("sink", settings)
    worker = await processes.start("worker", settings)
    yield (await worker.state())["worker"]
    worker.check_running()


async def overloads(settings: Settings) -> Sequence[Sequence[Any]]:
    """The rows of `instance.overloaded`: instance, worker, reason, share of the calls, seconds kept, refused."""
    sql = """
        SELECT instance, worker, JSONExtractString(attributes, 'reason'),
            JSONExtractFloat(attributes, 'calls_share'), dateDiff('second', toDateTime(occurred_at), expires_at),
            JSONExtractUInt(attributes, 'refused')
        FROM events WHERE event_type = 'instance.overloaded' ORDER BY occurred_at, instance
    """
    async with ClickHouseEventStore(settings.clickhouse) as store:
        return (await store.query(sql)).rows
