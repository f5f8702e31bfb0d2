"""Whether a version is complete: quiet times, looks, manifests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.completeness import FileSeen, Look, ManifestEntry, awaited, next_look

QUIET_S = 5.0
FILE = FileSeen(10, 100.0)


def look(files: dict[str, FileSeen], since: float) -> Look:
    return Look(files, since)


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
    found = awaited(files, last, now, QUIET_S)
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
    """A manifest that is met asks for no quiet time, and one that is not met is not made up for by quiet."""
    manifest = {"a": ManifestEntry(10, "0" * 64)}
    for now in (0.0, 100.0, 1e9):
        found = awaited(files, None, now, QUIET_S, manifest)
        assert (found is None) if words is None else (words in (found or ""))


def test_look_goes_on_while_nothing_changes() -> None:
    """The time since which a state was seen is that of the first look that saw it."""
    first = next_look({"a": FILE}, None, 10.0)
    assert next_look({"a": FILE}, first, 20.0) == first
    assert next_look({"a": FileSeen(11, 100.0)}, first, 20.0).since == 20.0


steps = st.lists(st.tuples(st.floats(0.1, 4.0), st.booleans()), min_size=1, max_size=30)


@given(steps, st.sampled_from([0.0, 1000.0]))
def test_growing_file_is_never_complete(found: list[tuple[float, bool]], ahead_s: float) -> None:
    """Whoever copies without a pause as long as the quiet time is never interrupted, whatever the times say."""
    now, size, last = 1000.0, 0, None
    changed_at = now
    for pause_s, grows in found:
        now += pause_s
        if grows:
            size += 1
            changed_at = now
        files = {"a": FileSeen(size, changed_at + ahead_s)}
        if awaited(files, last, now, QUIET_S) is None:
            assert now - changed_at >= QUIET_S or (last is not None and now - last.since >= QUIET_S)
        if grows:
            assert awaited(files, last, now, QUIET_S) is not None
        last = next_look(files, last, now)
