"""The stream of results: which are wanted, and of each id the first."""

import logging
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from pipeline.client.pending import ResultRecord
from pipeline.client.results import ResultsTopic, header
from schemas.result import InferenceResult, decode_result

_log = logging.getLogger(__name__)

# As many as the worker's own window; 15 MB of ids of 36 characters.
_IDS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which results are wanted; None for any. A tenant of "" is for those without one."""

    model_name: str | None = None
    status: str | None = None
    request_id: str | None = None
    tenant: str | None = None

    def may_want(self, record: ResultRecord) -> bool:
        """Whether a record has to be parsed at all, by its headers; one without them has to."""
        for text, name in ((self.request_id, "ce_id"), (self.model_name, "ce_subject")):
            found = header(record.headers, name)
            if text is not None and found is not None and found != text.encode():
                return False
        return self.tenant is None or self.tenant.encode() == (header(record.headers, "tenant") or b"")

    def wants(self, answer: InferenceResult) -> bool:
        """Whether a parsed answer is wanted."""
        return (
            self.model_name in (None, answer.model_name)
            and self.status in (None, answer.status)
            and self.request_id in (None, answer.id)
        )


async def first_results(
    topic: ResultsTopic, wanted: Wanted
) -> AsyncGenerator[tuple[ResultRecord, InferenceResult], None]:
    """Yields every wanted result that is its id's first, without end. What is no result is logged.

    Args:
        topic: connected.
        wanted: which.

    Raises:
        KafkaUnavailable: the connection was lost.
    """
    seen = _Seen(_IDS_MAX)
    while True:
        for record in await topic.read():
            if not wanted.may_want(record):
                continue
            answer = _decoded(record)
            # A later result is passed by even where the first one was not in the state that is asked for.
            if answer is not None and seen.is_first(record, answer.id) and wanted.wants(answer):
                yield record, answer


def _decoded(record: ResultRecord) -> InferenceResult | None:
    try:
        return decode_result(record.value, record.headers)
    except ValueError as error:
        _log.warning("partition %d, offset %d: no result record: %s", record.partition, record.offset, error)
        return None


class _Seen:
    """Ids of the last results: one id in two partitions, or of two tenants, is two requests."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._places: set[tuple[int, bytes, str]] = set()
        self._order: deque[tuple[int, bytes, str]] = deque()

    def is_first(self, record: ResultRecord, request_id: str) -> bool:
        place = (record.partition, header(record.headers, "tenant") or b"", request_id)
        if place in self._places:
            return False
        self._places.add(place)
        self._order.append(place)
        if len(self._order) > self._size_max:
            self._places.discard(self._order.popleft())
        return True
