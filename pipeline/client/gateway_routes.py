"""One exchange with the gateway: sent again while that can help, and what its answer means.

An id travels with every request, so sending one again never makes a second inference.
"""

import asyncio
import io
import json
import time
from collections.abc import Mapping
from random import Random
from typing import NamedTuple

import aiohttp

from pipeline.client.errors import GatewayRefused, GatewayUnavailable, IdReused, ResultGone
from pipeline.client.retrying import Backoff, asked_for_s
from pipeline.errors import InferenceFailed, PipelineError
from schemas.errors import ErrorCode

# Too busy, stopping, or a proxy in between; RFC 9110 names no others that a repetition can help.
_WORTH_ANOTHER_TRY = frozenset({408, 429, 500, 502, 503, 504})
# Of a body that is no problem document, such as a proxy's page.
_TEXT_MAX = 200


class Reply(NamedTuple):
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class GatewayRoutes:
    """Sends requests to one gateway.

    Args:
        session: of aiohttp, with the gateway's address and the credential.
        url: for messages.
        random: of the pauses' jitter.
        attempt_timeout_s: how long one attempt may take, beside what it asked the gateway to wait.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, random: Random, attempt_timeout_s: float) -> None:
        self._session = session
        self._url = url
        self._random = random
        self._attempt_timeout_s = attempt_timeout_s

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        request_id: str,
        ends_at: float,
        wait_s: float = 0.0,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """An answer that is none of "later": a busy gateway, one that is away and a cut connection are tried again.

        Args:
            method: GET or POST.
            path: of the route.
            request_id: whose request it is.
            ends_at: when to give up, in the loop's time.
            wait_s: how long the gateway was asked to wait.
            body: of the request.
            headers: of the request.

        Raises:
            GatewayUnavailable: it was away or answered "later" until `ends_at`.
            InferenceFailed: it said so with a code of the wire until `ends_at`: OVERLOADED.
        """
        loop = asyncio.get_running_loop()
        backoff = Backoff(self._random)
        while True:
            if self._session.closed:
                raise GatewayUnavailable("this client was closed")
            pause_asked_for_s = 0.0
            try:
                attempt_ends_at = min(ends_at, loop.time() + wait_s + self._attempt_timeout_s)
                async with asyncio.timeout_at(attempt_ends_at):
                    reply = await self.attempt(method, path, body=body, headers=headers)
            except TimeoutError:
                trouble: PipelineError = GatewayUnavailable(f"{self._url} gave no answer to request {request_id}")
            except GatewayUnavailable as error:
                trouble = error
            else:
                if reply.status not in _WORTH_ANOTHER_TRY:
                    return reply
                trouble = error_of(request_id, reply)
                pause_asked_for_s = asked_for_s(reply.headers.get("Retry-After"), time.time())
            pause_s = backoff.next_s(pause_asked_for_s)
            if loop.time() + pause_s >= ends_at:
                raise trouble
            await asyncio.sleep(pause_s)

    async def attempt(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One attempt, without a limit of its own.

        Raises:
            GatewayUnavailable: no connection, or it was cut before the answer's end.
        """
        try:
            # A redirect is no answer of a gateway: following one would take the key to another host.
            # A file, as aiohttp writes bytes of any length at once and warns of those above 1 MiB.
            content = None if body is None else io.BytesIO(body)
            async with self._session.request(method, path, data=content, headers=headers, allow_redirects=False) as got:
                return Reply(got.status, got.headers, await got.read())
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise GatewayUnavailable(f"{self._url} does not answer: {reason}") from error


def error_of(request_id: str, reply: Reply) -> PipelineError:
    """What an answer that is no success means.

    Args:
        request_id: whose request it answers.
        reply: RFC 9457 problem details from a gateway, anything from a proxy before it.
    """
    code, message = _problem(reply)
    if reply.status == 422:
        return IdReused(request_id)
    if reply.status == 410:
        return ResultGone(request_id)
    if code in ErrorCode.__members__:
        return InferenceFailed(request_id, ErrorCode(code), message)
    if reply.status == 413:
        return InferenceFailed(request_id, ErrorCode.PAYLOAD_TOO_LARGE, message)
    if reply.status == 429:
        return InferenceFailed(request_id, ErrorCode.OVERLOADED, message)
    if reply.status in _WORTH_ANOTHER_TRY:
        return GatewayUnavailable(f"HTTP {reply.status}: {message} (request {request_id})")
    return GatewayRefused(reply.status, code, message)


def _problem(reply: Reply) -> tuple[str, str]:
    """Code and sentence of a problem document; of anything else its first words."""
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        text = " ".join(reply.body.decode("utf-8", "replace").split())
        return "", text[:_TEXT_MAX] or "no body"
    code = document.get("code")
    message = document.get("detail") or document.get("title") or "no detail"
    return code if isinstance(code, str) else "", str(message)
