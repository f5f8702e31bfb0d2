"""Mistakes that the delivery simulation must find: each is one that somebody could make in the core or around it."""

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from pipeline.core import lane as lane_module
from pipeline.core.commit_note import CommitNote
from pipeline.core.duplicates import DuplicateWindow
from pipeline.core.lane import Lane, LaneStart, _Round
from pipeline.core.ledger import Answered, Ledger
from pipeline.core.offsets import OffsetTracker
from pipeline.worker.membership import Membership
from tests.simulation.delivery_worker import Outgoing, WorkerProcess

Patch = pytest.MonkeyPatch
MUTATIONS: dict[str, Callable[[Patch], None]] = {}


def mutation(mistake: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """Adds a mistake under its function's name."""
    MUTATIONS[mistake.__name__] = mistake
    return mistake


def _change_notes(patch: Patch, **members: int) -> None:
    note = Lane._note
    patch.setattr(Lane, "_note", lambda self, *arguments: structs.replace(note(self, *arguments), **members))


@mutation
def ledger_is_not_asked(patch: Patch) -> None:
    patch.setattr(Ledger, "take", lambda *_: [])


@mutation
def ledger_believes_the_offset(patch: Patch) -> None:
    def take(self: Ledger, offset: int, timestamp_ms: int, request_id: str) -> list[Answered]:
        return [answered for answered in self._answers.pop(offset, []) if answered.request_id == request_id]

    patch.setattr(Ledger, "take", take)


@mutation
def ledger_believes_other_groups(patch: Patch) -> None:
    note = Ledger.note
    patch.setattr(Ledger, "note", lambda self, answered: note(self, answered._replace(group=self._group)))


@mutation
def ledger_ends_one_too_early(patch: Patch) -> None:
    patch.setattr(Lane, "may_be_known", lambda self, offset: offset < self.ledger.until - 1)


@mutation
def window_is_one_too_large(patch: Patch) -> None:
    patch.setattr(Lane, "may_take", lambda self, offset: offset < self._committed + lane_module.WINDOW_OFFSETS + 1)


@mutation
def window_is_not_kept(patch: Patch) -> None:
    patch.setattr(Lane, "may_take", lambda *_: True)


@mutation
def results_from_is_the_end(patch: Patch) -> None:
    patch.setattr(Lane, "_results_from_for", lambda self, offset: self.results_end)


@mutation
def results_from_forgets_what_was_found(patch: Patch) -> None:
    def results_from(self: Lane, offset: int) -> int:
        return next((one.results_from for one in self._rounds if one.last_offset >= offset), self.results_end)

    patch.setattr(Lane, "_results_from_for", results_from)


@mutation
def results_from_leaves_out_the_last(patch: Patch) -> None:
    def results_from(self: Lane, offset: int) -> int:
        if offset < self.ledger.until:
            return self._results_from
        return next((one.results_from for one in self._rounds if one.last_offset > offset), self.results_end)

    patch.setattr(Lane, "_results_from_for", results_from)


@mutation
def merged_rounds_lose_their_last(patch: Patch) -> None:
    published = Lane.published

    def forgetful(self: Lane, results_from: int, results_end: int, last_offset: int, size: int) -> None:
        if len(self._rounds) < lane_module._ROUNDS_MAX:
            published(self, results_from, results_end, last_offset, size)
        else:
            self.results_end = max(self.results_end, results_end)

    patch.setattr(Lane, "published", forgetful)


@mutation
def rounds_are_dropped_too_early(patch: Patch) -> None:
    committed = Lane.committed

    def early(self: Lane, offset: int, note: CommitNote) -> None:
        committed(self, offset + 1, note)
        self._committed = offset

    patch.setattr(Lane, "committed", early)


@mutation
def rounds_are_not_bounded(patch: Patch) -> None:
    def published(self: Lane, results_from: int, results_end: int, last_offset: int, size: int) -> None:
        self._rounds.append(_Round(results_from, last_offset, size))
        self.results_end = max(self.results_end, results_end)

    patch.setattr(Lane, "published", published)


@mutation
def commit_passes_running_records(patch: Patch) -> None:
    patch.setattr(OffsetTracker, "committable", lambda self: self.next_offset)


@mutation
def commit_is_one_too_high(patch: Patch) -> None:
    def committable(self: OffsetTracker) -> int | None:
        lowest = next(iter(self._running), None)
        return self.next_offset if lowest is None else lowest + 1

    patch.setattr(OffsetTracker, "committable", committable)


@mutation
def start_is_not_committed(patch: Patch) -> None:
    commit = WorkerProcess._commit

    def lazy(self: WorkerProcess, lanes: Any, *, clean_end: bool = False) -> Generator[Any, None, bool]:
        held = list(lanes)
        if any(lane not in self.lanes.values() for lane in held):
            return True
        return (yield from commit(self, held, clean_end=clean_end))

    patch.setattr(WorkerProcess, "_commit", lazy)


@mutation
def heartbeats_are_not_looked_at(patch: Patch) -> None:
    patch.setattr(Membership, "is_fresh", lambda self, lane: not lane.closed)


@mutation
def heartbeats_are_fresh_for_too_long(patch: Patch) -> None:
    begin = Membership.__init__

    def longer(self: Membership, session_s: float, *clock: Any) -> None:
        begin(self, 3 * session_s, *clock)

    patch.setattr(Membership, "__init__", longer)


@mutation
def suspects_are_condemned_too_early(patch: Patch) -> None:
    patch.setattr(
        Lane, "is_culprit", lambda self, offset: offset == self._isolation.found[0] and self._isolation.found[1] >= 1
    )


@mutation
def suspects_are_never_condemned(patch: Patch) -> None:
    patch.setattr(Lane, "is_culprit", lambda *_: False)


@mutation
def suspects_are_counted_together(patch: Patch) -> None:
    def name(self: Lane, offset: int) -> None:
        self._isolation.named = offset, self._isolation.found[1] + 1

    patch.setattr(Lane, "name_suspect", name)


@mutation
def records_never_run_alone(patch: Patch) -> None:
    patch.setattr(Lane, "is_isolated", lambda *_: False)


@mutation
def suspects_run_beside_others(patch: Patch) -> None:
    patch.setattr(WorkerProcess, "_others_run", lambda *_: False)


@mutation
def suspects_stay_named_when_they_are_done(patch: Patch) -> None:
    patch.setattr(WorkerProcess, "_withdraw_name", lambda *_: iter(()))


@mutation
def starts_are_not_counted(patch: Patch) -> None:
    _change_notes(patch, starts=0)


@mutation
def incarnations_are_not_counted(patch: Patch) -> None:
    begin = Lane.__init__

    def same(self: Lane, *arguments: Any) -> None:
        begin(self, *arguments)
        self.incarnation = 0

    patch.setattr(Lane, "__init__", same)


@mutation
def hand_made_offsets_are_forgotten(patch: Patch) -> None:
    _change_notes(patch, delivered_until=0)


@mutation
def events_do_not_say_that_they_come_again(patch: Patch) -> None:
    publish = WorkerProcess._publish

    def silent(self: WorkerProcess, outgoing: Outgoing) -> None:
        outgoing.redelivered = False
        publish(self, outgoing)

    patch.setattr(WorkerProcess, "_publish", silent)


@mutation
def records_are_duplicates_of_themselves(patch: Patch) -> None:
    find = DuplicateWindow.find
    patch.setattr(DuplicateWindow, "find", lambda self, key, offset, at: find(self, key, offset + 1, at))


@mutation
def ids_are_not_restored(patch: Patch) -> None:
    patch.setattr("tests.simulation.delivery_worker.restore_duplicates", lambda *_: None)


@mutation
def results_topic_made_anew_is_not_noticed(patch: Patch) -> None:
    begin = Lane.__init__

    def trusting(
        self: Lane, topic: str, partition: int, generation: int, group: str, start: LaneStart, kept: Any
    ) -> None:
        found = start if start.note is None else replace(start, results_from=start.note.results_from)
        begin(self, topic, partition, generation, group, found, kept)

    patch.setattr(Lane, "__init__", trusting)
