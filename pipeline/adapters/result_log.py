"""A request's result in the inference log (ClickHouse): the exact record, for as long as its row lives."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

# Base64, as the client library reads a String as text where it can and as hexadecimal digits where it cannot.
# Of an id that was used more than once the first answer counts. A granule is found by the Bloom filter on request_id.
_QUERY = """
SELECT base64Encode(result), expires_at <= now()
FROM requests
WHERE request_id = {request_id:String} AND tenant = {tenant:String}
ORDER BY completed_at, event_id
LIMIT 1
"""


class Answer(Protocol):
    """What a query answers."""

    @property
    def rows(self) -> Sequence[Sequence[Any]]:
        """The rows."""


class Queries(Protocol):
    """Who runs queries: `adapters.clickhouse.ClickHouseEventStore`."""

    async def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Answer:
        """Runs one statement.

        Raises:
            EventStoreError: refused, or not reached.
        """


class LoggedResult(NamedTuple):
    """A request's row.

    Attributes:
        value: the result record's bytes; None where the row has them no more, or its time is over.
    """

    value: bytes | None


class ClickHouseResultLog:
    """Looks results up.

    Args:
        queries: runs the queries, in the log's database.
    """

    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    async def find(self, tenant: str | None, request_id: str) -> LoggedResult | None:
        """The row of a request that ended; None where there is none.

        Raises:
            EventStoreError: ClickHouse refused, or was not reached.
        """
        answer = await self._queries.query(_QUERY, {"request_id": request_id, "tenant": tenant or ""})
        if not answer.rows:
            return None
        text, is_expired = answer.rows[0]
        return LoggedResult(None if is_expired or not text else base64.b64decode(text))
