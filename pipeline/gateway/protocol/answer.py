"""A result record as an answer of the Open Inference Protocol over HTTP: spliced text, tensors' bytes as they are."""

import gzip
import zlib
from typing import NamedTuple

import msgspec

from pipeline.core.stored_result import StoredResult
from pipeline.gateway.http.exchange_headers import cache_headers
from pipeline.gateway.http.problem import Problem
from schemas.errors import ErrorCode

_JSON = "application/json"
_BINARY = "application/octet-stream"
# Level 1 takes 10 ms for a MB of numbers as text where zlib's own 6 takes 70, for a tenth more bytes (measured).
_LEVEL = 1


class ProtocolAnswer(NamedTuple):
    """An answer as it leaves, with status 200, not compressed yet."""

    body: bytes
    headers: dict[str, str]


class _Failure(msgspec.Struct):
    code: str
    message: str


class _Result(msgspec.Struct):
    """A result record's members that the protocol has, too; those that are copied are not parsed."""

    id: msgspec.Raw
    model_name: msgspec.Raw
    status: str
    model_version: msgspec.Raw = msgspec.Raw(b"")
    outputs: msgspec.Raw = msgspec.Raw(b"[]")
    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    error: _Failure | None = None


class _CacheParameters(msgspec.Struct):
    cache_status: str = ""
    cache_age_ms: int = 0


_decode_result = msgspec.json.Decoder(_Result).decode
_decode_cache = msgspec.json.Decoder(_CacheParameters).decode


def answer_of(result: StoredResult, *, may_store: bool = True) -> ProtocolAnswer:
    """The protocol's answer of a request that succeeded.

    Args:
        result: the record, JSON or JSON and raw tensors.
        may_store: False where the request forbade it (no-store); a record does not tell.

    Raises:
        Problem: of a request that did not succeed, with its code's status; 500 where the record cannot be read.
    """
    length = result.json_bytes or len(result.value)
    try:
        read = _decode_result(memoryview(result.value)[:length])
        cache = _decode_cache(read.parameters)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Problem(500, ErrorCode.INTERNAL, f"the result's record cannot be read: {error}") from None
    if read.error is not None:
        raise _problem(read.error, cache_headers(cache.cache_status, cache.cache_age_ms, may_store=False))
    parts = [b'{"model_name":', read.model_name]
    if read.model_version:
        parts += (b',"model_version":', read.model_version)
    parts += (b',"id":', read.id, b',"parameters":', read.parameters, b',"outputs":', read.outputs, b"}")
    headers = cache_headers(cache.cache_status, cache.cache_age_ms, may_store=may_store)
    if not result.json_bytes:
        return ProtocolAnswer(b"".join(parts), headers | {"Content-Type": _JSON})
    json_bytes = sum([len(memoryview(part)) for part in parts])
    headers |= {"Content-Type": _BINARY, "Inference-Header-Content-Length": str(json_bytes)}
    return ProtocolAnswer(b"".join([*parts, memoryview(result.value)[length:]]), headers)


def _problem(failure: _Failure, headers: dict[str, str]) -> Problem:
    if failure.code not in ErrorCode.__members__:  # a newer worker's: nothing that its client could mend
        return Problem(500, ErrorCode.INTERNAL, f"{failure.code}: {failure.message}", headers=headers)
    code = ErrorCode(failure.code)
    again = 1 if code.retryable else None
    return Problem(code.http_status, code, failure.message, retry_after_s=again, headers=headers)


def accepted_encoding(accept: str | None) -> str | None:
    """Which of gzip and deflate an Accept-Encoding likes best; None: as it is.

    As Triton does, also for small answers: `tritonclient` asks for one where its caller does. RFC 9110 section 12.5.3.
    """
    best, weight = None, 0.0
    for part in (accept or "").lower().split(","):
        coding, *arguments = (piece.strip() for piece in part.split(";"))
        quality = next((_quality(argument[2:]) for argument in arguments if argument.startswith("q=")), 1.0)
        if coding in {"gzip", "deflate"} and quality > weight:
            best, weight = coding, quality
    return best


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0.0 <= value <= 1.0 else 0.0


def compressed(body: bytes, encoding: str) -> bytes:
    """A body in gzip, or in deflate, which is zlib's format (RFC 9110 section 8.4.1.2)."""
    return gzip.compress(body, _LEVEL, mtime=0) if encoding == "gzip" else zlib.compress(body, _LEVEL)
