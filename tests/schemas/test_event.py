"""Event lines and model records: what readers make of them."""

from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pytest
from pydantic import ValidationError

from schemas.asyncapi import asyncapi_document
from schemas.event import EVENT_NAMESPACE, RequestEnd
from schemas.registry import ModelRecord


def request_end(**changes: Any) -> RequestEnd:
    """Returns the line that ends a request, with members changed."""
    times = dict.fromkeys(
        ("occurred_at", "requested_at", "completed_at", "expires_at", "requests_expires_at"), "2026-11-22T22:00:00Z"
    )
    line = {"event_id": uuid5(EVENT_NAMESPACE, "a"), "event_type": "result.published", "status": "succeeded"}
    counts = dict.fromkeys(("queue_us", "total_us", "input_bytes", "output_bytes"), 0)
    return RequestEnd.model_validate({**line, **times, **counts, **changes})


def test_result_record_is_kept_exactly() -> None:
    """The exact bytes of the result come out of a line, whether it has them as text or as base64."""
    assert request_end(result='{"id":"é"}').result_record == '{"id":"é"}'.encode()
    assert request_end(result_base64="e30A/w==").result_record == b"{}\0\xff"
    assert request_end().result_record == b""


def test_event_namespace_never_changes() -> None:
    """Event ids of repeated requests are the same in every release, so their namespace is fixed."""
    assert uuid5(NAMESPACE_URL, "inference.events") == EVENT_NAMESPACE
    assert str(EVENT_NAMESPACE) == "68c5d1fa-f52f-58aa-87be-1ebd5ee9ee32"


@pytest.mark.parametrize("changes", [{"event_type": "request.lost"}, {"queue_us": -1}, {"completed_at": "2026-11-22"}])
def test_wrong_lines_are_refused(changes: dict[str, Any]) -> None:
    """Unknown event types, negative durations and times without a zone are no event line."""
    with pytest.raises(ValidationError):
        request_end(**changes)


def test_model_record_may_be_as_small_as_contract() -> None:
    """A record with the contract's members alone is read; a signature may be missing."""
    record = ModelRecord.model_validate_json(
        b'{"model_name":"digits","versions":{"1":{"fingerprint":"f","state":"ready"}},"default_version":"1",'
        b'"previous_version":null,"effective_at":"2026-11-22T22:00:00Z","later":1}'
    )
    assert (record.versions["1"].signature, record.default_version, record.previous_version) == (None, "1", None)


def test_model_example_reads_back() -> None:
    """The documented model record is read, signatures and all."""
    example = asyncapi_document()["components"]["messages"]["Model"]["examples"][0]["payload"]
    record = ModelRecord.model_validate(example)
    assert record.model_dump(mode="json", exclude_none=True) == example
