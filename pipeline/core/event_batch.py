"""Records of the events topic -> batches of rows, and the token that makes a repeated insert harmless.

Everything here is a pure function of the records' bytes and offsets: whoever reads the same range again, in another
process or another week, builds the same rows, the same columns and the same token. `BatchDraft.offer` is the one
place that decides where a batch ends.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, NamedTuple

from blake3 import blake3

from pipeline.core.event_rows import EVENT_COLUMNS, REQUEST_COLUMNS, DecodedLine, decode_line

# ClickHouse refuses an insert into more partitions than this (max_partitions_per_insert_block), and its tables are
# partitioned by the day of expiry.
EXPIRY_DAYS_MAX = 100
# An insert above max_insert_block_size (1,048,449 rows) is split, and its parts no longer share one token.
ROWS_MAX = 1_000_000
_GENERATION_MAX = 2**31 - 1
# When a row happened: indexed in its table, so that rows of a known batch are found without reading the others.
TIME_COLUMNS = {"events": "occurred_at", "requests": "completed_at"}
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Where a batch ends at the latest; a single record is never split.

    Attributes:
        rows_max: lines in all records together.
        bytes_max: bytes of all records together.
    """

    rows_max: int
    bytes_max: int


class Writer(NamedTuple):
    """Which process wrote a record of events; a later owner of the same partition compares greater.

    Attributes:
        generation: the consumer group's generation of the worker.
        incarnation: how many processes held the partition before in that generation (static members only).
    """

    generation: int
    incarnation: int = 0


class EventRecord(NamedTuple):
    """A record of the events topic.

    Attributes:
        offset: its place in the log.
        value: its lines; None for a tombstone, which no writer of ours makes.
        line_count: lines in it, counted once.
        writer: who wrote it; None where the headers do not say.
        redelivered: its writer says that its lines may have been written before.
    """

    offset: int
    value: bytes | None
    line_count: int
    writer: Writer | None = None
    redelivered: bool = False

    @classmethod
    def of(cls, offset: int, value: bytes | None, headers: Sequence[tuple[str, bytes | None]] = ()) -> "EventRecord":
        """The record with its lines counted and its headers read."""
        lines = 1 if value is None else value.count(b"\n") + 1
        found = dict(headers)
        return cls(offset, value, lines, _writer_of(found), found.get("redelivered", b"0") != b"0")

    @property
    def size(self) -> int:
        """Bytes of its value."""
        return len(self.value) if self.value is not None else 0


def _writer_of(headers: Mapping[str, bytes | None]) -> Writer | None:
    numbers = []
    for text in (headers.get("generation"), headers.get("incarnation", b"0")):
        # Kafka's generations are 32 bits. What is longer is somebody else's, and must not outrank ours for ever.
        if text is None or not text.isdigit() or int(text[:11]) > _GENERATION_MAX:
            return None
        numbers.append(int(text))
    return Writer(*numbers)


class Seen(NamedTuple):
    """What was met in a partition before some offset: enough to tell which rows may be in ClickHouse already.

    Attributes:
        highest: the latest writer so far; None before the first.
        recheck_below: rows of offsets below this one may have been inserted in batches that nobody remembers.
        epoch: enters every token. It changes when the past is unknown (an offset that was set by hand): a batch that
            happens to have the range of a former one must not have its token, which ClickHouse may know or have
            forgotten. 0 in logs of tests alone.
    """

    highest: Writer | None = None
    recheck_below: int = 0
    epoch: int = 0

    def doubts(self, record: EventRecord) -> bool:
        """Whether rows of this record are looked up before they are inserted.

        Yes for what its writer calls redelivered, for a replaced worker's (a zombie's), and for a writer that does not
        say who it is: that one cannot be told from a zombie.
        """
        return (
            record.redelivered
            or record.offset < self.recheck_below
            or record.writer is None
            or self.highest is None
            or record.writer < self.highest
        )

    def after(self, record: EventRecord) -> "Seen":
        """What is known behind this record."""
        if record.writer is None or (self.highest is not None and record.writer <= self.highest):
            return self
        return self._replace(highest=record.writer)


NOTHING_SEEN = Seen()


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
    """A range of one partition's offsets as rows; of an event that is in it twice, the first.

    Attributes:
        start: the first offset of the range.
        end: the offset after its last.
        token: `topic/partition/start-end/digest`, equal for equal ranges, bytes and epochs only.
        tables: columns by name, by table; tables without rows are absent.
        rejected: lines that are no events, in the order of the log.
        suspects: ids of events that may be in ClickHouse already.
        seen_before: what was met in the partition before the range.
        seen: and up to its end.
        offsets: the offset that each row of `events` came from.
    """

    topic: str
    partition: int
    start: int
    end: int
    token: str
    tables: Mapping[str, Columns]
    rejected: tuple[RejectedLine, ...] = ()
    suspects: frozenset[int] = frozenset()
    seen_before: Seen = NOTHING_SEEN
    seen: Seen = NOTHING_SEEN
    offsets: tuple[int, ...] = ()

    @property
    def row_counts(self) -> dict[str, int]:
        """Rows by table."""
        return {table: len(columns["batch"]) for table, columns in self.tables.items()}

    @property
    def digest(self) -> str:
        """The digest of the records' bytes."""
        return self.token.rpartition("/")[2]

    def ids(self, table: str) -> frozenset[int]:
        """The event ids of a table's rows; none where it has no rows."""
        return frozenset(self.tables[table]["event_id"]) if table in self.tables else frozenset()

    def span(self, table: str) -> tuple[int, int]:
        """The earliest and the latest time of a table's rows, in microseconds since the epoch."""
        times = self.tables[table][TIME_COLUMNS[table]]
        return min(times), max(times)

    def without(self, left_out: Mapping[str, Set[int]]) -> "EventBatch":
        """The batch less the rows of these events, by table. Its token and its range stay."""
        tables = {}
        for table, columns in self.tables.items():
            kept = rows_of(columns, self.ids(table) - left_out[table]) if left_out.get(table) else columns
            if kept["batch"]:
                tables[table] = kept
        return replace(self, tables=tables)

    def all_suspected(self) -> "EventBatch":
        """The batch with every row suspected, now and whenever its range is read again."""
        before = self.seen_before._replace(recheck_below=max(self.end, self.seen_before.recheck_below))
        after = self.seen._replace(recheck_below=before.recheck_below)
        return replace(self, suspects=self.ids("events"), seen_before=before, seen=after)


def rows_of(columns: Columns, event_ids: Set[int]) -> Columns:
    """The rows of these events alone, in their order."""
    mask = [event_id in event_ids for event_id in columns["event_id"]]
    return {name: tuple(compress(values, mask)) for name, values in columns.items()}


class BatchDraft:
    """A batch that still grows, record by record, in the order of the log.

    Args:
        topic: the events topic.
        partition: whose records they are.
        start: the first offset of the range, whether a record has it or not (logs may have gaps).
        limits: where to end.
        planned_end: the end that an earlier try of this very range has chosen. It replaces all limits: the same
            range must give the same token again, whatever the settings are by now.
        seen: what was met in the partition before.
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        start: int,
        limits: BatchLimits,
        planned_end: int | None = None,
        seen: Seen = NOTHING_SEEN,
    ) -> None:
        self._topic = topic
        self._partition = partition
        self._start = start
        self._limits = limits
        self._planned_end = planned_end
        self._seen_before = self._seen = seen
        self._end = start
        self._bytes = 0
        self._lines = 0
        self._digest = blake3(key=seen.epoch.to_bytes(32, "little"))
        self._events: list[tuple[Any, ...]] = []
        self._requests: list[tuple[Any, ...]] = []
        self._offsets: list[int] = []
        self._suspects: set[int] = set()
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
        self._offsets += [record.offset] * len(decoded)
        self._rejected += rejected
        if self._seen.doubts(record):
            self._suspects.update(line.event[0] for line in decoded)
        self._seen = self._seen.after(record)
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
        offsets = self._offsets
        firsts = _firsts(self._events)
        if firsts is not None:
            offsets = list(compress(offsets, firsts))
        tables: dict[str, Columns] = {}
        for table, names, rows, mask in (
            ("events", EVENT_COLUMNS, self._events, firsts),
            ("requests", REQUEST_COLUMNS, self._requests, _firsts(self._requests)),
        ):
            if rows:
                kept = rows if mask is None else list(compress(rows, mask))
                columns: dict[str, Sequence[Any]] = dict(zip(names, zip(*kept, strict=True), strict=True))
                columns["batch"] = (token,) * len(kept)
                tables[table] = columns
        return EventBatch(
            self._topic,
            self._partition,
            self._start,
            end,
            token,
            tables,
            tuple(self._rejected),
            suspects=frozenset(self._suspects),
            seen_before=self._seen_before,
            seen=self._seen,
            offsets=tuple(offsets),
        )


def _firsts(rows: Sequence[tuple[Any, ...]]) -> list[bool] | None:
    """Which rows are the first of their event; None where all are, told by one set: 3 ms for 50,000."""
    if len({row[0] for row in rows}) == len(rows):
        return None
    met: set[int] = set()
    mask = []
    for row in rows:
        mask.append(row[0] not in met)
        met.add(row[0])
    return mask


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
