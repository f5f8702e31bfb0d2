"""The OpenAPI document: FastAPI's own of the routes, and what it cannot know of bodies that are not its models."""

from collections.abc import Iterator
from typing import Any, get_args

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from pipeline.gateway.http.bodies import BINARY, BINARY_HEADER_NAME, JSON
from pipeline.gateway.http.problem import MEDIA_TYPE, ProblemDetails
from schemas.json_schemas import definitions
from schemas.registry import VersionState
from schemas.request import ID_PATTERN

__all__ = ["EVENTS", "ID_PATTERN", "MODEL", "MODELS", "RESULT", "SUBMIT", "SUBMIT_BODY", "document_of"]

Responses = dict[int | str, dict[str, Any]]

_SCHEMAS = "#/components/schemas/"
_BINARY_SCHEMA = {"type": "string", "format": "binary", "description": "The JSON, then the raw bytes of its tensors."}
_LENGTH_HEADER = {
    BINARY_HEADER_NAME: {
        "description": "The JSON's length in bytes; raw tensors follow it.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    }
}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _SCHEMAS + name}


def _header(description: str, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


_WORDS = {
    400: "Not valid (INVALID_REQUEST, INVALID_INPUT).",
    404: "Nobody knows of this request, or it can be no request's id (NOT_FOUND).",
    408: "The body took too long (REQUEST_TIMEOUT).",
    410: "The result's bytes were cut, redacted or have expired (RESULT_GONE).",
    413: "The body is larger than a record may be (PAYLOAD_TOO_LARGE).",
    415: "Neither JSON nor the binary form, or an unknown compression (UNSUPPORTED_MEDIA_TYPE).",
    422: "The id, or the Idempotency-Key, belongs to a request with other content (ID_REUSED).",
    429: "No room now; Retry-After says when (OVERLOADED).",
    431: "The head of the request is too large (HEADERS_TOO_LARGE).",
    500: "An error of the gateway's own (INTERNAL).",
    503: "Kafka or the result store does not answer, or the gateway stops; Retry-After says when.",
}


def _problems(*statuses: int) -> Responses:
    content = {MEDIA_TYPE: {"schema": _ref("ProblemDetails")}}
    return {status: {"description": _WORDS[status], "content": content} for status in statuses}


def _links(status: str) -> dict[str, Any]:
    place = {"type": "string", "format": "uri-reference"}
    return {
        "type": "object",
        "required": ["id", "status", "links"],
        "properties": {
            "id": {"type": "string", "pattern": ID_PATTERN},
            "status": {"const": status},
            "links": {"type": "object", "properties": {"self": place, "events": place}, "required": ["self", "events"]},
        },
    }


_RESULT_CONTENT = {JSON: {"schema": _ref("InferenceResult")}, BINARY: {"schema": _BINARY_SCHEMA}}
_RESULT_HEADERS = {
    "Cache-Status": _header("RFC 9211: how the answer came about, for example `pipeline; hit`."),
    "Age": _header("Seconds since an answer from the cache was computed.", "integer"),
    **_LENGTH_HEADER,
}
# Of each event; OpenAPI 3.1 has no word for streams.
_EVENT = {
    "type": "object",
    "required": ["event", "id", "data"],
    "properties": {
        "event": {"enum": ["accepted", "result"]},
        "id": {"type": "string"},
        "data": {"type": "string", "description": "JSON."},
    },
}
_ALWAYS = (429, 431, 500, 503)
# Of requests whose key has a rate: draft-ietf-httpapi-ratelimit-headers-10.
_RATE_HEADERS = {
    "RateLimit-Policy": _header("Of a key with a rate: `q` requests in `w` seconds."),
    "RateLimit": _header("Of a key with a rate: `r` requests may come at once, more in `t` seconds."),
}

SUBMIT: Responses = {
    200: {
        "description": "The result came within `Prefer: wait=N`.",
        "content": _RESULT_CONTENT,
        "headers": {
            **_RESULT_HEADERS,
            **_RATE_HEADERS,
            "Preference-Applied": _header("The preference that was followed."),
        },
    },
    202: {
        "description": "Accepted: Kafka has it on all in-sync replicas.",
        "content": {JSON: {"schema": _links("accepted")}},
        "headers": {"Location": _header("Where the result will be."), **_RATE_HEADERS},
    },
    **_problems(400, 408, 413, 415, 422, *_ALWAYS),
}
SUBMIT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"A request record; as {BINARY} with {BINARY_HEADER_NAME} raw tensors follow the JSON. gzip and"
        " deflate are inflated.",
        "content": {JSON: {"schema": _ref("InferenceRequest")}, BINARY: {"schema": _BINARY_SCHEMA}},
    },
    "parameters": [
        {
            "name": BINARY_HEADER_NAME,
            "in": "header",
            "description": "Of the binary form: the JSON's length in bytes.",
            "schema": {"type": "string", "pattern": "^[0-9]{1,19}$"},
        }
    ],
}
RESULT: Responses = {
    200: {"description": "The result record.", "content": _RESULT_CONTENT, "headers": _RESULT_HEADERS},
    202: {"description": "Accepted, and no result yet.", "content": {JSON: {"schema": _links("pending")}}},
    **_problems(400, 404, 410, *_ALWAYS),
}
EVENTS: Responses = {
    200: {
        "description": "Events as they happen: `accepted`, then `result`, whose data is the result record"
        " ({id, links} of a binary one). Comments in between keep the connection.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
    204: {"description": "Last-Event-ID was `result`: there is nothing more to tell."},
    **_problems(400, 404, 410, *_ALWAYS),
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by", "versions", "states", "default_version", "instances"],
    "properties": {
        "id": {"type": "string", "description": "The model's name."},
        "object": {"const": "model"},
        "created": {"type": "integer", "description": "When its default version was chosen, Unix seconds."},
        "owned_by": {"type": "string"},
        "versions": {"type": "array", "items": {"type": "string"}, "description": "Those that may be asked."},
        "states": {
            "type": "object",
            "additionalProperties": {"enum": list(get_args(VersionState))},
            "description": "Of every version there is word of.",
        },
        "default_version": {"type": ["string", "null"], "description": "Which answers where none is named, now."},
        "instances": {"type": "array", "items": {"type": "string"}, "description": "The Tritons that are asked."},
    },
}
_MODEL_LIST = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
}
MODELS: Responses = {
    200: {"description": "All models, in OpenAI's shape.", "content": {JSON: {"schema": _MODEL_LIST}}},
    **_problems(*_ALWAYS),
}
MODEL: Responses = {
    200: {"description": "One model, in OpenAI's shape.", "content": {JSON: {"schema": _MODEL}}},
    **_problems(*_ALWAYS),
    404: {**_problems(404)[404], "description": "No model is called so (MODEL_NOT_FOUND)."},
}


def document_of(app: FastAPI) -> dict[str, Any]:
    """The whole document."""
    document: dict[str, Any] = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _mend(path, operation)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    known = definitions(_SCHEMAS)
    known["ProblemDetails"] = ProblemDetails.model_json_schema(ref_template=_SCHEMAS + "{model}")
    wanted = set(_references(document))
    while missing := wanted - schemas.keys():
        schemas.update({name: known[name] for name in missing})
        wanted = set(_references(document))
    return document


def _mend(path: str, operation: dict[str, Any]) -> None:
    """FastAPI thinks that it answers wrong parameters with 422; ours get 400, ids 404."""
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
        if not path.startswith("/v2"):
            responses.setdefault("400", _problems(400)[400])
    # FastAPI has this for whatever has no model.
    success = responses.get("200", {}).get("content", {}).get(JSON)
    if success == {"schema": {}} and len(responses["200"]["content"]) > 1:
        del responses["200"]["content"][JSON]


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(reference := node.get("$ref"), str):
            yield reference.removeprefix(_SCHEMAS)
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)
