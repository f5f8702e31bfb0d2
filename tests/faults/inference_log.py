"""ClickHouse over HTTP, with SQL of the oracle's own."""

import urllib.error
import urllib.request
from collections.abc import Collection

from tests.faults.account import LogRows

_TIMEOUT_S = 60.0
_MINUTE_COLUMNS = "minute, model_name, model_version, status, cache_status"


class QueryFailedError(Exception):
    """ClickHouse refused a query, or is not there."""


class InferenceLog:
    """Asks one database.

    Args:
        url: ClickHouse's HTTP address.
        database: of the product.
    """

    def __init__(self, url: str, database: str = "inference") -> None:
        self._url = f"{url}/?database={database}"

    def query(self, sql: str) -> list[list[str]]:
        """The rows of a query, each a list of texts.

        Raises:
            QueryFailedError: with ClickHouse's own words.
        """
        try:
            with urllib.request.urlopen(self._url, sql.encode(), _TIMEOUT_S) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            raise QueryFailedError(error.read().decode(errors="replace")[:500]) from error
        except OSError as error:
            raise QueryFailedError(str(error)) from error
        return [line.split("\t") for line in text.splitlines()]

    def count_requests(self, ids: Collection[str]) -> int:
        """How many of these ids have a row.

        Raises:
            QueryFailedError: with ClickHouse's own words.
        """
        listed = ", ".join(f"'{one}'" for one in ids)
        return int(self.query(f"SELECT uniqExact(request_id) FROM requests WHERE request_id IN ({listed})")[0][0])

    def read(self) -> LogRows:
        """Everything that the verdict needs.

        Raises:
            QueryFailedError: with ClickHouse's own words.
        """
        ((requests, request_ids),) = self.query("SELECT count(), uniqExact(request_id) FROM requests")
        ((events, event_ids),) = self.query("SELECT count(), uniqExact(event_id) FROM events")
        statuses = self.query("SELECT request_id, status FROM requests")
        types = self.query(
            "SELECT request_id, arrayStringConcat(arraySort(groupArray(toString(event_type))), ',') "
            "FROM events GROUP BY request_id"
        )
        view = self.query(f"SELECT {_MINUTE_COLUMNS}, requests, input_bytes, output_bytes FROM requests_per_minute")
        base = self.query(
            "SELECT toStartOfMinute(toDateTime(completed_at, 'UTC')) AS minute, model_name, model_version, status, "
            "cache_status, count(), sum(input_bytes), sum(output_bytes) FROM requests GROUP BY ALL"
        )
        return LogRows(
            requests=int(requests),
            request_ids=int(request_ids),
            statuses={row[0]: row[1] for row in statuses},
            events=int(events),
            event_ids=int(event_ids),
            event_types={row[0]: row[1] for row in types},
            minutes=frozenset("\t".join(row) for row in view),
            minutes_of_base=frozenset("\t".join(row) for row in base),
        )
