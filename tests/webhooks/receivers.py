"""Receivers of callbacks on 127.0.0.1: one that notes what it gets, and ones that answer as no server should."""

import asyncio
import ssl
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

# A certificate for receiver.example that nobody else believes, until 2126, and its key: for these tests alone.
_PEM = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgRzCvkjjdDfWbzpEi
X1ztLB0AJzJzORDc3w8mu7zIbo6hRANCAARuWylE7fKwp2IWNQ5694MUYJmi+vLC
HZFX4V4OxR6Wqg9Ih1njuQBLKS1s+UdaYcOxvJd0oKMZGVg2kw6S4YzJ
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBqzCCAVCgAwIBAgIUR1mffiTJ4krGQCTVCEb4lm7sC7kwCgYIKoZIzj0EAwIw
GzEZMBcGA1UEAwwQcmVjZWl2ZXIuZXhhbXBsZTAgFw0yNjExMjcyMDQwMzVaGA8y
MTI2MTEwMzIwNDAzNVowGzEZMBcGA1UEAwwQcmVjZWl2ZXIuZXhhbXBsZTBZMBMG
ByqGSM49AgEGCCqGSM49AwEHA0IABG5bKUTt8rCnYhY1Dnr3gxRgmaL68sIdkVfh
Xg7FHpaqD0iHWeO5AEspLWz5R1phw7G8l3SgoxkZWDaTDpLhjMmjcDBuMB0GA1Ud
DgQWBBQA6a1L5Yh/pWcNsCDnc+APXkFC3zAfBgNVHSMEGDAWgBQA6a1L5Yh/pWcN
sCDnc+APXkFC3zAPBgNVHRMBAf8EBTADAQH/MBsGA1UdEQQUMBKCEHJlY2VpdmVy
LmV4YW1wbGUwCgYIKoZIzj0EAwIDSQAwRgIhAK0kG3tOqkZRvaD7UGHv0GPeKE9D
DYNj6olC16NgTUhAAiEAtcWAqh46BghTlrGLCdls8Xmcb0Y5zlJqsMkR9ywUF90=
-----END CERTIFICATE-----
"""


@dataclass(frozen=True)
class Received:
    """One call."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def webhook_id(self) -> str:
        """Which callback it was."""
        return self.headers["webhook-id"]


# What a receiver answers to a call: a status, with the headers that go with it.
Answer = tuple[int, dict[str, str]]
ACCEPTED: Answer = (204, {})


@dataclass
class Receiver:
    """An HTTP server that notes every call. Use it as an async context manager.

    Attributes:
        answers: what is answered to the first calls of each path; to later ones the last of them.
        held: paths whose first call gets no answer as long as this is open.
        received: every call, in the order of their coming.
    """

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    tls: bool = False
    held: frozenset[str] = frozenset()
    received: list[Received] = field(default_factory=list)
    port: int = 0
    _calls: Counter[str] = field(default_factory=Counter)
    _came: asyncio.Condition = field(default_factory=asyncio.Condition)
    _closing: asyncio.Event = field(default_factory=asyncio.Event)
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._receive)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=server_tls() if self.tls else None)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        self._closing.set()
        await self._runner.cleanup()

    def url(self, path: str = "/ok") -> str:
        """The address of a path here."""
        return f"http://127.0.0.1:{self.port}{path}"

    def ids(self, path: str | None = None) -> list[str]:
        """The callbacks that came, in their order, repeated ones too."""
        return [call.webhook_id for call in self.received if path in (None, call.path)]

    async def until(self, enough: Callable[[list[Received]], bool], timeout_s: float = 20.0) -> list[Received]:
        """All calls, once they are enough.

        Raises:
            AssertionError: they were not in time.
        """
        try:
            async with asyncio.timeout(timeout_s), self._came:
                await self._came.wait_for(lambda: enough(self.received))
        except TimeoutError:
            calls = Counter(call.path for call in self.received)
            raise AssertionError(f"not within {timeout_s:g} s, calls by path: {calls}") from None
        return self.received

    async def until_all(self, wanted: Iterable[str], timeout_s: float = 20.0) -> None:
        """Returns when every one of these callbacks has come."""
        names = set(wanted)
        await self.until(lambda calls: names <= {call.webhook_id for call in calls}, timeout_s)

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        async with self._came:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.received.append(Received(request.path_qs, headers, body))
            self._came.notify_all()
        answers = self.answers.get(request.path, [ACCEPTED])
        status, headers = answers[min(self._calls[request.path], len(answers) - 1)]
        self._calls[request.path] += 1
        if request.path in self.held and self._calls[request.path] == 1:
            await self._closing.wait()
        return web.Response(status=status, headers=headers)


Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawReceiver:
    """A server that says what it is told to, byte for byte. Use it as an async context manager.

    Args:
        speak: what is done with each connection, after the head of the request has come.
    """

    def __init__(self, speak: Speak) -> None:
        self._speak = speak
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.port = 0
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open)
        await self._server.wait_closed()

    def url(self, path: str = "/") -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}{path}"

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            await reader.readuntil(b"\r\n\r\n")
            await self._speak(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the caller has gone: that is what the test is about
        finally:
            writer.transport.abort()


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says nothing until the caller goes."""
    await reader.read()


async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ends in the middle of its head."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    await writer.drain()


async def talk_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speaks another protocol."""
    writer.write(b"220 mail.example ESMTP\r\n")
    await writer.drain()


async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A head that never ends, a byte at a time."""
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not reader.at_eof():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def answer_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A head at once, a body that never ends."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not reader.at_eof():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


def flood(status: bytes, headers: bytes = b"", piece: bytes = b"x" * 65536) -> Speak:
    """A body without an end, as fast as it is taken."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 " + status + b"\r\n" + headers + b"\r\n")
        while not reader.at_eof():
            writer.write(piece)
            await writer.drain()

    return speak


def server_tls() -> ssl.SSLContext:
    """The certificate of receiver.example."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "receiver.pem"
        path.write_text(_PEM)
        context.load_cert_chain(path)
    return context


def client_tls() -> ssl.SSLContext:
    """Believes that certificate, and no other."""
    return ssl.create_default_context(cadata=_PEM[_PEM.index("-----BEGIN CERTIFICATE") :])
