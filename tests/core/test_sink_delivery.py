"""The steps of a delivery, told by a driver that answers as the test says."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.core.event_batch import BatchDraft, BatchLimits, EventBatch, EventRecord
from pipeline.core.sink_coverage import OffsetRange, gaps_of, range_of
from pipeline.core.sink_delivery import (
    INSERT_LASTS_S,
    Bury,
    BuryRows,
    Commit,
    Held,
    Insert,
    LookUp,
    MatchMinutes,
    Probe,
    Settle,
    Step,
    Trace,
    deliver,
)
from pipeline.core.sink_plan import Plan
from pipeline.errors import EventStoreError
from tests.sink.event_records import end, event, event_id, record

NOW = time.time()
BUSY = EventStoreError("busy", retryable=True)
REFUSED = EventStoreError("refused", retryable=False)
NONE = Held(frozenset(), 0, NOW)

Answers = Callable[[Step], Any]


def batch_of(*names: str, headers: tuple[tuple[str, bytes], ...] = ()) -> EventBatch:
    draft = BatchDraft("e", 0, 0, BatchLimits(1000, 1 << 20))
    for offset, name in enumerate(names):
        draft.offer(EventRecord.of(offset, record(event(name), end(name)), headers))
    return draft.finish()


def run(batch: EventBatch, answers: Answers, *, repeated: bool = False, planned_at: float = NOW) -> list[Step]:
    """All steps; an answer that is an error is thrown in."""
    flow = deliver(batch, Plan(batch.end, batch.digest, planned_at), 1, repeated=repeated)
    steps = [next(flow)]
    while True:
        answer = answers(steps[-1])
        try:
            step = flow.throw(answer) if isinstance(answer, EventStoreError) else flow.send(answer)
        except StopIteration:
            return steps
        steps.append(step)


def kinds(steps: list[Step]) -> list[str]:
    return [type(step).__name__ for step in steps]


def clean(*names: str) -> EventBatch:
    """A batch without suspects."""
    batch = batch_of(*names)
    return EventBatch(batch.topic, batch.partition, batch.start, batch.end, batch.token, batch.tables)


def test_plan_insert_end() -> None:
    """Where nothing goes wrong, a batch is two commits and an insert."""
    steps = run(clean("a"), lambda _: None)
    assert kinds(steps) == ["Commit", "Insert", "Commit"]
    assert isinstance(steps[0], Commit)
    assert (steps[0].offset, '"planned_end":1' in steps[0].metadata) == (0, True)
    assert isinstance(steps[2], Commit)
    assert (steps[2].offset, "planned" in steps[2].metadata) == (1, False)


def test_suspects_are_looked_up_in_each_table() -> None:
    """A row that is in one table under another token is left out of that table alone."""
    there = event_id("a", "result.published").int

    def answer(step: Step) -> Any:
        return ({there} if step.table == "events" else set()) if isinstance(step, LookUp) else None

    steps = run(batch_of("a"), answer)
    assert kinds(steps) == ["Commit", "LookUp", "LookUp", "Insert", "Commit"]
    assert isinstance(steps[3], Insert)
    assert {table: len(columns["batch"]) for table, columns in steps[3].tables.items()} == {"events": 1, "requests": 1}


def test_what_is_all_there_is_not_inserted() -> None:
    """A batch whose rows are all there under other tokens only commits."""
    steps = run(batch_of("a"), lambda step: set(step.event_ids) if isinstance(step, LookUp) else None)
    assert kinds(steps) == ["Commit", "LookUp", "LookUp", "Commit"]


def test_retry_is_proved() -> None:
    """After an insert that failed, the next is a repetition: asked for, inserted whole, proved, the view compared."""
    batch, tries = clean("a"), []

    def answer(step: Step) -> Any:
        if isinstance(step, Insert):
            tries.append(step.token)
            return BUSY if len(tries) == 1 else None
        if isinstance(step, Trace):
            return Held(batch.ids(step.table), 0, NOW) if len(tries) > 1 else NONE
        return None

    steps = run(batch, answer)
    assert kinds(steps) == [
        "Commit", "Insert", "Trace", "Trace", "Insert", "Trace", "Trace", "MatchMinutes", "Commit",
    ]  # fmt: skip
    assert tries == [batch.token, batch.token]


def test_forgotten_plan_is_not_inserted_twice() -> None:
    """Rows of a plan beyond the window stay as they are; nothing is inserted, the view is compared."""
    batch = clean("a")
    steps = run(
        batch,
        lambda step: Held(batch.ids(step.table), 0, NOW) if isinstance(step, Trace) else None,
        repeated=True,
        planned_at=1.0,
    )
    assert kinds(steps) == ["Commit", *["Trace"] * 4, "MatchMinutes", "Commit"]


def test_part_of_a_forgotten_plan_settles_first() -> None:
    """What is missing of a forgotten plan may be on its way: it is waited for, then inserted under its own token."""
    batch = clean("a", "b")
    inserted = []

    def answer(step: Step) -> Any:
        if isinstance(step, Insert):
            inserted.append(step)
        if isinstance(step, Trace):
            ids = batch.ids(step.table)
            some = frozenset(sorted(ids)[1:]) if step.table == "events" and not inserted else ids
            return Held(some, 0, NOW)
        return None

    steps = run(batch, answer, repeated=True, planned_at=1.0)
    assert kinds(steps) == [
        "Commit", "Trace", "Trace", "Settle", "Trace", "Insert", "Trace", "Trace", "MatchMinutes", "Commit",
    ]  # fmt: skip
    assert steps[3] == Settle(INSERT_LASTS_S)
    assert [(step.token, [*step.tables]) for step in inserted] == [(f"{batch.token}/1", ["events"])]


def test_server_that_eats_rows_ends_the_sink() -> None:
    """A server that acknowledges and does not keep is not asked for ever."""
    with pytest.raises(EventStoreError, match="does not have them"):
        run(clean("a"), lambda step: NONE if isinstance(step, Trace) else None, repeated=True)


def test_expired_rows_need_no_proof() -> None:
    """Rows whose time is over may be dropped by ClickHouse as soon as it has them."""
    past = "2001-01-01T00:00:00Z"
    draft = BatchDraft("e", 0, 0, BatchLimits(10, 1 << 20))
    draft.offer(EventRecord.of(0, record(event("a", expires_at=past))))

    def answer(step: Step) -> Any:
        return NONE if isinstance(step, Trace) else set() if isinstance(step, LookUp) else None

    steps = run(draft.finish(), answer, repeated=True)
    assert kinds(steps) == ["Commit", "LookUp", "Trace", "Insert", "Trace", "Commit"]


def test_poison_is_found_by_halving() -> None:
    """Refused rows are found with few probes, buried once, and left out of both tables; the rest goes on."""
    names = [f"r-{i}" for i in range(64)]
    batch = clean(*names)
    poison = {event_id("r-9", "result.published").int, event_id("r-40", "result.published").int}

    def answer(step: Step) -> Any:
        if isinstance(step, Trace):
            return NONE if not inserted else Held(batch.ids(step.table), 0, NOW)
        if isinstance(step, Insert):
            if any(poison & set(columns["event_id"]) for columns in step.tables.values()):
                return REFUSED
            inserted.append(step)
        if isinstance(step, Probe) and poison & set(step.columns["event_id"]):
            return REFUSED
        return None

    inserted: list[Insert] = []
    steps = run(batch, answer)
    buried = [step for step in steps if isinstance(step, BuryRows)]
    assert len(buried) == 1
    assert buried[0].reasons.keys() == poison
    assert sum(isinstance(step, Probe) for step in steps) < 64
    assert {table: len(columns["batch"]) for table, columns in inserted[0].tables.items()} == {
        "events": 126,
        "requests": 62,
    }


def test_wrong_table_is_no_poison() -> None:
    """A refusal of everything, or of nothing alone, ends the delivery with the refusal."""
    for probe in (None, REFUSED):
        answers: dict[type, EventStoreError | None] = {Insert: REFUSED, Probe: probe}

        def answer(step: Step, answers: dict[type, EventStoreError | None] = answers) -> EventStoreError | None:
            return answers.get(type(step))

        with pytest.raises(EventStoreError, match="refused"):
            run(clean("a", "b"), answer)


def test_bad_lines_are_buried_before_the_insert() -> None:
    """Lines that are no events are dead letters before anything is inserted, also where nothing else is left."""
    draft = BatchDraft("e", 0, 0, BatchLimits(10, 1 << 20))
    draft.offer(EventRecord.of(0, b"nonsense"))
    steps = run(draft.finish(), lambda _: None)
    assert kinds(steps) == ["Commit", "Bury", "Commit"]
    assert isinstance(steps[1], Bury)
    assert [line.line for line in steps[1].lines] == [b"nonsense"]
    assert not any(isinstance(step, MatchMinutes) for step in steps)


def test_ranges_are_read_from_tokens() -> None:
    """A token names its range, with a number behind it too; others' tokens name none."""
    assert range_of("inference.events/3/100-101/ab") == OffsetRange("inference.events", 3, 100, 101)
    assert [range_of(token) for token in ("", "bare/e/3/1-2/ab", "e/3/1-x/ab", "e/x/1-2/ab", "e/3/12/ab")] == [None] * 5


def test_gaps_reach_to_the_commit() -> None:
    """What no token covers between the first one and the commit is a gap; overlaps and other topics are none."""
    tokens = ["e/0/10-20/a", "e/0/15-25/b", "e/0/30-40/c", "e/1/0-5/d", "x/0/0-9/e", "nonsense"]
    assert gaps_of(tokens, {("e", 0): 45, ("e", 1): 5, ("e", 2): 7}) == [
        OffsetRange("e", 0, 25, 30),
        OffsetRange("e", 0, 40, 45),
    ]
