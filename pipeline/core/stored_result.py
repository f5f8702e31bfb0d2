"""What the result store holds under one request's name: that it is pending, or its result, the very bytes of the topic.

    P <digest of the request: 16 bytes>
    R <digest: 16 bytes> <length of the JSON, 0 where all of it is JSON: 4 bytes, little-endian> <the record's value>

The name is a digest over tenant and id, so that no tenant's ids meet another's, and no id says anything to Redis.
"""

from typing import NamedTuple

from blake3 import blake3

DIGEST_BYTES = 16
_PENDING = b"P"
_RESULT = b"R"
_HEAD_BYTES = 1 + DIGEST_BYTES + 4


class Pending(NamedTuple):
    """Accepted, and not answered as far as the store knows.

    Attributes:
        digest: of the request (`core.cache_key.request_digest`, as bytes): another one under the same id is refused.
    """

    digest: bytes


class StoredResult(NamedTuple):
    """A result record's value.

    Attributes:
        digest: of its request; the record's header `request-digest`.
        json_bytes: raw tensors follow so many bytes of JSON; 0: all of it is JSON.
        value: the bytes as they are on the topic.
    """

    digest: bytes
    json_bytes: int
    value: bytes


def name_of(tenant: str | None, request_id: str) -> bytes:
    """The name of a request in the store: 32 bytes. None and "" are the same: no tenant."""
    tenant_bytes = (tenant or "").encode("utf-8", "surrogatepass")
    return blake3(len(tenant_bytes).to_bytes(4, "little") + tenant_bytes + request_id.encode()).digest()


def encode_entry(entry: Pending | StoredResult) -> bytes:
    """An entry's bytes."""
    if isinstance(entry, Pending):
        return _PENDING + entry.digest
    return b"".join([_RESULT, entry.digest, entry.json_bytes.to_bytes(4, "little"), entry.value])


def decode_entry(data: bytes) -> Pending | StoredResult | None:
    """An entry from its bytes; None for what is none of ours."""
    if data[:1] == _PENDING and len(data) == 1 + DIGEST_BYTES:
        return Pending(data[1:])
    if data[:1] == _RESULT and len(data) > _HEAD_BYTES:
        json_bytes = int.from_bytes(data[_HEAD_BYTES - 4 : _HEAD_BYTES], "little")
        if json_bytes <= len(data) - _HEAD_BYTES:
            return StoredResult(data[1 : 1 + DIGEST_BYTES], json_bytes, data[_HEAD_BYTES:])
    return None
