"""What the sink commits beside an offset, and where its successor goes on.

The plan says where the batch that begins at the offset ends. It is committed before the insert: whoever continues after
a crash repeats exactly that range, with the token it had, so ClickHouse drops what it already holds.
"""

from typing import NamedTuple

import msgspec

from pipeline.core.event_batch import EventBatch, Seen, Writer

# Non-replicated tables remember the last 10,000 parts of each (non_replicated_deduplication_window in the migrations)
# and no age; replicated ones also forget after an hour by default (replicated_deduplication_window_seconds). Half of
# each is taken for certain.
WINDOW_BLOCKS = 5_000
WINDOW_S = 1_800.0
# In a minute nobody inserts 10,000 parts: ClickHouse throttles a table at 1,000 active parts. Counted blocks are an
# upper bound (a merged part hides where its rows began), so a young plan need not be counted.
YOUNG_S = 60.0


class Plan(NamedTuple):
    """A batch that was begun.

    Attributes:
        end: the offset after its last.
        digest: of its records' bytes.
        planned_at: Unix time of the first commit of this plan.
    """

    end: int
    digest: str
    planned_at: float

    def may_be_forgotten(self, blocks_since: int, now: float) -> bool:
        """Whether ClickHouse may have forgotten the batch's token.

        Args:
            blocks_since: blocks inserted into the table since the batch's first one, at most.
            now: Unix time.
        """
        age_s = now - self.planned_at
        return age_s > YOUNG_S and (age_s > WINDOW_S or blocks_since > WINDOW_BLOCKS)


class Note(NamedTuple):
    """What stands beside a committed offset.

    Attributes:
        seen: what was met in the partition before the offset.
        partitions: how many partitions the topic had.
        plan: the batch that was begun at the offset, if one was.
    """

    seen: Seen
    partitions: int
    plan: Plan | None = None


class StoredCommit(NamedTuple):
    """A committed position as Kafka has it.

    Attributes:
        offset: the first offset that is not in ClickHouse for certain.
        note: what the sink wrote beside it; None where that is not the sink's: the offset was set by hand.
    """

    offset: int
    note: Note | None

    @classmethod
    def of(cls, offset: int, metadata: str) -> "StoredCommit":
        """The commit with its metadata read."""
        return cls(offset, read_note(offset, metadata))


class _Text(msgspec.Struct, omit_defaults=True, gc=False):
    """The note as JSON: below 250 bytes, where Kafka takes 4,096."""

    partitions: int
    recheck_below: int = 0
    epoch: int = 0
    generation: int | None = None
    incarnation: int = 0
    planned_end: int | None = None
    digest: str = ""
    planned_at: float = 0.0


_decode_text = msgspec.json.Decoder(_Text).decode


def write_note(note: Note) -> str:
    """The commit's metadata."""
    text = _Text(note.partitions, note.seen.recheck_below, note.seen.epoch)
    if note.seen.highest is not None:
        text.generation, text.incarnation = note.seen.highest
    if note.plan is not None:
        text.planned_end, text.digest, text.planned_at = note.plan
    return msgspec.json.encode(text).decode()


def read_note(offset: int, metadata: str) -> Note | None:
    """The note beside a committed offset; None for what the sink did not write there."""
    try:
        text = _decode_text(metadata)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return None
    plan = None
    if text.planned_end is not None:
        if text.planned_end <= offset:
            return None
        plan = Plan(text.planned_end, text.digest, text.planned_at)
    highest = None if text.generation is None else Writer(text.generation, text.incarnation)
    return Note(Seen(highest, text.recheck_below, text.epoch), text.partitions, plan)


class LogRange(NamedTuple):
    """A partition of the log as it is: its first offset, and the one after its last."""

    first: int
    end: int


class Resumption(NamedTuple):
    """Where and how the owner of a partition begins.

    Attributes:
        start: the first offset to read.
        seen: what was met before it.
        plan: the batch to repeat first, if one was begun.
        told: what a person should know about it, or "".
    """

    start: int
    seen: Seen
    plan: Plan | None = None
    told: str = ""


def resume(commit: StoredCommit | None, log: LogRange, partitions: int, *, has_rows: bool, now: float) -> Resumption:
    """Where to begin at a partition.

    Whenever the note does not tell what is in ClickHouse, every row of the log as it ends now is looked up before it
    is inserted: what was inserted ever came from below that end. Tokens then begin a new epoch.

    Args:
        commit: the group's commit; None where there is none.
        log: the partition now.
        partitions: how many the topic has now.
        has_rows: whether ClickHouse has rows of this partition. Only asked where `is_continued` is False.
        now: Unix time.
    """
    everything = Seen(recheck_below=log.end if has_rows else 0, epoch=int(now * 1000))
    if commit is None:
        told = "rows are there, but no commit: each row is looked up before it is inserted" if has_rows else ""
        return Resumption(log.first, everything, told=told)
    offset, note = commit
    if offset > log.end:
        told = f"commit {offset} is past its end {log.end}: the topic was made anew, begun again"
        return Resumption(log.first, everything, told=told)
    if note is None:
        told = f"commit {offset} was not made by the sink: each row is looked up before it is inserted"
        return Resumption(max(offset, log.first), everything, told=told)
    seen, plan, told = note.seen, note.plan, ""
    if offset < log.first:
        # A part of the planned range may be in ClickHouse; the rest of it cannot be read as the token has it.
        seen = seen._replace(recheck_below=max(seen.recheck_below, plan.end if plan else 0))
        told = f"LOST: offsets {offset} to {log.first} were deleted by the topic's retention before they were inserted"
        offset, plan = log.first, None
    if partitions > note.partitions:
        # Rows of a request may stand in its former partition and, repeated, in its present one.
        seen = seen._replace(recheck_below=max(seen.recheck_below, log.end))
        told = told or f"{partitions} partitions, not {note.partitions} any more: rows below {log.end} are looked up"
    return Resumption(offset, seen, plan, told)


def is_continued(commit: StoredCommit | None, log: LogRange) -> bool:
    """Whether the commit alone tells what is in ClickHouse."""
    return commit is not None and commit.note is not None and commit.offset <= log.end


def continued(batch: EventBatch, plan: Plan | None, now: float) -> tuple[EventBatch, Plan, bool]:
    """The first batch of an owner beside the plan it found: the batch, its plan, and whether it is a repetition.

    Other bytes than planned (the log was cut, or made anew, under the same offsets) are another batch: a part of the
    former one may be in ClickHouse under its own token, so every row is suspected.
    """
    if plan is None:
        return batch, Plan(batch.end, batch.digest, now), False
    if plan.digest == batch.digest:
        return batch, plan, True
    return batch.all_suspected(), Plan(batch.end, batch.digest, now), False
