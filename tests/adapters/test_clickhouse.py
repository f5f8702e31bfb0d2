"""The ClickHouse adapter without a server: the contract on the fake, settings, and which errors are retried."""

from collections.abc import Mapping

import aiohttp
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, ProgrammingError

from pipeline.adapters.clickhouse import ClickHouseEventStore, is_retryable
from pipeline.config import ClickHouseSettings
from pipeline.errors import EventStoreError, SettingsError
from pipeline.ports import EventStore
from tests.adapters.event_store_contract import EventStoreContract
from tests.simulation.event_store import MemoryEventStore


class TestMemoryEventStore(EventStoreContract):
    """The fake keeps the contract."""

    @pytest.fixture
    def store(self) -> MemoryEventStore:
        return MemoryEventStore()

    async def row_counts(self, store: EventStore) -> Mapping[str, int]:
        assert isinstance(store, MemoryEventStore)
        return {table: len(store.rows.get(table, [])) for table in ("events", "requests")}


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (DatabaseError("too many parts", code=252), True),
        (DatabaseError("memory", code=241), True),
        (DatabaseError("read only", code=242), True),
        (DatabaseError("disk full", code=243), True),
        (DatabaseError("unknown table", code=60), True),
        (DatabaseError("unknown column", code=16), False),
        (DatabaseError("type mismatch", code=53), False),
        (DatabaseError("wrong password", code=516), False),
        (OperationalError("Network Error"), True),
        (DatabaseError("HTTP driver received HTTP status 502"), True),
        (DatabaseError("HTTP driver received HTTP status 404"), False),
        (ProgrammingError("no such setting"), False),
        (aiohttp.ServerDisconnectedError(), True),
        (TimeoutError(), True),
        (ValueError(), False),
    ],
)
def test_retry_is_decided_from_the_cause(error: Exception, retryable: bool) -> None:
    """Load, space, restarts and the network are waited for; a wrong insert is not."""
    assert is_retryable(error) is retryable


@pytest.mark.parametrize("url", [None, "127.0.0.1:8123", "ftp://x", "http://user:secret@host:8123"])
def test_wrong_address_is_refused_at_once(url: str | None) -> None:
    """A wrong address stops the start with the setting's name, and never with a password."""
    with pytest.raises(SettingsError, match="PIPELINE_CLICKHOUSE__URL") as refused:
        ClickHouseEventStore(ClickHouseSettings(url=url))
    assert "secret" not in str(refused.value)


async def test_unreachable_server_is_retryable() -> None:
    """A server that is down is an outage, not a mistake."""
    async with ClickHouseEventStore(ClickHouseSettings(url="http://127.0.0.1:1")) as store:
        with pytest.raises(EventStoreError) as failed:
            await store.command("SELECT 1")
    assert failed.value.retryable
