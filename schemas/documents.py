"""JSON Schemas and an AsyncAPI 3.0 document, made from the models of this package.

    python -m schemas.documents docs

writes `docs/schemas/*.json` and `docs/asyncapi.json`. The text is the same for the same models, so a stale document
shows in a test. The gateway serves the AsyncAPI document of its own topics from `asyncapi_document`.

Source: AsyncAPI 3.0.0 and its Kafka bindings 0.5.0; CloudEvents 1.0, Kafka protocol binding, binary mode.
"""

import base64
import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid5

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from schemas.errors import ErrorCode
from schemas.event import EVENT_NAMESPACE, Event, RequestEnd
from schemas.registry import ModelRecord
from schemas.request import ID_PATTERN, InferenceRequest
from schemas.result import InferenceResult, OutputTensor

JsonSchema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BINDING = "0.5.0"
_DECIMAL = "^[0-9]+$"
_TRACEPARENT = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
_LENGTH = "Inference-Header-Content-Length"


class ResultChunk(BaseModel):
    """A part of a streamed answer, at least once. A higher attempt starts over."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str = Field(description="The request's id.")
    index: int = Field(ge=0, description="Counts the chunks of one attempt.")
    attempt: int = Field(ge=0)
    outputs: list[OutputTensor]


class RequestHeaders(BaseModel):
    """CloudEvents in binary mode. A request without any header is as good as one with them."""

    ce_specversion: str = Field(default="1.0", pattern="^1\\.0$")
    ce_id: str | None = Field(
        default=None, pattern=ID_PATTERN, description="Counts only where the body is no JSON object."
    )
    ce_source: str | None = None
    ce_type: str | None = Field(default=None, pattern="^inference\\.request\\.v1$")
    ce_time: str | None = Field(default=None, json_schema_extra={"format": "date-time"})
    ce_subject: str | None = Field(default=None, description="The model.")
    content_type: str | None = Field(default=None, alias="content-type")
    traceparent: str | None = Field(default=None, pattern=_TRACEPARENT, description="W3C Trace Context.")


class BinaryRequestHeaders(RequestHeaders):
    """Of a request whose value is JSON followed by raw tensor bytes; the first of them alone marks the form."""

    json_length: str = Field(
        alias=_LENGTH, pattern=_DECIMAL, description="The JSON's length in bytes; in any case of letters."
    )


class ResultHeaders(BaseModel):
    """CloudEvents in binary mode, and which record this answers."""

    ce_specversion: str = Field(pattern="^1\\.0$")
    ce_id: str = Field(pattern=ID_PATTERN, description="The request's id.")
    ce_source: str = Field(pattern="^/inference/")
    ce_type: str = Field(pattern="^inference\\.result\\.v1$")
    ce_time: str = Field(json_schema_extra={"format": "date-time"})
    ce_subject: str = Field(description="The model.")
    content_type: str = Field(alias="content-type")
    request_offset: str = Field(alias="request-offset", pattern=_DECIMAL, description="The request's offset.")
    request_timestamp: str = Field(
        alias="request-timestamp", pattern=_DECIMAL, description="The request's append time, epoch milliseconds."
    )
    request_digest: str = Field(
        alias="request-digest", pattern="^([0-9a-f]{32})?$", description="What a repeated id is compared by."
    )
    worker_group: str = Field(alias="worker-group", description="The consumer group that answered.")
    traceparent: str | None = Field(default=None, pattern=_TRACEPARENT, description="W3C Trace Context.")


class BinaryResultHeaders(ResultHeaders):
    """Of a result with raw tensor bytes behind its JSON."""

    json_length: str = Field(alias=_LENGTH, pattern=_DECIMAL, description="The JSON's length in bytes.")


class EventHeaders(BaseModel):
    """Of a record with event lines."""

    generation: str = Field(pattern=_DECIMAL, description="The consumer group's generation of the worker that wrote.")


class DeadLetterHeaders(BaseModel):
    """Besides the original record's own headers: why it is here and where it was."""

    reason: str = Field(description="A stable word.", examples=["NOT_JSON", "TOMBSTONE", "BAD_BINARY_LENGTH"])
    error: str = Field(description="A sentence for people.")
    source_topic: str = Field(alias="source-topic")
    source_partition: str = Field(alias="source-partition", pattern=_DECIMAL)
    source_offset: str = Field(alias="source-offset", pattern=_DECIMAL)


_MODELS: tuple[type[BaseModel], ...] = (
    InferenceRequest, InferenceResult, ResultChunk, Event, RequestEnd, ModelRecord, RequestHeaders,
    BinaryRequestHeaders, ResultHeaders, BinaryResultHeaders, EventHeaders, DeadLetterHeaders,
)  # fmt: skip
# A request may have null for what is absent; nothing that the pipeline writes has.
_NULL_ALLOWED = frozenset({"InferenceRequest", "InputTensor", "RequestedOutput", "ReplyTo", "Callback"})
_FILES: dict[str, type[BaseModel]] = {
    "request": InferenceRequest,
    "result": InferenceResult,
    "chunk": ResultChunk,
    "event": Event,
    "request-end": RequestEnd,
    "model": ModelRecord,
}


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        """No titles on members: they only repeat the name."""
        return False


def _definitions(prefix: str) -> dict[str, JsonSchema]:
    """All models' schemas by name, references written as `prefix` and the name."""
    _, schema = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template=prefix + "{model}", schema_generator=_Generator
    )
    definitions: dict[str, JsonSchema] = schema["$defs"]
    for name, definition in definitions.items():
        for member in definition.get("properties", {}).values():
            if "default" in member and member["default"] is None:
                del member["default"]
                if name not in _NULL_ALLOWED:
                    _drop_null(member)
    definitions["ErrorCode"] = _error_codes()
    return dict(sorted(definitions.items()))


def _drop_null(member: JsonSchema) -> None:
    others = [choice for choice in member.pop("anyOf", ()) if choice != {"type": "null"}]
    if len(others) == 1 and "$ref" not in others[0]:
        member.update(others[0])
    elif others:
        member["anyOf"] = others


def _error_codes() -> JsonSchema:
    again = {True: "the same request can succeed later", False: "the same request fails again"}
    return {
        "title": "ErrorCode",
        "description": " ".join((ErrorCode.__doc__ or "").split()),
        "type": "string",
        "oneOf": [
            {
                "const": code.value,
                "description": f"HTTP {code.http_status}; {again[code.retryable]}.",
                "x-http-status": code.http_status,
                "x-retryable": code.retryable,
            }
            for code in ErrorCode
        ],
    }


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref" and isinstance(value, str):
                yield value.rpartition("/")[2]
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def json_schemas() -> dict[str, JsonSchema]:
    """The JSON Schemas (2020-12) of what travels, by file name without its ending; each stands alone."""
    definitions = _definitions("#/$defs/")
    schemas: dict[str, JsonSchema] = {}
    for name, model in _FILES.items():
        root = definitions[model.__name__]
        needed: set[str] = set()
        open_names = set(_references(root))
        while open_names:
            needed |= open_names
            open_names = {other for found in open_names for other in _references(definitions[found])} - needed
        schemas[name] = {"$schema": DIALECT, **root}
        if needed:
            schemas[name]["$defs"] = {found: definitions[found] for found in sorted(needed)}
    schemas["error-codes"] = {"$schema": DIALECT, **definitions["ErrorCode"]}
    return schemas


# The examples: one request for the `digits` model and what becomes of it.
_ID = "0198c5a0-7d3e-7c52-9d0a-3f5e6b1c2d4e"
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


def _small_request_example() -> dict[str, Any]:
    return {
        "model_name": "sentences",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a streaming pipeline"]}],
    }


def binary_request_example() -> tuple[bytes, dict[str, str]]:
    """A request's value in the binary form, and its headers."""
    raw = struct.pack("<64f", *_PIXELS)
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 64], "parameters": {"binary_data_size": len(raw)}}
    text = _compact({"id": _ID, "model_name": "digits", "inputs": [tensor]})
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


def _failed_result_example() -> dict[str, Any]:
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
    text = _compact(result)
    return text + raw, {**_result_headers("application/octet-stream"), _LENGTH: str(len(text))}


def _chunk_example() -> dict[str, Any]:
    output = {"name": "text_output", "datatype": "BYTES", "shape": [1], "data": ["Return the"]}
    return {"id": _ID, "index": 0, "attempt": 0, "outputs": [output]}


def _event_example(event_type: str, duration_us: int) -> dict[str, Any]:
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


def _request_end_example() -> dict[str, Any]:
    request = request_example()
    return {
        **_event_example("result.published", 2200),
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
        "result": _compact(result_example()).decode(),
        "requests_expires_at": "2026-12-22T22:00:00Z",
    }


def _model_example() -> dict[str, Any]:
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
            "1": {"fingerprint": _FINGERPRINT[::-1], "state": "draining", "signature": signature},
            "2": {"fingerprint": _FINGERPRINT, "state": "ready", "signature": signature},
        },
        "default_version": "2",
        "previous_version": "1",
        "effective_at": "2026-11-22T21:00:00Z",
    }


def _request_headers() -> dict[str, str]:
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


def _result_headers(content_type: str) -> dict[str, str]:
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


def _dead_letter_headers() -> dict[str, str]:
    return {
        "reason": "NOT_JSON",
        "error": "the record is not JSON: NaN is no JSON value (RFC 8259)",
        "source-topic": "inference.requests",
        "source-partition": "3",
        "source-offset": "4712",
    }


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class TopicLayout:
    """What an AsyncAPI document says of the topics; the defaults are those of the local stack.

    Attributes:
        prefix: before every topic's name.
        bootstrap_servers: a broker's address.
        partitions: of requests, results and chunks.
        reply_partitions: of replies.
        event_partitions: of events.
        record_bytes: the limit of a record.
        event_record_bytes: the limit of a record with event lines.
        worker_group: the workers' consumer group.
    """

    prefix: str = "inference."
    bootstrap_servers: str = "127.0.0.1:9092"
    partitions: int = 4
    reply_partitions: int = 16
    event_partitions: int = 4
    record_bytes: int = 8 << 20
    event_record_bytes: int = 25 << 20
    worker_group: str = "inference-worker"


LOCAL = TopicLayout()


def asyncapi_document(layout: TopicLayout = LOCAL) -> dict[str, Any]:
    """The AsyncAPI 3.0 document of the topics."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Inference pipeline",
            "version": "1.0.0",
            "description": (
                "Inference requests in, each answered once; events out. Records are Open Inference Protocol (KServe "
                "v2) JSON, or its binary form: JSON, then raw little-endian tensor bytes."
            ),
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"kafka": {"host": layout.bootstrap_servers, "protocol": "kafka"}},
        "channels": _channels(layout),
        "operations": _operations(layout),
        "components": {"messages": _messages(), "schemas": _definitions("#/components/schemas/")},
    }


def _channels(layout: TopicLayout) -> dict[str, Any]:
    results = ["Result", "BinaryResult"]
    return {
        "requests": _channel(
            layout,
            "requests",
            "Requests in. Its record timestamps are append times (message.timestamp.type=LogAppendTime).",
            ["Request", "BinaryRequest"],
            layout.partitions,
        ),
        "results": _channel(
            layout,
            "results",
            "Answers out: in the partition with the request's number, with the request's key. The answer of an id is "
            "the first result with it in its partition's order; readers ignore later ones. No order between results "
            "is promised.",
            results,
            layout.partitions,
        ),
        "chunks": _channel(
            layout,
            "chunks",
            "A streamed answer as it grows, at least once. The whole answer still ends on results.",
            ["Chunk"],
            layout.partitions,
        ),
        "replies": _channel(
            layout,
            "replies",
            "Copies of results for reply_to, same bytes, at least once: a partition for each client that asks.",
            ["Reply", "BinaryReply"],
            layout.reply_partitions,
        ),
        "events": _channel(
            layout,
            "events",
            "What happened: in the partition of the request's partition number modulo the partitions here.",
            ["EventLines"],
            layout.event_partitions,
            layout.event_record_bytes,
        ),
        "models": _channel(
            layout, "models", "What the fleet serves.", ["Model"], 1, configuration={"cleanup.policy": ["compact"]}
        ),
        "deadLetter": _channel(
            layout,
            "dead-letter",
            "Records that are no request: original bytes and headers, and why.",
            ["DeadLetter"],
            layout.partitions,
        ),
        "webhooks": _channel(
            layout, "webhooks", "Callbacks to deliver and to retry; the pipeline's own.", ["Webhook"], layout.partitions
        ),
    }


def _channel(
    layout: TopicLayout,
    name: str,
    description: str,
    messages: list[str],
    partitions: int,
    record_bytes: int | None = None,
    configuration: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "address": f"{layout.prefix}{name}",
        "description": description,
        "servers": [{"$ref": "#/servers/kafka"}],
        "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in messages},
        "bindings": {
            "kafka": {
                "topic": f"{layout.prefix}{name}",
                "partitions": partitions,
                "topicConfiguration": {
                    **(configuration or {"cleanup.policy": ["delete"]}),
                    "max.message.bytes": record_bytes or layout.record_bytes,
                },
                "bindingVersion": _BINDING,
            }
        },
    }


def _operations(layout: TopicLayout) -> dict[str, Any]:
    group = {"kafka": {"groupId": {"type": "string", "const": layout.worker_group}, "bindingVersion": _BINDING}}
    reply = {
        "channel": {"$ref": "#/channels/results"},
        "messages": [{"$ref": f"#/channels/results/messages/{name}"} for name in ("Result", "BinaryResult")],
    }
    sends = {
        "streamAnswer": ("chunks", "A part of a streamed answer."),
        "copyAnswer": ("replies", "A copy of an answer where the request asked for one."),
        "logEvents": ("events", "Events, many lines in a record."),
        "announceModel": ("models", "A model's versions, and which one is served by default."),
        "setAside": ("deadLetter", "A record that is no request."),
        "planCallback": ("webhooks", "A callback to deliver."),
    }
    return {
        "infer": {
            "action": "receive",
            "channel": {"$ref": "#/channels/requests"},
            "summary": "Runs one inference, or answers it from the cache.",
            "bindings": group,
            "reply": reply,
        },
        **{
            name: {"action": "send", "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}
            for name, (channel, summary) in sends.items()
        },
    }


def _messages() -> dict[str, Any]:
    partition_key = {
        "type": "string",
        "pattern": "^[0-9a-f]{32}$",
        "description": (
            "A digest over tenant, model name, inputs and parameters, placed by murmur2. Other keys, or none, are "
            "served too: they only lose the affinity."
        ),
    }
    request_key = {"type": "string", "description": "The request's key."}
    id_key = {"type": "string", "pattern": ID_PATTERN, "description": "The request's id."}
    answers = [
        _example("hit", result_example(), _result_headers("application/json")),
        _example("failed", _failed_result_example(), _result_headers("application/json") | {"ce_subject": "digitz"}),
    ]
    binary_request, request_headers = binary_request_example()
    binary_result, result_headers = binary_result_example()
    messages = {
        "Request": _message("InferenceRequest", "RequestHeaders", partition_key)
        | {
            "examples": [
                _example("every member", request_example(), _request_headers()),
                _example("no optional member", _small_request_example(), {}),
            ]
        },
        "BinaryRequest": _binary("BinaryRequestHeaders", partition_key, binary_request, request_headers),
        "Result": _message("InferenceResult", "ResultHeaders", request_key) | {"examples": answers},
        "BinaryResult": _binary("BinaryResultHeaders", request_key, binary_result, result_headers),
        "Chunk": _message("ResultChunk", None, request_key) | {"examples": [_example("first", _chunk_example(), {})]},
        "Reply": _message("InferenceResult", "ResultHeaders", id_key) | {"examples": answers},
        "BinaryReply": _binary("BinaryResultHeaders", id_key, binary_result, result_headers),
        "EventLines": _event_lines(),
        "Model": _message("ModelRecord", None, {"type": "string", "description": "The model's name."})
        | {"examples": [_example("promoted", _model_example(), {})]},
        "DeadLetter": {
            "summary": "The original record's bytes and headers; reason, error and place in headers besides.",
            "contentType": "application/octet-stream",
            "headers": _schema_reference("DeadLetterHeaders"),
            "bindings": _key_binding({"type": "string", "description": "The original record's key."}),
            "examples": [{"name": "not JSON", "headers": _dead_letter_headers()}],
        },
        "Webhook": {"summary": "The pipeline's own.", "bindings": _key_binding(id_key)},
    }
    return {name: {"name": name, **message} for name, message in messages.items()}


def _message(payload: str, headers: str | None, key: JsonSchema) -> dict[str, Any]:
    message: dict[str, Any] = {"contentType": "application/json"}
    if headers is not None:
        message["headers"] = _schema_reference(headers)
    message["payload"] = _schema_reference(payload)
    if payload != "ModelRecord":
        message["correlationId"] = {"location": "$message.payload#/id"}
    return {**message, "bindings": _key_binding(key)}


def _binary(headers: str, key: JsonSchema, value: bytes, example: dict[str, str]) -> dict[str, Any]:
    return {
        "summary": "The JSON, then raw little-endian tensor bytes; the JSON's length in a header.",
        "contentType": "application/octet-stream",
        "headers": _schema_reference(headers),
        "bindings": _key_binding(key),
        "examples": [{"name": "binary", "headers": example}],
        "x-example-base64": base64.b64encode(value).decode(),
    }


def _event_lines() -> dict[str, Any]:
    lines = [_event_example("request.received", 1900), _event_example("cache.hit", 0), _request_end_example()]
    text = b"\n".join(map(_compact, lines)).decode() + "\n"
    return {
        "summary": "One JSON line per event, many lines per record; the one that ends a request has its columns too.",
        "contentType": "application/x-ndjson",
        "headers": _schema_reference("EventHeaders"),
        "payload": {
            "type": "string",
            "x-line": {"anyOf": [_schema_reference("RequestEnd"), _schema_reference("Event")]},
        },
        "examples": [{"name": "hit", "headers": {"generation": "7"}, "payload": text}],
    }


def _schema_reference(name: str) -> JsonSchema:
    return {"$ref": f"#/components/schemas/{name}"}


def _key_binding(key: JsonSchema) -> dict[str, Any]:
    return {"kafka": {"key": key, "bindingVersion": _BINDING}}


def _example(name: str, payload: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "payload": payload, **({"headers": headers} if headers else {})}


def rendered() -> dict[str, str]:
    """Every document's text, by its path below the folder of documents."""
    documents = {f"schemas/{name}.json": schema for name, schema in json_schemas().items()}
    documents["asyncapi.json"] = asyncapi_document()
    return {path: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for path, document in documents.items()}


def write_documents(folder: Path) -> list[Path]:
    """Writes every document below `folder`; returns their paths.

    Raises:
        OSError: a file cannot be written.
    """
    written: list[Path] = []
    for path, text in rendered().items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        written.append(target)
    return written


def main(arguments: list[str]) -> int:
    """`python -m schemas.documents FOLDER`: 0 done, 2 wrong usage."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m schemas.documents FOLDER    for example: python -m schemas.documents docs\n")
        return 2
    for path in write_documents(Path(arguments[0])):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
