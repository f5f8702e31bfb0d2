"""The ClickHouse front with unmodified clients."""

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from pipeline.stack.ports import PortBook
from pipeline.stack.probes import answers_http_ok
from pipeline.stack.process import Child, ProcessSpec

pytestmark = pytest.mark.live
TABLES = (
    "CREATE DATABASE d",
    "CREATE TABLE d.t (a UInt64, b String) ENGINE = MergeTree ORDER BY a "
    "SETTINGS non_replicated_deduplication_window = 100",
    "CREATE TABLE d.v (k UInt64, n SimpleAggregateFunction(sum, UInt64)) ENGINE = AggregatingMergeTree ORDER BY k "
    "SETTINGS non_replicated_deduplication_window = 100",
    "CREATE MATERIALIZED VIEW d.m TO d.v AS SELECT a % 10 AS k, count() AS n FROM d.t GROUP BY k",
)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    """A front of its own, stopped at the end."""
    number = PortBook(tmp_path / "ports.json").take("clickhouse", 28123)
    argv = (sys.executable, "-m", "pipeline.stack.clickhouse_http", "--path", str(tmp_path / "data"))
    limits = ("--port", str(number), "--body-bytes-max", "20000000")

    async def is_ready() -> bool:
        return await answers_http_ok(number, "/ping")

    spec = ProcessSpec("front", argv + limits, dict(os.environ), Path(__file__).parents[2], is_ready)
    child = Child(spec, tmp_path / "front.log")
    await child.start()
    try:
        await child.wait_ready()
        yield number
    finally:
        await child.stop()
    assert child.find_cause() == "no output"


def connect(port: int, **options: Any) -> Any:
    return clickhouse_connect.get_client(host="127.0.0.1", port=port, **options)


def check_sync_client(port: int) -> None:
    with connect(port, compress="lz4") as client:
        for statement in TABLES:
            client.command(statement)
        # Over 1 MiB: several lz4 frames in one body, which must all be read.
        rows = [[number, f"row {number} " * 20] for number in range(30_000)]
        for _ in range(2):
            client.insert(
                "d.t",
                rows,
                column_names=["a", "b"],
                settings={
                    "async_insert": 0,
                    "insert_deduplication_token": "batch-1",
                    "deduplicate_blocks_in_dependent_materialized_views": 1,
                },
            )
        assert client.query("SELECT count(), uniqExact(a) FROM d.t").result_rows == [(30_000, 30_000)]
        assert client.query("SELECT sum(n) FROM d.v").result_rows == [(30_000,)]
        client.raw_insert("d.t", insert_block=b'{"a": 1, "b": "x"}\n', fmt="JSONEachRow", settings={"async_insert": 0})
        assert client.command("SELECT count() FROM d.t") == 30_001
        text = "it's\n\\ {x}"
        query = "SELECT {n:UInt8} + 1, {s:String}, {l:Array(String)}"
        asked = client.query(query, parameters={"n": 4, "s": text, "l": ["p", text]})
        assert asked.result_rows == [(5, text, ["p", text])]
        with client.raw_stream("SELECT number FROM numbers(500000)", fmt="TSV") as stream:
            assert sum(1 for _ in stream) == 500_000


async def test_sync_client_works(port: int) -> None:
    """DDL, compressed inserts, deduplication with a view, parameters and streams, by the sync client."""
    await asyncio.to_thread(check_sync_client, port)


async def test_async_client_works(port: int) -> None:
    """DDL, an uncompressed Native insert, and a query, by the async client."""
    client = await clickhouse_connect.get_async_client(host="127.0.0.1", port=port, compress=False)
    try:
        await client.command("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
        await client.insert("t", [[1], [2]], column_names=["a"], settings={"async_insert": 0})
        assert (await client.query("SELECT sum(a) FROM t")).result_rows == [(3,)]
    finally:
        await client.close()


async def test_errors_carry_the_servers_codes(port: int) -> None:
    """Code header, status and text are ClickHouse's; an unknown setting is refused, never swallowed."""
    cases = [
        ("SELECT * FROM nope", "", 404, "60"),
        ("SELECT FROM WHERE", "", 400, "62"),
        ("SELECT 1", "?nope=1", 404, "115"),
    ]
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        for query, setting, status, code in cases:
            async with session.post(f"/{setting}", data=query) as answer:
                assert answer.status == status
                assert answer.headers["X-ClickHouse-Exception-Code"] == code
                assert (await answer.text()).startswith(f"Code: {code}. DB::Exception")
        async with session.get("/", params={"query": "CREATE TABLE t (a UInt8) ENGINE = Memory"}) as answer:
            assert answer.headers["X-ClickHouse-Exception-Code"] == "164"  # GET is read-only
        async with session.post("/", data=io.BytesIO(b"x" * 20_000_001)) as answer:
            assert answer.headers["X-ClickHouse-Exception-Code"] == "290"
        for path in ("/ping", "/replicas_status"):
            async with session.get(path) as answer:
                assert await answer.text() == "Ok.\n"


async def test_error_after_first_rows_reaches_the_client(port: int) -> None:
    """A query that fails while its rows are sent is an error for the client, not a short result."""

    def ask() -> list[Any]:
        with connect(port) as client:
            return list(client.query("SELECT throwIf(number = 900000) FROM numbers(1000000)").result_rows)

    with pytest.raises(DatabaseError, match="395"):
        await asyncio.to_thread(ask)


async def test_settings_end_with_their_request(port: int) -> None:
    """Concurrent requests on shared connections never see each other's settings."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

        async def ask(number: int) -> bool:
            settings = {"max_block_size": str(1000 + number)} if number % 2 else {}
            async with session.post("/", params=settings, data="SELECT getSetting('max_block_size')") as answer:
                seen = (await answer.text()).strip()
            return seen == (str(1000 + number) if number % 2 else default)

        async with session.post("/", data="SELECT getSetting('max_block_size')") as answer:
            default = (await answer.text()).strip()
        assert all(await asyncio.gather(*(ask(number) for number in range(60))))


async def test_expired_rows_are_merged_away(port: int) -> None:
    """Background merges run between requests and drop rows past their TTL."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

        async def run(query: str) -> str:
            async with session.post("/", data=query) as answer:
                assert answer.status == 200, await answer.text()
                return (await answer.text()).strip()

        await run(
            "CREATE TABLE t (a UInt8, e DateTime) ENGINE = MergeTree ORDER BY a TTL e "
            "SETTINGS merge_with_ttl_timeout = 0"
        )
        await run("INSERT INTO t SETTINGS async_insert = 0 VALUES (1, now() - 10), (2, now() + 1000)")
        async with asyncio.timeout(15):
            while await run("SELECT count() FROM t") != "1":  # noqa: ASYNC110 - another process merges
                await asyncio.sleep(0.1)
