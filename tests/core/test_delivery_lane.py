"""One partition in one generation: what may be taken, what to commit, and where its answers begin in the results."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import lane as lane_module
from pipeline.core.commit_note import CommitNote
from pipeline.core.lane import STARTS_MAX, SUSPECT_STARTS_MAX, WINDOW_OFFSETS, Lane, LaneStart
from tests.schemas.records import FAST


def a_lane(note: CommitNote | None = None, generation: int = 7, **start: int) -> Lane:
    """A lane that begins at offset 10 of 20, and at 100 of 110 results."""
    members: dict[str, Any] = {"offset": 10, "requests_end": 20, "results_from": 100, "results_end": 110, **start}
    return Lane("inference.requests", 3, generation, "group", LaneStart(note=note, **members))


def commit(lane: Lane, *, clean_end: bool = False) -> tuple[int, CommitNote] | None:
    """Commits what is to be committed, as Kafka would confirm it."""
    place = lane.to_commit(clean_end=clean_end)
    if place is not None:
        lane.committed(*place)
    return place


def finish(lane: Lane, *offsets: int) -> None:
    """Begins and finishes offsets, one after the other."""
    for offset in offsets:
        lane.offsets.begin(offset)
        lane.offsets.finish(offset)


def test_start_is_committed_before_anything_is_taken() -> None:
    """The first commit says that this start was made; then there is nothing new to say."""
    lane = a_lane(CommitNote(results_from=100, generation=6, starts=1))
    assert commit(lane) == (10, CommitNote(results_from=100, generation=7, starts=2))
    assert commit(lane) is None


@pytest.mark.parametrize(("generation", "incarnation"), [(6, 0), (7, 5), (8, 0)])
def test_incarnations_count_within_a_generation(generation: int, incarnation: int) -> None:
    """A static member that was replaced keeps its generation: its successor is the next incarnation."""
    lane = a_lane(CommitNote(results_from=0, generation=generation, incarnation=4))
    assert lane.incarnation == incarnation


def test_what_was_delivered_may_be_known() -> None:
    """Offsets that the owner before may have taken: within its window, and in the log by now."""
    note = CommitNote(results_from=100)
    assert [a_lane(note).may_be_known(offset) for offset in (10, 19, 20)] == [True, True, False]
    far = a_lane(note, requests_end=10 + 2 * WINDOW_OFFSETS)
    assert [far.may_be_known(10 + WINDOW_OFFSETS + more) for more in (-1, 0)] == [True, False]


def test_without_a_note_all_may_be_known() -> None:
    """Whoever set the offset by hand may have set it back by any distance."""
    lane = a_lane(requests_end=10 + 2 * WINDOW_OFFSETS)
    assert [lane.may_be_known(10 + 2 * WINDOW_OFFSETS + more) for more in (-1, 0)] == [True, False]


def test_offset_set_back_by_hand_is_not_forgotten() -> None:
    """The owners after the first know as well how far answers reach, until their window says it."""
    end = 10 + 3 * WINDOW_OFFSETS
    lane = a_lane(requests_end=end)
    finish(lane, *range(10, 15))
    offset, note = commit(lane) or pytest.fail("nothing to commit")
    assert (offset, note.delivered_until) == (15, end)
    successor = a_lane(note, offset=offset, requests_end=end + 5 * WINDOW_OFFSETS)
    assert [successor.may_be_known(end + more) for more in (-1, 0)] == [True, False]
    near = a_lane(note, offset=end - WINDOW_OFFSETS, requests_end=end)
    assert (commit(near) or pytest.fail("nothing to commit"))[1].delivered_until == 0


def test_window_is_bounded_above_the_commit() -> None:
    """No offset this far above the committed one is taken; a commit moves the window."""
    lane = a_lane()
    assert [lane.may_take(10 + WINDOW_OFFSETS + more) for more in (-1, 0)] == [True, False]
    finish(lane, 10, 11)
    commit(lane)
    assert [lane.may_take(12 + WINDOW_OFFSETS + more) for more in (-1, 0)] == [True, False]


def test_results_without_a_commit_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next owner reads all results that no commit covers: past their bound nothing is taken."""
    monkeypatch.setattr(lane_module, "UNCOMMITTED_RESULT_BYTES_MAX", 100)
    lane = a_lane(requests_end=10)
    lane.published(110, 111, 10, 60)
    assert lane.may_take(12)
    lane.published(111, 112, 11, 40)
    assert not lane.may_take(12)
    finish(lane, 10)
    commit(lane)
    assert lane.may_take(12)


def test_clean_end_is_no_failed_start() -> None:
    """A lane that ends in order leaves the count as it found it."""
    lane = a_lane(CommitNote(results_from=100, generation=6, starts=2))
    commit(lane)
    assert commit(lane, clean_end=True) == (10, CommitNote(results_from=100, generation=7, starts=2))


def test_start_that_got_further_counts_no_more() -> None:
    """Whoever commits a later offset has not failed at it."""
    lane = a_lane(CommitNote(results_from=100, starts=2))
    commit(lane)
    finish(lane, 10)
    assert commit(lane) == (11, CommitNote(results_from=100, generation=7))


def test_later_place_alone_is_not_committed() -> None:
    """While the offset stays, a note that only begins later in the results is not worth a commit."""
    lane = a_lane(requests_end=10)
    commit(lane)
    lane.offsets.begin(10)
    lane.published(110, 113, 12, 1)
    assert commit(lane) is None
    lane.offsets.finish(10)
    assert commit(lane) == (11, CommitNote(results_from=110, generation=7))


def test_results_begin_where_they_were_found_until_all_is_committed() -> None:
    """Answers of earlier owners stand anywhere from there: only past what they may have taken is another place sure."""
    lane = a_lane(requests_end=12)
    commit(lane)
    lane.offsets.begin(10)
    lane.offsets.begin(11)
    lane.published(110, 112, 11, 2)
    lane.offsets.finish(10)
    assert commit(lane) == (11, CommitNote(results_from=100, generation=7))
    lane.offsets.finish(11)
    assert commit(lane) == (12, CommitNote(results_from=112, generation=7))


def test_records_run_alone_after_failed_starts() -> None:
    """Starts that got no further are counted; then what the window holds runs one at a time."""
    assert a_lane(CommitNote(results_from=100, starts=STARTS_MAX - 1)).isolated_until == 0
    lane = a_lane(CommitNote(results_from=100, starts=STARTS_MAX))
    assert [lane.is_isolated(offset) for offset in (10, 19, 20)] == [True, True, False]
    far = a_lane(CommitNote(results_from=100, starts=STARTS_MAX, delivered_until=1 << 40), requests_end=1 << 40)
    assert far.isolated_until == 10 + WINDOW_OFFSETS, "what an earlier owner cannot have begun has ended no worker"


def test_isolation_outlives_its_worker() -> None:
    """The next one goes on record by record, as far as was said; then the note says nothing of it."""
    lane = a_lane(CommitNote(results_from=100, isolate_until=12))
    assert lane.isolated_until == 12
    finish(lane, 10)
    _, note = commit(lane) or pytest.fail("nothing to commit")
    assert note.isolate_until == 12
    finish(lane, 11)
    _, note = commit(lane) or pytest.fail("nothing to commit")
    assert note.isolate_until == 0


def test_isolation_grows_when_it_does_not_help() -> None:
    """Starts that fail while some records run alone: it is one behind them that ends workers."""
    assert a_lane(CommitNote(results_from=100, starts=STARTS_MAX, isolate_until=11)).isolated_until == 20


def test_culprit_is_named_before_it_is_condemned() -> None:
    """A record is given up after as many starts in which it ran alone and was named, each in Kafka before it ran."""
    note = CommitNote(results_from=100, isolate_until=20)
    for starts in range(SUSPECT_STARTS_MAX):
        lane = a_lane(note)
        commit(lane)
        assert not lane.is_culprit(10)
        lane.name_suspect(10)
        assert lane.is_named(10) is (starts > 0), "named by an earlier owner, or not yet"
        _, note = commit(lane) or pytest.fail("nothing to commit")
        assert (note.suspect, note.suspect_starts) == (10, starts + 1)
        assert lane.is_named(10)
    lane = a_lane(note)
    assert lane.is_culprit(10)
    assert not lane.is_culprit(11)


def test_another_suspect_begins_anew() -> None:
    """What one record was suspected of is not counted against the next."""
    lane = a_lane(CommitNote(results_from=100, isolate_until=20, suspect=10, suspect_starts=2))
    finish(lane, 10)
    lane.name_suspect(11)
    _, note = commit(lane) or pytest.fail("nothing to commit")
    assert (note.suspect, note.suspect_starts) == (11, 1)


def test_finished_suspect_is_named_no_more() -> None:
    """A commit past it says that nobody runs alone now."""
    lane = a_lane(CommitNote(results_from=100, isolate_until=20))
    lane.name_suspect(10)
    commit(lane)
    finish(lane, 10)
    _, note = commit(lane) or pytest.fail("nothing to commit")
    assert (note.suspect, note.suspect_starts) == (-1, 0)


def test_clean_end_takes_the_name_back() -> None:
    """A rebalance while a record runs alone is not its doing."""
    lane = a_lane(CommitNote(results_from=100, isolate_until=20, suspect=10, suspect_starts=1))
    lane.name_suspect(10)
    commit(lane)
    _, note = commit(lane, clean_end=True) or pytest.fail("nothing to commit")
    assert (note.suspect, note.suspect_starts) == (10, 1)


STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "publish", "finish", "commit"]), st.integers(0, 1 << 16)), max_size=120
)


@given(STEPS, st.integers(0, 6), st.sampled_from([1, 2, 512]))
@FAST
def test_commits_lead_to_all_answers_above_them(steps: Sequence[tuple[str, int]], known: int, rounds_max: int) -> None:
    """Against a list of all results: no commit passes a running offset, and none of its answers stands before its note.

    Each round publishes a few of what runs, in any order; `known` offsets may have been answered by an earlier owner,
    who did so at the places 100 to 109.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane_module, "_ROUNDS_MAX", rounds_max)
        lane = a_lane(CommitNote(results_from=100), requests_end=10 + known)
        log = [(10 + place % max(known, 1), 100 + place) for place in range(10)] if known else []
        running: list[int] = []
        answered: list[int] = []
        next_offset, place = 10, 110
        for step, chance in steps:
            if step == "begin":
                lane.offsets.begin(next_offset)
                running.append(next_offset)
                next_offset += 1 + (chance % 7 == 0)
            elif step == "publish" and running:
                some = [running.pop(chance % len(running)) for _ in range(min(1 + chance % 3, len(running)))]
                log += [(offset, place + number) for number, offset in enumerate(some)]
                lane.published(place, place + len(some), max(some), len(some))
                place += len(some)
                answered += some
            elif step == "finish" and answered:
                lane.offsets.finish(answered.pop(chance % len(answered)))
            elif step == "commit" and (to_commit := lane.to_commit()) is not None:
                offset, note = to_commit
                assert offset == min(running + answered, default=lane.next_offset)
                assert all(at >= note.results_from for answer, at in log if answer >= offset)
                lane.committed(offset, note)
