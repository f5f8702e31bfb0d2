"""Whether a version is complete: quiet times, looks, manifests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.completeness import FileSeen, Look, ManifestEntry, Moment, awaited, manifest_gap, next_look

QUIET_S = 5.0
FILE = FileSeen(10, 100.0)


def look(files: dict[str, FileSeen], since: float) -> Look:
    return Look(files, since)


def at(now: float) -> Moment:
    """A moment at which nobody has set the wall clock yet."""
    return Moment(now, now)


@pytest.mark.parametrize(
    ("files", "last", "now", "words"),
    [
        ({}, None, 200.0, "no file"),
        ({"a": FILE}, None, 104.9, "a changed less than 5 s ago"),
        ({"a": FILE}, None, 105.0, None),
        ({"a": FILE}, look({"a": FILE}, 101.0), 104.0, "a changed less than 5 s ago"),
        ({"a": FILE}, look({"a": FileSeen(9, 100.0)}, 150.0), 200.0, "a changed since the last look"),
        ({"a": FILE}, look({"a": FileSeen(10, 99.0)}, 150.0), 200.0, "a changed since the last look"),
        ({"a": FILE, "b": FILE}, look({"a": FILE}, 150.0), 200.0, "b changed since the last look"),
        ({"a": FILE}, look({"a": FILE, "b": FILE}, 150.0), 200.0, "b was there"),
        ({"a": FILE}, look({"a": FILE}, 100.0), 200.0, None),
        # A copy that keeps times of the future: only looks that agree count.
        ({"a": FileSeen(10, 900.0)}, None, 200.0, "in the future"),
        ({"a": FileSeen(10, 900.0)}, look({"a": FileSeen(10, 900.0)}, 198.0), 200.0, "a changed less than 5 s ago"),
        ({"a": FileSeen(10, 900.0)}, look({"a": FileSeen(10, 900.0)}, 195.0), 200.0, None),
        ({"a": FILE, "b": FileSeen(1, 198.0)}, None, 200.0, "b changed less than 5 s ago"),
    ],
)
def test_quiet_time_and_looks_decide(
    files: dict[str, FileSeen], last: Look | None, now: float, words: str | None
) -> None:
    """A version is complete once nothing in it changed for the quiet time, nor since the last look."""
    found = awaited(files, last, at(now), QUIET_S)
    assert (found is None) if words is None else (words in (found or "")), found


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": FILE}, None),
        ({}, "a is in the manifest and not there"),
        ({"a": FileSeen(9, 0.0)}, "a has 9 bytes, the manifest says 10"),
        ({"a": FILE, "b": FILE}, "b is there and not in the manifest"),
    ],
)
def test_manifest_alone_decides(files: dict[str, FileSeen], words: str | None) -> None:
    """A manifest that is met asks for no time at all, and one that is not met says what is missing."""
    found = manifest_gap(files, {"a": ManifestEntry(10, "0" * 64)})
    assert (found is None) if words is None else (words in (found or ""))


def test_look_goes_on_while_nothing_changes() -> None:
    """The time since which nothing changed is the newest file's at the first look, then that of the looks."""
    first = next_look({"a": FILE}, None, at(110.0))
    assert first.quiet_since_s == 100.0
    assert next_look({"a": FILE}, first, at(120.0)) == first
    assert next_look({"a": FileSeen(11, 100.0)}, first, at(120.0)).quiet_since_s == 120.0
    assert next_look({"a": FileSeen(10, 900.0)}, None, at(110.0)).quiet_since_s == 110.0


@pytest.mark.parametrize("set_by_s", [-3600.0, 3600.0])
def test_clock_that_is_set_neither_completes_a_copy_nor_holds_it(set_by_s: float) -> None:
    """A copy that pauses while the wall clock jumps an hour waits for the quiet time, no less and no more."""
    before, after = {"a": FileSeen(9, 100.0)}, {"a": FileSeen(10, 101.0)}
    last = next_look(after, next_look(before, None, at(100.5)), at(101.0))
    for steady_s, words in ((102.0, "less than 5 s ago"), (105.9, "less than 5 s ago"), (106.0, None)):
        now = Moment(steady_s + set_by_s, steady_s)
        found = awaited(after, last, now, QUIET_S)
        assert (found is None) if words is None else (words in (found or "")), steady_s
        last = next_look(after, last, now)


def test_clock_that_is_set_back_takes_nothing_that_was_complete() -> None:
    """A version that was complete stays so while the clock is set back below its files' times and comes up again."""
    last = next_look({"a": FILE}, None, at(105.0))
    for wall_s, steady_s in ((-3495.0, 105.1), (99.9, 3700.0), (100.1, 3700.2), (105.0, 3705.1)):
        assert awaited({"a": FILE}, last, Moment(wall_s, steady_s), QUIET_S) is None, wall_s
        last = next_look({"a": FILE}, last, Moment(wall_s, steady_s))


def test_first_look_after_the_clock_was_set_back_waits_for_the_quiet_time() -> None:
    """A watcher that starts while files are an hour ahead takes them once its own looks agree, not an hour later."""
    files = {"a": FileSeen(10, 3700.0)}
    assert "in the future" in (awaited(files, None, Moment(100.0, 50.0), QUIET_S) or "")
    last = next_look(files, None, Moment(100.0, 50.0))
    assert "less than 5 s ago" in (awaited(files, last, Moment(104.9, 54.9), QUIET_S) or "")
    assert awaited(files, last, Moment(105.0, 55.0), QUIET_S) is None


steps = st.lists(
    st.tuples(st.floats(0.1, 4.0), st.booleans(), st.sampled_from([0.0, 0.0, -3600.0, 3600.0])), min_size=1, max_size=30
)


@given(steps, st.sampled_from([0.0, 1000.0]))
def test_growing_file_is_never_complete(found: list[tuple[float, bool, float]], ahead_s: float) -> None:
    """Whoever copies without a pause as long as the quiet time is never interrupted, whatever the clocks say."""
    now, size, last, wall_ahead_s = 1000.0, 0, None, 0.0
    changed_at = now
    seen = FileSeen(size, now + ahead_s)
    for pause_s, grows, set_by_s in found:
        now += pause_s
        if last is not None:  # the first look has nothing but the wall clock
            wall_ahead_s += set_by_s
        if grows:
            size += 1
            changed_at = now
            seen = FileSeen(size, now + wall_ahead_s + ahead_s)
        moment = Moment(now + wall_ahead_s, now)
        files = {"a": seen}
        if awaited(files, last, moment, QUIET_S) is None:
            assert now - changed_at >= QUIET_S
        if grows:
            assert awaited(files, last, moment, QUIET_S) is not None
        last = next_look(files, last, moment)
