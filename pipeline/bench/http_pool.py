"""HTTP/1.1 of a load generator: a client library takes half a millisecond a request of the cores that are measured."""

import asyncio
import re
from collections.abc import Iterator
from typing import NamedTuple, cast
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)

# No benchmark is about answers that come later.
_TIMEOUT_S = 30.0


class HttpAnswer(NamedTuple):
    """One answer.

    Attributes:
        head: its status line and headers, as they came.
    """

    status: int
    head: bytes
    body: bytes


class HttpPool:
    """Connections to one address, kept while the server keeps them; each carries one request at a time; `with`.

    Args:
        url: where every body goes, by POST, as JSON.

    Attributes:
        url: the same.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: "
        ).encode()
        self._idle: list[_Connection] = []

    def __enter__(self) -> "HttpPool":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._idle:
            connection.close()

    async def post(self, body: bytes) -> HttpAnswer:
        """Sends a body and returns the answer.

        Raises:
            OSError: the connection broke.
            TimeoutError: no answer came in time.
        """
        async with asyncio.timeout(_TIMEOUT_S):
            connection = next(self._usable(), None) or await self._connected()
            try:
                answer = await connection.ask(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
            except BaseException:
                connection.close()
                raise
        if _CLOSES.search(answer.head):
            connection.close()
        else:
            self._idle.append(connection)
        return answer

    def _usable(self) -> "Iterator[_Connection]":
        while self._idle:
            if not (connection := self._idle.pop()).is_closed:
                yield connection

    async def _connected(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        return connection


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.is_closed = False
        self._received = b""
        self._answered: asyncio.Future[HttpAnswer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its type

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n") + 4
        if end < 4 or self._answered is None or self._answered.done():
            return
        head = self._received[: end - 2]
        length = _LENGTH.search(head)
        if length is None:
            self._answered.set_exception(ConnectionError(f"no answer of ours: {head[:200]!r}"))
        elif len(self._received) >= end + int(length[1]):
            body, self._received = self._received[end : end + int(length[1])], b""
            self._answered.set_result(HttpAnswer(int(head[9:12]), head, body))

    async def ask(self, request: bytes) -> HttpAnswer:
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        self.is_closed = True
        self._transport.close()
