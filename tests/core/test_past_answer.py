"""An answer that is read again from the log: its events have the same ids and say the same."""

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.answer import Answer, failed
from pipeline.core.event_lines import EventLines
from pipeline.core.past_answer import recall
from pipeline.core.result_record import ResultRecord
from schemas.decoded import DecodedRequest
from schemas.errors import ErrorCode, WireError
from schemas.tensor import Tensor
from tests.worker.test_result_record import (
    AWKWARD,
    FAST,
    NOW,
    an_exchange,
    asking,
    encoded,
    output_tensors,
    succeeded,
)

FIRST_WORKER = EventLines("w-1", events_days=7, requests_days=30, line_bytes_max=1 << 20)
NEXT_WORKER = EventLines("w-2", events_days=7, requests_days=30, line_bytes_max=1 << 20)
ANSWER = Tensor("y", "INT64", (1,), b"\7" + b"\0" * 7)
KEY = bytes(range(32))
# The call ended when the request was answered: a result does not say how long it lay in between.
RAN: dict[str, Any] = {"dispatched_at": NOW - 0.004, "inference_s": 0.004, "instance": "triton-0"}
SUCCESSES = [
    {"cache_status": "hit", "key": KEY, "age_s": 1.25},
    {"cache_status": "miss", "key": KEY, **RAN},
    {"cache_status": "refresh", "key": KEY, **RAN},
    {"cache_status": "bypass", **RAN},
    {"cache_status": "coalesced", "key": KEY, **RAN},
]


def rows(text: bytes) -> list[dict[str, Any]]:
    """Event lines, each as its columns."""
    return [json.loads(line) for line in text.splitlines()]


def columns_differ(answer: Answer, request: DecodedRequest | None, **exchange: Any) -> dict[str, Any]:
    """The columns in which events derived again, later and by another worker, differ from the first ones.

    Times of a line may be off by the microsecond that a double of today's Unix time cannot hold; they are left out
    where they are.
    """
    first = an_exchange(request, **exchange)
    record = encoded(answer, first)
    wanted = rows(FIRST_WORKER.of(first, answer, record))
    again = an_exchange(request, **(exchange | {"taken_at": NOW + 77}))
    answer_again, record_again, worker = recall(again, record.value, record.headers)
    assert record_again == record
    found = rows(NEXT_WORKER.of(again, answer_again, record_again, worker))
    assert [row["event_id"] for row in found] == [row["event_id"] for row in wanted]
    return {
        f"{old['event_type']}.{name}": (old.get(name), new.get(name))
        for old, new in zip(wanted, found, strict=True)
        for name in old.keys() | new.keys()
        if old.get(name) != new.get(name) and not _is_same_time(name, old.get(name), new.get(name))
    }


def _is_same_time(name: str, one: Any, other: Any) -> bool:
    if name == "occurred_at":
        one, other = (datetime.fromisoformat(text).timestamp() * 1e6 for text in (one, other))
    elif not name.endswith("_us"):
        return False
    return abs(float(one) - float(other)) < 1.5


@pytest.mark.parametrize("changes", SUCCESSES, ids=lambda changes: str(changes["cache_status"]))
@pytest.mark.parametrize("binary", [False, True])
def test_events_of_a_success_are_the_same(changes: dict[str, Any], binary: bool) -> None:
    """Hits, misses, coalesced, with outputs as JSON or as bytes: ids and columns are those of the first time."""
    request = asking(tenant="acme", source_ip="203.0.113.9", parameters={"binary_data_output": binary})
    assert columns_differ(succeeded(ANSWER, **changes), request) == {}


@pytest.mark.parametrize("code", list(ErrorCode))
@pytest.mark.parametrize("cache_status", [None, "miss", "coalesced"])
@pytest.mark.parametrize("version", [None, "3"])
def test_events_of_a_failure_are_the_same(code: ErrorCode, cache_status: Any, version: str | None) -> None:
    """Every kind of failure, before and behind the cache, says again what it said."""
    answer = failed(WireError(code, 'broken "badly"'), cache_status, version)
    assert columns_differ(answer, asking()) == {}


def test_events_of_a_failed_inference_are_the_same() -> None:
    """An inference that began and failed began again: its start is told again."""
    answer = failed(WireError(ErrorCode.MODEL_ERROR, "no"), "miss", "3")
    answer.dispatched_at, answer.inference_s, answer.instance, answer.key = NOW - 0.004, 0.004, "triton-0", KEY
    assert columns_differ(answer, asking()) == {}


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_names_come_back(text: str) -> None:
    """Names and messages that break JSON put together from text do not."""
    assert columns_differ(failed(WireError(ErrorCode.INTERNAL, text)), None, model_name=text) == {}


@FAST
@given(
    output_tensors(),
    st.sampled_from(SUCCESSES),
    st.booleans(),
    st.floats(min_value=0.0, max_value=30.0),
    st.floats(min_value=0.0, max_value=3600.0),
)
def test_any_answer_is_recalled(
    tensors: list[Tensor], changes: dict[str, Any], binary: bool, waited_s: float, asked_s: float
) -> None:
    """Whatever a model answered and however long it took, the events derived again are the first ones."""
    request = asking(parameters={"binary_data_output": binary})
    answer = succeeded(*tensors, **changes)
    appended_ms = int((NOW - waited_s) * 1000) - 5
    times = {"timestamp_ms": appended_ms, "taken_at": NOW - waited_s, "requested_at": NOW - asked_s}
    assert columns_differ(answer, request, **times) == {}


@pytest.mark.parametrize("value", [b"", b"hello", b"{}", b"[1]", b'{"id":"r-1"}', b"\xff\xfe", b"[" * 10_000])
def test_what_only_looks_like_a_result_is_told(value: bytes) -> None:
    """A record with a result's headers and no result is an error that the worker can go on from."""
    record = encoded(succeeded(ANSWER))
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the parser says
        recall(an_exchange(asking()), value, record.headers)


def test_recalled_record_is_the_one_in_the_log() -> None:
    """Copies are the very bytes and headers of the first result, wherever the binary part begins."""
    record = encoded(succeeded(ANSWER), an_exchange(asking(parameters={"binary_data_output": True})))
    _, again, worker = recall(an_exchange(asking()), record.value, record.headers)
    assert again == ResultRecord(record.value, record.headers, record.json_bytes)
    assert worker == "w-1"
