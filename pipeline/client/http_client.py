"""`HttpClient`: the same interface over the gateway's routes, for where Kafka cannot be reached.

async with HttpClient("http://127.0.0.1:8080") as client:
    result = await client.infer("digits", {"image": pixels})

A class of its own beside `Client`, as each of them connects by other words (`redis.Redis` beside `redis.Sentinel`; one
constructor with the words of both would take nonsense), and a type checker knows that only Kafka has `results`.
"""

import asyncio
import json
import math
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from pipeline.adapters.tracing import OtelTracer, client_tracer
from pipeline.client.errors import GatewayRefused, GatewayUnavailable, ResultNotReceived
from pipeline.client.gateway_routes import GatewayRoutes, Reply, error_of
from pipeline.client.interface import InferenceClient
from pipeline.client.pending import ResultRecord
from pipeline.client.records import RequestRecord, traceparent_in
from pipeline.client.results import header
from pipeline.client.retrying import Backoff, asked_for_s
from pipeline.client.submitted import Submitted
from pipeline.core.trace_context import Span
from pipeline.errors import PipelineError, SettingsError
from pipeline.ports import Tracer

_ROUTE = "/v1/inferences"
_BINARY_HEADER = "Inference-Header-Content-Length"
# A proxy before a gateway usually gives up after 60 s, a gateway cuts longer waits to 55 s.
_WAIT_MAX_S = 50
# From the end of a wait to its answer: a second is what a busy host takes.
_ANSWER_MARGIN_S = 1.0
# "Pending" sooner than this comes of a gateway that stops or has no room for waiters: it is not asked again at once.
_EARLY_S = 0.5


class SubmittedToGateway(Submitted):
    """A request that a gateway accepted: Kafka has it.

    Attributes:
        location: where its answer is found, a path on the gateway; any HTTP client may ask there.
    """

    def __init__(self, request_id: str, location: str, client: "HttpClient", timeout_s: float) -> None:
        super().__init__(request_id)
        self.location = location
        self._client = client
        self._timeout_s = timeout_s
        self._record: ResultRecord | None = None

    @property
    def receipt(self) -> dict[str, Any]:
        """Id and location."""
        return {"id": self.id, "location": self.location}

    async def record(self, timeout_s: float | None = None) -> ResultRecord:
        """The record's bytes; partition and offset are -1: HTTP does not tell them.

        Raises:
            ResultNotReceived: no answer in time.
            ResultGone: it was answered, and the answer is no longer kept.
            GatewayUnavailable: the gateway was away to the end.
        """
        if self._record is None:
            limit_s = self._timeout_s if timeout_s is None else timeout_s
            self._record = await self._client.wait_for_record(self.id, self.location, limit_s)
        return self._record


class HttpClient(InferenceClient[SubmittedToGateway]):
    """Asks for inferences over HTTP. Use it as an async context manager, in one event loop.

    A gateway that is busy, stops, or cuts a connection is asked again, with growing pauses (`Retry-After` respected)
    and under the same id, until the limits below.

    Args:
        url: of the gateway, http:// or https://; what stands behind the host is put before the routes.
        api_key: sent as `Authorization: Bearer …`.
        answer_timeout_s: how long to wait for an answer where the request has no limit of its own.
        delivery_timeout_s: how long the gateway may take to accept a connection or a request.
        attempt_timeout_s: how long a single attempt may take, beside the waiting that was asked for: 8 MiB at 5 Mbit/s.
        connections_max: open to the gateway at once; what is asked beyond them waits for one.

    Raises:
        SettingsError: `url` or `api_key` cannot be one.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        answer_timeout_s: float = 60.0,
        delivery_timeout_s: float = 20.0,
        attempt_timeout_s: float = 15.0,
        connections_max: int = 256,
    ) -> None:
        super().__init__(answer_timeout_s)
        self._url = _checked_url(url)
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {_checked_key(api_key)}"}
        self._delivery_timeout_s = delivery_timeout_s
        self._attempt_timeout_s = attempt_timeout_s
        self._connections_max = connections_max
        self._session: aiohttp.ClientSession | None = None
        self._routes: GatewayRoutes | None = None
        self._tracer: OtelTracer | None = None

    async def connect(self) -> None:
        """Connects; a gateway that is not there is told at once, and not after all the retries of a first request.

        Raises:
            GatewayUnavailable: it does not answer.
            SettingsError: the environment asks for spans, and they cannot be had.
        """
        self._tracer = client_tracer()
        self._session = aiohttp.ClientSession(
            # Limits of time are ours: one deadline over all attempts. Answers may be large, header lines are not.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._attempt_timeout_s),
            connector=aiohttp.TCPConnector(limit=self._connections_max),
            headers=self._headers,
        )
        self._routes = GatewayRoutes(self._session, self._url, self._random, self._attempt_timeout_s)
        try:
            async with asyncio.timeout(self._delivery_timeout_s):
                await self._routes.attempt("GET", f"{self._url}/v2/health/live")
        except TimeoutError:
            await self.close()
            raise GatewayUnavailable(f"{self._url} gave no answer within {self._delivery_timeout_s:g} s") from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnects; whoever still waits is told so. Idempotent."""
        session, self._session, self._routes = self._session, None, None
        tracer, self._tracer = self._tracer, None
        if session is not None:
            await session.close()
        if tracer is not None:
            await tracer.close()

    async def submit_record(self, record: RequestRecord, timeout_s: float | None = None) -> SubmittedToGateway:
        """Sends a record; returns once the gateway says that Kafka has it."""
        limit_s = self._answer_timeout_s if timeout_s is None else timeout_s
        ends_at = asyncio.get_running_loop().time() + min(self._delivery_timeout_s, limit_s)
        reply = await self._post(record, ends_at, wait_s=0)
        if reply.status != 202:
            raise error_of(record.id, reply)
        return self._submitted(record.id, reply, limit_s)

    async def ask_record(self, record: RequestRecord, timeout_s: float | None = None) -> ResultRecord:
        """Sends a record and waits for its answer: one exchange, if it comes while the gateway waits."""
        loop = asyncio.get_running_loop()
        limit_s = self._answer_timeout_s if timeout_s is None else timeout_s
        ends_at = loop.time() + limit_s
        reply = await self._post(record, ends_at, wait_s=_whole_seconds(limit_s))
        if reply.status == 200:
            return _record_of(reply)
        if reply.status != 202:
            raise error_of(record.id, reply)
        location = self._submitted(record.id, reply, limit_s).location
        try:
            return await self.wait_for_record(record.id, location, ends_at - loop.time())
        except ResultNotReceived:
            raise ResultNotReceived(record.id, limit_s) from None

    async def wait_for_record(self, request_id: str, location: str, timeout_s: float) -> ResultRecord:
        """The answer to a request that was accepted, asked for until it is there.

        An id that the gateway does not know (any more) is waited for as well: its store may have been restarted empty,
        and the answer is still to come.

        Raises:
            ResultNotReceived: no answer in time.
            ResultGone: it was answered, and the answer is no longer kept.
            GatewayUnavailable: the gateway was away to the end.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout_s
        backoff = Backoff(self._random)
        while (left_s := ends_at - loop.time()) > 0:
            asked_at, wait_s = loop.time(), _whole_seconds(left_s)
            reply = await self._exchange(
                "GET", f"{location}?wait={wait_s}", request_id=request_id, ends_at=ends_at, wait_s=wait_s
            )
            if reply.status == 200:
                return _record_of(reply)
            if reply.status not in {202, 404}:
                raise error_of(request_id, reply)
            if (now := loop.time()) - asked_at < _EARLY_S:
                pause_asked_for_s = asked_for_s(reply.headers.get("Retry-After"), time.time())
                # Near the end a last look is worth more than the pause that was asked for.
                pause_s = backoff.next_s(pause_asked_for_s if pause_asked_for_s < (ends_at - now) / 2 else 0.0)
                await asyncio.sleep(min(pause_s, max(0.0, ends_at - now)))
            else:
                backoff.reset()
        raise ResultNotReceived(request_id, timeout_s)

    async def _post(self, record: RequestRecord, ends_at: float, *, wait_s: int) -> Reply:
        headers = {"Content-Type": (header(record.headers, "content-type") or b"application/json").decode()}
        if (length := header(record.headers, _BINARY_HEADER)) is not None:
            headers[_BINARY_HEADER] = length.decode()
        if wait_s:
            headers["Prefer"] = f"wait={wait_s}"
        if self._tracer is None:
            return await self._sent(record, headers, ends_at, wait_s)
        span = self._begin(self._tracer, record)
        headers["traceparent"] = span.traceparent.decode()
        try:
            reply = await self._sent(record, headers, ends_at, wait_s)
        except BaseException as error:
            message = str(error) if isinstance(error, PipelineError) else ""
            span.end(time.time(), {}, error=type(error).__name__, message=message)
            raise
        error_type = str(reply.status) if reply.status >= 400 else ""
        span.end(time.time(), {"http.response.status_code": reply.status}, error=error_type)
        return reply

    async def _sent(self, record: RequestRecord, headers: Mapping[str, str], ends_at: float, wait_s: int) -> Reply:
        return await self._exchange(
            "POST", _ROUTE, request_id=record.id, ends_at=ends_at, wait_s=wait_s, body=record.value, headers=headers
        )

    def _begin(self, tracer: Tracer, record: RequestRecord) -> Span:
        """One span for all tries: the request is one, and is answered once."""
        parts = urlsplit(self._url)
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            "url.full": f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{_ROUTE}",
            "url.template": _ROUTE,
            "server.address": parts.hostname or "",
            "server.port": parts.port or (443 if parts.scheme == "https" else 80),
            "inference.request_id": record.id,
        }
        return tracer.begin(f"POST {_ROUTE}", "client", time.time(), attributes, parent=traceparent_in(record.headers))

    async def _exchange(self, method: str, path: str, *, request_id: str, ends_at: float, **exchange: Any) -> Reply:
        if self._routes is None:
            raise GatewayUnavailable("this client is not connected: use it as `async with HttpClient(…) as client`")
        return await self._routes.exchange(
            method, f"{self._url}{path}", request_id=request_id, ends_at=ends_at, **exchange
        )

    def _submitted(self, request_id: str, reply: Reply, limit_s: float) -> SubmittedToGateway:
        document = _accepted(reply)
        if document.get("id") != request_id:
            raise GatewayRefused(reply.status, "", f"the receipt of {request_id} is for {document.get('id')!r:.140}")
        return SubmittedToGateway(request_id, f"{_ROUTE}/{request_id}", self, limit_s)


def _record_of(reply: Reply) -> ResultRecord:
    if not reply.body.startswith(b"{"):
        raise GatewayRefused(reply.status, "", f"no result record: {reply.body[:80]!r}")
    length = reply.headers.get(_BINARY_HEADER)
    return ResultRecord(-1, -1, reply.body, [] if length is None else [(_BINARY_HEADER, length.encode())])


def _accepted(reply: Reply) -> Mapping[str, Any]:
    try:
        document = json.loads(reply.body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise GatewayRefused(reply.status, "", f"no receipt of a gateway: {reply.body[:80]!r}")
    return document


def _whole_seconds(left_s: float) -> int:
    """What a gateway is asked to wait (RFC 7240 has whole seconds), so that its "pending" is back in time."""
    return max(0, min(_WAIT_MAX_S, math.floor(left_s - _ANSWER_MARGIN_S)))


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and not (parts.query or parts.fragment)
        is_address = is_address and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise SettingsError(f"url is {url!r:.200}: the gateway's address is wanted, as http://127.0.0.1:8080")
    return url.rstrip("/")


def _checked_key(api_key: str) -> str:
    """A key that a header can carry; what it is stays out of the message."""
    if not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key and api_key):
        raise SettingsError("api_key has characters that no HTTP header can carry, or is empty")
    return api_key
