"""The canonical form of a request, and the three digests made of it.

Every part is written with its length or with a fixed size, so no two different requests share an encoding:

    content       = H("content",   inputs by name: name, datatype, shape, byte length, bytes; parameters by name)
    cache key     = H("cache",     tenant, model name, version, fingerprint, content, requested outputs)
    partition key = H("partition", tenant, model name, content), its first 16 bytes in hex
    request digest = H("request",  the whole decoded record without id, requested_at, source_ip)

H is BLAKE3 with 256 bits: collision-resistant, so a crafted request cannot meet another's answer, and the key is
compared in full on every hit. Tensors enter as their raw bytes: `1` and `1.0` for FP32, JSON and binary are one key.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter

from blake3 import blake3

from schemas.decoded import DecodedRequest
from schemas.request import Parameters
from schemas.tensor import Tensor

# Every field of a request is classified; a test fails when a new one is not.
KEYED = frozenset({"tenant", "model_name", "model_version", "inputs", "parameters", "outputs"})
IGNORED = frozenset({
    "id", "stream", "enable_cache", "cache_control", "timeout_ms", "requested_at", "source_ip", "reply_to", "callback",
})  # fmt: skip
# Not part of the content that a repeated id is compared by.
NOT_CONTENT = frozenset({"id", "requested_at", "source_ip"})

# A digest's own cost is 0.8 us; joining first is cheaper than many updates up to about this size, above it the copy is
# what costs (600 KB: 30 us of 90).
_JOIN_BYTES_MAX = 64 * 1024
_CONTENT = b"content/1"
_NO_PARAMETERS = b"\0\0\0\0"
_CACHE = b"cache/1"
_PARTITION = b"partition/1"
_REQUEST = b"request/1"
_by_name = attrgetter("name")

Outputs = Sequence[tuple[str, Parameters]]


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def _text(text: str) -> bytes:
    return _sized(text.encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=4096)
def _tensor_header(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    return _text(name) + _text(datatype) + struct.pack(f"<B{len(shape)}q", len(shape), *shape)


def _parameters(parameters: Mapping[str, object]) -> bytes:
    parts = [len(parameters).to_bytes(4, "little")]
    for name in sorted(parameters):
        value = parameters[name]
        parts.append(_text(name))
        if isinstance(value, bool):
            parts.append(b"b\x01" if value else b"b\x00")
        elif isinstance(value, int):
            parts.append(b"i" + struct.pack("<q", value))
        elif isinstance(value, float):
            parts.append(b"f" + struct.pack("<d", value))
        else:
            parts.append(b"s" + _text(str(value)))
    return b"".join(parts)


def _outputs(outputs: Outputs) -> bytes:
    return b"".join([len(outputs).to_bytes(4, "little"), *(_text(name) + _parameters(kept) for name, kept in outputs)])


def content_digest(tensors: Sequence[Tensor], parameters: Mapping[str, object]) -> bytes:
    """The digest of what reaches the model: 32 bytes over inputs and keyed parameters.

    Args:
        tensors: the inputs, in any order; their names are distinct.
        parameters: keyed parameters alone (`core/parameters.py`).
    """
    if len(tensors) == 1 and not parameters:
        name, datatype, shape, raw = tensors[0]
        header = _tensor_header(name, datatype, shape)
        if len(raw) <= _RAW_BYTES_REMEMBERED:
            return _remembered_content(header, raw)
        return _digest_of([(header, raw)], _NO_PARAMETERS)
    inputs = [(_tensor_header(*tensor[:3]), tensor.raw) for tensor in sorted(tensors, key=_by_name)]
    return _digest_of(inputs, _parameters(parameters) if parameters else _NO_PARAMETERS)


def _digest_of(inputs: Sequence[tuple[bytes, bytes]], parameters: bytes) -> bytes:
    """The digest of headers with their raw bytes, in their order, and of encoded parameters."""
    parts = [_CONTENT, len(inputs).to_bytes(4, "little")]
    total = 0
    for header, raw in inputs:
        size = len(raw)
        total += size
        parts += (header, size.to_bytes(8, "little"), raw)
    parts.append(parameters)
    if total <= _JOIN_BYTES_MAX:
        return blake3(b"".join(parts)).digest()
    digest = blake3()
    for part in parts:
        digest.update(part)
    return digest.digest()


# What is asked again has the same digests again: 0.3 us instead of 1.3 for a content, instead of 0.7 for a key. So many
# are remembered, 4 MB each of usual ones; where nothing repeats it costs each of them 0.3 us.
_DIGESTS_REMEMBERED = 8192
_RAW_BYTES_REMEMBERED = 2048


@lru_cache(maxsize=_DIGESTS_REMEMBERED)
def _remembered_content(header: bytes, raw: bytes) -> bytes:
    return _digest_of([(header, raw)], _NO_PARAMETERS)


@lru_cache(maxsize=4096)
def _scope(tag: bytes, *names: str | None) -> bytes:
    """A prefix that repeats from request to request: tag and names, absent ones told from empty ones."""
    return b"".join([_sized(tag), *(b"\0" if name is None else b"\1" + _text(name) for name in names)])


@lru_cache(maxsize=4096)
def _plain_outputs(names: tuple[str, ...]) -> bytes:
    return _outputs([(name, {}) for name in names])


def encode_outputs(outputs: Outputs) -> bytes:
    """The canonical form of the outputs that are asked for, in the order asked."""
    names = []
    for name, kept in outputs:
        if kept:
            return _outputs(outputs)
        names.append(name)
    return _plain_outputs(tuple(names))


@dataclass(frozen=True, slots=True)
class CacheScope:
    """Whose answers, and of what: all of a cache key but the request's content and outputs.

    Attributes:
        tenant: caches of tenants never meet.
        model_name: the model.
        model_version: the version that answers, never "latest".
        fingerprint: of that version's content: other weights in the same folder have another key.
        encoded: the canonical form, made once.
    """

    tenant: str | None
    model_name: str
    model_version: str
    fingerprint: str
    encoded: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        encoded = _scope(_CACHE, self.tenant, self.model_name, self.model_version, self.fingerprint)
        object.__setattr__(self, "encoded", encoded)


def scopes_of(tenant: str | None, model_name: str | None, model_version: str | None) -> Callable[[CacheScope], bool]:
    """Which scopes are of a tenant, a model, a version: None stands for all, the tenant "" for requests without one."""

    def wanted(scope: CacheScope) -> bool:
        return (
            tenant in (None, scope.tenant or "")
            and model_name in (None, scope.model_name)
            and model_version in (None, scope.model_version)
        )

    return wanted


def cache_key(scope: CacheScope, content: bytes, outputs: bytes) -> bytes:
    """The 32-byte key under which an answer is stored.

    Args:
        scope: whose answer, and of what.
        content: `content_digest` of inputs and parameters.
        outputs: `encode_outputs` of the outputs asked for, all of them where none is named.
    """
    return _cache_key(scope.encoded, content, outputs)


@lru_cache(maxsize=_DIGESTS_REMEMBERED)
def _cache_key(scope: bytes, content: bytes, outputs: bytes) -> bytes:
    return blake3(scope + content + outputs).digest()


def partition_key(tenant: str | None, model_name: str, content: bytes) -> str:
    """The Kafka record key, 32 hex characters: equal requests meet the same worker whatever version answers."""
    return blake3(_scope(_PARTITION, tenant, model_name) + content).hexdigest(16)


def request_digest(request: DecodedRequest, content: bytes) -> str:
    """What a repeated id is compared by, 32 hex characters: the whole request but id, requested_at and source_ip."""
    outputs = b"\0"
    if request.outputs is not None:
        outputs = b"\1" + _outputs([(output.name, output.parameters) for output in request.outputs])
    reply, callback = request.reply_to, request.callback
    scope = _scope(
        _REQUEST,
        request.tenant,
        request.model_name,
        request.model_version,
        request.cache_control,
        None if callback is None else callback.url,
        _switches(
            request.stream,
            request.enable_cache,
            request.timeout_ms,
            None if reply is None else (reply.partition, reply.topic),
        ),
    )
    unkeyed = _parameters(request.parameters) if request.parameters else b""
    return _request_digest(scope, content, outputs + unkeyed)


@lru_cache(maxsize=_DIGESTS_REMEMBERED)
def _request_digest(scope: bytes, content: bytes, rest: bytes) -> str:
    return blake3(scope + content + rest).hexdigest(16)


@lru_cache(maxsize=4096)
def _switches(stream: bool, enable_cache: bool, timeout_ms: int | None, reply: tuple[int, str | None] | None) -> str:
    place = "" if reply is None else f"{reply[0]}/{reply[1] or ''}"
    return f"{stream:d}{enable_cache:d}|{'' if timeout_ms is None else timeout_ms}|{place}"
