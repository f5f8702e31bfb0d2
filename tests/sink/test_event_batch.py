"""Records to batches: rows, columns, tokens, and where a batch ends."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.event_batch import EXPIRY_DAYS_MAX, BatchDraft, BatchLimits, EventBatch, EventRecord
from pipeline.core.event_rows import EVENT_COLUMNS, REQUEST_COLUMNS, decode_line
from schemas.event import Event, RequestEnd
from tests.sink.event_records import binary_end, binary_result, end, event, event_id, record, result_json

ROOMY = BatchLimits(rows_max=1_000, bytes_max=1 << 20)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def batch_of(values: list[bytes | None], limits: BatchLimits = ROOMY, planned_end: int | None = None) -> EventBatch:
    draft = BatchDraft("inference.events", 3, 100, limits, planned_end)
    for offset, value in enumerate(values, start=100):
        if not draft.offer(EventRecord.of(offset, value)):
            break
    return draft.finish()


def rows_of(batch: EventBatch, table: str) -> list[dict[str, Any]]:
    columns = batch.tables[table]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_event_line_becomes_one_row() -> None:
    """Every column of `events` has the line's value, in the form that ClickHouse takes."""
    (row,) = rows_of(batch_of([record(event("r-1"))]), "events")
    assert row["event_id"] == event_id("r-1", "cache.hit").int
    assert row["occurred_at"] == 1_795_384_800_123_456
    assert row["source_ip"] == "::ffff:203.0.113.7"
    assert json.loads(row["attributes"]) == {"note": "ü"}
    assert row["expires_at"] == int(datetime(2099, 11, 29, 22, tzinfo=UTC).timestamp())
    assert row["batch"].startswith("inference.events/3/100-101/")


def test_request_end_becomes_two_rows() -> None:
    """A line that ends a request is an event and a request, each with its own expiry."""
    batch = batch_of([record(event("r-1"), end("r-1"))])
    assert batch.row_counts == {"events": 2, "requests": 1}
    (row,) = rows_of(batch, "requests")
    assert row["result"] == result_json("r-1").encode()
    assert json.loads(row["outputs"]) == json.loads(result_json("r-1"))["outputs"]
    assert json.loads(row["inputs"])[0]["data"] == [0.5, 1]
    assert row["expires_at"] == int(datetime(2099, 12, 22, 22, tzinfo=UTC).timestamp())


def test_binary_result_keeps_exact_bytes() -> None:
    """A result with raw tensors is stored byte for byte, and its outputs show them as base64."""
    raw = bytes(range(256))
    (row,) = rows_of(batch_of([record(binary_end("r-1", raw))]), "requests")
    assert row["result"] == binary_result("r-1", raw)
    label, scores = json.loads(row["outputs"])
    assert label["data"] == [7]
    assert set(scores) == {"name", "datatype", "shape", "base64"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nonsense", "Expecting value"),
        (b"[]", "no JSON object"),
        (b"{}", "event_id"),
        (record(event("r", event_type="request.lost")).strip(), "event_type"),
        (record(event("r", duration_us=-1)).strip(), "duration_us"),
        (record(event("r", duration_us=2**64)).strip(), "64 bits"),
        (record(event("r", source_ip="nowhere")).strip(), "nowhere"),
        (record(event("r", expires_at="2107-01-01T00:00:00Z")).strip(), "2106"),
        (record(event("r", occurred_at="1969-01-01T00:00:00Z")).strip(), "1970"),
        (record(event("r", status="succeeded")).strip(), "requested_at"),
        (record(end("r", status=None)).strip(), "status"),
        (record(end("r", result="[]")).strip(), "result"),
        (record(end("r", result=None, result_base64="!")).strip(), "base64"),
        (json.dumps(event("r", model_name="\ud800")).encode(), "model_name"),
        (record(event("r")).strip().replace("ü".encode(), b"\xff"), "utf-8"),
        (b'{"attributes":{"n":NaN}}', "NaN"),
        (b"[" * 100_000, "nested"),
    ],
)
def test_bad_line_is_separated_with_reason(line: bytes, reason: str) -> None:
    """A line that is no event costs only itself: its bytes and the reason are kept, its neighbours become rows."""
    batch = batch_of([record(event("a")) + line + b"\n" + record(event("b"))])
    assert batch.row_counts == {"events": 2}
    (rejected,) = batch.rejected
    assert rejected.line == line
    assert rejected.offset == 100
    assert reason in rejected.error


def test_record_without_value_is_separated() -> None:
    """A tombstone stops nothing."""
    batch = batch_of([None, record(event("a"))])
    assert [rejected.offset for rejected in batch.rejected] == [100]
    assert batch.row_counts == {"events": 1}


def test_lone_surrogates_in_json_survive() -> None:
    """JSON text that only the standard library reads is a row like any other."""
    line = json.dumps(end("r-1", inputs=[{"data": ["\ud800", 2**70]}])).encode()
    (row,) = rows_of(batch_of([line]), "requests")
    assert json.loads(row["inputs"]) == [{"data": ["\ud800", 2**70]}]


def test_attributes_may_have_a_status() -> None:
    """Only a member at the top level makes a line the end of a request."""
    assert batch_of([record(event("r", attributes={"status": 500}))]).row_counts == {"events": 1}


def test_batch_ends_at_rows_and_bytes() -> None:
    """A batch ends before the record that would exceed a limit, and never before its first."""
    values: list[bytes | None] = [record(*[event(f"r-{i}-{j}") for j in range(9)]) for i in range(4)]
    assert batch_of(values, BatchLimits(20, 1 << 20)).end == 102
    assert batch_of(values, BatchLimits(1, 1)).end == 101
    size = len(values[0] or b"")
    assert batch_of(values, BatchLimits(1_000, 3 * size)).end == 103


def test_batch_spans_at_most_hundred_expiry_days() -> None:
    """ClickHouse's limit of partitions per insert is never met."""
    first = datetime(2030, 1, 1, tzinfo=UTC)
    days = [(first + timedelta(days=day)).isoformat() for day in range(EXPIRY_DAYS_MAX + 5)]
    assert batch_of([record(event(day, expires_at=day)) for day in days]).end == 100 + EXPIRY_DAYS_MAX


def test_planned_end_replaces_limits() -> None:
    """A repeated range is cut where it was cut before, whatever the limits are now, and has the same token."""
    values: list[bytes | None] = [record(event(f"r-{i}")) for i in range(10)]
    before = batch_of(values[:6])
    after = batch_of(values, BatchLimits(1, 1), planned_end=106)
    assert (after.token, after.tables) == (before.token, before.tables)


def test_rejected_lines_belong_to_token() -> None:
    """The token covers the records' bytes, so it stays when a later reader accepts a line that this one refuses."""
    assert batch_of([b"bad\n"]).token != batch_of([b"worse\n"]).token


values_lists = st.lists(
    st.one_of(st.none(), st.binary(max_size=40), st.text(max_size=5).map(lambda name: record(event(name), end(name)))),
    max_size=5,
)


@given(values_lists)
def test_same_records_give_same_batch(values: list[bytes | None]) -> None:
    """Rows, columns and token are a function of the records."""
    assert batch_of(values) == batch_of(values)


@given(values_lists, values_lists)
def test_token_names_the_bytes(one: list[bytes | None], other: list[bytes | None]) -> None:
    """Different bytes in a range never share a token."""
    same = [value or b"" for value in one] == [value or b"" for value in other]
    assert (batch_of(one).token == batch_of(other).token) == same


moments = st.datetimes(datetime(1970, 1, 1), datetime(2106, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
counts = st.integers(0, 2**64 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(moments, moments, counts, texts, st.dictionaries(texts, st.integers() | texts, max_size=3))
def test_fast_form_agrees_with_models(
    occurred_at: datetime, expires_at: datetime, duration_us: int, request_id: str, attributes: dict[str, Any]
) -> None:
    """The fast decoder gives the values that the schema's models give."""
    line = record(
        event(
            request_id,
            occurred_at=occurred_at.isoformat(),
            expires_at=expires_at.isoformat(),
            duration_us=duration_us,
            attributes=attributes,
        )
    ).strip(b"\n")
    model = Event.model_validate_json(line)
    row = dict(zip(EVENT_COLUMNS, decode_line(line).event, strict=True))
    assert row["event_id"] == model.event_id.int
    assert row["occurred_at"] == (model.occurred_at - EPOCH) // timedelta(microseconds=1)
    assert row["expires_at"] == (model.expires_at - EPOCH) // timedelta(seconds=1)
    assert (row["duration_us"], row["request_id"]) == (model.duration_us, model.request_id)
    assert json.loads(row["attributes"]) == model.attributes


@given(texts, counts, st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4), st.binary(max_size=30))
def test_request_end_round_trip(name: str, total_us: int, data: list[float], raw: bytes) -> None:
    """What the worker wrote about a request is what its row says."""
    line = record({**binary_end(name, raw), "total_us": total_us, "inputs": [{"data": data}]}).strip(b"\n")
    model = RequestEnd.model_validate_json(line)
    request = decode_line(line).request
    assert request is not None
    row = dict(zip(REQUEST_COLUMNS, request, strict=True))
    assert (row["request_id"], row["total_us"], row["result"]) == (model.request_id, total_us, model.result_record)
    assert json.loads(row["inputs"]) == [{"data": data}]


def test_every_column_is_read() -> None:
    """The fast form knows every member of the schema's models, with the same defaults."""
    from pipeline.core.event_rows import _Line

    assert set(_Line.__struct_fields__) == set(RequestEnd.model_fields)
