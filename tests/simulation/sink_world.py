"""Sinks, their group's coordinator, workers and ClickHouse, from a seed: one partition, everything that goes wrong.

A turn is a second. In each the world does something to somebody: a sink makes one step, an insert one moment, a worker
writes, somebody dies, pauses, or awakes. Sinks drive the product's own `deliver` as the real driver does.
"""

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.event_batch import BatchDraft, BatchLimits, EventBatch
from pipeline.core.sink_delivery import (
    Bury,
    BuryRows,
    Commit,
    Insert,
    LookUp,
    MatchMinutes,
    Probe,
    Settle,
    Step,
    Trace,
    deliver,
)
from pipeline.core.sink_plan import LogRange, StoredCommit, continued, is_continued, resume
from pipeline.errors import EventStoreError
from tests.simulation.sink_store import SinkStore
from tests.simulation.sink_writers import Writers, event_id_of

# As in the driver: an insert that begins later than this after the plan's commit commits the plan again.
PLAN_TRUSTED_S = 3.0
# The server gives an insert up whose client is silent for so long.
INSERT_LASTS_S = 30.0
# What differs in the same way at two looks so far apart differs for good.
LOOK_AGAIN_S = 5
METADATA_BYTES_MAX = 4096
_TURNS = 140
_TURNS_MAX = 20_000

Turns = Generator[None, None, Any]


class FencedError(Exception):
    """The committer is not the owner any more."""


@dataclass
class History:
    """What happened, for the invariants and for whoever repeats the seed."""

    seed: int
    told: list[str] = field(default_factory=list)
    buried: set[int] = field(default_factory=set)
    metadata_bytes_max: int = 0
    batch_lines_max: int = 0
    steps_max: int = 0
    met: set[str] = field(default_factory=set)


class Sink:
    """One process: its turns, and whether it is paused."""

    def __init__(self, world: "SinkWorld", number: int) -> None:
        self.number = number
        self.paused_until = 0.0
        self.is_retrying = False
        self.turns = world.run_sink(self)


class SinkWorld:
    """Runs one history.

    Args:
        seed: all of its chances.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.history = History(seed)
        self.store = SinkStore()
        self.writers = Writers(self.rng)
        self.commit: tuple[int, str] | None = None
        self.now = 1_790_000_000.0
        self.owner: Sink | None = None
        self.sinks: list[Sink] = []
        self._made = 0
        self._calm = False

    def run(self) -> History:
        """Everything that goes wrong, then calm until all is in."""
        for _ in range(_TURNS):
            self._turn()
        self._calm = True
        turns = 0
        while self.commit is None or self.commit[0] < len(self.writers.log) or self.store.running:
            self._turn()
            turns += 1
            assert turns < _TURNS_MAX, f"stuck at {self.commit}: {self.history.told[-20:]}"
        return self.history

    def tell(self, what: str) -> None:
        """A line of the history."""
        self.history.told.append(f"{self.now - 1_790_000_000.0:6.0f} {what}")

    def _turn(self) -> None:
        self.now += 1.0
        if not self._calm:
            self._misfortune(self.rng.random())
        for insertion in self.store.running:
            if self.now - insertion.begun_at > INSERT_LASTS_S:
                self.store.abort(insertion)
            elif self._calm or self.rng.random() < 0.6:
                self.store.advance(insertion)
        if self.owner is None or self.owner.paused_until > self.now + 10:
            self._hand_over()
        for sink in list(self.sinks):
            if sink.paused_until <= self.now and (self._calm or self.rng.random() < 0.8):
                self._step(sink)

    def _step(self, sink: Sink) -> None:
        try:
            next(sink.turns)
        except FencedError:
            self.history.met.add("fenced")
            self.tell(f"sink {sink.number} finds out that it was replaced")
            self._remove(sink)

    def _misfortune(self, chance: float) -> None:
        rng = self.rng
        if chance < 0.25:
            self.writers.answer()
        elif chance < 0.29:
            self.writers.replace()
        elif chance < 0.32:
            self.writers.wake_zombie()
            if self.owner is not None and rng.random() < 0.5:
                self._remove(self.owner)  # what it has seen is known by its commits alone
        elif chance < 0.33:
            self.writers.write_unnamed()
        elif chance < 0.36 and self.owner is not None:
            self.tell(f"sink {self.owner.number} is killed")
            self._remove(self.owner)
        elif chance < 0.40 and self.owner is not None:
            self.owner.paused_until = self.now + rng.choice([5, 15, 40, 2000])
            self.tell(f"sink {self.owner.number} is paused until {self.owner.paused_until - 1_790_000_000.0:.0f}")
        elif chance < 0.42:
            self.tell("ClickHouse is killed")
            self.store.kill()
        elif chance < 0.44:
            self._pass_time()
        elif chance < 0.45:
            self.store.is_merged = not self.store.is_merged
        elif chance < 0.46 and self.writers.answered:
            self._poison()
        elif chance < 0.465 and self.commit is not None:
            self._reset_by_hand()

    def _pass_time(self) -> None:
        """Others insert on while nothing of ours moves: a token may be forgotten.

        Either the owner waits for its next try, or it is paused with all of its machine and loses the partition.
        """
        if self.store.running:
            return
        if self.owner is not None and not self.owner.is_retrying:
            self.owner = None
        blocks = self.rng.choice([5, 60, 60])
        self.now += blocks * 10
        self.store.forget(blocks)
        self.tell(f"{blocks} blocks of others")

    def _poison(self) -> None:
        event_id = event_id_of(self.rng.randrange(self.writers.answered))
        if all(event_id not in {row.event_id for row, _ in table.rows} for table in self.store.tables.values()):
            self.store.poison.add(event_id)

    def _reset_by_hand(self) -> None:
        """Kafka's tools only set offsets of a group without members; no insert runs any more by then."""
        assert self.commit is not None
        for sink in list(self.sinks):
            self._remove(sink)
        while self.store.running:
            self.store.advance(self.store.running[0])
        offset = self.rng.randint(0, self.commit[0])
        self.commit = (offset, self.rng.choice(["", "garbage", '{"planned_end":true}']))
        self.history.met.add("reset")
        self.tell(f"offset set to {offset} by hand")

    def _hand_over(self) -> None:
        self._made += 1
        self.owner = Sink(self, self._made)
        self.sinks.append(self.owner)
        self.tell(f"sink {self._made} owns the partition")

    def _remove(self, sink: Sink) -> None:
        sink.turns.close()
        self.sinks.remove(sink)
        if self.owner is sink:
            self.owner = None

    def run_sink(self, sink: Sink) -> Turns:
        """A sink's life: open the lane, then batch after batch."""
        yield
        stored = None if self.commit is None else StoredCommit.of(*self.commit)
        log = LogRange(0, len(self.writers.log))
        has_rows = not is_continued(stored, log) and any(table.rows for table in self.store.tables.values())
        start, seen, plan, _ = resume(stored, log, 1, has_rows=has_rows, now=self.now)
        while True:
            yield
            end = len(self.writers.log)
            if end == start:
                continue
            draft = self._draft(start, end, plan.end if plan is not None else None, seen)
            batch, plan, repeated = continued(draft.finish(), plan, self.now)
            self.history.batch_lines_max = max(self.history.batch_lines_max, sum(batch.row_counts.values()))
            self.history.met |= {"repeated"} if repeated else set()
            yield from self._deliver(sink, batch, plan, repeated)
            start, seen, plan = batch.end, batch.seen, None

    def _draft(self, start: int, end: int, planned_end: int | None, *seen: Any) -> BatchDraft:
        limits = BatchLimits(self.rng.choice([6, 20, 40]), 1 << 20)
        draft = BatchDraft("e", 0, start, limits if seen else BatchLimits(10**6, 1 << 30), planned_end, *seen)
        for record in self.writers.log[start:end]:
            if not draft.offer(record):
                break
        return draft

    def _deliver(self, sink: Sink, batch: EventBatch, plan: Any, repeated: bool) -> Turns:
        delivery = deliver(batch, plan, 1, repeated=repeated)
        step = next(delivery)
        committed: tuple[Commit, float] | None = None
        steps = 0
        while True:
            steps += 1
            self.history.steps_max = max(self.history.steps_max, steps)
            self.history.met.add(type(step).__name__)
            try:
                yield
                if isinstance(step, Insert) and committed and self.now - committed[1] > PLAN_TRUSTED_S:
                    committed = (committed[0], self._commit(sink, committed[0]))
                outcome = yield from self._perform(sink, step)
                self.tell(f"sink {sink.number}: {type(step).__name__} of {batch.start}-{batch.end} done")
                if isinstance(step, Commit):
                    committed = (step, outcome)
                step = delivery.send(outcome)
            except StopIteration:
                return
            except EventStoreError as error:
                self.history.met.add("retried" if error.retryable else "refused")
                sink.is_retrying = True
                for _ in range(self.rng.randint(1, 5)):
                    yield
                sink.is_retrying = False
                step = delivery.throw(error)

    def _commit(self, sink: Sink, commit: Commit) -> float:
        if self.owner is not sink:
            raise FencedError
        self.history.metadata_bytes_max = max(self.history.metadata_bytes_max, len(commit.metadata))
        self.commit = (commit.offset, commit.metadata)
        return self.now

    def _perform(self, sink: Sink, step: Step) -> Turns:
        match step:
            case Commit():
                return self._commit(sink, step)
            case Insert(tables, token):
                insertion = self.store.begin(tables, token, self.now)
                if "/" in token.removeprefix("e/0/").partition("/")[2]:
                    self.history.met.add("completed")
                while not insertion.is_done:
                    yield
                if insertion.error is not None:
                    raise insertion.error
            case LookUp(table, event_ids, token):
                present = self.store.present(table, event_ids, token)
                self.history.met |= {"left out"} if present else set()
                return present
            case Trace(table, token, _):
                return self.store.held(table, token, self.now)
            case Settle(seconds):
                for _ in range(int(seconds)):
                    yield
            case MatchMinutes():
                yield from self._match_minutes()
            case Probe(_, columns):
                self.store.check(columns)
            case BuryRows(reasons):
                self.history.buried |= reasons.keys()
            case Bury():
                raise AssertionError("every line here is an event")
        return None

    def _match_minutes(self) -> Turns:
        before = None
        while found := self.store.differing_minutes():
            if found == before:
                self.store.rebuild(found.keys())
                self.history.met.add("rebuilt")
                return
            before = found
            for _ in range(LOOK_AGAIN_S):
                yield
