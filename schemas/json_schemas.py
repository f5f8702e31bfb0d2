"""JSON Schemas (2020-12) of everything that travels, made from the models of this package."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from schemas.control import (
    CacheClearCommand,
    CacheClearReply,
    CacheStatsCommand,
    CacheStatsReply,
    ModelPromoteCommand,
    ModelPromoteReply,
)
from schemas.errors import ErrorCode
from schemas.event import Event, RequestEnd
from schemas.headers import (
    BinaryRequestHeaders,
    BinaryResultHeaders,
    ControlReplyHeaders,
    DeadLetterHeaders,
    EventHeaders,
    RequestHeaders,
    ResultHeaders,
)
from schemas.registry import ModelRecord
from schemas.request import InferenceRequest
from schemas.result import InferenceResult, ResultChunk

JsonSchema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_MODELS: tuple[type[BaseModel], ...] = (
    InferenceRequest, InferenceResult, ResultChunk, Event, RequestEnd, ModelRecord, RequestHeaders,
    BinaryRequestHeaders, ResultHeaders, BinaryResultHeaders, EventHeaders, DeadLetterHeaders, CacheStatsCommand,
    CacheStatsReply, CacheClearCommand, CacheClearReply, ModelPromoteCommand, ModelPromoteReply, ControlReplyHeaders,
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
    "cache-stats-command": CacheStatsCommand,
    "cache-stats-reply": CacheStatsReply,
    "cache-clear-command": CacheClearCommand,
    "cache-clear-reply": CacheClearReply,
    "model-promote-command": ModelPromoteCommand,
    "model-promote-reply": ModelPromoteReply,
}


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        """No titles on members: they only repeat the name."""
        return False


def definitions(prefix: str) -> dict[str, JsonSchema]:
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
    models = definitions("#/$defs/")
    schemas: dict[str, JsonSchema] = {}
    for name, model in _FILES.items():
        root = models[model.__name__]
        needed: set[str] = set()
        open_names = set(_references(root))
        while open_names:
            needed |= open_names
            open_names = {other for found in open_names for other in _references(models[found])} - needed
        schemas[name] = {"$schema": DIALECT, **root}
        if needed:
            schemas[name]["$defs"] = {found: models[found] for found in sorted(needed)}
    schemas["error-codes"] = {"$schema": DIALECT, **models["ErrorCode"]}
    return schemas
