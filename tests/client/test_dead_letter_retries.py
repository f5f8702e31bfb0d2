"""What is sent for a dead letter, and which ones are not; no Kafka."""

import json
from collections.abc import AsyncIterator, Sequence

import orjson
import pytest

from pipeline.client.dead_letters import DeadLetter
from pipeline.client.retries import NotRetryable, RetryRecord, RetryRules, retry
from tests.client.dead_letter_records import letter
from tests.sink.event_records import event
from tests.sink.event_records import record as event_record

RULES = RetryRules("inference.requests", "inference.events", "inference.webhooks")
REQUEST = {"id": "old", "model_name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
BODY = json.dumps(REQUEST).encode()
EVENTS = "inference.events"


def test_request_goes_back_under_a_new_id() -> None:
    """Partition, key, headers and body are the original's; the id, `ce_id` and `retry-of` say what it is now."""
    headers = [("ce_id", b"old"), ("traceparent", b"00-1"), ("retry-of", b"older")]
    record = RULES.record(letter(BODY, headers, key=b"key", reason="DUPLICATE_ID"), "fresh")
    assert (record.topic, record.partition, record.key) == ("inference.requests", 2, b"key")
    assert json.loads(record.value) == REQUEST | {"id": "fresh"}
    assert record.headers == [("traceparent", b"00-1"), ("ce_id", b"fresh"), ("retry-of", b"old")]
    assert (record.retry_of, record.request_id) == ("old", "fresh")


def test_request_without_an_id_is_named_by_its_place() -> None:
    """A body without an id was answered under its place in the log; that is what the retry is of."""
    body = json.dumps({name: value for name, value in REQUEST.items() if name != "id"}).encode()
    record = RULES.record(letter(body), "fresh")
    assert record.retry_of == "inference.requests:2:17"
    assert json.loads(record.value)["id"] == "fresh"


def test_bytes_that_stay_undecodable_are_refused() -> None:
    """A letter that the worker would bury again is not sent, unless that is what is wanted: then unchanged."""
    buried = letter(b"no json", [("ce_id", b"old")], reason="NOT_JSON")
    with pytest.raises(NotRetryable, match="dead letter again: the record is not JSON") as raised:
        RULES.record(buried, "fresh")
    assert raised.value.can_be_forced
    record = RetryRules("inference.requests", EVENTS, "inference.webhooks", force=True).record(buried, "fresh")
    assert record.value == b"no json"
    assert record.headers == [("ce_id", b"fresh"), ("retry-of", b"old")]


def test_given_header_mends_the_request() -> None:
    """What the producer left out is given; with it the bytes are read, and its length follows the new id."""
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}]
    text = orjson.dumps(REQUEST | {"inputs": inputs})
    buried = letter(text + b"\0\0\x80?", [("inference-header-content-length", b"9999")], reason="BAD_BINARY_LENGTH")
    mending = [("Inference-Header-Content-Length", b"%d" % len(text))]
    record = RetryRules("inference.requests", EVENTS, "inference.webhooks", mending).record(buried, "fresh-id")
    length = int(dict(record.headers)["Inference-Header-Content-Length"])
    assert len([name for name, _ in record.headers if name.lower() == "inference-header-content-length"]) == 1
    assert orjson.loads(record.value[:length])["id"] == "fresh-id"
    assert record.value[length:] == b"\0\0\x80?"


def test_invalid_request_is_sent_for_its_error_result() -> None:
    """A JSON object that no model takes is answered, not buried: sending it does no harm."""
    assert RULES.record(letter(b'{"id":"old"}'), "fresh").value == b'{"id":"fresh"}'


def test_event_line_goes_back_as_it_is() -> None:
    """An event has its identity in its line; the sink is told that its row may be there already."""
    line = event_record(event("r-1")).rstrip()
    record = RULES.record(letter(line, key=None, topic=EVENTS, reason="POISON_ROW"), "fresh")
    assert (record.topic, record.partition, record.key, record.value) == (EVENTS, 2, None, line)
    assert record.request_id is None
    assert record.headers == [
        ("content-type", b"application/x-ndjson"),
        ("generation", b"0"),
        ("redelivered", b"1"),
        ("retry-of", b"inference.events:2:17"),
    ]


def test_generation_of_an_event_stays() -> None:
    """Where the letter says which worker generation wrote the line, the sink is told the same."""
    line = event_record(event("r-1")).rstrip()
    record = RULES.record(letter(line, [("generation", b"7")], topic=EVENTS), "fresh")
    assert [value for name, value in record.headers if name == "generation"] == [b"7"]


def test_lines_that_are_still_no_events_are_refused() -> None:
    """The sink of this release would refuse it again."""
    with pytest.raises(NotRetryable, match="dead letter again") as raised:
        RULES.record(letter(b'{"event_id": 1}', topic=EVENTS, reason="INVALID_EVENT"), "fresh")
    assert raised.value.can_be_forced


@pytest.mark.parametrize(
    ("buried", "why"),
    [
        (letter(None, reason="TOMBSTONE"), "no value"),
        (letter(b"", topic=EVENTS), "no value"),
        (letter(BODY, topic="elsewhere"), "came from elsewhere"),
        (letter(BODY, topic=""), "do not say where"),
    ],
)
def test_what_nothing_can_mend_is_refused_with_its_reason(buried: DeadLetter, why: str) -> None:
    """Not even with force: there is nothing to send, or nowhere."""
    with pytest.raises(NotRetryable, match=why) as raised:
        RetryRules("inference.requests", EVENTS, "inference.webhooks", force=True).record(buried, "fresh")
    assert not raised.value.can_be_forced


async def each(letters: Sequence[DeadLetter]) -> AsyncIterator[DeadLetter]:
    """The letters, one after the other."""
    for one in letters:
        yield one


async def test_refused_letters_do_not_stop_the_others() -> None:
    """Each letter is sent or refused for itself, in their order."""
    sent: list[RetryRecord] = []

    async def send(record: RetryRecord) -> int:
        if record.retry_of == "large":
            raise NotRetryable("too large")
        sent.append(record)
        return 40 + len(sent)

    ids = iter("abcd")
    bodies = [BODY, b"no json", json.dumps(REQUEST | {"id": "large"}).encode(), BODY]
    outcomes = [one async for one in retry(each([letter(body) for body in bodies]), RULES, send, lambda: next(ids))]
    assert [one.offset for one in outcomes] == [41, None, None, 42]
    assert [one.refusal is None for one in outcomes] == [True, False, False, True]
    assert [record.request_id for record in sent] == ["a", "d"]


async def test_dry_run_sends_nothing() -> None:
    """Without a way to send, only what would be is said."""
    outcomes = [one async for one in retry(each([letter(BODY)]), RULES, None, lambda: "fresh")]
    assert [(one.offset, one.record is not None) for one in outcomes] == [(None, True)]
