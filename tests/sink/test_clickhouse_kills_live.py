"""`kill -9` of a ClickHouse in the middle of inserts, many times: one row for each event, and a view that equals."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pipeline import outage
from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.config import ClickHouseSettings
from pipeline.core.event_batch import BatchDraft, BatchLimits, EventBatch, EventRecord
from pipeline.core.sink_delivery import deliver
from pipeline.core.sink_plan import Plan
from pipeline.sink import delivering
from pipeline.sink.log_tables import LogTables
from pipeline.sink.metrics import SinkMetrics
from pipeline.sink.migrations import migrate
from pipeline.stack.ports import PortBook
from pipeline.stack.probes import answers_http_ok
from pipeline.stack.process import Child, ProcessSpec
from tests.sink.event_records import end, event, record
from tests.sink.test_log_tables_live import deliverer_for, figures, rows

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(240)]

KILLS = int(os.environ.get("CLICKHOUSE_KILLS", "12"))
_REQUESTS = 150
# Each insert makes so many parts: most of its time goes between parts, which is where a kill hurts.
_DAYS = 12
_LANES = 3


def batch_of(partition: int, number: int) -> EventBatch:
    """A batch of one partition, over many days of expiry."""
    start = number * _REQUESTS
    draft = BatchDraft("inference.events", partition, start, BatchLimits(100_000, 1 << 26))
    for offset in range(start, start + _REQUESTS):
        day = (datetime(2090, 1, 1, tzinfo=UTC) + timedelta(days=offset % _DAYS)).isoformat()
        name = f"{partition}-{offset}"
        lines = record(event(name, expires_at=day), end(name, expires_at=day, requests_expires_at=day))
        assert draft.offer(EventRecord.of(offset, lines, [("generation", b"1")]))
    return draft.finish()


class Server:
    """A ClickHouse of the test's own, which is killed and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        self.port = PortBook(folder / "ports.json").take("clickhouse", 28211)
        self._folder = folder
        self._child: Child | None = None

    async def start(self) -> None:
        """Returns when it answers."""
        argv = (sys.executable, "-m", "pipeline.stack.clickhouse_http")
        own = ("--path", str(self._folder / "data"), "--port", str(self.port))

        async def is_ready() -> bool:
            return await answers_http_ok(self.port, "/ping")

        spec = ProcessSpec("clickhouse", argv + own, dict(os.environ), Path(__file__).parents[2], is_ready)
        self._child = Child(spec, self._folder / "clickhouse.log")
        await self._child.start()
        await self._child.wait_ready()

    async def kill(self) -> None:
        """`kill -9`; returns when it is gone."""
        assert self._child is not None
        assert self._child.pid is not None
        os.kill(self._child.pid, signal.SIGKILL)
        await self._child.wait_exit()

    async def stop(self) -> None:
        """Ends it."""
        if self._child is not None:
            await self._child.stop()


@asynccontextmanager
async def running_server(folder: Path) -> AsyncIterator[Server]:
    server = Server(folder)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


async def test_kills_leave_no_lost_and_no_double_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lanes insert while the server is killed again and again, at moments from a seed."""
    monkeypatch.setattr(outage, "_PAUSE_S_MAX", 0.5)
    monkeypatch.setattr(delivering, "_LOOK_AGAIN_S", 0.5)
    monkeypatch.setattr(delivering, "_LOOKS_MAX", 50)
    rng = random.Random(int(os.environ.get("SIMULATION_SEEDS", "1").partition(":")[0]))
    registry = CollectorRegistry()
    metrics = SinkMetrics.on(registry)
    done = asyncio.Event()
    delivered = [0] * _LANES
    async with running_server(tmp_path) as server:
        settings = ClickHouseSettings(url=f"http://127.0.0.1:{server.port}")
        await migrate(settings)
        async with ClickHouseEventStore(settings) as store:
            deliverer = deliverer_for(store, metrics)

            async def lane(partition: int) -> None:
                while not done.is_set():
                    batch = batch_of(partition, delivered[partition])
                    plan = Plan(batch.end, batch.digest, time.time())
                    flow = deliver(batch, plan, 1, repeated=False)
                    assert await deliverer.run(flow, batch, asyncio.Event()) is not None
                    delivered[partition] += 1

            async with asyncio.TaskGroup() as group:
                for partition in range(_LANES):
                    group.create_task(lane(partition))
                for _ in range(KILLS):
                    target = delivered[0] + 1
                    while delivered[0] < target:  # noqa: ASYNC110 - then something else is on its way
                        await asyncio.sleep(rng.uniform(0.001, 0.1))
                    await server.kill()
                    await server.start()
                done.set()
            total = sum(delivered) * _REQUESTS
            assert await figures(store) == rows(total)
            spans = [batch_of(0, 0).span("requests")]
            assert await LogTables(store).differences(spans[0]) == []
    retries = registry.get_sample_value("inference_sink_retries_total")
    assert retries is not None
    assert retries >= KILLS / 2, "the kills met no insert"
