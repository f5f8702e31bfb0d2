"""One connection of HTTP/1.1: uvicorn's own on h11, and what it leaves out.

    h11, not httptools    bounds the head of a request (uvicorn asks h11 to; httptools has no limit)
    head in time          a client that opens a connection and dawdles is cut; uvicorn waits for ever
    answer read in time   likewise one that does not read what is in the buffer
    so many connections   more are closed at once, and the process never runs out of file descriptors
    errors are problems   400, 431, 501 of what is no HTTP have a body like every other error

It leans on private parts of uvicorn: `tests/gateway/test_http_live.py` sees when they change.
"""

import asyncio
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from pipeline.gateway.http.problem import HttpCode, Problem, invalid_request, rendered

# Tokens and tracing fit many times; uvicorn's default is the same.
HEAD_BYTES_MAX = 64 * 1024
# A whole request of ours, in one piece: what is turned away for want of time must cost none.
_WORK = re.compile(rb"POST (/v[12])/[^ \r\n]* HTTP/1\.1\r\n", re.ASCII)
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,6})(?=\r\n)")
_NOT_PLAIN = (b"transfer-encoding", b"\r\nexpect", b"\r\nconnection: close")
# A head is a packet or two. Ten seconds are for phones in tunnels.
HEAD_TIMEOUT_S = 10.0


@dataclass(slots=True)
class ConnectionLimits:
    """What all connections of a gateway share.

    Attributes:
        connections_max: open at a time.
        answer_s: for as long a buffer may stay full that a client does not read.
        head_s: from the first byte of a head, or the connection's start, to its last.
        on_cut: called for each that was cut for dawdling.
        refusal: why work is turned away at present; None: it is not.
        open: how many there are.
    """

    connections_max: int
    answer_s: float
    head_s: float = HEAD_TIMEOUT_S
    on_cut: Callable[[], None] = lambda: None
    refusal: Callable[[], Problem | None] = lambda: None
    open: int = field(default=0, init=False)


class GatewayConnection(H11Protocol):
    """A connection; `abort` of each request's `state` ends it at once."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config, server_state, {**app_state, "abort": self._cut}, _loop)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come: its first head is awaited."""
        super().connection_made(transport)
        self._limits.open += 1
        if self._limits.open > self._limits.connections_max:
            transport.abort()
            return
        self._head_timer = self.loop.call_later(self._limits.head_s, self._cut)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._limits.open -= 1
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come; those of a head that is not complete have a time limit from the first one on."""
        if self._turns_away(data):
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self._limits.head_s, self._cut)

    def _turns_away(self, data: bytes) -> bool:
        """Answers a whole request that brings work by 429, unread, while this process is behind; whether it did.

        h11, a task and the way through the app take 1 ms: with so much for each, a gateway that is asked for twice what
        it can do would do nothing else. What is no whole request of the plainest form is refused behind h11.
        """
        if self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0] or not data.startswith(b"POST /v"):
            return False
        path = _path_of_whole(data)
        if path is None or (problem := self._limits.refusal()) is None:
            return False
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        headers, body = rendered(problem, path)
        lines = [b"HTTP/1.1 429 Too Many Requests", *(b"%b: %b" % header for header in headers), b"", body]
        self.transport.write(b"\r\n".join(lines))
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        return True

    def pause_writing(self) -> None:
        """The buffer is full."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.answer_s, self._cut)

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        self._stop_write_timer()

    def on_response_complete(self) -> None:
        """An answer is written; where the connection is to be closed, what is in its buffer is not waited for long."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._limit_close()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more was asked."""
        super().timeout_keep_alive_handler()
        self._limit_close()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, or too much of it."""
        # uvicorn calls this while it handles h11's error, and hands its own sentence on.
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        problem = invalid_request(f"{msg.rstrip('.')}: {error}")
        if status == 431:
            problem = Problem(431, HttpCode.HEADERS_TOO_LARGE, f"the head has over {HEAD_BYTES_MAX} bytes")
        elif status != 400:
            problem = Problem(status, problem.code, problem.detail)
        self._write_problem(problem)

    def _write_problem(self, problem: Problem) -> None:
        headers, body = rendered(problem, "/")
        reason = STATUS_PHRASES.get(problem.status, b"")
        events = (
            h11.Response(status_code=problem.status, headers=[*headers, (b"connection", b"close")], reason=reason),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        try:
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        except h11.LocalProtocolError:
            # An answer to an earlier request is on the line: there is no place for another one.
            self.transport.abort()
            return
        self.transport.close()
        self._limit_close()

    def _should_upgrade(self) -> bool:
        # No other protocol is spoken here; RFC 9110 lets a server ignore the offer.
        return False

    def _cut(self) -> None:
        self._stop_timers()
        if not self.transport.is_closing():
            self._limits.on_cut()
        self.transport.abort()

    def _limit_close(self) -> None:
        self._stop_write_timer()
        self._write_timer = self.loop.call_later(self._limits.answer_s, self.transport.abort)

    def _stop_timers(self) -> None:
        self._stop_head_timer()
        self._stop_write_timer()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _path_of_whole(data: bytes) -> str | None:
    """Where a request goes whose head and body are these bytes and no others; None where that is not certain."""
    end = data.find(b"\r\n\r\n")
    work = _WORK.match(data)
    if work is None or end < 0:
        return None
    head = data[: end + 2].lower()
    lengths = _LENGTH.findall(head)
    is_plain = head.count(b"content-length") == len(lengths) == 1 and not any(name in head for name in _NOT_PLAIN)
    if not is_plain or end + 4 + int(lengths[0]) != len(data):
        return None
    return work[1].decode() + "/"


def connection_class(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """The class of connections with these limits, as uvicorn takes it."""

    class _Connection(GatewayConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, limits=limits, **kwargs)

    return cast("type[asyncio.Protocol]", _Connection)
