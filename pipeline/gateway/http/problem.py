"""Errors over HTTP: RFC 9457 problem details, and below /v2 the Open Inference Protocol's `{"error": …}`."""

from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from pipeline.client.errors import KafkaUnavailable
from pipeline.errors import PipelineError, ResultStoreError
from pipeline.gateway.delivery.inferences import IdReused, ResultGone
from schemas.errors import ErrorCode, WireError

MEDIA_TYPE = "application/problem+json"
# Where a client finds what becomes of its request in the log of this process.
SLOT = "pipeline.slot"
_TYPE_PREFIX = "urn:inference-pipeline:problem:"


class HttpCode(StrEnum):
    """Codes of what only HTTP can get wrong; those of results are `schemas.errors.ErrorCode`."""

    NOT_FOUND = "NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    KEY_REFUSED = "KEY_REFUSED"
    RESULT_GONE = "RESULT_GONE"
    ID_REUSED = "ID_REUSED"
    UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"
    REQUEST_TIMEOUT = "REQUEST_TIMEOUT"
    HEADERS_TOO_LARGE = "HEADERS_TOO_LARGE"
    KAFKA_UNAVAILABLE = "KAFKA_UNAVAILABLE"
    RESULTS_UNAVAILABLE = "RESULTS_UNAVAILABLE"
    STOPPING = "STOPPING"


TITLES: dict[str, str] = {
    ErrorCode.INVALID_REQUEST: "The request is not valid",
    ErrorCode.INVALID_INPUT: "The tensors do not fit",
    ErrorCode.MODEL_NOT_FOUND: "No such model",
    ErrorCode.VERSION_NOT_FOUND: "No such version of the model",
    ErrorCode.PAYLOAD_TOO_LARGE: "The request is too large",
    ErrorCode.OVERLOADED: "Too much is in flight",
    ErrorCode.MODEL_ERROR: "The model failed",
    ErrorCode.INTERNAL: "An error of the gateway's own",
    ErrorCode.INFERENCE_UNAVAILABLE: "No inference server answers",
    ErrorCode.CACHE_MISS: "Not in the cache",
    ErrorCode.EXPIRED: "The deadline has passed",
    HttpCode.NOT_FOUND: "Not found",
    HttpCode.METHOD_NOT_ALLOWED: "Method not allowed",
    HttpCode.KEY_REFUSED: "An API key is needed",
    HttpCode.RESULT_GONE: "The result is gone",
    HttpCode.ID_REUSED: "The id belongs to another request",
    HttpCode.UNSUPPORTED_MEDIA_TYPE: "Not a form that is read here",
    HttpCode.REQUEST_TIMEOUT: "The request did not arrive in time",
    HttpCode.HEADERS_TOO_LARGE: "The head of the request is too large",
    HttpCode.KAFKA_UNAVAILABLE: "Kafka does not answer",
    HttpCode.RESULTS_UNAVAILABLE: "Results cannot be looked up",
    HttpCode.STOPPING: "The gateway is being stopped",
}


class ProblemDetails(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(description="A URN that ends in the code.")
    title: str = Field(description="The code in words.")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="A sentence for people: what was found, and what was expected.")
    code: str = Field(description="Programs branch on it.", json_schema_extra={"enum": list(TITLES)})


class Problem(PipelineError):  # noqa: N818 - RFC 9457's word
    """An answer that is an error.

    Args:
        status: of HTTP.
        code: of `ErrorCode` or `HttpCode`.
        detail: a sentence that names what was found and what was expected.
        retry_after_s: when the same request may succeed, in seconds.
        headers: that come with it.
    """

    def __init__(
        self,
        status: int,
        code: ErrorCode | HttpCode,
        detail: str,
        *,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(retry_after_s)


def invalid_request(detail: str) -> Problem:
    """400 INVALID_REQUEST."""
    return Problem(400, ErrorCode.INVALID_REQUEST, detail)


def not_found(request_id: str) -> Problem:
    """404 of an id."""
    return Problem(404, HttpCode.NOT_FOUND, f"no request {request_id!r:.140} is known")


def problem_of(error: Exception) -> Problem:
    """Any error as what a client is told of it; a bug's own words stay inside."""
    match error:
        case Problem():
            return error
        case WireError():
            again = 1 if error.code.retryable else None
            return Problem(error.code.http_status, error.code, error.message, retry_after_s=again)
        case IdReused():
            return Problem(422, HttpCode.ID_REUSED, str(error))
        case ResultGone():
            return Problem(410, HttpCode.RESULT_GONE, str(error))
        case KafkaUnavailable():
            detail = f"{error}; the request may have been taken in: send it again under the same Idempotency-Key or id"
            return Problem(503, HttpCode.KAFKA_UNAVAILABLE, detail, retry_after_s=1)
        case ResultStoreError():
            return Problem(503, HttpCode.RESULTS_UNAVAILABLE, str(error), retry_after_s=1)
        case RequestValidationError():
            return _of_validation(error)
        case HTTPException():
            return _of_status(error)
    return Problem(500, ErrorCode.INTERNAL, "an error of the gateway's own: its log has it")


def _of_validation(error: RequestValidationError) -> Problem:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return invalid_request(f"{place}: {first['msg']}, got {first.get('input')!r:.80}")


def _of_status(error: HTTPException) -> Problem:
    codes: dict[int, ErrorCode | HttpCode] = {
        404: HttpCode.NOT_FOUND,
        405: HttpCode.METHOD_NOT_ALLOWED,
        413: ErrorCode.PAYLOAD_TOO_LARGE,
        415: HttpCode.UNSUPPORTED_MEDIA_TYPE,
    }
    code = codes.get(error.status_code, ErrorCode.INVALID_REQUEST if error.status_code < 500 else ErrorCode.INTERNAL)
    return Problem(error.status_code, code, str(error.detail), headers=error.headers)


def rendered(problem: Problem, path: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body of a problem's answer on a path."""
    # Any Unicode may be in a detail that quotes a request, lone surrogates too, which no JSON writer takes.
    detail = problem.detail.encode("utf-8", "replace").decode()
    document: dict[str, Any] = {"error": detail}
    media_type = "application/json"
    if path != "/v2" and not path.startswith("/v2/"):
        media_type = MEDIA_TYPE
        document = {
            "type": _TYPE_PREFIX + problem.code,
            "title": TITLES.get(problem.code) or HTTPStatus(problem.status).phrase,
            "status": problem.status,
            "detail": detail,
            "code": problem.code,
        }
    body = orjson.dumps(document)
    headers = {
        "content-type": media_type,
        "content-length": str(len(body)),
        # A 404 or 410 may be kept by caches on the way unless it is said that it must not.
        "cache-control": "no-store",
        **{name.lower(): value for name, value in problem.headers.items()},
    }
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()], body


def problem_response(problem: Problem, scope: Scope) -> Response:
    """A problem as the answer to a request; its code is noted for the log."""
    headers, body = rendered(problem, scope["path"])
    if (slot := scope.get(SLOT)) is not None:
        slot.code = problem.code
        slot.detail = problem.detail
    response = Response(status_code=problem.status)
    response.body = body
    response.raw_headers = headers
    return response
