"""A stored answer as bytes for the shared cache, and back; what is not exactly an entry of ours is refused.

    magic 3 | version 1 | flags 1 | entry bytes 4 | key 32 | age ms 8 | ttl ms 8 | body bytes 4 | body | checksum 16

Integers are little-endian. The body is its layout with the length in front (the instance; name, datatype and shape of
each tensor), then the tensors' lengths in bytes, then their raw bytes. The whole key stands inside: an entry that is
found under another key, by whatever mistake, answers nothing. The checksum is BLAKE3 over all before it.

Age and ttl are those of the moment of storing. The entry's age later is `age + ttl - what is left of ttl`, and what is
left is told by the shared cache: its clock alone counts the time in between.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args
from urllib.parse import quote

import cramjam
from blake3 import blake3

from pipeline.core.answer import StoredAnswer
from pipeline.core.cache_key import CacheScope
from schemas.errors import WireError
from schemas.tensor import DATATYPES, Tensor, check_raw

_MAGIC = b"\x89IA"
_VERSION = 1
_LZ4 = 1
_HEAD = struct.Struct("<3sBBI32sQQI")
_COUNT = struct.Struct("<I")
_CHECKSUM_BYTES = 16
FRAME_BYTES = _HEAD.size + _CHECKSUM_BYTES
# LZ4 blocks, for both ways run on the worker's event loop. Measured, 1.5 kB of FP32 embeddings: 0.8 us to find that
# nothing is gained, zstd level 1 16 us; 60 kB of text: 89 and 21 us for half of the bytes, zstd 190 and 66 us for a
# third. A round trip of 60 kB takes 25 us longer than one of 2 kB, so bytes saved are worth less than that time.
COMPRESSED_BYTES_MIN = 512
# Less saved than an eighth is not worth decompressing at each read.
_KEPT_SHARE_MAX = 7 / 8
# No LZ4 block grows more than this: a claim beyond is refused before memory is taken for it.
_LZ4_GROWTH_MAX = 255
_MILLIS_MAX = 1 << 53
_NOT_THERE, _NO_END = -2, -1
# Layouts repeat from answer to answer of a model; read anew, two small tensors take 10 us. One is about 100 bytes.
_LAYOUTS_KEPT = 1024
_LAYOUT_BYTES_KEPT = 1024

# Name, datatype and shape.
_TensorHead = tuple[str, str, tuple[int, ...]]

Reason = Literal["foreign", "format", "truncated", "checksum", "key", "too_large", "content"]
REASONS: tuple[Reason, ...] = get_args(Reason)


class RefusedEntryError(Exception):
    """Bytes that are no entry for this key.

    Args:
        reason: why. `foreign`: not ours at all; `format`: of another version of this format; `truncated`: not as long
            as it says; `checksum`: damaged; `key`: an entry of another key; `too_large`: beyond what is read;
            `content`: whole, but not a tensor list.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class SharedEntry:
    """What an entry holds.

    Attributes:
        tensors: the outputs in raw form, in the order asked.
        instance: who computed them.
        age_s: how old the answer was when it was stored, never negative.
        ttl_s: how long it was stored for, above zero.
    """

    tensors: tuple[Tensor, ...]
    instance: str
    age_s: float
    ttl_s: float

    def age_and_left(self, left_ms: int) -> tuple[float, float]:
        """How old it is now and how long it lives on, both in seconds.

        A clock that went back makes nothing younger than it was when it was stored.

        Args:
            left_ms: what the shared cache says is left of its ttl, PTTL's numbers: -2 where the entry was not there a
                moment before it was read, so it has just been stored; -1 where it lives for ever.

        Raises:
            RefusedEntryError: it has no end, which no entry of ours has.
        """
        if left_ms == _NO_END:
            raise RefusedEntryError("foreign")
        left_s = self.ttl_s if left_ms == _NOT_THERE else min(left_ms / 1000, self.ttl_s)
        return self.age_s + self.ttl_s - left_s, left_s


def encode_entry(key: bytes, answer: StoredAnswer, *, age_s: float, ttl_s: float) -> tuple[bytes, int]:
    """An answer as an entry for exactly this key, and how many bytes compression saved.

    Args:
        key: 32 bytes.
        answer: what is stored.
        age_s: how old it is now.
        ttl_s: how long it is stored for; at least a millisecond.
    """
    body = _encode_body(answer)
    stored, flags = body, 0
    if len(body) >= COMPRESSED_BYTES_MIN:
        packed = bytes(cramjam.lz4.compress_block(body, store_size=False))
        if len(packed) <= len(body) * _KEPT_SHARE_MAX:
            stored, flags = packed, _LZ4
    head = _HEAD.pack(
        _MAGIC, _VERSION, flags, FRAME_BYTES + len(stored), key, _millis(age_s, 0), _millis(ttl_s, 1), len(body)
    )
    entry = head + stored
    return entry + blake3(entry).digest(_CHECKSUM_BYTES), len(body) - len(stored)


def decode_entry(entry: bytes, key: bytes, *, body_bytes_max: int) -> SharedEntry:
    """What was stored for this key.

    Args:
        entry: any bytes at all.
        key: the key that it was found under.
        body_bytes_max: the most that it may hold, decompressed.

    Raises:
        RefusedEntryError: it is no entry of this key. Nothing else is raised, whatever the bytes are.
    """
    if entry[:3] != _MAGIC:
        raise RefusedEntryError("foreign")
    if entry[3:4] != bytes((_VERSION,)):
        raise RefusedEntryError("format" if len(entry) > 3 else "truncated")
    if len(entry) < FRAME_BYTES:
        raise RefusedEntryError("truncated")
    _, _, flags, entry_bytes, own_key, age_ms, ttl_ms, body_bytes = _HEAD.unpack_from(entry)
    if entry_bytes != len(entry):
        raise RefusedEntryError("truncated")
    if blake3(entry[:-_CHECKSUM_BYTES]).digest(_CHECKSUM_BYTES) != entry[-_CHECKSUM_BYTES:]:
        raise RefusedEntryError("checksum")
    if own_key != key:
        raise RefusedEntryError("key")
    if flags not in (0, _LZ4) or not ttl_ms or max(age_ms, ttl_ms) > _MILLIS_MAX:
        raise RefusedEntryError("format")
    if body_bytes > body_bytes_max:
        raise RefusedEntryError("too_large")
    body = _inflated(entry[_HEAD.size : -_CHECKSUM_BYTES], flags, body_bytes)
    instance, tensors = _decode_body(body)
    return SharedEntry(tensors, instance, age_ms / 1000, ttl_ms / 1000)


def entry_name(prefix: str, scope: CacheScope, key: bytes) -> str:
    """Under which name the shared cache holds an entry: `{prefix}cache:1:{tenant}:{model}:{version}:{64 hex}`.

    The names are percent-escaped, colons and glob characters too, so that all entries of a tenant, a model or a version
    are one pattern. Pipelines of other prefixes never meet, nor do other versions of the entry's format.
    """
    return _names(prefix, scope.tenant or "", scope.model_name, scope.model_version) + key.hex()


def entry_pattern(prefix: str, tenant: str | None, model_name: str | None, model_version: str | None) -> str:
    """The glob pattern of these entries' names. None stands for all; the tenant "" for requests without one.

    No name has a colon inside, so each `*` covers one name and no more.
    """
    return _names(prefix, tenant, model_name, model_version) + "*"


def clear_mark(prefix: str) -> str:
    """The name of what every clear removes, and no pattern of entries matches: `{prefix}cache:1:uncleared`."""
    return f"{_escaped(prefix)}cache:{_VERSION}:uncleared"


@lru_cache(maxsize=4096)
def _names(prefix: str, *names: str | None) -> str:
    parts = ["*" if name is None else _escaped(name) for name in names]
    return f"{_escaped(prefix)}cache:{_VERSION}:{':'.join(parts)}:"


def _escaped(name: str) -> str:
    return quote(name, safe="", errors="surrogatepass")


def _millis(seconds: float, least: int) -> int:
    return max(int(min(seconds * 1000, _MILLIS_MAX)), least)


def _inflated(stored: bytes, flags: int, body_bytes: int) -> bytes:
    """The body: into memory of the size that it claims, so that no bomb grows beyond it.

    Raises:
        RefusedEntryError: it is longer, or no LZ4 block. A shorter one ends in zeros, which are no tensors.
    """
    if not flags:
        if len(stored) != body_bytes:
            raise RefusedEntryError("content")
        return stored
    if body_bytes > len(stored) * _LZ4_GROWTH_MAX:
        raise RefusedEntryError("content")
    body = bytearray(body_bytes)
    try:
        cramjam.lz4.decompress_block_into(stored, body, output_len=body_bytes)
    except cramjam.DecompressionError:
        raise RefusedEntryError("content") from None
    return bytes(body)


def _text(text: str) -> bytes:
    # A lone surrogate is no text: it is written all the same, and refused when it is read.
    encoded = text.encode("utf-8", "surrogatepass")
    return _COUNT.pack(len(encoded)) + encoded


def _encode_body(answer: StoredAnswer) -> bytes:
    layout = _encode_layout(answer.instance, tuple([tensor[:3] for tensor in answer.tensors]))
    raws = [tensor.raw for tensor in answer.tensors]
    return b"".join([_COUNT.pack(len(layout)), layout, *[_COUNT.pack(len(raw)) for raw in raws], *raws])


def _decode_body(body: bytes) -> tuple[str, tuple[Tensor, ...]]:
    """Instance and tensors.

    Raises:
        RefusedEntryError: they are not exactly what fills the body.
    """
    try:
        (layout_bytes,) = _COUNT.unpack_from(body)
        start = _COUNT.size + layout_bytes
        layout = body[_COUNT.size : start]
        decode = _decode_layout if len(layout) <= _LAYOUT_BYTES_KEPT else _decode_layout.__wrapped__
        instance, heads = decode(layout)
        lengths = struct.unpack_from(f"<{len(heads)}I", body, start)
        position = start + len(lengths) * _COUNT.size
        tensors = []
        for (name, datatype, shape), length in zip(heads, lengths, strict=True):
            raw = body[position : position + length]
            check_raw(name, datatype, shape, raw)
            tensors.append(Tensor(name, datatype, shape, raw))
            position += length
    except (struct.error, UnicodeDecodeError, WireError):
        raise RefusedEntryError("content") from None
    if position != len(body):
        raise RefusedEntryError("content")
    return instance, tuple(tensors)


@lru_cache(maxsize=_LAYOUTS_KEPT)
def _encode_layout(instance: str, heads: tuple[_TensorHead, ...]) -> bytes:
    parts = [_text(instance), _COUNT.pack(len(heads))]
    for name, datatype, shape in heads:
        parts += (_text(name), _text(datatype), struct.pack(f"<I{len(shape)}q", len(shape), *shape))
    return b"".join(parts)


@lru_cache(maxsize=_LAYOUTS_KEPT)
def _decode_layout(layout: bytes) -> tuple[str, tuple[_TensorHead, ...]]:
    reader = _LayoutReader(layout)
    instance = reader.text()
    heads = tuple([reader.head() for _ in range(reader.number())])
    if reader.position != len(layout):
        raise RefusedEntryError("content")
    return instance, heads


class _LayoutReader:
    """Reads a layout from its start. Past its end there are no numbers, and texts are short: its length tells."""

    def __init__(self, layout: bytes) -> None:
        self._layout = layout
        self.position = 0

    def number(self) -> int:
        (number,) = _COUNT.unpack_from(self._layout, self.position)
        self.position += _COUNT.size
        return int(number)

    def text(self) -> str:
        length = self.number()
        text = self._layout[self.position : self.position + length].decode()
        self.position += length
        return text

    def head(self) -> _TensorHead:
        name, datatype, rank = self.text(), self.text(), self.number()
        shape = struct.unpack_from(f"<{rank}q", self._layout, self.position)
        self.position += rank * 8
        if datatype not in DATATYPES or (shape and min(shape) < 0):
            raise RefusedEntryError("content")
        return name, datatype, shape
