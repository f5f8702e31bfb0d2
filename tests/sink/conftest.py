"""Fixtures of the sink's live tests."""

from collections.abc import AsyncIterator, Iterator

import pytest

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.config import ClickHouseSettings
from tests.sink.live import migrated_database, servers


@pytest.fixture(scope="session")
def sink_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with servers(tmp_path_factory.mktemp("servers")) as addresses:
        yield addresses


@pytest.fixture(scope="session")
def bootstrap_servers(sink_servers: tuple[str, str]) -> str:
    return sink_servers[0]


@pytest.fixture(scope="session")
def clickhouse_url(sink_servers: tuple[str, str]) -> str:
    return sink_servers[1]


@pytest.fixture
async def database(clickhouse_url: str) -> AsyncIterator[tuple[ClickHouseSettings, ClickHouseEventStore]]:
    async with migrated_database(clickhouse_url) as made:
        yield made
