"""Server-sent events of one request: what happens to it, as it happens.

    accepted   {"id", "status", "links"}
    result     the result record; of a binary one, {"id", "links"}: text cannot carry it

A streamed model's chunks come between the two once there are any: `events_of` is the one place that orders events. Each
event has an id, so that a client that reconnects (Last-Event-ID) is told what it has not heard; after `result` there is
nothing to tell, and 204 ends an EventSource's tries.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Send

from pipeline.core.stored_result import Pending, StoredResult
from pipeline.errors import ResultStoreError
from pipeline.gateway.delivery.inferences import ResultGone
from pipeline.gateway.routes.deps import GatewayDeps

logger = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
ACCEPTED, RESULT = "accepted", "result"
# A client that was cut off comes back so soon, in milliseconds.
_RETRY_MS = 1000
# A line is ended by any of the three.
_LINE_END = re.compile(rb"\r\n|\r|\n")
_HEARTBEAT = b": still pending\n\n"
# A stream that long is ended; whoever still wants to know comes back at once.
_STREAM_S_MAX = 900.0


class EventStream(StreamingResponse):
    """An answer of server-sent events; ends with its client."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        # Proxies that buffer would keep events back; nginx is told by a header of its own.
        super().__init__(
            events, headers={"cache-control": "no-store", "x-accel-buffering": "no"}, media_type=MEDIA_TYPE
        )
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Sends the events, and ends what makes them however this ends."""
        async with aclosing(self._events):
            await super().stream_response(send)


def event(name: str, data: bytes, *, event_id: str | None = None) -> bytes:
    """One event on the wire; line ends within `data` reach the client as line feeds."""
    lines = [b"event: %s" % name.encode()]
    if event_id is not None:
        lines.append(b"id: %s" % event_id.encode())
    lines += [b"data: %s" % line for line in _LINE_END.split(data)]
    return b"\n".join(lines) + b"\n\n"


async def events_of(
    deps: GatewayDeps,
    tenant: str | None,
    request_id: str,
    found: StoredResult | Pending,
    links: Mapping[str, str],
    last_event_id: str | None,
) -> AsyncGenerator[bytes, None]:
    """The events of a request from now on, until its result; ends early where the gateway stops.

    Args:
        deps: of the gateway.
        tenant: whose request it is.
        request_id: which.
        found: what is known of it.
        links: where else it is found.
        last_event_id: what the client has heard already.
    """
    yield b"retry: %d\n\n" % _RETRY_MS
    if last_event_id != ACCEPTED:
        accepted = orjson.dumps({"id": request_id, "status": "accepted", "links": dict(links)})
        yield event(ACCEPTED, accepted, event_id=ACCEPTED)
    async with aclosing(_looks(deps, tenant, request_id, found)) as looks:
        async for look in looks:
            yield _HEARTBEAT if look is None else _result_event(request_id, look, links)


async def _looks(
    deps: GatewayDeps, tenant: str | None, request_id: str, found: StoredResult | Pending | None
) -> AsyncGenerator[StoredResult | None, None]:
    """None at each heartbeat while there is no result, then the result."""
    loop = asyncio.get_running_loop()
    end_at = loop.time() + _STREAM_S_MAX
    stopping = asyncio.ensure_future(deps.limits.stopping.wait())
    try:
        while not isinstance(found, StoredResult) and not stopping.done() and loop.time() < end_at:
            wait_s = deps.settings.gateway.heartbeat_s
            waiting = asyncio.ensure_future(deps.inferences.wait(tenant, request_id, wait_s))
            try:
                await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
                found = waiting.result() if waiting.done() else found
            finally:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            if found is None:
                return  # forgotten meanwhile: the client comes back, and is told by its status
            if isinstance(found, Pending) and not stopping.done():
                yield None
    except (ResultStoreError, ResultGone) as error:
        # The head of the answer has left. The client comes back, and is told by its status.
        logger.info("events of request %s end early: %s", request_id, error)
        return
    finally:
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
    if isinstance(found, StoredResult):
        yield found


def _result_event(request_id: str, result: StoredResult, links: Mapping[str, str]) -> bytes:
    document: dict[str, Any] = {"id": request_id, "links": dict(links)}
    return event(RESULT, orjson.dumps(document) if result.json_bytes else result.value, event_id=RESULT)
