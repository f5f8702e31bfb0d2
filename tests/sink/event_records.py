"""Event lines as the worker writes them, for the sink's tests."""

import base64
import json
from typing import Any
from uuid import UUID, uuid5

from schemas.event import EVENT_NAMESPACE

MOMENT = "2026-11-22T22:00:00.123456Z"


def event_id(name: str, event_type: str) -> UUID:
    """The id of an event of the request that a test names."""
    return uuid5(EVENT_NAMESPACE, f"{name}:{event_type}")


def event(name: str, **members: Any) -> dict[str, Any]:
    """One event."""
    return {
        "event_id": str(event_id(name, members.get("event_type", "cache.hit"))),
        "event_type": "cache.hit",
        "occurred_at": MOMENT,
        "request_id": name,
        "model_name": "digits",
        "model_version": "2",
        "cache_status": "hit",
        "source_ip": "203.0.113.7",
        "duration_us": 12,
        "attributes": {"note": "ü"},
        "expires_at": "2099-11-29T22:00:00Z",
        **members,
    }


def result_json(name: str) -> str:
    """A result record that is all JSON."""
    outputs = [{"name": "label", "datatype": "INT64", "shape": [1, 1], "data": [7]}]
    return json.dumps({"id": name, "model_name": "digits", "status": "succeeded", "outputs": outputs})


def binary_result(name: str, raw: bytes) -> bytes:
    """A result record with one tensor in JSON and one behind it."""
    outputs = [
        {"name": "label", "datatype": "INT64", "shape": [1], "data": [7]},
        {"name": "scores", "datatype": "UINT8", "shape": [len(raw)], "parameters": {"binary_data_size": len(raw)}},
    ]
    return json.dumps({"id": name, "model_name": "digits", "status": "succeeded", "outputs": outputs}).encode() + raw


def end(name: str, **members: Any) -> dict[str, Any]:
    """The line that ends a request."""
    columns = {
        "event_type": "result.published",
        "status": "succeeded",
        "error_code": "",
        "cache_key": "ab" * 32,
        "requested_at": MOMENT,
        "completed_at": "2026-11-22T22:00:01Z",
        "queue_us": 1,
        "inference_us": 2,
        "total_us": 3,
        "input_bytes": 256,
        "output_bytes": 8,
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1]}],
        "parameters": {"temperature": 0},
        "result": result_json(name),
        "requests_expires_at": "2099-12-22T22:00:00Z",
    }
    return event(name, **{**columns, **members})


def binary_end(name: str, raw: bytes) -> dict[str, Any]:
    """The line that ends a request whose result has a raw tensor."""
    record = base64.b64encode(binary_result(name, raw)).decode()
    return end(name, result=None, result_base64=record)


def record(*lines: dict[str, Any]) -> bytes:
    """A record of the events topic."""
    return b"".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n" for line in lines)
