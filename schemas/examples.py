"""One request for the model `digits` and all that becomes of it: the examples of the generated documents."""

import json
import struct
from typing import Any
from uuid import uuid5

from schemas.control import IN_REPLY_TO
from schemas.event import EVENT_NAMESPACE

_LENGTH = "Inference-Header-Content-Length"
_ID = "0198c5a0-7d3e-7c52-9d0a-3f5e6b1c2d4e"
_COMMAND_ID = "0198c5a0-9b41-7f0e-8a2d-6c7b8a9d0e1f"
_TENANT = "acme"
_REQUESTED_AT = "2026-11-22T22:00:00.123456Z"
_COMPLETED_AT = "2026-11-22T22:00:00.125656Z"
_PARTITION_KEY = "5f2b9c1d7e8a4f60b3c2d1e0f9a8b7c6"
_CACHE_KEY = "9a3f0c5b7d2e48f1a6b09c8d7e6f5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f"
_DIGEST = "c0ffee5a1b2c3d4e5f60718293a4b5c6"
_FINGERPRINT = "1f4e2d3c5b6a798897a6b5c4d3e2f101"
_PIXELS = [float(value % 17) for value in range(64)]
_TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def request_example() -> dict[str, Any]:
    """A request with every member."""
    return {
        "id": _ID,
        "model_name": "digits",
        "model_version": "2",
        "parameters": {},
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": _PIXELS}],
        "outputs": [{"name": "label"}],
        "stream": False,
        "enable_cache": True,
        "cache_control": "max-age=60",
        "tenant": _TENANT,
        "timeout_ms": 30000,
        "requested_at": _REQUESTED_AT,
        "source_ip": "203.0.113.7",
        "reply_to": {"topic": "inference.replies", "partition": 3},
        "callback": {"url": "https://example.com/inference"},
    }


def small_request_example() -> dict[str, Any]:
    """A request with nothing but what it must have."""
    return {
        "model_name": "sentences",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a streaming pipeline"]}],
    }


def binary_request_example() -> tuple[bytes, dict[str, str]]:
    """A request's value in the binary form, and its headers."""
    raw = struct.pack("<64f", *_PIXELS)
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 64], "parameters": {"binary_data_size": len(raw)}}
    text = compact({"id": _ID, "model_name": "digits", "inputs": [tensor]})
    headers = {"content-type": "application/octet-stream", _LENGTH: str(len(text))}
    return text + raw, headers


def result_example() -> dict[str, Any]:
    """An answer out of the cache."""
    return {
        "id": _ID,
        "model_name": "digits",
        "model_version": "2",
        "status": "succeeded",
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [1, 1], "data": [7]}],
        "parameters": {
            "cache_status": "hit",
            "cache_key": _CACHE_KEY,
            "cache_age_ms": 812,
            "queue_ms": 1.9,
            "inference_ms": 0.0,
            "total_ms": 2.2,
            "instance": "triton-1",
            "worker": "worker-0",
        },
        "requested_at": _REQUESTED_AT,
        "completed_at": _COMPLETED_AT,
    }


def failed_result_example() -> dict[str, Any]:
    """The answer to a request for a model that is not served."""
    return {
        "id": _ID,
        "model_name": "digitz",
        "status": "failed",
        "error": {
            "code": "MODEL_NOT_FOUND",
            "message": "model_name: 'digitz' is not served (served: digits, sentences)",
            "retryable": False,
        },
        "parameters": {"queue_ms": 1.9, "total_ms": 2.0, "worker": "worker-0"},
        "requested_at": _REQUESTED_AT,
        "completed_at": _COMPLETED_AT,
    }


def binary_result_example() -> tuple[bytes, dict[str, str]]:
    """A result's value with a binary output, and the header that says so."""
    raw = struct.pack("<3f", 0.0, 0.25, 0.75)
    result = result_example()
    result["outputs"] = [
        {"name": "probabilities", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": len(raw)}}
    ]
    text = compact(result)
    return text + raw, {**result_headers_example("application/octet-stream"), _LENGTH: str(len(text))}


def chunk_example() -> dict[str, Any]:
    """The first chunk of a streamed answer."""
    output = {"name": "text_output", "datatype": "BYTES", "shape": [1], "data": ["Return the"]}
    return {"id": _ID, "index": 0, "attempt": 0, "outputs": [output]}


def event_example(event_type: str, duration_us: int) -> dict[str, Any]:
    """One event line of the example."""
    return {
        "event_id": str(uuid5(EVENT_NAMESPACE, f"inference.requests:3:4711:{event_type}")),
        "event_type": event_type,
        "occurred_at": _COMPLETED_AT,
        "request_id": _ID,
        "tenant": _TENANT,
        "model_name": "digits",
        "model_version": "2",
        "cache_status": "hit",
        "instance": "triton-1",
        "worker": "worker-0",
        "source_ip": "::ffff:203.0.113.7",
        "duration_us": duration_us,
        "attributes": {},
        "expires_at": "2026-11-29T22:00:00Z",
    }


def request_end_example() -> dict[str, Any]:
    """The event line that ends the example."""
    request = request_example()
    return {
        **event_example("result.published", 2200),
        "status": "succeeded",
        "error_code": "",
        "cache_key": _CACHE_KEY,
        "requested_at": _REQUESTED_AT,
        "completed_at": _COMPLETED_AT,
        "queue_us": 1900,
        "inference_us": 0,
        "total_us": 2200,
        "input_bytes": 256,
        "output_bytes": 8,
        "inputs": request["inputs"],
        "parameters": {},
        "result": compact(result_example()).decode(),
        "requests_expires_at": "2026-12-22T22:00:00Z",
    }


def model_example() -> dict[str, Any]:
    """A model after a promotion."""
    signature = {
        "inputs": [{"name": "image", "datatype": "FP32", "dims": [64], "optional": False}],
        "outputs": [{"name": "label", "datatype": "INT64", "dims": [1], "optional": False}],
        "max_batch_size": 32,
        "decoupled": False,
        "stateful": False,
        "cacheable": True,
        "client_batching": True,
    }
    return {
        "model_name": "digits",
        "versions": {
            "1": {
                "fingerprint": _FINGERPRINT[::-1],
                "state": "ready",
                "signature": signature,
                "since": "2026-11-20T09:00:00Z",
                "changing": False,
            },
            "2": {
                "fingerprint": _FINGERPRINT,
                "state": "ready",
                "signature": signature,
                "since": "2026-11-22T20:59:58Z",
                "changing": False,
            },
        },
        "default_version": "2",
        "previous_version": "1",
        "effective_at": "2026-11-22T21:00:00Z",
        "held": [],
    }


def cache_stats_command_example() -> dict[str, Any]:
    """Asks for the caches of all workers."""
    return {"command": "cache.stats", "id": _COMMAND_ID}


def cache_stats_reply_example() -> dict[str, Any]:
    """What one worker's cache holds after a few requests."""
    return {
        **_reply_example("cache.stats"),
        "entries": 2,
        "bytes": 3170,
        "bytes_max": 268435456,
        "evicted": 0,
        "expired": 1,
        "refused": 0,
        "cleared": 0,
        "retired": 0,
        "requests": [
            {"model_name": "digits", "hits": 40, "misses": 3, "coalesced": 1, "refreshes": 0, "bypassed": 2},
        ],
        "requests_left_off": 0,
        "usage": [
            {"tenant": _TENANT, "model_name": "digits", "model_version": "2", "entries": 2, "bytes": 1970},
        ],
        "usage_left_off": 0,
        "shared": {
            "look_ups": {"hit": 1, "miss": 3},
            "writes": {"stored": 3},
            "errors": {},
            "refused_entries": {},
            "bytes": {"in": 612, "out": 1836},
            "saved_bytes": 0,
            "queue_bytes": 0,
            "usable": True,
        },
    }


def cache_clear_command_example() -> dict[str, Any]:
    """Drops what one version answered one tenant."""
    return {
        "command": "cache.clear",
        "id": _COMMAND_ID,
        "tenant": _TENANT,
        "model_name": "digits",
        "model_version": "2",
    }


def cache_clear_reply_example() -> dict[str, Any]:
    """What one worker dropped."""
    return {**_reply_example("cache.clear"), "entries": 2, "bytes": 1970}


def model_promote_command_example() -> dict[str, Any]:
    """Tries a version with a twentieth of the requests."""
    return {"command": "model.promote", "id": _COMMAND_ID, "model_name": "digits", "version": "2", "share": 0.05}


def model_promote_reply_example() -> dict[str, Any]:
    """What the watcher did."""
    return {
        "command": "model.promote",
        "id": _COMMAND_ID,
        "watcher": "watcher-0",
        "changed": True,
        "default_version": "2",
        "previous_version": "1",
        "effective_at": "2026-11-22T21:00:00+00:00",
    }


def control_reply_headers_example() -> dict[str, str]:
    """Headers of a reply to a command."""
    return {IN_REPLY_TO: _COMMAND_ID}


def _reply_example(command: str) -> dict[str, Any]:
    return {"command": command, "id": _COMMAND_ID, "worker": "worker-0", "partitions": [0, 1]}


def request_headers_example() -> dict[str, str]:
    """Headers of a request."""
    return {
        "ce_specversion": "1.0",
        "ce_id": _ID,
        "ce_source": "/inference/client",
        "ce_type": "inference.request.v1",
        "ce_time": _REQUESTED_AT,
        "ce_subject": "digits",
        "content-type": "application/json",
        "traceparent": _TRACE,
    }


def result_headers_example(content_type: str) -> dict[str, str]:
    """Headers of a result."""
    return {
        "ce_specversion": "1.0",
        "ce_id": _ID,
        "ce_source": "/inference/worker",
        "ce_type": "inference.result.v1",
        "ce_time": _COMPLETED_AT,
        "ce_subject": "digits",
        "content-type": content_type,
        "request-offset": "4711",
        "request-timestamp": "1795384800124",
        "request-digest": _DIGEST,
        "worker-group": "inference-worker",
        "traceparent": _TRACE,
    }


def dead_letter_headers_example() -> dict[str, str]:
    """Headers of a dead letter."""
    return {
        "reason": "NOT_JSON",
        "error": "the record is not JSON: NaN is no JSON value (RFC 8259)",
        "source-topic": "inference.requests",
        "source-partition": "3",
        "source-offset": "4712",
    }


def compact(value: Any) -> bytes:
    """JSON text without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
