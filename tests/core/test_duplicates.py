"""Ids that come again: within the window they are known by their first request, after it they are new."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.duplicates import DuplicateWindow, First, duplicate_key
from tests.schemas.records import FAST

DIGEST = bytes(range(16))


def first(offset: int, timestamp_ms: int = 0) -> First:
    """A request with some content."""
    return First(offset, timestamp_ms, DIGEST)


def test_repeated_id_is_known_by_its_first() -> None:
    """The first request with an id is found with all that is known of it, by later offsets alone."""
    window = DuplicateWindow()
    window.add("r-1", first(5, 100))
    assert window.find("r-1", 6, 101) == First(5, 100, DIGEST)
    assert window.find("r-1", 5, 100) is None, "a record is no duplicate of itself"
    assert window.find("r-1", 4, 99) is None
    assert window.find("r-2", 6, 101) is None


def test_first_stays_the_first() -> None:
    """Neither its repetition nor reading the log again makes a later request the first."""
    window = DuplicateWindow()
    for offset in (5, 9, 5):
        window.add("r-1", first(offset, offset))
    assert window.find("r-1", 10, 10) == first(5, 5)
    assert len(window) == 1


def test_earlier_request_becomes_the_first() -> None:
    """Results stand in the log in any order; the lowest offset counts."""
    window = DuplicateWindow()
    window.add("r-1", first(9, 90))
    window.add("r-1", first(5, 50))
    assert window.find("r-1", 9, 90) == first(5, 50)


@pytest.mark.parametrize(("later_ms", "known"), [(600_000, True), (600_001, False)])
def test_id_is_new_after_its_time(later_ms: int, known: bool) -> None:
    """Ten minutes by the log's own clock, to the millisecond; then the id begins anew."""
    window = DuplicateWindow()
    window.add("r-1", first(5, 1_000))
    assert (window.find("r-1", 6, 1_000 + later_ms) is not None) is known
    window.add("r-1", first(6, 1_000 + later_ms))
    assert window.find("r-1", 7, 1_000 + later_ms) == (first(5, 1_000) if known else first(6, 1_000 + later_ms))


def test_oldest_give_way_when_it_is_full() -> None:
    """No more ids than allowed; those that came first go first."""
    window = DuplicateWindow(records_max=3)
    for offset in range(5):
        window.add(f"r-{offset}", first(offset))
    assert [window.find(f"r-{offset}", 9, 0) is not None for offset in range(5)] == [False, False, True, True, True]
    assert len(window) == 3


def test_memory_is_given_back_with_time() -> None:
    """Ids that are too old to count take no room."""
    window = DuplicateWindow(age_max_ms=100)
    for offset in range(50):
        window.add(f"r-{offset}", first(offset, offset * 10))
    assert len(window) <= 11


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("r", None), ("r", None), True),
        (("r", None), ("r", ""), True),
        (("r", "a"), ("r", "a"), True),
        (("r", "a"), ("r", "b"), False),
        (("r", "a"), ("r", None), False),
        (("r", "ab"), ("ra", "b"), False),
    ],
)
def test_ids_of_tenants_never_meet(one: tuple[str, str | None], other: tuple[str, str | None], same: bool) -> None:
    """The same id of two tenants names two requests."""
    assert (duplicate_key(*one) == duplicate_key(*other)) is same


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 40)), max_size=60), st.integers(1, 200), st.booleans()
)
@FAST
def test_verdicts_are_those_of_the_whole_log(log: Sequence[tuple[str, int]], age_ms: int, read_twice: bool) -> None:
    """Reading a log in order gives for each id what a search through all of it gives, as often as it is read.

    A log of ids and milliseconds since the record before.
    """
    at, records = 0, []
    for offset, (key, passed_ms) in enumerate(log):
        at += passed_ms
        records.append((offset, at, key))
    window = DuplicateWindow(age_max_ms=age_ms)
    firsts: dict[str, tuple[int, int]] = {}
    wanted = []
    for offset, at, key in records:
        known = firsts.get(key)
        if known is None or at - known[1] > age_ms:
            known = firsts[key] = offset, at
        wanted.append(known[0])
    for _ in range(1 + read_twice):
        found = []
        for offset, at, key in records:
            known_first = window.find(key, offset, at)
            found.append(offset if known_first is None else known_first.offset)
            if known_first is None:
                window.add(key, first(offset, at))
        assert found == wanted
