"""One request record on its way to its answer: where it came from, who asked, when what happened."""

from dataclasses import dataclass
from functools import lru_cache
from time import gmtime, strftime

from pipeline.core.trace_context import Span
from schemas.decoded import DecodedRequest


@lru_cache(maxsize=256)
def _second_text(second: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))


def utc_text(unix_s: float) -> str:
    """A time as the wire gives it: UTC, microseconds, Z."""
    second, micros = divmod(round(unix_s * 1e6), 1_000_000)
    return f"{_second_text(second)}.{micros:06d}Z"


# Records of one batch were appended in the same millisecond: that of 15,000 a second is written once for many.
_time_appended = lru_cache(maxsize=1024)(utc_text)


@lru_cache(maxsize=256)
def utc_second_text(unix_s: int) -> str:
    """A time in whole seconds: UTC, Z."""
    return f"{_second_text(unix_s)}Z"


@dataclass(slots=True, eq=False)
class Exchange:
    """A request record and what is known of it.

    Times are Unix seconds; `timestamp_ms` is the record's own, Unix milliseconds.

    Attributes:
        request: None for a record that is no valid request.
        request_id: the record's id, or its place in the log.
        tenant: whose it is, also where the request is invalid; None where that cannot be read.
        own_id: what its producer's id is compared by, with the tenant; None for a record without one.
        model_name: as asked, also where the request is invalid; empty where it cannot be read.
        digest: of the request's content, 32 hex characters; empty for an invalid one.
        input_bytes: raw bytes of all inputs.
        traceparent: what its answer names: the span here, or what the request brought; None for neither.
        span: of the work on it here; None where nobody follows it.
        queue_s: from the record's append to its being taken by the worker; never negative.
        total_s: from the record's append to its answer; never negative.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    taken_at: float
    request_id: str
    tenant: str | None = None
    own_id: str | None = None
    model_name: str = ""
    request: DecodedRequest | None = None
    requested_at: float = 0.0
    digest: str = ""
    input_bytes: int = 0
    traceparent: bytes | None = None
    completed_at: float = 0.0

    queue_s: float = 0.0
    total_s: float = 0.0
    requested_at_text: str = ""
    completed_at_text: str = ""
    span: Span | None = None

    def complete(self, now: float) -> None:
        """The answer is there: durations and the texts of its times, which the result and every event line repeat."""
        appended_at = self.timestamp_ms / 1e3
        self.taken_at = max(self.taken_at, appended_at)  # the broker's clock may be ahead of ours
        self.completed_at = now
        self.queue_s = self.taken_at - appended_at
        self.total_s = max(now - appended_at, 0.0)
        self.requested_at_text = _time_appended(self.requested_at)
        self.completed_at_text = utc_text(now)

    def recall(self, *, requested_at: float, completed_at: float, queue_s: float, total_s: float) -> None:
        """The answer was there before: its times and durations as they were then."""
        self.requested_at, self.completed_at = requested_at, completed_at
        self.queue_s, self.total_s = queue_s, total_s
        self.taken_at = self.timestamp_ms / 1e3 + queue_s
        self.requested_at_text = utc_text(requested_at)
        self.completed_at_text = utc_text(completed_at)


def offset_id(topic: str, partition: int, offset: int) -> str:
    """The id of a request that brings none."""
    return f"{topic}:{partition}:{offset}"


def is_place(request_id: str, topic: str) -> bool:
    """Whether an id has the form that records of this topic get when they bring none."""
    if not request_id.startswith(f"{topic}:"):
        return False
    partition, _, offset = request_id[len(topic) + 1 :].partition(":")
    return partition.isdecimal() and offset.isdecimal()
