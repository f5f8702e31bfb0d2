"""Offsets: what is committed is finished, whatever the order in which requests end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.offsets import OffsetTracker
from tests.schemas.records import FAST


def test_nothing_is_committable_before_the_first() -> None:
    """A partition of which nothing was taken on has nothing to commit."""
    assert (OffsetTracker().committable(), len(OffsetTracker())) == (None, 0)


def test_commit_waits_for_the_lowest() -> None:
    """Offsets that end out of order are committed once all below them have ended; gaps are stepped over."""
    tracker = OffsetTracker()
    for offset in (5, 6, 9):
        tracker.begin(offset)
    commits = [tracker.committable()]
    for offset in (6, 5, 9):
        tracker.finish(offset)
        commits.append(tracker.committable())
    assert (commits, len(tracker)) == ([5, 5, 9, 10], 0)


@pytest.mark.parametrize("offset", [3, 4])
def test_offsets_never_go_back(offset: int) -> None:
    """An offset that was begun, or one below it, cannot begin again."""
    tracker = OffsetTracker()
    tracker.begin(4)
    tracker.finish(4)
    with pytest.raises(ValueError, match=f"offset {offset} begins after 4"):
        tracker.begin(offset)
    assert tracker.committable() == 5


@pytest.mark.parametrize("offset", [3, 4, 5])
def test_finishing_what_does_not_run_fails(offset: int) -> None:
    """An offset that was never begun, or was finished, cannot be finished."""
    tracker = OffsetTracker()
    tracker.begin(4)
    tracker.finish(4)
    with pytest.raises(KeyError):
        tracker.finish(offset)


@FAST
@given(st.lists(st.integers(1, 5), max_size=30), st.data())
def test_committable_never_passes_an_unfinished(gaps: list[int], data: st.DataObject) -> None:
    """At every moment the committable offset is the highest with all below it finished, and it never goes back."""
    tracker = OffsetTracker()
    waiting, begun, finished, commits = list(gaps), list[int](), set[int](), [0]
    position = data.draw(st.integers(0, 2**62))
    while waiting or len(finished) < len(begun):
        running = [offset for offset in begun if offset not in finished]
        if waiting and (not running or data.draw(st.booleans())):
            position += waiting.pop()
            tracker.begin(position)
            begun.append(position)
        else:
            offset = data.draw(st.sampled_from(running))
            tracker.finish(offset)
            finished.add(offset)
        committable = tracker.committable()
        assert committable is not None
        assert all(offset in finished for offset in begun if offset < committable)
        unfinished = [offset for offset in begun if offset not in finished]
        assert committable == min(unfinished, default=begun[-1] + 1)
        assert committable >= commits[-1]
        assert len(tracker) == len(unfinished)
        commits.append(committable)
