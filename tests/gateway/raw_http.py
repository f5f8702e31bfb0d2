"""A gateway that serves, and connections to it in raw bytes, for tests."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.gateway.app import create_app
from pipeline.gateway.http.connections import ConnectionLimits
from pipeline.gateway.http.limits import Limits
from pipeline.gateway.main import bound_socket, serve
from pipeline.gateway.protocol.models import Fleet
from tests.gateway.fake_inferences import FakeInferences
from tests.gateway.front import settings_of
from tests.gateway.protocol_gateway import announced, model_record

PLACE = b"/v1/inferences"


class Answer:
    """One answer as it came over the line."""

    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.body = body

    @property
    def code(self) -> str:
        """The code of a problem."""
        assert self.headers["content-type"] == "application/problem+json", self.body
        return str(json.loads(self.body)["code"])


class Line:
    """A connection to a gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *parts: bytes) -> None:
        """Bytes, as they are."""
        self.writer.write(b"".join(parts))

    async def answer(self, *, head_only: bool = False) -> Answer:
        """The next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n"))[:-4]
        answer = Answer(head, b"")
        if not head_only:
            answer.body = await self.reader.readexactly(int(answer.headers.get("content-length", 0)))
        return answer

    async def is_closed(self) -> bool:
        """Waits for the other side to close; whether nothing came before."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@dataclass(frozen=True)
class Served:
    """A gateway that serves."""

    port: int
    inferences: FakeInferences
    limits: Limits
    connections: ConnectionLimits
    stop: asyncio.Event
    serving: "asyncio.Task[int]"

    @asynccontextmanager
    async def line(self, **options: Any) -> AsyncIterator[Line]:
        """A connection, closed at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        try:
            yield Line(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(self, *parts: bytes) -> Answer:
        """One answer to these bytes, on a connection of its own."""
        async with self.line() as line:
            line.send(*parts)
            return await line.answer()


@asynccontextmanager
async def served(
    *,
    head_s: float = 10.0,
    connections_max: int = 100,
    send_buffer: int | None = None,
    echoes: bool = False,
    **gateway: Any,
) -> AsyncIterator[Served]:
    """A gateway on a free port of the loopback."""
    settings = settings_of(**{"port": 0, **gateway})
    inferences, limits = FakeInferences(echoes=echoes), Limits(settings.gateway)
    connections = ConnectionLimits(connections_max, settings.gateway.body_timeout_s, head_s)
    fleet = Fleet(announced(model_record()))
    app = create_app(inferences, settings, limits=limits, connections=connections, fleet=fleet)
    listener = bound_socket(settings.gateway)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # connections inherit it
    port = listener.getsockname()[1]
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(app, listener, stop, limits, connections, settings.gateway))
    try:
        yield Served(port, inferences, limits, connections, stop, serving)
    finally:
        stop.set()
        assert await serving == 0


def post(body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    """A POST of /v1/inferences."""
    given = b"content-length: %d" % (len(body) if length is None else length)
    return b"\r\n".join([b"POST " + PLACE + b" HTTP/1.1", b"host: gw", given, *headers, b"", body])


def get(path: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    """A request without a body."""
    return b"\r\n".join([method + b" " + path + b" HTTP/1.1", b"host: gw", *headers, b"", b""])
