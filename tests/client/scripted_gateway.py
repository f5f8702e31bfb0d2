"""A gateway on a real socket that behaves by the contract, section 5, and misbehaves as a test says."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from pipeline.client.pending import ResultRecord
from pipeline.client.results import header
from schemas.decoded import DecodedRequest
from schemas.request import decode_request
from tests.client.scripted_topics import result_record

BINARY_HEADER = "Inference-Header-Content-Length"

# What a scripted worker says to a request; None: nothing yet.
Answering = Callable[[DecodedRequest], ResultRecord | None]
# In place of an answer, before the request is looked at, or after it was taken in: `Accept` does that.
Accept = Callable[[], Awaitable[web.StreamResponse]]
Fault = Callable[[web.Request, Accept], Awaitable[web.StreamResponse]]


def success(request: DecodedRequest) -> ResultRecord:
    """A small success."""
    assert request.id is not None
    return result_record(request.id, 0)


def never(request: DecodedRequest) -> None:
    """No answer."""


class ScriptedGateway:
    """Accepts requests, lets the script answer them, and hands the answers out. Use it as an async context manager.

    Attributes:
        posts: body and headers of each POST, in their order.
        gets: path and query of each GET of a result.
        inferences: ids that were taken in, each once.
        faults: what happens to the next exchanges instead.
        is_waited_on: set once somebody asks for a result.

    Args:
        answering: what is answered.
    """

    def __init__(self, answering: Answering = success) -> None:
        self.posts: list[tuple[bytes, dict[str, str]]] = []
        self.gets: list[str] = []
        self.inferences: list[str] = []
        self.faults: deque[Fault] = deque()
        self.is_waited_on = asyncio.Event()
        self._answering = answering
        self._bodies: dict[str, bytes] = {}
        self._answers: dict[str, ResultRecord] = {}
        self._news = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it listens, also while it is down."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens, on the port it had before."""
        app = web.Application(client_max_size=16 << 20)
        app.router.add_get("/v2/health/live", self._live)
        app.router.add_post("/v1/inferences", self._post)
        app.router.add_get("/v1/inferences/{id}", self._get)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Cuts every connection and stops listening."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def answer(self, record: ResultRecord) -> None:
        """The answer to a request comes now."""
        self._answers[(header(record.headers, "ce_id") or b"").decode()] = record
        self._news.set()

    async def _live(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.posts.append((body, dict(request.headers)))
        return await self._faulty(request, lambda: self._accept(request, body))

    async def _accept(self, request: web.Request, body: bytes) -> web.StreamResponse:
        length = request.headers.get(BINARY_HEADER)
        decoded = decode_request(body, [] if length is None else [(BINARY_HEADER, length.encode())])
        request_id = str(decoded.id)
        if self._bodies.setdefault(request_id, body) != body:
            return problem(422, "ID_REUSED")
        if request_id not in self.inferences:
            self.inferences.append(request_id)
            if (record := self._answering(decoded)) is not None:
                self._answers[request_id] = record
        prefer = request.headers.get("Prefer", "")
        wait_s = int(prefer.removeprefix("wait=")) if prefer else 0
        found = await self._wait(request_id, wait_s) if wait_s else None
        if found is not None:
            return found
        document = {"id": request_id, "status": "accepted", "links": {"self": f"/v1/inferences/{request_id}"}}
        return web.json_response(document, status=202, headers={"Location": f"/v1/inferences/{request_id}"})

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.gets.append(request.path_qs)
        self.is_waited_on.set()
        return await self._faulty(request, lambda: self._look_up(request))

    async def _look_up(self, request: web.Request) -> web.StreamResponse:
        request_id = request.match_info["id"]
        if request_id not in self._bodies:
            return problem(404, "NOT_FOUND")
        found = await self._wait(request_id, int(request.query.get("wait", "0")))
        return found or web.json_response({"id": request_id, "status": "pending"}, status=202)

    async def _wait(self, request_id: str, wait_s: int) -> web.Response | None:
        try:
            async with asyncio.timeout(wait_s):
                while request_id not in self._answers:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return None
        record = self._answers[request_id]
        length = header(record.headers, BINARY_HEADER)
        headers = {} if length is None else {BINARY_HEADER: length.decode()}
        kind = "application/json" if length is None else "application/octet-stream"
        return web.Response(body=record.value, headers=headers, content_type=kind)

    async def _faulty(self, request: web.Request, accept: Accept) -> web.StreamResponse:
        return await (self.faults.popleft()(request, accept) if self.faults else accept())


def problem(status: int, code: str, headers: dict[str, str] | None = None) -> web.Response:
    """A problem document as the gateway writes it."""
    document: dict[str, Any] = {"type": "about:blank", "title": "No", "status": status, "detail": "as the script says"}
    if code:
        document["code"] = code
    return web.json_response(document, status=status, headers=headers, content_type="application/problem+json")


def says(status: int, code: str = "", headers: dict[str, str] | None = None) -> Fault:
    """The next exchange is refused."""

    async def fault(request: web.Request, accept: Accept) -> web.StreamResponse:
        return problem(status, code, headers)

    return fault


async def is_cut(request: web.Request, accept: Accept) -> web.StreamResponse:
    """The connection is cut before the request is taken in."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def is_cut_after_acceptance(request: web.Request, accept: Accept) -> web.StreamResponse:
    """The request is taken in, and the connection cut before anybody hears of it."""
    await accept()
    return await is_cut(request, accept)


async def hangs(request: web.Request, accept: Accept) -> web.StreamResponse:
    """The connection stays open and nothing comes."""
    await asyncio.Event().wait()
    return web.Response()


def answers_with(text: str, status: int = 200) -> Fault:
    """Something else stands before the gateway and answers with a page."""

    async def fault(request: web.Request, accept: Accept) -> web.StreamResponse:
        return web.Response(text=text, status=status, content_type="text/html")

    return fault
