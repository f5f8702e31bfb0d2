"""Callbacks over HTTP: one POST to an address that was checked, and whatever comes back as an outcome.

A host is resolved once for each attempt, every address it has is checked, and the connection goes to those very
addresses: what the name says a moment later does not matter. SNI, the certificate and Host stay the name's. Nothing is
kept between attempts: no connection, no cookie, no answer of a resolver.
"""

import asyncio
import io
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pipeline.core.callback_url import CallbackUrl, is_address
from pipeline.core.public_addresses import AddressRefused, Network, check_addresses
from pipeline.core.webhook_schedule import Answered, Outcome, Refused, Unanswered

# A receiver that writes an answer would rather have it read; more than this nobody needs to write.
_ANSWER_BYTES_MAX = 64 * 1024
_ANSWER_CHUNK_BYTES = 8 * 1024
_USER_AGENT = "inference-pipeline-webhooks/1"
# Of a name that has hundreds, so many are tried within the attempt's time.
_ADDRESSES_MAX = 4
_ERROR_CHARACTERS_MAX = 300

# Host and port -> its addresses' texts; raises OSError where there are none.
LookUp = Callable[[str, int], Awaitable[Sequence[str]]]


class WebhookHttp:
    """Posts callbacks. Use it as an async context manager, within one event loop.

    Args:
        allowed: networks that are not public and may be called all the same.
        timeout_s: for one attempt: resolving, connecting, sending and the answer together.
        look_ups_max: names that are resolved at a time. A name whose servers are silent holds a thread for half a
            minute, however soon its attempt is given up: as many as there may be attempts.
        look_up: how names are resolved; None: by the system.
        tls: whose certificates are believed; None: the system's.
    """

    def __init__(
        self,
        allowed: Sequence[Network],
        timeout_s: float,
        *,
        look_ups_max: int,
        look_up: LookUp | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        self._timeout_s = timeout_s
        # Not the loop's own threads: uvloop has four for all names, and one receiver's slow servers would hold them.
        self._threads = ThreadPoolExecutor(look_ups_max, thread_name_prefix="look-up")
        self._look_up = look_up or self._ask_system
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._look_up, self._allowed),
            use_dns_cache=False,
            force_close=True,
            limit=0,
            ssl=True if self._tls is None else self._tls,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            # A small answer that inflates to gigabytes stays what it is.
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def post(self, url: CallbackUrl, body: bytes, headers: Mapping[str, str]) -> Outcome:
        """One attempt; what came of it. Never raises for what a receiver does, or whoever is in between."""
        assert self._session is not None, "used as an async context manager"
        # As it was read, not read again by another parser.
        address = URL(f"{url.scheme}://{url.place}{url.target}", encoded=True)
        sent = {"User-Agent": _USER_AGENT, "Host": url.place, "Accept-Encoding": "identity", **headers}
        answered: Answered | None = None
        try:
            if is_address(url.host):  # the connector asks its resolver for names alone
                check_addresses(url.host, [url.host], self._allowed)
            async with (
                asyncio.timeout(self._timeout_s),
                # Not the bytes themselves: aiohttp warns of what is over 1 MiB, and writes it in one piece.
                self._session.post(address, data=io.BytesIO(body), headers=sent, allow_redirects=False) as response,
            ):
                answered = Answered(response.status, response.headers.get("Retry-After"))
                # The status decides: what follows it is read for courtesy, within the attempt's time.
                await _read_away(response)
        except AddressRefused as error:
            return Refused(str(error))
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            return answered or self._unanswered(error)
        return answered

    async def _ask_system(self, host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    def _unanswered(self, error: Exception) -> Unanswered:
        if isinstance(error, TimeoutError):
            return Unanswered("timeout", f"no answer within {self._timeout_s:g} s")
        text = f"{type(error).__name__}: {error}".encode("utf-8", "replace").decode()[:_ERROR_CHARACTERS_MAX]
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return Unanswered("dns", f"the host has no address: {text}")
        if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
            return Unanswered("tls", f"no trusted connection: {text}")
        if isinstance(error, aiohttp.ClientConnectionError | OSError):
            return Unanswered("connection", f"no connection, or not to the end: {text}")
        return Unanswered("protocol", f"what came is no HTTP answer: {text}")


async def _read_away(response: aiohttp.ClientResponse) -> None:
    left = _ANSWER_BYTES_MAX
    async for chunk in response.content.iter_chunked(_ANSWER_CHUNK_BYTES):
        left -= len(chunk)
        if left <= 0:
            response.close()
            return


class _CheckedResolver(AbstractResolver):
    """Resolves a name to addresses that may be called, all of them; the connector calls these and asks nobody else."""

    def __init__(self, look_up: LookUp, allowed: Sequence[Network]) -> None:
        self._look_up = look_up
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = check_addresses(host, await self._look_up(host, port), self._allowed)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses[:_ADDRESSES_MAX]
        ]

    async def close(self) -> None:
        """Nothing is held."""
