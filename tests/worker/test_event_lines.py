"""The event lines of one request: valid, complete, the same when they are derived again."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.answer import Answer, failed
from pipeline.core.event_lines import EventLines
from pipeline.core.event_rows import decode_line
from pipeline.core.exchange import Exchange, utc_text
from pipeline.core.result_record import ResultRecord
from schemas.errors import ErrorCode, WireError
from schemas.event import Event, RequestEnd
from schemas.request import decode_request
from schemas.tensor import Tensor
from tests.schemas.records import TEXTS
from tests.worker.test_result_record import AWKWARD, FAST, NOW, an_exchange, asking, encoded, succeeded

LINES = EventLines("w-1", events_days=7, requests_days=30, line_bytes_max=1 << 20)
ANSWER = Tensor("y", "INT64", (1,), b"\7" + b"\0" * 7)


def lines_of(exchange: Exchange, answer: Answer, record: ResultRecord | None = None) -> list[bytes]:
    """The lines as they stand in an event record."""
    text = LINES.of(exchange, answer, record or encoded(answer, exchange))
    assert text.endswith(b"\n")
    return text[:-1].split(b"\n")


def events_of(exchange: Exchange, answer: Answer) -> tuple[list[Event], RequestEnd]:
    """The lines, validated; each also as the sink reads it."""
    lines = lines_of(exchange, answer)
    for line in lines:
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        decode_line(line)
    end = RequestEnd.model_validate_json(lines[-1])
    return [Event.model_validate_json(line) for line in lines], end


def strict(line: bytes) -> Mapping[str, Any]:
    """A line as JSON."""
    value: Mapping[str, Any] = json.loads(line)
    return value


RAN: dict[str, Any] = {"dispatched_at": NOW - 0.005, "inference_s": 0.004, "instance": "triton-0"}


@pytest.mark.parametrize(
    ("answer", "types"),
    [
        (succeeded(ANSWER, cache_status="hit", key=b"k" * 32, age_s=1.0),
         ["request.received", "cache.hit", "result.published"]),
        (succeeded(ANSWER, cache_status="miss", key=b"k" * 32, **RAN),
         ["request.received", "cache.miss", "inference.started", "inference.completed", "result.published"]),
        (succeeded(ANSWER, cache_status="refresh", key=b"k" * 32, **RAN),
         ["request.received", "cache.miss", "inference.started", "inference.completed", "result.published"]),
        (succeeded(ANSWER, cache_status="bypass", **RAN),
         ["request.received", "cache.bypass", "inference.started", "inference.completed", "result.published"]),
        (succeeded(ANSWER, cache_status="coalesced", key=b"k" * 32, **RAN),
         ["request.received", "cache.coalesced", "result.published"]),
        (failed(WireError(ErrorCode.MODEL_NOT_FOUND, "no")),
         ["request.received", "inference.failed", "result.published"]),
        (failed(WireError(ErrorCode.EXPIRED, "late"), "miss", "1"),
         ["request.received", "cache.miss", "inference.failed", "result.published"]),
    ],
)  # fmt: skip
def test_each_outcome_has_its_events(answer: Answer, types: list[str]) -> None:
    """What happened to a request is told in order, and ends with the line that carries its row of `requests`."""
    exchange = an_exchange(asking())
    events, end = events_of(exchange, answer)
    assert [event.event_type for event in events] == types
    assert end.event_type == "result.published"
    assert (end.status, end.error_code) == (answer.status, answer.failure.code if answer.failure else "")
    assert end.result_record == encoded(answer, exchange).value
    assert len({event.event_id for event in events}) == len(events)
    assert {event.request_id for event in events} == {"r-1"}


def test_event_ids_follow_from_the_place() -> None:
    """The same record's events have the same ids in every process and at every time; another record's have others."""
    first = an_exchange(asking())
    again = an_exchange(asking(), taken_at=NOW + 5, request_id="other")
    again.complete(NOW + 9)
    answer = succeeded(ANSWER, cache_status="hit", key=b"k" * 32, age_s=1.0)
    ids = [event.event_id for event in events_of(first, answer)[0]]
    assert [event.event_id for event in events_of(again, answer)[0]] == ids
    assert all(event_id.version == 5 for event_id in ids)
    for changes in ({"offset": 42}, {"partition": 4}, {"topic": "other.requests"}):
        assert not set(ids) & {event.event_id for event in events_of(an_exchange(asking(), **changes), answer)[0]}


@FAST
@given(TEXTS, TEXTS, st.sampled_from(AWKWARD))
def test_awkward_text_stays_itself(tenant: str, model: str, awkward: str) -> None:
    """Tenant and model name are given as they came, whatever characters they have."""
    tenant, model = f"{awkward}{tenant}"[:128], f"{model}{awkward}"
    request = asking(tenant=tenant, model_name=model, parameters={awkward: awkward})
    answer = failed(WireError(ErrorCode.MODEL_NOT_FOUND, awkward))
    events, end = events_of(an_exchange(request, model_name=model), answer)
    assert {(event.tenant, event.model_name) for event in events} == {(tenant, model)}
    assert end.parameters == {awkward: awkward}


@pytest.mark.parametrize(
    ("data", "written"),
    [
        ([1, 2.5], [1, 2.5]),
        ([2**63, -(2**63)], [2**63, -(2**63)]),
        ([2**64, 10**40], [2**64, 10**40]),
        ([[1], [2**70]], [[1], [2**70]]),
        (['ü"\\', ""], ['ü"\\', ""]),
        (None, None),
        ({"a": [True, None]}, {"a": [True, None]}),
    ],
)
def test_inputs_are_kept_as_sent(data: Any, written: Any) -> None:
    """Inputs stand in the log as they came, integers of any size included."""
    request = asking(inputs=[{"name": "x", "datatype": "FP64", "shape": [2], "data": data}])
    _, end = events_of(an_exchange(request), failed(WireError(ErrorCode.INVALID_INPUT, "no")))
    assert end.inputs == [{"name": "x", "datatype": "FP64", "shape": [2], "data": written}]


@pytest.mark.parametrize("data", ["[1e999]", f"[1e999, {2**70}]", f"[[-1e999], [{10**30}]]"])
def test_numbers_beyond_doubles_leave_valid_lines(data: str) -> None:
    """A number too large for a double never turns into a word that is no JSON: the line must reach its table."""
    body = b'{"model_name":"adder","inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":%b}]}' % data.encode()
    _, end = events_of(an_exchange(decode_request(body)), failed(WireError(ErrorCode.INVALID_INPUT, "no")))
    assert len(end.inputs) == 1


def test_binary_inputs_and_results_are_base64() -> None:
    """Raw tensors stand in the log as base64, and the exact record can be had again."""
    text = json.dumps(
        {
            "model_name": "adder",
            "parameters": {"binary_data_output": True},
            "inputs": [{"name": "x", "datatype": "FP16", "shape": [2], "parameters": {"binary_data_size": 4}}],
        }
    ).encode()
    request = decode_request(text + b"\0\x3c\0\x40", [("Inference-Header-Content-Length", b"%d" % len(text))])
    exchange = an_exchange(request, input_bytes=4)
    answer = succeeded(ANSWER, cache_status="miss", key=b"k" * 32)
    _, end = events_of(exchange, answer)
    assert end.inputs == [{"name": "x", "datatype": "FP16", "shape": [2], "base64": "ADwAQA=="}]
    assert end.result is None
    assert end.result_record == encoded(answer, exchange).value
    assert (end.input_bytes, end.output_bytes) == (4, 8)


def test_record_that_is_no_request_has_events() -> None:
    """An invalid request is logged too, without inputs."""
    events, end = events_of(an_exchange(None, model_name=""), failed(WireError(ErrorCode.INVALID_REQUEST, "no")))
    assert [event.event_type for event in events][-2:] == ["inference.failed", "result.published"]
    assert (end.inputs, end.parameters, end.error_code) == ([], {}, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("given_ip", "logged"),
    [(None, "::"), ("203.0.113.7", "::ffff:203.0.113.7"), ("2001:DB8::1", "2001:db8::1"), ("fe80::1%eth0", "fe80::1")],
)
def test_addresses_fit_their_column(given_ip: str | None, logged: str) -> None:
    """Addresses are IPv6, unknown ones `::`, without zones."""
    members = {} if given_ip is None else {"source_ip": given_ip}
    events, _ = events_of(an_exchange(asking(**members)), succeeded(ANSWER))
    assert {event.source_ip for event in events} == {logged}


def test_rows_expire_as_retention_says() -> None:
    """Events live as long as events do, the row of `requests` as long as requests do, from completion."""
    lines = lines_of(an_exchange(asking()), succeeded(ANSWER))
    assert strict(lines[0])["expires_at"] == "2026-11-29T22:00:00Z"
    assert strict(lines[-1])["expires_at"] == "2026-11-29T22:00:00Z"
    assert strict(lines[-1])["requests_expires_at"] == "2026-12-22T22:00:00Z"


def test_durations_are_whole_microseconds() -> None:
    """Each step has its own time and duration."""
    answer = succeeded(ANSWER, cache_status="miss", key=b"k" * 32, **RAN)
    events, end = events_of(an_exchange(asking()), answer)
    by_type = {event.event_type: event for event in events}
    assert by_type["request.received"].duration_us == 10_000
    assert by_type["inference.completed"].duration_us == 4_000
    assert (end.queue_us, end.inference_us, end.total_us) == (10_000, 4_000, 20_000)
    assert [event.occurred_at for event in events] == sorted(event.occurred_at for event in events)


def test_line_too_long_for_its_record_is_cut() -> None:
    """A line beyond the limit loses inputs and result, says so, and is still valid."""
    small = EventLines("w-1", 7, 30, line_bytes_max=1500)
    request = asking(inputs=[{"name": "x", "datatype": "FP64", "shape": [900], "data": [1.5] * 900}])
    exchange = an_exchange(request)
    answer = succeeded(ANSWER, cache_status="hit", key=b"k" * 32, age_s=0.0)
    text = small.of(exchange, answer, encoded(answer, exchange))
    lines = text[:-1].split(b"\n")
    end = RequestEnd.model_validate_json(lines[-1])
    decode_line(lines[-1])
    assert (end.inputs, end.result_record) == ([], b"")
    assert end.attributes == {"cut": "larger than the event record limit"}
    assert end.status == "succeeded"


@pytest.mark.parametrize(
    ("unix_s", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (NOW, "2026-11-22T22:00:00.250000Z"),
        (1.9999996, "1970-01-01T00:00:02.000000Z"),
        (1e9 + 1e-6, "2001-09-09T01:46:40.000001Z"),
    ],
)
def test_times_round_without_gaps(unix_s: float, text: str) -> None:
    """Times have six digits, and one that rounds up carries into the second."""
    assert utc_text(unix_s) == text
