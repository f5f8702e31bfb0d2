"""The ClickHouse adapter on the real engine, over HTTP."""

from collections.abc import AsyncIterator, Mapping

import pytest

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.errors import EventStoreError
from pipeline.ports import EventStore, InsertBlock
from tests.adapters.event_store_contract import EventStoreContract, batch_of, blocks_of, expect_refusal
from tests.sink.live import migrated_database

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


@pytest.fixture
async def store(clickhouse_url: str) -> AsyncIterator[ClickHouseEventStore]:
    async with migrated_database(clickhouse_url) as (_, made):
        yield made


class TestClickHouseEventStore(EventStoreContract):
    """The real store keeps the contract."""

    async def row_counts(self, store: EventStore) -> Mapping[str, int]:
        assert isinstance(store, ClickHouseEventStore)
        answer = await store.query("SELECT (SELECT count() FROM events), (SELECT count() FROM requests)")
        return dict(zip(("events", "requests"), answer.rows[0], strict=True))


async def test_schema_errors_are_not_retryable(store: ClickHouseEventStore) -> None:
    """A column that is not there, or a value of another type, is refused for good."""
    assert not (await expect_refusal(store, InsertBlock("events", {"nonsense": ["x"]}))).retryable
    assert not (await expect_refusal(store, InsertBlock("events", {"duration_us": ["x"]}))).retryable


async def test_missing_table_names_the_cure(store: ClickHouseEventStore) -> None:
    """A table that is not there yet is waited for, and the message says what makes it."""
    refused = await expect_refusal(store, InsertBlock("absent", {"a": [1]}))
    assert refused.retryable
    assert "pipeline migrate" in str(refused)


async def test_insert_after_refusal_works(store: ClickHouseEventStore) -> None:
    """A refused insert leaves the connection usable and nothing behind."""
    await expect_refusal(store, InsertBlock("events", {"duration_us": ["x"]}))
    batch = batch_of(["a"])
    await store.insert(blocks_of(batch), batch.token)
    assert (await store.query("SELECT count() FROM events")).rows == [(2,)]


async def test_query_names_columns_and_types(store: ClickHouseEventStore) -> None:
    """Rows come with ClickHouse's names and types, parameters are bound by the server."""
    answer = await store.query("SELECT {n:UInt8} AS n, 'x' AS s", {"n": 7})
    assert (answer.column_names, answer.column_types) == (("n", "s"), ("UInt8", "String"))
    assert answer.rows == [(7, "x")]


async def test_raw_format_passes_through(store: ClickHouseEventStore) -> None:
    """A format of ClickHouse's own comes back byte for byte."""
    assert await store.query_raw("SELECT 1 AS a, 'x' AS b", "JSONEachRow") == b'{"a":1,"b":"x"}\n'


async def test_wrong_query_is_refused(store: ClickHouseEventStore) -> None:
    """A statement that ClickHouse cannot read is an error of ours with its words."""
    with pytest.raises(EventStoreError, match="nonsense") as refused:
        await store.query("SELECT nonsense")
    assert not refused.value.retryable
