"""Bodies of requests, read within limits before anything is parsed.

content-type, content-encoding, content-length   refused from the head alone
bytes as they come, inflated as they come        up to the record limit, within the time limit, counted as they grow
-> the value and the headers of a request record
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import NamedTuple, Protocol

from starlette.requests import Request

from pipeline.config import Settings
from pipeline.gateway.http.limits import Limits
from pipeline.gateway.http.problem import HttpCode, Problem, invalid_request
from schemas.errors import ErrorCode
from schemas.request import BINARY_HEADER, binary_header_length

JSON = "application/json"
BINARY = "application/octet-stream"
BINARY_HEADER_NAME = "Inference-Header-Content-Length"

# Inflating 1 MiB takes 3 ms; then others have their turn.
_TURN_BYTES = 1 << 20
# A gzip file may have several members; each costs 20 bytes on the wire and 5 us here, however empty.
_GZIP_MEMBERS_MAX = 64
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


class Body(NamedTuple):
    """A request record's value, and its headers: none, or `Inference-Header-Content-Length` for the binary form."""

    value: bytes
    headers: list[tuple[str, bytes]]


class ReadBody(Protocol):
    """Reads the body of a request."""

    async def __call__(self, request: Request, *, any_type: bool = False) -> Body:
        """The body, inflated; its bytes are held (`Limits.hold`) until the request is over.

        Args:
            request: nothing of whose body was read.
            any_type: whether its Content-Type does not matter; the binary header alone tells the form.

        Raises:
            Problem: 400, 408, 413, 415 or 429.
            ClientDisconnect: the client has gone.
        """


def make_read_body(settings: Settings, limits: Limits) -> ReadBody:
    """Reads bodies within these settings' limits."""
    bytes_max, timeout_s = settings.limits.record_bytes, settings.gateway.body_timeout_s

    async def read_body(request: Request, *, any_type: bool = False) -> Body:
        json_length = _binary_header(request)
        if not any_type:
            _check_type(request, is_binary=json_length is not None)
        inflater = _inflater(request)
        _check_length(request, bytes_max)
        try:
            async with asyncio.timeout(timeout_s):
                value = await _read(request, inflater, limits, bytes_max)
        except TimeoutError:
            raise Problem(
                408, HttpCode.REQUEST_TIMEOUT, f"the body took longer than the {timeout_s:g} s that it may take"
            ) from None
        return _checked(value, json_length)

    return read_body


async def _read(request: Request, inflater: "_Inflater | None", limits: Limits, bytes_max: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async with aclosing(_inflated(request, inflater)) as inflated:
        async for piece in inflated:
            size += len(piece)
            if size > bytes_max:
                raise _too_large(bytes_max, "more than that were read")
            limits.hold(request, len(piece))
            pieces.append(piece)
    return b"".join(pieces)


async def _inflated(request: Request, inflater: "_Inflater | None") -> AsyncGenerator[bytes, None]:
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            if inflater is None:
                yield chunk
                continue
            for piece in inflater.feed(chunk):
                yield piece
                await asyncio.sleep(0)
    if inflater is not None:
        inflater.end()


class _Inflater:
    """Inflates a body piece by piece: what comes out is looked at before more is made."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._members = 0
        self._stream: "zlib._Decompress | None" = None  # noqa: UP037 - the name exists for type checkers alone

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What these bytes become, in pieces of 1 MiB at most."""
        try:
            while chunk or self._stream is not None:
                stream = self._stream = self._stream or self._begin(chunk)
                if piece := stream.decompress(chunk, _TURN_BYTES):
                    yield piece
                chunk = stream.unconsumed_tail
                if stream.eof:
                    chunk, self._stream = stream.unused_data, None
                elif not chunk and len(piece) < _TURN_BYTES:
                    return  # all of it was taken in, and nothing more is ready to come out
        except zlib.error as error:
            raise invalid_request(f"the body is no {self._name}: {error}") from None

    def end(self) -> None:
        """The body has ended.

        Raises:
            Problem: 400, it is not all there.
        """
        if self._stream is not None or not self._members:
            raise invalid_request(f"the body ends within its {self._name} stream")

    def _begin(self, chunk: bytes) -> "zlib._Decompress":
        self._members += 1
        if self._members > (_GZIP_MEMBERS_MAX if self._name == "gzip" else 1):
            raise invalid_request(f"something follows the body's {self._name} stream")
        if self._name == "gzip":
            return zlib.decompressobj(_GZIP)
        # RFC 9110 means zlib's form; some send the bare stream, whose first byte never looks like zlib's.
        return zlib.decompressobj(_ZLIB if chunk[0] & 0x0F == 8 else _RAW)


def _inflater(request: Request) -> _Inflater | None:
    named = ",".join(request.headers.getlist("content-encoding")).lower()
    codings = [coding for part in named.split(",") if (coding := part.strip()) not in {"", "identity"}]
    if not codings:
        return None
    name = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}.get(codings[0])
    if name is None or len(codings) > 1:
        raise Problem(
            415,
            HttpCode.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Encoding is {named!r:.80}: gzip or deflate, once, was expected",
            headers={"accept-encoding": "gzip, deflate"},
        )
    return _Inflater(name)


def _binary_header(request: Request) -> bytes | None:
    values = set(request.headers.getlist(BINARY_HEADER))
    if len(values) > 1:
        raise invalid_request(f"{BINARY_HEADER_NAME} is there several times, with different values")
    return values.pop().encode("latin-1") if values else None


def _check_type(request: Request, *, is_binary: bool) -> None:
    given = request.headers.get("content-type", "")
    media_type, _, parameters = given.partition(";")
    media_type = media_type.strip().lower()
    if media_type == BINARY and not is_binary:
        raise invalid_request(f"Content-Type is {BINARY}, and {BINARY_HEADER_NAME} is absent: how long is the JSON?")
    charset = parameters.strip().lower().replace(" ", "").replace('"', "")
    accepted = media_type in {"", BINARY} or (media_type == JSON and charset in {"", "charset=utf-8", "charset=utf8"})
    if not accepted:
        raise Problem(
            415,
            HttpCode.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Type is {given!r:.80}: {JSON} in UTF-8, or {BINARY} with {BINARY_HEADER_NAME}, was expected",
            headers={"accept": f"{JSON}, {BINARY}"},
        )


def _check_length(request: Request, bytes_max: int) -> None:
    given = request.headers.get("content-length")
    # The server has read it already: digits, 20 at most.
    if given is not None and int(given) > bytes_max:
        raise _too_large(bytes_max, f"Content-Length is {given}")


def _too_large(bytes_max: int, found: str) -> Problem:
    return Problem(413, ErrorCode.PAYLOAD_TOO_LARGE, f"a body has {bytes_max} bytes at most, inflated ones: {found}")


def _checked(value: bytes, json_length: bytes | None) -> Body:
    if not value:
        raise invalid_request("the request has no body: a request record was expected")
    length = len(value) if json_length is None else binary_header_length(json_length, len(value))
    if length is None:
        raise invalid_request(f"{BINARY_HEADER_NAME} is {json_length!r:.40}, the body has {len(value)} bytes")
    text = value if length == len(value) else value[:length]
    # Nearly all JSON is ASCII, which is seen at 10 GB/s; decoding takes eight times as long, and a copy.
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise invalid_request(f"the JSON is not UTF-8: {error.reason} at byte {error.start}") from None
    return Body(value, [] if json_length is None else [(BINARY_HEADER_NAME, b"%d" % length)])
