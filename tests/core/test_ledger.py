"""The ledger: what stands in the results answers exactly the record it was written for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import ledger as ledger_module
from pipeline.core.ledger import Answered, Ledger, read_answered
from tests.schemas.records import FAST

HEADERS: dict[str, bytes] = {
    "ce_id": b"r-1",
    "request-offset": b"7",
    "request-timestamp": b"1795384800000",
    "request-digest": b"ab" * 16,
    "worker-group": b"group",
    "tenant": b"acme",
}


def answered(offset: int = 7, place: int = 3, value: bytes | None = b"value", **changes: Any) -> Answered:
    """A result as its headers tell."""
    found = read_answered(list((HEADERS | {"request-offset": b"%d" % offset}).items()), place, value)
    assert found is not None
    return found._replace(**changes)


def test_result_says_what_it_answers() -> None:
    """All that is needed stands in the headers; the value is not looked into."""
    found = read_answered([*HEADERS.items(), ("own", None)], 3, b"anything")
    assert found == Answered(
        "r-1", "acme", 7, 1_795_384_800_000, b"\xab" * 16, "group", 3, list(HEADERS.items()), b"anything"
    )


@pytest.mark.parametrize("missing", ["tenant", "request-digest"])
def test_result_without_the_optional_is_one(missing: str) -> None:
    """A tenant is not everybody's, and an invalid request has no digest."""
    found = read_answered([item for item in HEADERS.items() if item[0] != missing], 3, None)
    assert found is not None
    assert (found.tenant, found.digest) == (("", b"\xab" * 16) if missing == "tenant" else ("acme", bytes(16)))


@pytest.mark.parametrize(
    "changes",
    [
        {"ce_id": None}, {"request-offset": None}, {"request-timestamp": None}, {"worker-group": None},
        {"request-offset": b"x"}, {"request-offset": b""}, {"request-offset": b"-1"}, {"request-timestamp": b"1.5"},
        {"request-timestamp": b"9" * 30}, {"request-offset": b"9" * 30}, {"request-offset": b"9" * 5000},
        {"ce_id": b"\xff"}, {"worker-group": b"\xff"}, {"tenant": b"\xff"}, {"request-digest": b"zz" * 16},
    ],
)  # fmt: skip
def test_foreign_record_says_nothing(changes: dict[str, bytes | None]) -> None:
    """Whatever others write into the results topic answers no request, and is no error."""
    assert read_answered(list((HEADERS | changes).items()), 3, b"value") is None


@given(st.lists(st.tuples(st.sampled_from([*HEADERS, "own"]), st.binary(max_size=20) | st.none()), max_size=8))
@FAST
def test_no_headers_are_an_error(headers: list[tuple[str, bytes | None]]) -> None:
    """Any headers at all are read, and what is found fits into the window of duplicates."""
    found = read_answered(headers, 3, None)
    if found is not None:
        assert 0 <= found.request_offset < 1 << 63
        assert abs(found.request_timestamp_ms) <= 1 << 63


def test_answer_is_taken_once() -> None:
    """A delivered record gets its answer, and the ledger forgets it."""
    ledger = Ledger("group", 5, 10)
    ledger.note(answered())
    assert len(ledger) == 1
    assert ledger.take(7, 1_795_384_800_000, "r-1") == [answered()]
    assert ledger.take(7, 1_795_384_800_000, "r-1") == []
    assert len(ledger) == 0


def test_first_in_the_log_comes_first() -> None:
    """A paused worker's answer may stand behind: the first is the answer."""
    ledger = Ledger("group", 5, 10)
    ledger.note(answered(place=3))
    ledger.note(answered(place=4))
    assert [each.results_offset for each in ledger.take(7, 1_795_384_800_000, "r-1")] == [3, 4]


@pytest.mark.parametrize(
    ("offset", "timestamp_ms", "request_id"),
    [(8, 1_795_384_800_000, "r-1"), (7, 1_795_384_800_001, "r-1"), (7, 1_795_384_800_000, "r-2")],
)
def test_offset_alone_proves_nothing(offset: int, timestamp_ms: int, request_id: str) -> None:
    """A topic made anew counts from 0 again: time and id must be the record's own."""
    ledger = Ledger("group", 5, 10)
    ledger.note(answered())
    assert ledger.take(offset, timestamp_ms, request_id) == []


@pytest.mark.parametrize(
    ("offset", "group", "kept"),
    [(4, "group", False), (5, "group", True), (9, "group", True), (10, "group", False), (7, "others", False)],
)
def test_only_what_may_come_again_is_kept(offset: int, group: str, kept: bool) -> None:
    """Answers of this group to offsets from the commit to what was delivered; nothing else takes memory."""
    ledger = Ledger("group", 5, 10)
    ledger.note(answered(offset, group=group))
    assert len(ledger) == kept


def test_values_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound only places are kept; their values are read again one by one, and given back when taken."""
    monkeypatch.setattr(ledger_module, "VALUES_BYTES_MAX", 10)
    ledger = Ledger("group", 0, 100)
    for offset in range(3):
        ledger.note(answered(offset, place=10 + offset, value=b"12345"))
    assert [ledger.unread(offset) for offset in range(4)] == [[], [], [12], []]
    ledger.take(0, 0, "")
    ledger.note(answered(3, place=13, value=b"12345"))
    assert ledger.unread(3) == [], "what was taken made room"
    read = answered(2, place=12, value=b"12345")
    ledger.supply(2, 12, read)
    assert ledger.unread(2) == []
    assert ledger.take(2, 1_795_384_800_000, "r-1") == [read]


def test_value_that_is_gone_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result whose retention ended between two readings is none; another of the same record still counts."""
    monkeypatch.setattr(ledger_module, "VALUES_BYTES_MAX", 0)
    ledger = Ledger("group", 0, 100)
    ledger.note(answered(place=3))
    ledger.note(answered(place=4))
    ledger.supply(7, 3, None)
    ledger.supply(7, 4, answered(place=4))
    assert [each.results_offset for each in ledger.take(7, 1_795_384_800_000, "r-1")] == [4]
