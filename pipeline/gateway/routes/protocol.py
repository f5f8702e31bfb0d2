"""The Open Inference Protocol over HTTP (KServe v2, as Triton speaks it): what an unmodified `tritonclient.http` calls.

    POST infer        protocol/request.py   the body -> a request record, the model out of the address
                      deps.inferences       Kafka, and the result's record
                      protocol/answer.py    the record -> the protocol's answer
    GET metadata, …   protocol/models.py    as announced, and as the fleet's servers say

What Triton can be told to do besides (load, unload, shared memory, traces) is refused with a sentence, never ignored.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from pipeline.core.stored_result import StoredResult
from pipeline.gateway.delivery.inferences import Submission
from pipeline.gateway.http.bodies import BINARY, BINARY_HEADER_NAME, JSON
from pipeline.gateway.http.exchange_headers import traceparent_of
from pipeline.gateway.http.problem import HttpCode, Problem, invalid_request
from pipeline.gateway.protocol.answer import ProtocolAnswer, accepted_encoding, answer_of, compressed
from pipeline.gateway.protocol.models import Fleet, make_fleet
from pipeline.gateway.protocol.request import changes_of, to_record
from pipeline.gateway.routes.addresses import addressed_model
from pipeline.gateway.routes.deps import GatewayDeps
from pipeline.gateway.routes.inferences import links_of, receipt_response
from pipeline.gateway.routes.long_polls import result_within
from schemas.errors import ErrorCode

_MODEL = "/v2/models/{model_name}"
_VERSION = _MODEL + "/versions/{model_version}"
# Compressing 64 KiB takes 1-2 ms, 8 MiB 0.1-0.2 s: that much is done beside the event loop.
_COMPRESSED_INLINE_MAX = 64 << 10
# As Triton lists them: what of its extensions is served. Of model_repository the index alone, as by a Triton that is
# not in explicit mode.
_EXTENSIONS = (
    "binary_tensor_data", "parameters", "schedule_policy", "model_configuration", "model_repository", "statistics",
)  # fmt: skip
_REFUSED = {
    "/v2/repository/models/{model_name}/load": "explicit model load / unload is not allowed: owners put versions into "
    "the model repository, the watcher loads them",
    "/v2/repository/models/{model_name}/unload": "explicit model load / unload is not allowed: the watcher unloads "
    "what nothing selects any more",
    "/v2/systemsharedmemory/{rest:path}": "shared memory of clients is not served: send tensors as binary data",
    "/v2/cudasharedmemory/{rest:path}": "shared memory of clients is not served: send tensors as binary data",
    "/v2/trace/setting": "trace settings belong to each Triton: ask it itself",
    _MODEL + "/trace/setting": "trace settings belong to each Triton: ask it itself",
    "/v2/logging": "log settings belong to each Triton: ask it itself",
    _MODEL + "/generate": "the generate extension is not served: POST …/infer",
    _VERSION + "/generate": "the generate extension is not served: POST …/infer",
    _MODEL + "/generate_stream": "the generate extension is not served: POST …/infer",
    _VERSION + "/generate_stream": "the generate extension is not served: POST …/infer",
}


def make_protocol_router(deps: GatewayDeps, fleet: Fleet | None = None) -> APIRouter:
    """The routes below /v2; the fleet is entered and left with the app.

    Args:
        deps: of the gateway.
        fleet: who is asked for metadata; None: the one that the settings name.
    """
    known = fleet or make_fleet(deps.settings)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        async with known:
            yield

    router = APIRouter(tags=["Open Inference Protocol"], responses=_RESPONSES, lifespan=lifespan)
    _add_server(router, deps)
    _add_index(router, deps, known)
    _add_statistics(router, deps, known)
    _add_models(router, deps, known)
    _add_inference(router, deps)
    for path, sentence in _REFUSED.items():
        _add_refusal(router, path, sentence)
    return router


_ERROR = {
    "description": '`{"error": …}`',
    "content": {
        JSON: {"schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}}
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": _ERROR, "5XX": _ERROR}


def _add_server(router: APIRouter, deps: GatewayDeps) -> None:
    @router.get("/v2", summary="Name, version and extensions of this server")
    async def server_metadata(request: Request) -> Response:
        deps.identity(request)
        name = "inference-pipeline"
        return _json({"name": name, "version": version(name), "extensions": _EXTENSIONS})

    @router.get("/v2/health/live", response_class=Response, summary="Whether this gateway answers")
    async def server_live() -> Response:
        return Response()

    @router.get("/v2/health/ready", response_class=Response, summary="Whether this gateway takes inferences")
    async def server_ready() -> Response:
        reasons = deps.inferences.not_ready()
        if reasons:
            told = "; ".join(f"{name}: {reason}" for name, reason in sorted(reasons.items()))
            raise Problem(503, HttpCode.KAFKA_UNAVAILABLE, told, retry_after_s=1)
        return Response()


def _add_index(router: APIRouter, deps: GatewayDeps, fleet: Fleet) -> None:
    @router.post("/v2/repository/index", summary="Every version there is word of, and whether it is served")
    async def repository_index(request: Request) -> Response:
        deps.identity(request)
        return _json(fleet.models.repository_index(ready_only=await _ready_only(request)))


async def _ready_only(request: Request) -> bool:
    """What the optional body asks for: versions that are served alone."""
    # `{"ready": true}` is all there is to say; whoever sends a megabyte is not read to the end.
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > 4096:
            raise invalid_request("the body of an index request has 4096 bytes at most")
    if not body.strip():
        return False
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid_request(f"the body is no JSON object: {error}") from None
    ready = asked.get("ready", False) if isinstance(asked, dict) else None
    if not isinstance(ready, bool):
        raise invalid_request(f'the body is {asked!r:.80}: nothing or {{"ready": true}} was expected')
    return ready


def _add_statistics(router: APIRouter, deps: GatewayDeps, fleet: Fleet) -> None:
    # Before the models: `stats` would be the name of one.
    @router.get("/v2/models/stats", summary="Statistics of all models, summed over the fleet")
    async def all_statistics(request: Request) -> Response:
        _may_ask(deps, request)
        return _json(await fleet.statistics(None))

    async def model_statistics(request: Request) -> Response:
        _may_ask(deps, request)
        return _json(await fleet.statistics(addressed_model(request)))

    _add_of_model(router, "GET", "/stats", model_statistics, "Statistics, summed over the fleet")


def _add_models(router: APIRouter, deps: GatewayDeps, fleet: Fleet) -> None:
    async def model_metadata(request: Request) -> Response:
        _may_ask(deps, request)
        return _json(await fleet.metadata(addressed_model(request)))

    async def model_ready(request: Request) -> Response:
        deps.identity(request)
        fleet.models.resolve(addressed_model(request))
        return Response()

    async def model_config(request: Request) -> Response:
        _may_ask(deps, request)
        return _json(await fleet.config(addressed_model(request)))

    _add_of_model(router, "GET", "", model_metadata, "Versions and tensors")
    _add_of_model(router, "GET", "/ready", model_ready, "Whether it is served", response_class=Response)
    _add_of_model(router, "GET", "/config", model_config, "The configuration, as a Triton has it in effect")


def _add_inference(router: APIRouter, deps: GatewayDeps) -> None:
    async def infer(request: Request) -> Response:
        return await _infer(deps, request)

    _add_of_model(router, "POST", "/infer", infer, "One inference", responses=_ANSWERS, openapi=_BODY)


async def _infer(deps: GatewayDeps, request: Request) -> Response:
    model = addressed_model(request)
    identity = await deps.admit(request)
    changes = changes_of(request.headers)
    at_once = _prefers_async(request.headers)
    body = await deps.read_body(request, any_type=True)
    record = to_record(body.value, body.headers, model)
    if not at_once:
        deps.limits.wait(request)
    receipt = await deps.inferences.submit(
        Submission(
            record.value,
            record.headers,
            identity.tenant,
            identity.source_ip,
            changes=changes,
            traceparent=traceparent_of(request.headers),
        )
    )
    del body, record
    deps.limits.let_go(request)
    if at_once:
        return receipt_response(receipt, **{"preference-applied": "respond-async"})
    wait_s = changes["timeout_ms"] / 1e3 if "timeout_ms" in changes else deps.settings.gateway.wait_max_s
    result = await result_within(deps, request, receipt.tenant, receipt.id, wait_s)
    if not isinstance(result, StoredResult):
        raise _unanswered(deps, receipt.id, wait_s)
    answer = answer_of(result, may_store="no-store" not in changes.get("cache_control", "").lower())
    return await _sent(deps, request, answer)


def _add_of_model(
    router: APIRouter,
    method: str,
    tail: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    summary: str,
    *,
    openapi: Mapping[str, Any] | None = None,
    **route: Any,
) -> None:
    """A route of models, and of their versions. Their parts are read from the address alone, never from a query."""
    for path, of, parts in ((_MODEL, "a model", _NAMED), (_VERSION, "a version", [*_NAMED, _NUMBERED])):
        router.add_api_route(
            path + tail,
            endpoint,
            methods=[method],
            summary=f"{summary}: of {of}",
            openapi_extra={"parameters": parts, **(openapi or {})},
            **route,
        )


_NAMED = [{"name": "model_name", "in": "path", "required": True, "schema": {"type": "string"}}]
_NUMBERED = {
    "name": "model_version",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}
_OBJECT = {"schema": {"type": "object"}}
_RAW = {"schema": {"type": "string", "format": "binary", "description": "The JSON, then the tensors' raw bytes."}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": f"id, parameters, inputs, outputs; with {BINARY_HEADER_NAME} raw tensors follow.",
        "content": {JSON: _OBJECT, BINARY: _RAW},
    }
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "model_name, model_version, id, parameters, outputs.",
        "content": {JSON: _OBJECT, BINARY: _RAW},
    },
    202: {"description": "`Prefer: respond-async`: accepted.", "content": {JSON: _OBJECT}},
}


def _add_refusal(router: APIRouter, path: str, sentence: str) -> None:
    @router.api_route(path, methods=["GET", "POST"], include_in_schema=False)
    async def refused() -> Response:
        # Not 501: what a client does wrong a thousand times a second is no fault of this server's, and its log's.
        raise invalid_request(sentence)


def _may_ask(deps: GatewayDeps, request: Request) -> None:
    """Whoever asks Tritons waits for them: a fleet that is stopped must not take the places of inferences.

    Raises:
        Problem: 401, or 429.
    """
    deps.identity(request)
    deps.limits.wait(request)


def _prefers_async(headers: Headers) -> bool:
    """Whether `Prefer` (RFC 7240) asks for the receipt alone."""
    words = ",".join(headers.getlist("prefer")).lower().split(",")
    return any(word.partition(";")[0].strip() == "respond-async" for word in words)


def _unanswered(deps: GatewayDeps, request_id: str, wait_s: float) -> Problem:
    later = f"its result will be at {links_of(request_id)['self']}"
    if deps.limits.stopping.is_set():
        return Problem(503, HttpCode.STOPPING, f"this gateway stops; request {request_id} was accepted, {later}")
    return Problem(504, ErrorCode.EXPIRED, f"request {request_id} was not answered within {wait_s:g} s; {later}")


async def _sent(deps: GatewayDeps, request: Request, answer: ProtocolAnswer) -> Response:
    """The answer, compressed where the client asks for it."""
    encoding = accepted_encoding(request.headers.get("accept-encoding"))
    body, headers = answer.body, {**answer.headers, "Vary": "Accept-Encoding"}
    deps.limits.hold(request, len(body))
    if encoding is not None:
        if len(body) <= _COMPRESSED_INLINE_MAX:
            body = compressed(body, encoding)
        else:
            body = await asyncio.to_thread(compressed, body, encoding)
        headers["Content-Encoding"] = encoding
    return Response(body, headers=headers)


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(document), status, headers, JSON)
