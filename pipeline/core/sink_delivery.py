"""One batch on its way into ClickHouse: plan, look-ups, insert, proof, end.

A delivery is a generator of steps. Its driver performs each step, sends back what came out, and throws in the
`EventStoreError` of a step that failed (after a pause, where another try makes sense). The sink drives it with Kafka
and ClickHouse, the simulation with models of both.

What makes it exact:

- The plan is committed before the insert, the end after it: a successor repeats the same range.
- ClickHouse keeps one copy of what is inserted twice under one token, so what a token covers must never shrink between
  tries. Suspects are therefore left out only if they are there under *another* token. That set is the same at every
  try: all batches before this one ended before it was planned, and what a paused sink inserts late has a token that
  its successor has used already.
- A repetition is proved by reading: a server that was killed may remember a token whose rows it lost, and forgets
  tokens after its window. What is missing is inserted under a token of its own; minutes of the view that differ from
  the table are made anew.
"""

from collections.abc import Generator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from pipeline.core.event_batch import Columns, EventBatch, RejectedLine, rows_of
from pipeline.core.sink_plan import Note, Plan, write_note
from pipeline.errors import EventStoreError

# Completions of one batch. Each needs a server that was killed in the instant between noting a token and keeping its
# rows; a fourth means that something else eats rows.
_COMPLETIONS_MAX = 3
# ClickHouse gives up a client that is silent for 30 s (http_receive_timeout), and ours gives up a server after 60 s.
INSERT_LASTS_S = 90.0
# More refused rows than this in one batch: the table is wrong, not the rows.
CULPRITS_MAX = 100


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit this offset with this metadata. Fails where the partition is somebody else's by now."""

    offset: int
    metadata: str


@dataclass(frozen=True, slots=True)
class Bury:
    """Send these lines, which are no events, to the dead letters."""

    lines: tuple[RejectedLine, ...]


@dataclass(frozen=True, slots=True)
class LookUp:
    """Which of these events a table has under another token: send back a set of ids."""

    table: str
    event_ids: Set[int]
    token: str


@dataclass(frozen=True, slots=True)
class Trace:
    """What a table has under this token: send back `Held`.

    Attributes:
        span: the earliest and the latest time of the batch's rows there, in microseconds since the epoch.
    """

    table: str
    token: str
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Held:
    """What a table has under a token.

    Attributes:
        event_ids: of its rows.
        blocks_since: blocks that were inserted into the table since the first of these, at most.
        at: Unix time of this finding.
    """

    event_ids: Set[int]
    blocks_since: int
    at: float


@dataclass(frozen=True, slots=True)
class Insert:
    """Insert each table's rows as one block under this token.

    Not before the plan is known to be ours still: a process that was paused commits it again first.
    """

    tables: Mapping[str, Columns]
    token: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Wait so many seconds: whatever insert was begun by then has ended."""

    seconds: float


@dataclass(frozen=True, slots=True)
class MatchMinutes:
    """Make the view's minutes equal to `requests` in this span of microseconds, where they are not."""

    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Probe:
    """Would the table take these rows? Throw in the refusal; nothing is stored."""

    table: str
    columns: Columns


@dataclass(frozen=True, slots=True)
class BuryRows:
    """Send the lines of these events to the dead letters: ClickHouse refuses their rows, by the reasons given."""

    reasons: Mapping[int, str]


Step = Commit | Bury | LookUp | Trace | Insert | Settle | MatchMinutes | Probe | BuryRows
# Ends with the batch as it was inserted.
Delivery = Generator[Step, Any, EventBatch]


def deliver(batch: EventBatch, plan: Plan, partitions: int, *, repeated: bool) -> Delivery:
    """The steps that bring a batch in.

    Args:
        batch: the rows.
        plan: as it is to be committed.
        partitions: how many the topic has.
        repeated: an earlier try of this plan may have inserted something.

    Raises:
        EventStoreError: refused for good, and not because of single rows.
    """
    yield Commit(batch.start, write_note(Note(batch.seen_before, partitions, plan)))
    if batch.rejected:
        yield Bury(batch.rejected)
    refusal: EventStoreError | None = None
    while True:
        try:
            if refusal is not None:
                batch = yield from _without_culprits(batch, refusal)
                refusal = None
            inserted = yield from _write(batch, plan, repeated=repeated)
            break
        except EventStoreError as error:
            if not error.retryable and (refusal is not None or not batch.tables):
                raise
            repeated = True
            refusal = None if error.retryable else error
    yield Commit(batch.end, write_note(Note(batch.seen, partitions)))
    return inserted


def _write(batch: EventBatch, plan: Plan, *, repeated: bool) -> Delivery:
    """Inserts what is not there under another token."""
    present = {}
    for table in batch.tables:
        if suspects := batch.ids(table) & batch.suspects:
            present[table] = yield LookUp(table, suspects, batch.token)
    left = batch.without(present)
    if repeated:
        yield from _repeat(left, plan)
    elif left.tables:
        yield Insert(left.tables, left.token)
    # Rows of a batch that nobody remembers may have reached their table, and not the view behind it.
    if "requests" in batch.tables and (repeated or batch.start < batch.seen_before.recheck_below):
        yield MatchMinutes(batch.span("requests"))
    return left


def _repeat(batch: EventBatch, plan: Plan) -> Generator[Step, Any, None]:
    """Inserts once more what may be in already, and proves it."""
    again = {}
    is_partial = False
    for table, columns in batch.tables.items():
        held: Held = yield Trace(table, batch.token, batch.span(table))
        # Rows that are there under a forgotten token would come twice.
        if not held.event_ids or not plan.may_be_forgotten(held.blocks_since, held.at):
            again[table] = columns
        elif _living(columns, held.at) - held.event_ids:
            is_partial = True
    if is_partial:
        # What is missing may be on its way, and no token will stop it behind ours.
        yield Settle(INSERT_LASTS_S)
    if again:
        yield Insert(again, batch.token)
    for table, columns in batch.tables.items():
        yield from _complete(batch, table, columns)


def _complete(batch: EventBatch, table: str, columns: Columns) -> Generator[Step, Any, None]:
    for number in range(_COMPLETIONS_MAX + 1):
        held: Held = yield Trace(table, batch.token, batch.span(table))
        missing = _living(columns, held.at) - held.event_ids
        if not missing:
            return
        if number < _COMPLETIONS_MAX:
            # Numbered, not named by its rows: whoever comes here again uses the same token for the same rows.
            yield Insert({table: rows_of(columns, missing)}, f"{batch.token}/{number + 1}")
    raise EventStoreError(
        f"ClickHouse acknowledged {len(missing)} rows of {table} in batch {batch.token} and does not have them",
        retryable=False,
    )


def _living(columns: Columns, now: float) -> Set[int]:
    """The rows that have not expired: of the others, ClickHouse may drop what it took a moment ago."""
    rows = zip(columns["event_id"], columns["expires_at"], strict=True)
    return {event_id for event_id, expires_at in rows if expires_at > now}


def _without_culprits(batch: EventBatch, refusal: EventStoreError) -> Delivery:
    """The batch less the lines that a table refuses.

    Raises:
        EventStoreError: nothing is refused alone, or too much: what is wrong is the table.
    """
    reasons: dict[int, str] = {}
    for table, columns in batch.tables.items():
        # Without a row nothing but the table itself can be refused.
        yield Probe(table, dict.fromkeys(columns, ()))
        reasons |= yield from _culprits(table, columns)
        if len(reasons) > CULPRITS_MAX:
            raise refusal
    if not reasons:
        raise refusal
    yield BuryRows(reasons)
    return batch.without(dict.fromkeys(batch.tables, reasons.keys()))


def _culprits(table: str, columns: Columns) -> Generator[Step, Any, dict[int, str]]:
    """The refused rows by event id, found by halving; stops soon after `CULPRITS_MAX`."""
    found: dict[int, str] = {}
    parts = [columns]
    while parts and len(found) <= CULPRITS_MAX:
        part = parts.pop()
        count = len(part["event_id"])
        try:
            yield Probe(table, part)
        except EventStoreError as error:
            if error.retryable:
                raise
            if count == 1:
                found[part["event_id"][0]] = f"{table}: {error}"
            else:
                half = count // 2
                parts += [_sliced(part, slice(half, None)), _sliced(part, slice(half))]
    return found


def _sliced(columns: Columns, rows: slice) -> Columns:
    return {name: values[rows] for name, values in columns.items()}
