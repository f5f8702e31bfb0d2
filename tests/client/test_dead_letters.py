"""What a record of the dead-letter topic says, and which ones a selection means; no Kafka."""

import pytest
from aiokafka import ConsumerRecord

from pipeline.client.dead_letters import DeadLetter, Place, Selection, Source
from tests.client.dead_letter_records import dead_letter_record, letter


def test_own_headers_are_told_from_the_producers() -> None:
    """The last header of each name is the burier's; a producer's own `reason` stays with the original headers."""
    record = dead_letter_record(b"x", [("reason", b"because"), ("traceparent", b"00-1")], reason="NOT_JSON")
    found = DeadLetter.of(record)
    assert (found.reason, found.error) == ("NOT_JSON", "as the test says")
    assert found.headers == [("reason", b"because"), ("traceparent", b"00-1")]
    assert found.source == Source("inference.requests", 2, 17)
    assert found.place == Place(1, 5)


@pytest.mark.parametrize(
    "headers", [(), (("source-topic", b"t"),), (("source-topic", b"t"), ("source-partition", b"x"))]
)
def test_foreign_records_have_no_source(headers: tuple[tuple[str, bytes], ...]) -> None:
    """A record that somebody else put there is shown with what it says, and nothing is made up."""
    record = ConsumerRecord("d", 0, 3, 1000, 0, None, None, None, -1, -1, headers)
    found = DeadLetter.of(record)
    assert (found.source, found.reason, found.value, found.request_id) == (None, "", None, None)


@pytest.mark.parametrize(
    ("value", "ce_id", "expected"),
    [
        (b'{"id": "own"}', b"named", "own"),
        (b'{"model_name": "m"}', b"named", None),
        (b"no json", b"named", "named"),
        (b"no json", b"not an id", None),
        (b'{"id": "own"} and more', b"named", "own"),
        (b'{"id": 5}', b"named", None),
    ],
)
def test_id_is_the_one_it_was_answered_under(value: bytes, ce_id: bytes, expected: str | None) -> None:
    """The body's id counts first; the header only where the body is no JSON object."""
    assert letter(value, [("ce_id", ce_id)]).request_id == expected


@pytest.mark.parametrize(
    ("selection", "meant"),
    [
        (Selection(), True),
        (Selection(reason="NOT_JSON"), True),
        (Selection(reason="TOMBSTONE"), False),
        (Selection(since_ms=1_000), True),
        (Selection(since_ms=10**15), False),
        (Selection(source_topic="inference.requests", partition=2, offset=17), True),
        (Selection(partition=0), False),
        (Selection(offset=0), False),
        (Selection(source_topic="inference.events"), False),
        (Selection(request_id="r-1"), True),
        (Selection(request_id="r-2"), False),
        (Selection(reason="NOT_JSON", request_id="r-2"), False),
    ],
)
def test_filters_all_have_to_fit(selection: Selection, meant: bool) -> None:
    """A letter is meant by the filters together; one that is not given means any."""
    assert selection.has(letter(b"x", [("ce_id", b"r-1")], reason="NOT_JSON")) is meant


def test_letters_without_a_source_fit_no_source_filter() -> None:
    """Partition 0 of the source is not "unknown"."""
    record = ConsumerRecord("d", 0, 3, 1000, 0, None, b"x", None, -1, -1, ())
    assert Selection().has(DeadLetter.of(record))
    assert not Selection(partition=0).has(DeadLetter.of(record))
