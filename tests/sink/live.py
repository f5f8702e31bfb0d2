"""Servers and databases for the sink's live tests."""

import asyncio
import contextlib
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.config import ClickHouseSettings
from pipeline.sink.migrations import migrate

_SERVERS = """
import asyncio, json, sys
from pathlib import Path
from pipeline.stack import Stack, StackPlan
async def main():
    async with Stack(StackPlan(Path(sys.argv[1]), valkey=False, triton_count=0)) as stack:
        await stack.start_servers()
        print(json.dumps([stack.endpoints.kafka, stack.endpoints.clickhouse]), flush=True)
        await stack.wait_stopped()
asyncio.run(main())
"""


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[tuple[str, str]]:
    """Kafka and ClickHouse of their own: bootstrap servers and URL."""
    with subprocess.Popen([sys.executable, "-c", _SERVERS, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            kafka, clickhouse = json.loads(process.stdout.readline())
            yield kafka, clickhouse
        finally:
            process.terminate()
            process.wait(30)


@contextlib.asynccontextmanager
async def migrated_database(url: str) -> AsyncIterator[tuple[ClickHouseSettings, ClickHouseEventStore]]:
    """A database with the log's tables, dropped afterwards."""
    settings = ClickHouseSettings(url=url, database=f"test_{uuid.uuid4().hex[:12]}")
    await migrate(settings)
    async with ClickHouseEventStore(settings) as store:
        try:
            yield settings, store
        finally:
            await store.command(f"DROP DATABASE IF EXISTS {settings.database}")


async def until_rows(store: ClickHouseEventStore, table: str, count: int, timeout_s: float = 30.0) -> None:
    """Waits until a table has as many rows."""
    async with asyncio.timeout(timeout_s):
        while (await store.query(f"SELECT count() FROM {table}")).rows[0][0] < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
