"""Records of the events topic -> batches of rows, and the token that makes a repeated insert harmless.

Everything here is a pure function of the records' bytes and offsets: whoever reads the same range again, in another
process or another week, builds the same rows, the same columns and the same token. `BatchDraft.offer` is the one
place that decides where a batch ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from blake3 import blake3

from pipeline.core.event_rows import EVENT_COLUMNS, REQUEST_COLUMNS, DecodedLine, decode_line

# ClickHouse refuses an insert into more partitions than this (max_partitions_per_insert_block), and its tables are
# partitioned by the day of expiry.
EXPIRY_DAYS_MAX = 100
# An insert above max_insert_block_size (1,048,449 rows) is split, and its parts no longer share one token.
ROWS_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Where a batch ends at the latest; a single record is never split.

    Attributes:
        rows_max: lines in all records together.
        bytes_max: bytes of all records together.
    """

    rows_max: int
    bytes_max: int


class EventRecord(NamedTuple):
    """A record of the events topic.

    Attributes:
        offset: its place in the log.
        value: its lines; None for a tombstone, which no writer of ours makes.
        line_count: lines in it, counted once.
    """

    offset: int
    value: bytes | None
    line_count: int

    @classmethod
    def of(cls, offset: int, value: bytes | None) -> "EventRecord":
        """The record with its lines counted."""
        return cls(offset, value, 1 if value is None else value.count(b"\n") + 1)

    @property
    def size(self) -> int:
        """Bytes of its value."""
        return len(self.value) if self.value is not None else 0


class RejectedLine(NamedTuple):
    """A line that is no event: its original bytes go to the dead letters.

    Attributes:
        offset: the offset of the record it came in.
        line: its bytes as they were.
        error: what is wrong with it.
    """

    offset: int
    line: bytes
    error: str


@dataclass(frozen=True, slots=True)
class EventBatch:
    """A range of one partition's offsets as rows.

    Attributes:
        start: the first offset of the range.
        end: the offset after its last.
        token: `topic/partition/start-end/digest`, equal for equal ranges and bytes only.
        tables: columns by name, by table; tables without rows are absent.
        rejected: lines that are no events, in the order of the log.
    """

    topic: str
    partition: int
    start: int
    end: int
    token: str
    tables: Mapping[str, Mapping[str, Sequence[Any]]]
    rejected: tuple[RejectedLine, ...]

    @property
    def row_counts(self) -> dict[str, int]:
        """Rows by table."""
        return {table: len(columns["batch"]) for table, columns in self.tables.items()}


class BatchDraft:
    """A batch that still grows, record by record, in the order of the log.

    Args:
        topic: the events topic.
        partition: whose records they are.
        start: the first offset of the range, whether a record has it or not (logs may have gaps).
        limits: where to end.
        planned_end: the end that an earlier try of this very range has chosen. It replaces all limits: the same
            range must give the same token again, whatever the settings are by now.
    """

    def __init__(
        self, topic: str, partition: int, start: int, limits: BatchLimits, planned_end: int | None = None
    ) -> None:
        self._topic = topic
        self._partition = partition
        self._start = start
        self._limits = limits
        self._planned_end = planned_end
        self._end = start
        self._bytes = 0
        self._lines = 0
        self._digest = blake3()
        self._events: list[tuple[Any, ...]] = []
        self._requests: list[tuple[Any, ...]] = []
        self._event_days: set[int] = set()
        self._request_days: set[int] = set()
        self._rejected: list[RejectedLine] = []

    def offer(self, record: EventRecord) -> bool:
        """Takes a record into the batch, or answers False: the batch ends before it."""
        if self._planned_end is not None:
            if record.offset >= self._planned_end:
                return False
        elif self._lines and (
            self._lines + record.line_count > min(self._limits.rows_max, ROWS_MAX)
            or self._bytes + record.size > self._limits.bytes_max
        ):
            return False
        decoded, rejected = _decode_record(record)
        event_days = self._event_days | {line.event_day for line in decoded}
        request_days = self._request_days | {line.request_day for line in decoded if line.request_day is not None}
        if self._planned_end is None and self._lines and max(len(event_days), len(request_days)) > EXPIRY_DAYS_MAX:
            return False
        self._event_days, self._request_days = event_days, request_days
        self._events += [line.event for line in decoded]
        self._requests += [line.request for line in decoded if line.request is not None]
        self._rejected += rejected
        self._lines += record.line_count
        self._bytes += record.size
        self._end = record.offset + 1
        # The length first, so that no two lists of records share a digest.
        self._digest.update(record.size.to_bytes(8, "little"))
        self._digest.update(record.value or b"")
        return True

    def finish(self) -> EventBatch:
        """The batch of what was taken; its range reaches to the planned end where there is one."""
        end = self._end if self._planned_end is None else self._planned_end
        token = f"{self._topic}/{self._partition}/{self._start}-{end}/{self._digest.hexdigest()}"
        tables = {}
        for table, names, rows in (
            ("events", EVENT_COLUMNS, self._events),
            ("requests", REQUEST_COLUMNS, self._requests),
        ):
            if rows:
                columns: dict[str, Sequence[Any]] = dict(zip(names, zip(*rows, strict=True), strict=True))
                columns["batch"] = (token,) * len(rows)
                tables[table] = columns
        return EventBatch(self._topic, self._partition, self._start, end, token, tables, tuple(self._rejected))


def _decode_record(record: EventRecord) -> tuple[list[DecodedLine], list[RejectedLine]]:
    if record.value is None:
        return [], [RejectedLine(record.offset, b"", "a record without a value holds no events")]
    decoded: list[DecodedLine] = []
    rejected: list[RejectedLine] = []
    for line in record.value.split(b"\n"):
        if not line or line.isspace():
            continue
        try:
            decoded.append(decode_line(line))
        except ValueError as error:
            rejected.append(RejectedLine(record.offset, line, str(error)))
    return decoded, rejected
