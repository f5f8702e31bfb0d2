"""The span of a request at this gateway: from when it has its place to its answer's last byte.

Inside of it the request's `traceparent` names this span, so that whatever is made of the request, its record above all,
is the span's child. Probes and `/metrics` need no place, and have no span; nor has what is refused at the gate.
"""

from time import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.core.trace_context import Span, is_traceparent, trace_id_of
from pipeline.gateway.http.limits import Slot
from pipeline.gateway.http.problem import SLOT
from pipeline.ports import Tracer

_HEADER = b"traceparent"
_CLIENT_GONE = 499  # as the gate counts it


class ServerSpans:
    """ASGI middleware, within the gate.

    Args:
        app: what answers.
        tracer: makes the spans.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        slot: Slot | None = scope.get(SLOT)
        if slot is None:
            await self._app(scope, receive, send)
            return
        status = _CLIENT_GONE

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        span = self._begin(scope)
        slot.trace_id = trace_id_of(span.traceparent)
        error = ""
        try:
            await self._app(scope, receive, note)
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            _end(span, scope, slot, status, error)

    def _begin(self, scope: Scope) -> Span:
        given = [text for name, text in scope["headers"] if name == _HEADER]
        # Two are none: W3C Trace Context has one, and nobody could say which of them is meant.
        parent = given[0] if len(given) == 1 and is_traceparent(given[0]) else None
        attributes: dict[str, str | int] = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "url.scheme": scope.get("scheme", "http"),
            "network.protocol.version": scope["http_version"],
        }
        if (server := scope.get("server")) is not None:
            attributes["server.address"], attributes["server.port"] = server[0], server[1] or 0
        if (client := scope.get("client")) is not None:
            attributes["client.address"] = client[0]
        span = self._tracer.begin(scope["method"], "server", time(), attributes, parent=parent)
        scope["headers"] = [header for header in scope["headers"] if header[0] != _HEADER]
        scope["headers"].append((_HEADER, span.traceparent))
        return span


def _end(span: Span, scope: Scope, slot: Slot, status: int, error: str) -> None:
    attributes: dict[str, str | int] = {"http.response.status_code": status}
    if (route := getattr(scope.get("route"), "path", None)) is not None:
        span.rename(f"{scope['method']} {route}")
        attributes["http.route"] = route
    if slot.request_id is not None:
        attributes["inference.request_id"] = slot.request_id
    if slot.code is not None:
        attributes["inference.error_code"] = slot.code
    if not error and status >= 500:
        error = str(status)
    span.end(time(), attributes, error=error, message=slot.detail or "" if error else "")
