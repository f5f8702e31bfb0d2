"""What every request passes: a place or a refusal, an answer that is read in time, a line in the log if it failed.

With `gateway.access_log` every one has a line, too, of the logger `pipeline.gateway.access`.

head too large, or ambiguous   refused, and the connection closed
a place                        or 429, or 503 while the gateway stops; health and metrics need none
the answer                     in pieces of 64 KiB, each waited for: a client that does not read holds its place, and
                               is cut when its time is up
a body nobody read             the rest is dropped for two seconds, so that the client sees its answer; then closed
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.core.trace_context import trace_id_of
from pipeline.gateway.delivery.current_request import enter
from pipeline.gateway.http.connections import HEAD_BYTES_MAX
from pipeline.gateway.http.exchange_headers import traceparent_of
from pipeline.gateway.http.identity import Identity
from pipeline.gateway.http.limits import Limits, Slot
from pipeline.gateway.http.metrics import GatewayMetrics, RequestKind
from pipeline.gateway.http.problem import SLOT, HttpCode, Problem, problem_response
from schemas.errors import ErrorCode

logger = logging.getLogger(__name__)
_access = logging.getLogger("pipeline.gateway.access")

HEADERS_MAX = 100
# A piece of an answer; transports ask for a pause above the same size.
PIECE_BYTES = 64 * 1024
_LINGER_S = 2.0
# Whoever is told to go away a thousand times a second must not fill a disk.
_LINES_PER_S = 20
# Asked for most when there is no room; none of them waits.
_ALWAYS_ANSWERED = frozenset(
    {"/health/live", "/health/ready", "/metrics", "/status", "/v2/health/live", "/v2/health/ready"}
)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Gate:
    """ASGI middleware around the whole gateway.

    Args:
        app: what answers.
        limits: where places come from.
        metrics: where requests are counted.
        identify: whose a request is, for the log.
        answer_s: the time a client has to read an answer, or one event of a stream.
        access_log: whether every request has its line.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: GatewayMetrics,
        identify: Callable[[Request], Identity],
        answer_s: float,
        *,
        access_log: bool = False,
    ) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._identify = identify
        self._answer_s = answer_s
        self._access_log = access_log
        self._lines = _LineBudget(_LINES_PER_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits, self._answer_s)
        started = monotonic()
        slot: Slot | None = None
        # On a connection that is kept this task may come of the one before, with its place.
        enter(None)
        try:
            _check_head(scope)
            _drop_authority(scope)
            if scope["path"] not in _ALWAYS_ANSWERED:
                slot = scope[SLOT] = self._limits.admit(brings_work=scope["method"] == "POST")
                slot.trace_id = _trace_id(scope)
                enter(slot)
            await self._app(scope, exchange.receive, exchange.send)
        except Problem as problem:
            # Only these raise one: what comes from within is an answer already.
            await exchange.take_small_body()
            await problem_response(problem, scope)(scope, receive, exchange.send)
            exchange.problem = problem
        except Exception:
            exchange.status = 500  # a bug: the app around this one answers, and the server logs it
            raise
        finally:
            if slot is not None:
                self._limits.leave(slot)
            self._note(scope, exchange, slot, monotonic() - started)
        await exchange.end()

    def _note(self, scope: Scope, exchange: "_Exchange", slot: Slot | None, took_s: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests[RequestKind(route, method, exchange.status)] += 1
        self._metrics.seconds.labels(route).observe(took_s)
        self._metrics.clients_cut += exchange.is_cut
        # A gateway that is not ready says so to its prober each second; that is no request that failed.
        is_failure = exchange.status >= 400 and scope["path"] not in _ALWAYS_ANSWERED
        is_told = is_failure and self._lines.may_write(exchange.status, monotonic())
        if not (is_told or self._access_log):
            return
        path_params: dict[str, Any] = scope.get("path_params") or {}
        source_ip = self._identify(Request(scope)).source_ip
        fields = {
            "method": method,
            "route": route,
            "status": exchange.status,
            "duration_ms": round(took_s * 1e3, 1),
            "source_ip": source_ip,
            "model": None if slot is None else slot.model_name or path_params.get("model_name"),
        }
        if self._access_log:
            words = "%s %s %s %d %.1f ms"
            _access.info(words, source_ip, method, route, exchange.status, took_s * 1e3, extra=fields)
        if is_told:
            self._tell_failure(scope, exchange, slot, fields)

    def _tell_failure(self, scope: Scope, exchange: "_Exchange", slot: Slot | None, fields: Mapping[str, Any]) -> None:
        code, detail = (slot.code, slot.detail) if slot is not None else (None, None)
        if exchange.problem is not None:
            code, detail = exchange.problem.code, exchange.problem.detail
        line = {
            "method": fields["method"],
            "path": scope.get("raw_path", b"").decode("latin-1")[:200],
            "status": exchange.status,
            "code": code,
            "id": slot.request_id if slot is not None else None,
            "source_ip": fields["source_ip"],
            "ms": fields["duration_ms"],
            "detail": (detail or "").encode("utf-8", "replace").decode()[:300],
            "left_out": self._lines.take_left_out(),
        }
        told = orjson.dumps({name: value for name, value in line.items() if value not in (None, "", 0)}).decode()
        level = logging.WARNING if exchange.status >= 500 else logging.INFO
        logger.log(level, "request failed %s", told, extra={**fields, "code": code, "path": line["path"]})


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits, answer_s: float) -> None:
        self.status = 499  # the client went before it was answered
        self.is_cut = False
        self.problem: Problem | None = None
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limits = limits
        self._answer_s = answer_s
        self._deadline: float | None = None
        self._body_is_read = not _has_body(scope)
        self._lingers = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_is_read = True
        return message

    async def send(self, message: Message) -> None:
        if self.is_cut:
            return
        deadline = self._deadline or monotonic() + self._answer_s
        if message["type"] == "http.response.start":
            self._start(message)
            await self._in_time(message, deadline)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        for start in range(0, len(body) - PIECE_BYTES, PIECE_BYTES):
            await self._in_time(_part(body[start : start + PIECE_BYTES], more=True), deadline)
        last = body[(len(body) - 1) // PIECE_BYTES * PIECE_BYTES :] if body else b""
        if not more and not self._body_is_read:
            self._lingers = more = True
        await self._in_time(_part(last, more=more), deadline)

    async def take_small_body(self) -> None:
        """Drops a small body before its request is refused, so that the connection goes on.

        A client that must connect anew costs as much as the answer, just when this process has no time.
        """
        if not self._body_is_read and _has_small_body(self._scope):
            await self._drop_body()

    async def end(self) -> None:
        """Drops what is left of the body for a while, then ends an answer that was sent before the body had come."""
        if not self._lingers or self.is_cut:
            return
        await self._drop_body()
        await self._in_time(_part(b"", more=False), monotonic() + self._answer_s)

    async def _drop_body(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_S):
                while not self._body_is_read:
                    await self.receive()
        except TimeoutError:
            logger.debug("the rest of a body that nobody reads did not come within %g s", _LINGER_S)

    def _start(self, message: Message) -> None:
        self.status = message["status"]
        headers = [*message["headers"], (b"x-content-type-options", b"nosniff")]
        if (slot := self._scope.get(SLOT)) is not None:
            headers += slot.headers
        if not self._body_is_read or self._limits.stopping.is_set():
            headers.append((b"connection", b"close"))
        message["headers"] = headers
        if any(name == b"content-length" for name, _ in headers):
            self._deadline = monotonic() + self._answer_s

    async def _in_time(self, message: Message, deadline: float) -> None:
        if self.is_cut:
            return
        try:
            async with asyncio.timeout(max(deadline - monotonic(), 0)):
                await self._send(message)
        except TimeoutError:
            await self._cut()

    async def _cut(self) -> None:
        """Ends the connection of a client that does not read; what is sent from now on goes nowhere."""
        self.is_cut = True
        abort: Callable[[], None] | None = self._scope.get("state", {}).get("abort")
        if abort is None:
            return
        abort()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _LineBudget:
    """So many lines a second; the others are counted. Errors of ours always have their line."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._second = 0
        self._written = 0
        self._left_out = 0

    def may_write(self, status: int, now: float) -> bool:
        if int(now) != self._second:
            self._second, self._written = int(now), 0
        self._written += 1
        if status < 500 and self._written > self._per_s:
            self._left_out += 1
            return False
        return True

    def take_left_out(self) -> int:
        left_out, self._left_out = self._left_out, 0
        return left_out


def _part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
        for name, value in scope["headers"]
    )


def _has_small_body(scope: Scope) -> bool:
    """Whether a body comes that is a piece at most; whoever asks first whether it is wanted (`Expect`) is told no."""
    names = dict(scope["headers"])
    length = names.get(b"content-length", b"")
    return b"expect" not in names and length.isdigit() and len(length) < 7 and int(length) <= PIECE_BYTES


def _trace_id(scope: Scope) -> str | None:
    """Of the trace that the request belongs to, where it says so."""
    if not any(name == b"traceparent" for name, _ in scope["headers"]):
        return None
    given = traceparent_of(Headers(scope=scope))
    return None if given is None else trace_id_of(given)


def _drop_authority(scope: Scope) -> None:
    """`GET http://host/path`, which RFC 9112 section 3.2.2 has every server accept, asks for the path."""
    for scheme in ("http://", "https://"):
        if scope["path"].startswith(scheme):
            scope["path"] = "/" + scope["path"].removeprefix(scheme).partition("/")[2]


def _check_head(scope: Scope) -> None:
    """Refuses heads that h11 takes: it bounds incomplete ones alone, and two lengths of a body are one too many.

    Raises:
        Problem: 400, 431 or 505.
    """
    closing = {"connection": "close"}
    if scope["http_version"] not in {"1.0", "1.1"}:
        raise Problem(
            505, ErrorCode.INVALID_REQUEST, f"HTTP/{scope['http_version']}: 1.1 was expected, or 1.0", headers=closing
        )
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    size += sum(len(name) + len(value) for name, value in headers)
    if len(headers) > HEADERS_MAX or size > HEAD_BYTES_MAX:
        raise Problem(
            431,
            HttpCode.HEADERS_TOO_LARGE,
            f"the head has {len(headers)} headers and {size} bytes: {HEADERS_MAX} and {HEAD_BYTES_MAX} at most",
            headers=closing,
        )
    names = {name for name, _ in headers}
    if b"transfer-encoding" in names and b"content-length" in names:
        raise Problem(
            400,
            ErrorCode.INVALID_REQUEST,
            "the request has both Transfer-Encoding and Content-Length (RFC 9112 section 6.1)",
            headers=closing,
        )


def answer_counts(metrics: GatewayMetrics) -> dict[str, Any]:
    """Answers by status, for people."""
    counts: dict[str, int] = {}
    for kind, count in metrics.requests.items():
        counts[str(kind.status)] = counts.get(str(kind.status), 0) + count
    return dict(sorted(counts.items()))
