"""The results topic is the ledger: which requests are answered already, read from the results' own headers."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.core.result_record import Headers

# Values of answered requests that are kept in memory; the others are read again one by one when their turn comes.
VALUES_BYTES_MAX = 256 << 20


class Answered(NamedTuple):
    """A result in the log, as its headers tell.

    Attributes:
        request_id: the id it answers.
        tenant: whose, or empty.
        request_offset: the offset it answers.
        request_timestamp_ms: that record's append time, Unix milliseconds.
        digest: of the request's content, 16 bytes; zeros where the header has none.
        group: the worker group that answered.
        results_offset: its own place in the results partition.
        headers: the result record's.
        value: its bytes, or None where they were too many to keep.
    """

    request_id: str
    tenant: str
    request_offset: int
    request_timestamp_ms: int
    digest: bytes
    group: str
    results_offset: int
    headers: Headers
    value: bytes | None


_NO_DIGEST = bytes(16)
_INT64_END = 1 << 63


def read_answered(
    headers: Sequence[tuple[str, bytes | None]], results_offset: int, value: bytes | None
) -> Answered | None:
    """What a record of the results topic answers, or None for a foreign one: it says nothing of any request."""
    found = {name: text for name, text in headers if text is not None}
    try:
        digest = found.get("request-digest")
        offset, timestamp_ms = int(found["request-offset"]), int(found["request-timestamp"])
        if not (0 <= offset < _INT64_END and -_INT64_END <= timestamp_ms < _INT64_END):
            return None  # no number of Kafka's
        return Answered(
            request_id=found["ce_id"].decode(),
            tenant=found["tenant"].decode() if "tenant" in found else "",
            request_offset=offset,
            request_timestamp_ms=timestamp_ms,
            digest=bytes.fromhex(digest.decode()) if digest and len(digest) == 32 else _NO_DIGEST,
            group=found["worker-group"].decode(),
            results_offset=results_offset,
            headers=list(found.items()),
            value=value,
        )
    except (KeyError, ValueError):  # a UnicodeDecodeError is a ValueError
        return None


class Ledger:
    """The answers to the offsets of one requests partition that may be delivered once more.

    Args:
        group: the worker group; one results topic serves one group.
        offset: the first offset that is not committed.
        until: offsets at or past it were never delivered to anybody.
    """

    def __init__(self, group: str, offset: int, until: int) -> None:
        self._group = group
        self._offset = offset
        self.until = until
        self._answers: dict[int, list[Answered]] = {}
        self._values_bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, offset: int) -> bool:
        """Whether any answer names this offset."""
        return offset in self._answers

    def note(self, answered: Answered) -> None:
        """A result was read, in the order of the log."""
        if answered.group != self._group or not self._offset <= answered.request_offset < self.until:
            return
        size = len(answered.value or b"")
        if self._values_bytes + size > VALUES_BYTES_MAX:
            answered = answered._replace(headers=[], value=None)
        else:
            self._values_bytes += size
        self._answers.setdefault(answered.request_offset, []).append(answered)

    def unread(self, offset: int) -> list[int]:
        """Places in the results partition whose values were not kept and are needed for this offset now."""
        return [answered.results_offset for answered in self._answers.get(offset, ()) if answered.value is None]

    def supply(self, offset: int, results_offset: int, answered: Answered | None) -> None:
        """A value that was not kept was read again; None where it is gone, or no result any more."""
        answers = self._answers[offset]
        place = [known.results_offset for known in answers].index(results_offset)
        if answered is None:
            del answers[place]
        else:
            answers[place] = answered
            self._values_bytes += len(answered.value or b"")

    def take(self, offset: int, timestamp_ms: int, request_id: str) -> list[Answered]:
        """The answers to a delivered record, in the order of the log; forgotten with this call.

        The first is the answer; later ones come from workers that were paused. The offset alone proves nothing: a
        topic that was deleted and made again counts from 0 once more. Time and id must be the record's own.

        Args:
            offset: the record's.
            timestamp_ms: its append time.
            request_id: the id it is answered under.
        """
        answers = self._answers.pop(offset, [])
        self._values_bytes -= sum(len(answered.value or b"") for answered in answers)
        return [
            answered
            for answered in answers
            if answered.request_timestamp_ms == timestamp_ms and answered.request_id == request_id
        ]
