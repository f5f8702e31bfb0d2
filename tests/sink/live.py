"""Servers and databases for the sink's live tests."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.config import ClickHouseSettings
from pipeline.sink.migrations import migrate


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
