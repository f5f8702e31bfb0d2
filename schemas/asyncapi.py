"""The AsyncAPI 3.0 document of the topics.

Source: AsyncAPI 3.0.0 and its Kafka bindings 0.5.0.
"""

import base64
from dataclasses import dataclass
from typing import Any

from schemas.examples import (
    binary_request_example,
    binary_result_example,
    cache_clear_command_example,
    cache_clear_reply_example,
    cache_stats_command_example,
    cache_stats_reply_example,
    chunk_example,
    compact,
    control_reply_headers_example,
    dead_letter_headers_example,
    event_example,
    failed_result_example,
    model_example,
    model_promote_command_example,
    model_promote_reply_example,
    request_end_example,
    request_example,
    request_headers_example,
    result_example,
    result_headers_example,
    small_request_example,
)
from schemas.json_schemas import JsonSchema, definitions
from schemas.request import ID_PATTERN

_BINDING = "0.5.0"
_CONTROL_RECORD_BYTES = 1 << 20
_CONTROL_RETENTION_MS = 3_600_000
_COMMANDS = ("CacheStatsCommand", "CacheClearCommand", "ModelPromoteCommand")
_REPLIES = ("CacheStatsReply", "CacheClearReply", "ModelPromoteReply")
# Workers obey the former, the watcher the latter.
_CACHE, _MODELS = slice(0, 2), slice(2, 3)


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
        "components": {"messages": _messages(), "schemas": definitions("#/components/schemas/")},
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
        "control": _channel(
            layout,
            "control",
            "What an operator asks of all workers, and their replies. Every worker reads every command while it runs.",
            [*_COMMANDS, *_REPLIES],
            1,
            _CONTROL_RECORD_BYTES,
            {"cleanup.policy": ["delete"], "retention.ms": _CONTROL_RETENTION_MS},
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
        "steerCache": _steering(
            "Tells what a worker's cache holds, or drops some of it; every worker does, and replies.", _CACHE
        ),
        "steerModels": _steering("Makes a version the default, or tries it; the watcher does, and replies.", _MODELS),
        **{
            name: {"action": "send", "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}
            for name, (channel, summary) in sends.items()
        },
    }


def _steering(summary: str, messages: slice) -> dict[str, Any]:
    channel = {"$ref": "#/channels/control"}

    def references(names: tuple[str, ...]) -> list[dict[str, str]]:
        return [{"$ref": f"#/channels/control/messages/{name}"} for name in names[messages]]

    return {
        "action": "receive",
        "channel": channel,
        "summary": summary,
        "messages": references(_COMMANDS),
        "reply": {"channel": channel, "messages": references(_REPLIES)},
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
        _example("hit", result_example(), result_headers_example("application/json")),
        _example(
            "failed", failed_result_example(), result_headers_example("application/json") | {"ce_subject": "digitz"}
        ),
    ]
    binary_request, request_headers = binary_request_example()
    binary_result, result_headers = binary_result_example()
    messages = {
        "Request": _message("InferenceRequest", "RequestHeaders", partition_key)
        | {
            "examples": [
                _example("every member", request_example(), request_headers_example()),
                _example("no optional member", small_request_example(), {}),
            ]
        },
        "BinaryRequest": _binary("BinaryRequestHeaders", partition_key, binary_request, request_headers),
        "Result": _message("InferenceResult", "ResultHeaders", request_key) | {"examples": answers},
        "BinaryResult": _binary("BinaryResultHeaders", request_key, binary_result, result_headers),
        "Chunk": _message("ResultChunk", None, request_key) | {"examples": [_example("first", chunk_example(), {})]},
        "Reply": _message("InferenceResult", "ResultHeaders", id_key) | {"examples": answers},
        "BinaryReply": _binary("BinaryResultHeaders", id_key, binary_result, result_headers),
        "EventLines": _event_lines(),
        "Model": _message("ModelRecord", None, {"type": "string", "description": "The model's name."})
        | {"examples": [_example("promoted", model_example(), {})]},
        "DeadLetter": {
            "summary": "The original record's bytes and headers; reason, error and place in headers besides.",
            "contentType": "application/octet-stream",
            "headers": _schema_reference("DeadLetterHeaders"),
            "bindings": _key_binding({"type": "string", "description": "The original record's key."}),
            "examples": [{"name": "not JSON", "headers": dead_letter_headers_example()}],
        },
        **_control_messages(),
        "Webhook": {"summary": "The pipeline's own.", "bindings": _key_binding(id_key)},
    }
    return {name: {"name": name, **message} for name, message in messages.items()}


def _control_messages() -> dict[str, Any]:
    key = {"type": "string", "pattern": ID_PATTERN, "description": "The command's id."}
    headers = control_reply_headers_example()
    commands = (cache_stats_command_example(), cache_clear_command_example(), model_promote_command_example())
    replies = (cache_stats_reply_example(), cache_clear_reply_example(), model_promote_reply_example())
    return {
        name: _message(name, of, key) | {"examples": [_example(name, example, shown)]}
        for names, of, examples, shown in (
            (_COMMANDS, None, commands, {}),
            (_REPLIES, "ControlReplyHeaders", replies, headers),
        )
        for name, example in zip(names, examples, strict=True)
    }


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
    lines = [event_example("request.received", 1900), event_example("cache.hit", 0), request_end_example()]
    text = b"\n".join(map(compact, lines)).decode() + "\n"
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
