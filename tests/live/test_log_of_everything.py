"""From a request to its rows: worker, events topic, sink, ClickHouse."""

import signal
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.config import Settings
from pipeline.sink.migrations.runner import migrate
from tests.live.asking import Asking, echo_request, fresh_id
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.topics import TopicLog, prepare_topics
from tests.live.waiting import until


async def query(settings: Settings, sql: str) -> Sequence[Sequence[Any]]:
    async with ClickHouseEventStore(settings.clickhouse) as store:
        return (await store.query(sql)).rows


@pytest.mark.timeout(120)
async def test_every_request_has_one_row(stack: LiveStack, processes: ProcessGroup) -> None:
    """Misses, hits and failures arrive in ClickHouse, each once, also when the sink is killed in between."""
    # The broker's least session: the killed sink's partitions wait this long.
    settings = stack.make_settings(kafka={"session_timeout_s": 6})
    await prepare_topics(settings, stack.models.values())
    await migrate(settings.clickhouse)
    await processes.start("worker", settings)
    sink = await processes.start("sink", settings)
    first = [echo_request() for _ in range(60)]
    second = [{**request, "id": fresh_id()} for request in first[:30]]
    bad = [echo_request(model_name="nobody") for _ in range(10)]
    async with Asking(settings) as asking, TopicLog(settings, "events") as events:
        answers = await asking.ask_all(first)
        sink.send(signal.SIGKILL)
        await sink.wait_exit()
        answers += await asking.ask_all([*second, *bad])
        await processes.start("sink", settings)

        async def rows() -> bool:
            return bool((await query(settings, "SELECT count() FROM requests"))[0][0] >= len(answers))

        await until(rows, 40, f"{len(answers)} rows")
        lines = [line for record in events.records for line in record.value.splitlines()]
    counts = "SELECT count(), uniqExact(request_id) FROM requests"
    assert [tuple(row) for row in await query(settings, counts)] == [(100, 100)]
    counts = "SELECT count(), uniqExact(event_id) FROM events"
    assert [tuple(row) for row in await query(settings, counts)] == [(len(lines), len(lines))]
    statuses = Counter((answer.status, answer.error or "", answer.cache_status or "") for answer in answers)
    found = await query(settings, "SELECT status, error_code, cache_status, count() FROM requests GROUP BY ALL")
    assert {(status, code, cache): count for status, code, cache, count in found} == statuses
    sums = await query(settings, "SELECT sum(requests), sum(input_bytes) FROM requests_per_minute")
    assert tuple(sums[0]) == (100, 4 * len(answers))
    stored = {row[0]: row[1] for row in await query(settings, "SELECT request_id, result FROM requests")}
    assert {answer.result.id: answer.record.value.decode() for answer in answers} == stored
