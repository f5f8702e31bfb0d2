"""Fixtures of the sink's live tests."""

from collections.abc import AsyncIterator

import pytest

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.config import ClickHouseSettings
from tests.sink.live import migrated_database


@pytest.fixture
async def database(clickhouse_url: str) -> AsyncIterator[tuple[ClickHouseSettings, ClickHouseEventStore]]:
    async with migrated_database(clickhouse_url) as made:
        yield made
