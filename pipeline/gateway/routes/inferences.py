"""/v1/inferences: hand in a request, ask for its result, listen for what happens to it.

The result is the very bytes of the results topic. The answers' OpenAPI descriptions are in `openapi`.
"""

import re
from typing import Annotated, Any
from uuid import UUID, uuid5

import msgspec
import orjson
from fastapi import APIRouter, Header, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from pipeline.core.stored_result import Pending, StoredResult
from pipeline.errors import ResultStoreError
from pipeline.gateway.delivery.inferences import Receipt, ResultGone, Submission
from pipeline.gateway.http.bodies import BINARY, BINARY_HEADER_NAME, JSON
from pipeline.gateway.http.exchange_headers import cache_headers, traceparent_of
from pipeline.gateway.http.limits import slot_of
from pipeline.gateway.http.problem import Problem, invalid_request, not_found
from pipeline.gateway.routes import openapi
from pipeline.gateway.routes.deps import GatewayDeps
from pipeline.gateway.routes.long_polls import result_within
from pipeline.gateway.routes.sse import RESULT, EventStream, events_of
from schemas.request import is_request_id

_PREFIX = "/v1/inferences"
_NO_STORE = {"cache-control": "no-store"}
# The namespace of ids made from idempotency keys: any fixed one, as long as it stays.
_KEY_NAMESPACE = UUID("0199b6a0-5b1e-5c39-9a54-9f6c0f2b7d11")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
# More digits than any wait has; int() of a thousand takes its time.
_WAIT = re.compile(r"[0-9]{1,9}")

RequestId = Annotated[str, Path(description="The request's id.", json_schema_extra={"pattern": openapi.ID_PATTERN})]
Wait = Annotated[int, Query(ge=0, description="Seconds to wait for the result; cut to PIPELINE_GATEWAY__WAIT_MAX_S.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="1 to 255 visible ASCII characters: the id is derived from it, so that a repetition is no second"
        " request.",
    ),
]
Prefer = Annotated[str | None, Header(description="RFC 7240; `wait=N`: the result itself, if it comes in N seconds.")]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", description="The last event that was heard.")]


class _Told(msgspec.Struct):
    """What a result says of itself, for headers."""

    status: str = ""
    parameters: dict[str, Any] = {}


_told = msgspec.json.Decoder(_Told)


def make_inferences_router(deps: GatewayDeps) -> APIRouter:
    """The routes of /v1/inferences."""
    router = APIRouter(tags=["inferences"])

    @router.post(_PREFIX, status_code=202, responses=openapi.SUBMIT, openapi_extra=openapi.SUBMIT_BODY)
    async def submit(request: Request, idempotency_key: IdempotencyKey = None, prefer: Prefer = None) -> Response:
        """Hand in a request. 202 once Kafka has it on all in-sync replicas."""
        return await _submit(deps, request)

    @router.get(_PREFIX + "/{request_id}", responses=openapi.RESULT)
    async def result(request: Request, request_id: RequestId, wait: Wait = 0) -> Response:
        """The result of a request: the very bytes of the results topic, of a failed one too."""
        return await _result(deps, request, request_id, wait)

    router.add_api_route(_PREFIX + "/{request_id}", result, methods=["HEAD"], include_in_schema=False)

    @router.get(_PREFIX + "/{request_id}/events", responses=openapi.EVENTS)
    async def events(request: Request, request_id: RequestId, last_event_id: LastEventId = None) -> Response:
        """What happens to a request, as server-sent events: `accepted`, then `result`."""
        return await _events(deps, request, request_id, last_event_id)

    return router


async def _submit(deps: GatewayDeps, request: Request) -> Response:
    identity = await deps.admit(request)
    request_id = _id_from_key(request, identity.tenant)
    wait_s = _preferred_wait_s(request)
    slot_of(request).request_id = request_id
    body = await deps.read_body(request)
    receipt = await deps.inferences.submit(
        Submission(
            body.value,
            body.headers,
            identity.tenant,
            identity.source_ip,
            request_id=request_id,
            traceparent=traceparent_of(request.headers),
        )
    )
    del body
    deps.limits.let_go(request)
    if wait_s is not None and (answer := await _awaited(deps, request, receipt, wait_s)) is not None:
        return answer
    return receipt_response(receipt)


async def _awaited(deps: GatewayDeps, request: Request, receipt: Receipt, wait_s: int) -> Response | None:
    """The result if it comes in time and there is room for it; whatever stands in the way, the request is accepted."""
    try:
        deps.limits.wait(request)
        found = await result_within(
            deps, request, receipt.tenant, receipt.id, min(wait_s, deps.settings.gateway.wait_max_s)
        )
        if not isinstance(found, StoredResult):
            return None
        deps.limits.hold(request, len(found.value))
    except (Problem, ResultGone, ResultStoreError):
        return None
    answer = result_response(found)
    answer.headers["preference-applied"] = f"wait={wait_s}"
    answer.headers["content-location"] = links_of(receipt.id)["self"]
    return answer


async def _result(deps: GatewayDeps, request: Request, request_id: str, wait_s: int) -> Response:
    tenant = deps.identity(request).tenant
    _check_id(request, request_id)
    if wait_s:
        deps.limits.wait(request)
    found = await result_within(deps, request, tenant, request_id, min(wait_s, deps.settings.gateway.wait_max_s))
    if found is None:
        raise not_found(request_id)
    if isinstance(found, Pending):
        document = {"id": request_id, "status": "pending", "links": links_of(request_id)}
        return Response(orjson.dumps(document), 202, {"retry-after": "1", **_NO_STORE}, JSON)
    deps.limits.hold(request, len(found.value))
    return result_response(found)


async def _events(deps: GatewayDeps, request: Request, request_id: str, last_event_id: str | None) -> Response:
    tenant = deps.identity(request).tenant
    _check_id(request, request_id)
    found = await deps.inferences.wait(tenant, request_id, 0)
    if found is None:
        raise not_found(request_id)
    if last_event_id == RESULT:
        return Response(status_code=204, headers=_NO_STORE)
    if isinstance(found, StoredResult):
        deps.limits.hold(request, len(found.value))
    else:
        deps.limits.wait(request)
    return EventStream(events_of(deps, tenant, request_id, found, links_of(request_id), last_event_id))


def links_of(request_id: str) -> dict[str, str]:
    """Where a request is found, relative to the gateway."""
    place = f"{_PREFIX}/{request_id}"
    return {"self": place, "events": f"{place}/events"}


def receipt_response(receipt: Receipt, **headers: str) -> Response:
    """The 202 of a request that Kafka has."""
    links = links_of(receipt.id)
    document = {"id": receipt.id, "status": "accepted", "links": links}
    return Response(orjson.dumps(document), 202, {"location": links["self"], **_NO_STORE, **headers}, JSON)


def result_response(result: StoredResult) -> Response:
    """A result record as an answer, byte for byte, with what HTTP caches would say of it."""
    headers = {**_NO_STORE, **_cache_headers(result)}
    if not result.json_bytes:
        return Response(result.value, 200, headers, JSON)
    return Response(result.value, 200, {**headers, BINARY_HEADER_NAME: str(result.json_bytes)}, BINARY)


def _cache_headers(result: StoredResult) -> dict[str, str]:
    text = result.value[: result.json_bytes] if result.json_bytes else result.value
    try:
        told = _told.decode(text)
    except msgspec.MsgspecError:
        return {}  # written by somebody else: the bytes are the answer all the same
    status, age_ms = told.parameters.get("cache_status"), told.parameters.get("cache_age_ms")
    age_ms = age_ms if isinstance(age_ms, int) and age_ms >= 0 else None
    return cache_headers(status, age_ms, may_store=told.status == "succeeded") if isinstance(status, str) else {}


def _check_id(request: Request, request_id: str) -> None:
    """Raises 404 for what no request can be named, without asking anybody."""
    if not is_request_id(request_id):
        raise not_found(request_id)
    slot_of(request).request_id = request_id


def _id_from_key(request: Request, tenant: str | None) -> str | None:
    """The id that an Idempotency-Key stands for: equal keys of a tenant, equal ids.

    Raises:
        Problem: 400, it is no such key.
    """
    keys = {key.strip() for key in request.headers.getlist("idempotency-key")}
    if not keys:
        return None
    # The draft of the header wants a quoted string, its users send bare ones: one key either way.
    key = keys.pop().removeprefix('"').removesuffix('"')
    if keys or _KEY.fullmatch(key) is None:
        raise invalid_request("Idempotency-Key: one of 1 to 255 visible ASCII characters was expected")
    owner = tenant or ""
    return str(uuid5(_KEY_NAMESPACE, f"{len(owner)}:{owner}{key}"))


def _preferred_wait_s(request: Request) -> int | None:
    """The seconds of `Prefer: wait=N`. What is malformed is ignored, as RFC 7240 section 2 says of all preferences."""
    for header in request.headers.getlist("prefer"):
        for preference in header.split(","):
            name, _, value = preference.partition(";")[0].partition("=")
            text = value.strip().strip('"')
            if name.strip().lower() == "wait":
                # The first one counts.
                return int(text) if _WAIT.fullmatch(text) else None
    return None
