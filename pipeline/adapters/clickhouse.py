"""The inference log in ClickHouse, over its HTTP interface.

One insert is one Native body of columns. ClickHouse keeps it once, however often it is sent: the token names it on the
base table and, through `deduplicate_blocks_in_dependent_materialized_views`, on every view's target.
"""

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import clickhouse_connect
from clickhouse_connect.datatypes.registry import get_from_name
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

from pipeline.config import ClickHouseSettings
from pipeline.errors import EventStoreError, SettingsError
from pipeline.ports import InsertBlock

# A batch of 64 MiB takes some seconds on a busy server; a minute without a byte is an outage. The retry carries the
# same token, so a server that was only slow keeps one copy.
_RECEIVE_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 5.0

_INSERT_SETTINGS = {
    # The answer means "written", not "queued": async_insert is on by default since ClickHouse 26.
    "async_insert": 0,
    "insert_deduplicate": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    # One insert is one block is one token, whatever a user's profile says: these are the server's own defaults.
    "min_insert_block_size_rows": 1_048_449,
    "min_insert_block_size_bytes": 268_402_944,
    "max_insert_threads": 1,
    # Batches end at 100 days of expiry by themselves; a single record beyond that must still go in.
    "max_partitions_per_insert_block": 0,
}

# Server errors after which the same insert can succeed: the cause is load, space, a restart, or a missing migration.
# Names and numbers: ClickHouse src/Common/ErrorCodes.cpp.
_RETRYABLE_CODES = {
    60: "UNKNOWN_TABLE",  # until `pipeline migrate` has run
    75: "CANNOT_WRITE_TO_FILE_DESCRIPTOR",  # a full disk
    76: "CANNOT_OPEN_FILE",
    81: "UNKNOWN_DATABASE",  # until `pipeline migrate` has run
    159: "TIMEOUT_EXCEEDED",
    160: "TOO_SLOW",
    173: "CANNOT_ALLOCATE_MEMORY",
    201: "QUOTA_EXCEEDED",
    202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    203: "NO_FREE_CONNECTION",
    204: "CANNOT_FSYNC",
    209: "SOCKET_TIMEOUT",
    210: "NETWORK_ERROR",
    218: "TABLE_IS_DROPPED",
    225: "NO_ZOOKEEPER",
    236: "ABORTED",
    241: "MEMORY_LIMIT_EXCEEDED",
    242: "TABLE_IS_READ_ONLY",
    243: "NOT_ENOUGH_SPACE",
    252: "TOO_MANY_PARTS",
    254: "NO_ACTIVE_REPLICAS",
    279: "ALL_CONNECTION_TRIES_FAILED",
    285: "TOO_FEW_LIVE_REPLICAS",
    286: "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE",
    294: "CANNOT_WRITE_TO_FILE",
    319: "UNKNOWN_STATUS_OF_INSERT",
    364: "RECEIVED_ERROR_TOO_MANY_REQUESTS",
    384: "PART_IS_TEMPORARILY_LOCKED",
    394: "QUERY_WAS_CANCELLED",
    425: "SYSTEM_ERROR",
    439: "CANNOT_SCHEDULE_TASK",
    473: "DEADLOCK_AVOIDED",
    499: "S3_ERROR",
    529: "NOT_A_LEADER",
    586: "CANNOT_CREATE_FILE",
    696: "ASYNC_LOAD_CANCELED",
    722: "ASYNC_LOAD_WAIT_FAILED",
    733: "TABLE_IS_BEING_RESTARTED",
    745: "SERVER_OVERLOADED",
    999: "KEEPER_EXCEPTION",
}
_NOT_MIGRATED_CODES = (60, 81)
_HTTP_STATUS = re.compile(r"HTTP status (\d{3})")
# clickhouse-connect lets these through when a value does not fit its column's type.
_SERIALIZATION_ERRORS = (ValueError, TypeError, KeyError, AttributeError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True)
class Rows:
    """The answer to a query, with ClickHouse's own names of the columns' types."""

    column_names: tuple[str, ...]
    column_types: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


def is_retryable(error: BaseException) -> bool:
    """Whether the same call can succeed later, decided from the cause alone."""
    if isinstance(error, ClickHouseError):
        code = getattr(error, "code", None)
        if code is not None:
            return code in _RETRYABLE_CODES
        if isinstance(error, OperationalError):
            return True  # the connection was refused, reset or timed out
        # No ClickHouse spoke: a proxy did.
        status = _HTTP_STATUS.search(str(error))
        return status is not None and (status[1].startswith("5") or status[1] == "429")
    return isinstance(error, (aiohttp.ClientError, TimeoutError, OSError))


class ClickHouseEventStore:
    """`EventStore` over clickhouse-connect's asynchronous client.

    Connects at the first call and again whenever that is needed, so that it can be made while the server is down.
    Calls may run at the same time. Use as an async context manager, or call `close`.

    Args:
        settings: where the server is and who we are.
        database: another database than the settings', or "" for the server's default.

    Raises:
        SettingsError: the address is missing or is no http(s) URL.
    """

    def __init__(self, settings: ClickHouseSettings, database: str | None = None) -> None:
        self._database = settings.database if database is None else database
        self._options = _client_options(settings)
        self._address = f"{self._options['host']}:{self._options['port']}"
        self._client: Any = None
        self._connecting = asyncio.Lock()
        self._column_types: dict[tuple[str, tuple[str, ...]], list[Any]] = {}

    async def insert(self, blocks: Iterable[InsertBlock], token: str) -> None:
        """Inserts each block once: repeated with the same token and rows, the store keeps one copy.

        Blocks go one after the other, in their order; an error leaves the earlier ones in place, and the repetition
        completes the rest. Returns when the server has written all of them.

        Raises:
            EventStoreError: refused (`retryable` False), or not reached.
        """
        for block in blocks:
            try:
                async with self._translated(f"insert into {block.table}"):
                    await self._insert_block(block, token)
            except EventStoreError:
                # The table may have changed under the types that are remembered.
                self._column_types.clear()
                raise

    async def query(
        self, sql: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> Rows:
        """Runs one statement; one without a result gives no rows, or one with the server's summary.

        Raises:
            EventStoreError: refused, or not reached.
        """
        async with self._translated("query"):
            client = await self._connected()
            result = await client.query(
                sql,
                parameters=dict(parameters) if parameters else None,
                settings=dict(settings) if settings else None,
            )
            types = tuple(column.name for column in result.column_types)
            return Rows(tuple(result.column_names), types, result.result_rows)

    async def query_raw(self, sql: str, format_name: str) -> bytes:
        """The answer in one of ClickHouse's own formats, e.g. JSONEachRow or Parquet, byte for byte.

        Raises:
            EventStoreError: refused, or not reached.
        """
        async with self._translated("query"):
            client = await self._connected()
            body: bytes = await client.raw_query(sql, fmt=format_name)
            return body

    async def command(self, sql: str) -> None:
        """Runs a statement without a result, e.g. DDL.

        Raises:
            EventStoreError: refused, or not reached.
        """
        async with self._translated(sql.split("\n", 1)[0][:80]):
            client = await self._connected()
            await client.command(sql)

    async def close(self) -> None:
        """Closes the connections; calls after it connect again."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _insert_block(self, block: InsertBlock, token: str) -> None:
        client = await self._connected()
        names = tuple(block.columns)
        types = self._column_types.get((block.table, names))
        if types is None:
            context = await client.create_insert_context(block.table, column_names=names)
            types = [_insert_type(column_type) for column_type in context.column_types]
            self._column_types[block.table, names] = types
        columns = list(block.columns.values())
        try:
            await client.insert(
                table=block.table,
                data=columns,
                column_names=names,
                column_types=types,
                column_oriented=True,
                settings={**_INSERT_SETTINGS, "insert_deduplication_token": token},
            )
        finally:
            # The client's insert context refers to itself and to this list, so that only the garbage collector, which
            # is rare here, would free the rows: measured, 4.6 GB.
            columns.clear()

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._client is None:
                self._client = await clickhouse_connect.get_async_client(
                    **self._options, database=self._database or None
                )
            return self._client

    @asynccontextmanager
    async def _translated(self, what: str) -> AsyncIterator[None]:
        try:
            yield
        except (ClickHouseError, aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            cause = (str(error).strip() or type(error).__name__)[:2000]
            hint = " (run `pipeline migrate`)" if getattr(error, "code", None) in _NOT_MIGRATED_CODES else ""
            raise EventStoreError(
                f"ClickHouse at {self._address}: {what}: {cause}{hint}", retryable=is_retryable(error)
            ) from error
        except _SERIALIZATION_ERRORS as error:
            raise EventStoreError(f"{what}: a value does not fit its column: {error}", retryable=False) from error


def _insert_type(column_type: Any) -> Any:
    # The client parses each IPv6 text by itself, 3 us a row; the server casts a text column at no visible cost.
    return get_from_name("String") if column_type.name == "IPv6" else column_type


def _client_options(settings: ClickHouseSettings) -> dict[str, Any]:
    if not settings.url:
        raise SettingsError(
            "setting PIPELINE_CLICKHOUSE__URL is not set and no local stack runs: start one with `pipeline up`"
        )
    url = urlsplit(settings.url)
    if url.scheme not in ("http", "https") or not url.hostname or url.username or url.password:
        # Not quoted: a URL with a password in it must not be printed.
        raise SettingsError(
            "setting PIPELINE_CLICKHOUSE__URL is not of the form http://host:port or https://host:port; "
            "user and password are settings of their own (PIPELINE_CLICKHOUSE__USER, PIPELINE_CLICKHOUSE__PASSWORD)"
        )
    options: dict[str, Any] = {
        "interface": url.scheme,
        "host": url.hostname,
        "port": url.port or (8443 if url.scheme == "https" else 8123),
        "proxy_path": url.path,
        "username": settings.user,
        "password": settings.password.get_secret_value(),
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "send_receive_timeout": _RECEIVE_TIMEOUT_S,
        # A session would allow one query at a time.
        "autogenerate_session_id": False,
        "client_name": "inference-pipeline",
    }
    tls = settings.tls
    if tls.ca_file:
        options["ca_cert"] = str(tls.ca_file)
    if tls.cert_file:
        options["client_cert"] = str(tls.cert_file)
        options["client_cert_key"] = str(tls.key_file) if tls.key_file else None
        # "mutual" lets the certificate name the user, "strict" only opens the connection.
        options["tls_mode"] = "strict" if settings.password.get_secret_value() else "mutual"
    return options
