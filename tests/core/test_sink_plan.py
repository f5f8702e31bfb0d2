"""What the sink commits beside its offsets, and where a partition's next owner goes on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.event_batch import BatchDraft, BatchLimits, EventBatch, EventRecord, Seen, Writer
from pipeline.core.sink_plan import (
    WINDOW_BLOCKS,
    WINDOW_S,
    YOUNG_S,
    LogRange,
    Note,
    Plan,
    StoredCommit,
    continued,
    is_continued,
    read_note,
    resume,
    write_note,
)
from tests.sink.event_records import end, event, record

LOG = LogRange(10, 100)
SEEN = Seen(Writer(7, 1), 0)

writers = st.none() | st.builds(Writer, st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
seens = st.builds(Seen, writers, st.integers(0, 2**62), st.integers(0, 2**62))
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
sizes = st.integers(1, 2**40)


@given(st.integers(0, 2**61), sizes, digests, st.floats(0, 1e12), seens, st.integers(1, 10_000))
def test_note_round_trip(offset: int, size: int, digest: str, planned_at: float, seen: Seen, partitions: int) -> None:
    """What is written beside an offset is read back, and is far below Kafka's 4,096 bytes."""
    for plan in (None, Plan(offset + size, digest, planned_at)):
        note = Note(seen, partitions, plan)
        assert read_note(offset, write_note(note)) == note
        assert len(write_note(note)) < 400


@pytest.mark.parametrize(
    "metadata",
    ["", "x", "[]", "{}", "\ud800", '{"planned_end":"7"}', '{"partitions":2,"planned_end":3}', '{"planned_end":9}'],
)
def test_foreign_metadata_is_no_note(metadata: str) -> None:
    """What others wrote beside the offset, or an end that lies behind it, tells nothing."""
    assert read_note(3, metadata) is None


def test_successor_goes_on_where_the_note_says() -> None:
    """Offset, plan and what was seen are taken over."""
    plan = Plan(60, "ab", 1.0)
    commit = StoredCommit(50, Note(SEEN, 2, plan))
    assert is_continued(commit, LOG)
    assert resume(commit, LOG, 2, has_rows=False, now=5.0) == (50, SEEN, plan, "")


def test_fresh_partition_starts_at_its_log() -> None:
    """No commit and no rows: the log from its first record, nothing looked up but the first writer."""
    assert resume(None, LOG, 2, has_rows=False, now=5.0) == (10, Seen(epoch=5000), None, "")


@pytest.mark.parametrize(
    ("commit", "start", "told"),
    [
        (None, 10, "no commit"),
        (StoredCommit(101, Note(SEEN, 2)), 10, "made anew"),
        (StoredCommit(50, None), 50, "not made by the sink"),
        (StoredCommit(3, None), 10, "not made by the sink"),
    ],
)
def test_unknown_past_is_looked_up(commit: StoredCommit | None, start: int, told: str) -> None:
    """Where the commit does not tell what is there, all rows below the log's end are looked up, and it is told."""
    assert not is_continued(commit, LOG)
    resumption = resume(commit, LOG, 2, has_rows=True, now=5.0)
    assert (resumption.start, resumption.seen, resumption.plan) == (start, Seen(None, 100, 5000), None)
    assert told in resumption.told


def test_rows_deleted_by_retention_are_told() -> None:
    """Records that were deleted before their insert are lost, which is said; the rest of their batch is looked up."""
    resumption = resume(StoredCommit(5, Note(SEEN, 2, Plan(30, "ab", 1.0))), LOG, 2, has_rows=False, now=5.0)
    assert (resumption.start, resumption.plan, resumption.seen.recheck_below) == (10, None, 30)
    assert "LOST: offsets 5 to 10" in resumption.told


def test_tokens_of_another_epoch_are_others() -> None:
    """A range that is read again after its offset was set by hand has another token: the former may be remembered."""
    assert batch_of("a", Seen(epoch=1)).token != batch_of("a", Seen(epoch=2)).token


def test_more_partitions_are_looked_up() -> None:
    """After the topic grew, what stands in the former partitions is looked up."""
    resumption = resume(StoredCommit(50, Note(SEEN, 2)), LOG, 4, has_rows=False, now=5.0)
    assert resumption.seen == Seen(Writer(7, 1), 100)
    assert "4 partitions, not 2" in resumption.told


@pytest.mark.parametrize(
    ("blocks", "age_s", "forgotten"),
    [
        (0, 0.0, False),
        (10**9, YOUNG_S, False),
        (WINDOW_BLOCKS, WINDOW_S, False),
        (WINDOW_BLOCKS + 1, YOUNG_S + 1, True),
        (0, WINDOW_S + 1, True),
    ],
)
def test_window_is_counted_and_aged(blocks: int, age_s: float, forgotten: bool) -> None:
    """A token is taken for forgotten after half its window in blocks or in time, never within its first minute."""
    assert Plan(9, "ab", 1000.0).may_be_forgotten(blocks, 1000.0 + age_s) is forgotten


def batch_of(text: str, seen: Seen = SEEN) -> EventBatch:
    draft = BatchDraft("e", 0, 0, BatchLimits(10, 1 << 20), 1, seen)
    draft.offer(EventRecord.of(0, record(event(text), end(text)), [("generation", b"7"), ("incarnation", b"1")]))
    return draft.finish()


def test_same_bytes_are_a_repetition() -> None:
    """A planned range with the bytes it had is repeated under its first plan."""
    batch = batch_of("a")
    plan = Plan(1, batch.digest, 5.0)
    assert continued(batch, plan, 9.0) == (batch, plan, True)
    assert continued(batch, None, 9.0) == (batch, Plan(1, batch.digest, 9.0), False)


def test_other_bytes_are_looked_up() -> None:
    """A planned range whose bytes are others now is a batch of its own; its rows are looked up, again and again."""
    batch, plan, repeated = continued(batch_of("b"), Plan(1, batch_of("a").digest, 5.0), 9.0)
    assert not repeated
    assert batch.suspects == batch.ids("events")
    assert plan == Plan(1, batch.digest, 9.0)
    assert batch.seen_before.recheck_below == 1


@pytest.mark.parametrize(
    ("headers", "doubted"),
    [
        ([("generation", b"7"), ("incarnation", b"1")], False),
        ([("generation", b"8")], False),
        ([("generation", b"7")], True),
        ([("generation", b"6"), ("incarnation", b"5")], True),
        ([("generation", b"8"), ("redelivered", b"1")], True),
        ([], True),
        ([("generation", b"seven")], True),
        ([("generation", b"-8")], True),
        ([("generation", b"99999999999999999999")], True),
        ([("generation", b"8"), ("incarnation", b"x")], True),
        ([("generation", None)], True),
    ],
)
def test_rows_of_doubtful_writers_are_suspected(headers: list[tuple[str, bytes | None]], doubted: bool) -> None:
    """Redelivered rows, a replaced worker's, and those of a writer that does not say who it is, are looked up."""
    draft = BatchDraft("e", 0, 0, BatchLimits(10, 1 << 20), seen=SEEN)
    draft.offer(EventRecord.of(0, record(event("a"), end("a")), headers))
    batch = draft.finish()
    assert batch.suspects == (batch.ids("events") if doubted else frozenset())


def test_zombie_behind_its_successor_is_suspected() -> None:
    """Within a batch and over batches, what follows a later writer is a zombie's; the first writer is unknown."""
    draft = BatchDraft("e", 0, 0, BatchLimits(10, 1 << 20))
    for offset, generation in enumerate((b"5", b"6", b"5", b"6")):
        draft.offer(EventRecord.of(offset, record(event(f"r{offset}")), [("generation", generation)]))
    batch = draft.finish()
    ids = batch.tables["events"]["event_id"]
    assert batch.suspects == {ids[0], ids[2]}
    assert batch.seen == Seen(Writer(6))


def test_event_twice_in_a_batch_is_one_row() -> None:
    """Of a zombie's copy and its successor's in one batch, the first is kept, in both tables."""
    draft = BatchDraft("e", 0, 0, BatchLimits(100, 1 << 20))
    for offset, worker in enumerate(("one", "two")):
        draft.offer(EventRecord.of(offset, record(event("a", worker=worker), end("a", worker=worker))))
    draft.offer(EventRecord.of(2, record(event("b"))))
    batch = draft.finish()
    assert batch.tables["events"]["worker"] == ("one", "one", "")
    assert batch.tables["requests"]["worker"] == ("one",)
    assert batch.offsets == (0, 0, 2)
