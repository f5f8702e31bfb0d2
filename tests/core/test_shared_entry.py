"""The shared cache's entries: they come back as they were, and nothing else is ever taken for one."""

import math
import random
import struct
import tracemalloc
from fnmatch import fnmatchcase
from typing import Any

import cramjam
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.answer import StoredAnswer, stored_answer
from pipeline.core.cache_key import CacheScope
from pipeline.core.shared_entry import (
    COMPRESSED_BYTES_MIN,
    FRAME_BYTES,
    REASONS,
    RefusedEntryError,
    SharedEntry,
    clear_mark,
    decode_entry,
    encode_entry,
    entry_name,
    entry_pattern,
)
from schemas.tensor import DATATYPES, Tensor, element_size
from tests.schemas.records import FAST

KEY = bytes(range(32))
MIB = 1 << 20
# Where the head's fields stand.
_FLAGS, _AGE, _BODY_BYTES, _BODY = 4, 41, 57, 61
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any tensor whose bytes fit its shape."""
    datatype = draw(st.sampled_from(DATATYPES))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    count, size = math.prod(shape), element_size(datatype)
    if size is None:
        elements = draw(st.lists(st.binary(max_size=40), min_size=count, max_size=count))
        raw = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    elif datatype == "BOOL":
        raw = bytes(draw(st.lists(st.sampled_from([0, 1]), min_size=count, max_size=count)))
    else:
        raw = draw(st.binary(min_size=count * size, max_size=count * size))
    return Tensor(draw(NAMES), datatype, shape, raw)


def answer_of(*parts: Tensor, instance: str = "triton-0") -> StoredAnswer:
    """An answer with these tensors."""
    return stored_answer(parts, stored_at=5.0, instance=instance)


def entry_of(answer: StoredAnswer, key: bytes = KEY, **changes: float) -> bytes:
    """An answer's entry."""
    return encode_entry(key, answer, **{"age_s": 1.5, "ttl_s": 60.0} | changes)[0]


def numbers(count: int, seed: int = 1) -> Tensor:
    """Random bytes, which no compression makes smaller."""
    return Tensor("y", "UINT8", (count,), random.Random(seed).randbytes(count))


def zeros(count: int) -> Tensor:
    """What compression is made for."""
    return Tensor("y", "UINT8", (count,), bytes(count))


def refused(entry: bytes, key: bytes = KEY, body_bytes_max: int = MIB) -> str | None:
    """Why an entry is refused, or None where it is not. Any other error fails the test."""
    try:
        decode_entry(entry, key, body_bytes_max=body_bytes_max)
    except RefusedEntryError as error:
        return REASONS[REASONS.index(error.reason)]
    return None


def signed(entry: bytes) -> bytes:
    """An entry whose length and checksum were made right again: what a faulty writer could store."""
    body = bytearray(entry[:-16])
    struct.pack_into("<I", body, 5, len(entry))
    return bytes(body) + blake3(bytes(body)).digest(16)


def body_of(answer: StoredAnswer) -> bytes:
    """The body of a small answer's entry, not compressed."""
    return entry_of(answer)[_BODY:-16]


def with_body(body: bytes, *, flags: int = 0, claimed: int | None = None) -> bytes:
    """A signed entry with this body."""
    head = bytearray(entry_of(answer_of())[:_BODY])
    head[_FLAGS] = flags
    struct.pack_into("<I", head, _BODY_BYTES, len(body) if claimed is None else claimed)
    return signed(bytes(head) + body + bytes(16))


@FAST
@given(st.lists(tensors(), max_size=3), NAMES, st.floats(0, 1e6), st.floats(0.001, 1e6))
def test_every_answer_comes_back(parts: list[Tensor], instance: str, age_s: float, ttl_s: float) -> None:
    """Tensors of all datatypes come back bit for bit, with who computed them and their times to the millisecond."""
    answer = answer_of(*parts, instance=instance)
    found = decode_entry(entry_of(answer, age_s=age_s, ttl_s=ttl_s), KEY, body_bytes_max=MIB)
    assert (found.tensors, found.instance) == (answer.tensors, instance)
    assert age_s - 0.001 <= found.age_s <= age_s
    assert ttl_s - 0.001 <= found.ttl_s <= ttl_s
    assert found.ttl_s > 0
    again = stored_answer(found.tensors, stored_at=5.0, instance=found.instance)
    assert (again.json, again.size_bytes) == (answer.json, answer.size_bytes)


@pytest.mark.parametrize("count", [0, 10, COMPRESSED_BYTES_MIN, 100_000])
@pytest.mark.parametrize("make", [numbers, zeros])
def test_every_size_comes_back(make: Any, count: int) -> None:
    """Compressed or not, large or empty, an answer is the same afterwards."""
    answer = answer_of(make(count))
    assert decode_entry(entry_of(answer), KEY, body_bytes_max=MIB).tensors == answer.tensors


def test_many_tensors_come_back() -> None:
    """Layouts too long to be remembered are read like others, again and again."""
    parts = [Tensor(f"output number {number}", "UINT8", (1, 1, 1), bytes([number])) for number in range(100)]
    entry = entry_of(answer_of(*parts, instance="i" * 3000))
    for _ in range(2):
        found = decode_entry(entry, KEY, body_bytes_max=MIB)
        assert found.tensors == tuple(parts)
        assert found.instance == "i" * 3000


def test_compression_is_kept_where_it_pays() -> None:
    """Zeros become small; random bytes and small answers stay as they are, and nothing is said to be saved."""
    entry, saved = encode_entry(KEY, answer_of(zeros(100_000)), age_s=0.0, ttl_s=1.0)
    assert len(entry) < 1000
    assert saved > 99_000
    for tensor in (numbers(100_000), zeros(COMPRESSED_BYTES_MIN // 2)):
        entry, saved = encode_entry(KEY, answer_of(tensor), age_s=0.0, ttl_s=1.0)
        assert saved == 0
        assert tensor.raw in entry
        assert len(entry) < len(tensor.raw) + FRAME_BYTES + 100


@pytest.mark.parametrize("tensor", [numbers(60), zeros(2000)])
def test_no_flipped_bit_is_read(tensor: Tensor) -> None:
    """Any single bit that differs, anywhere, refuses the entry, compressed ones too."""
    entry = entry_of(answer_of(tensor))
    for position in range(len(entry)):
        for bit in range(8):
            damaged = bytearray(entry)
            damaged[position] ^= 1 << bit
            assert refused(bytes(damaged)) is not None, f"bit {bit} of byte {position}"


@pytest.mark.parametrize("tensor", [numbers(60), zeros(2000)])
def test_no_cut_entry_is_read(tensor: Tensor) -> None:
    """An entry that ends early, or goes on, is refused."""
    entry = entry_of(answer_of(tensor))
    assert all(refused(entry[:length]) is not None for length in range(len(entry)))
    assert refused(entry[: len(entry) // 2 + 20]) == "truncated"
    assert refused(entry + b"\0") == "truncated"


@FAST
@given(st.binary(max_size=300), st.sampled_from([b"", b"\x89IA", b"\x89IA\x01", b"\x89IA\x01\x00", b"\x89IA\x01\x01"]))
def test_random_bytes_are_refused(junk: bytes, start: bytes) -> None:
    """Whatever lies under a key of ours, nothing but the one error is raised."""
    assert refused(start + junk) is not None


@FAST
@given(st.data())
def test_wrong_content_with_right_checksum_is_refused_or_whole(data: st.DataObject) -> None:
    """Even what a faulty writer signed is either a list of tensors that fit, or refused; never another error."""
    entry = bytearray(entry_of(answer_of(zeros(8), Tensor("s", "BYTES", (2,), b"\1\0\0\0a\0\0\0\0"))))
    for _ in range(data.draw(st.integers(1, 4))):
        entry[data.draw(st.integers(_FLAGS, len(entry) - 17))] = data.draw(st.integers(0, 255))
    refused(signed(bytes(entry)))


@FAST
@given(st.binary(max_size=200), st.integers(0, 1 << 32 - 1), st.sampled_from([0, 1]))
def test_random_bodies_are_refused(body: bytes, claimed: int, flags: int) -> None:
    """A signed entry with anything for a body raises nothing but the one error."""
    refused(with_body(body, flags=flags, claimed=claimed))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (b"", "foreign"),
        (b"\x80\x04pickled", "foreign"),
        (b'{"json": 1}' * 20, "foreign"),
        (b"\x89IA", "truncated"),
        (b"\x89IA\x01" + bytes(20), "truncated"),
        (b"\x89IA\x02" + bytes(200), "format"),
        (b"\x89IA\x00" + bytes(200), "format"),
    ],
)
def test_reason_says_what_is_wrong(entry: bytes, reason: str) -> None:
    """Foreign values, other versions and cut ones are told apart."""
    assert refused(entry) == reason


def test_damage_is_told_from_a_cut() -> None:
    """A changed byte inside an entry of the right length is the checksum's."""
    entry = bytearray(entry_of(answer_of(numbers(60))))
    entry[_BODY + 20] ^= 1
    assert refused(bytes(entry)) == "checksum"


def test_entry_of_another_key_is_refused() -> None:
    """Keys that differ in one bit, anywhere, do not share an entry."""
    entry = entry_of(answer_of(numbers(60)))
    for position in range(32):
        other = bytearray(KEY)
        other[position] ^= 1
        assert refused(entry, bytes(other)) == "key"


def test_entry_beyond_the_bound_is_refused() -> None:
    """What would be larger than anything we store is not decompressed, however small it is now."""
    entry = entry_of(answer_of(zeros(2 * MIB)))
    assert len(entry) < 20_000
    assert refused(entry) == "too_large"
    assert refused(entry, body_bytes_max=3 * MIB) is None


@pytest.mark.parametrize("claimed", [1, 99_999, 100_064, 900_000])
def test_bomb_is_refused(claimed: int) -> None:
    """A compressed body that is not exactly as long as it claims is refused, signed or not."""
    entry = bytearray(entry_of(answer_of(zeros(100_000))))
    assert struct.unpack_from("<I", entry, _BODY_BYTES)[0] != claimed
    struct.pack_into("<I", entry, _BODY_BYTES, claimed)
    assert refused(signed(bytes(entry))) == "content"


def test_bomb_takes_no_memory() -> None:
    """A claim that no block of that size can keep is refused before memory is taken for it."""
    packed = bytes(cramjam.lz4.compress_block(bytes(1000), store_size=False))
    entry = with_body(packed, flags=1, claimed=(1 << 30))
    tracemalloc.start()
    try:
        assert refused(entry, body_bytes_max=1 << 40) == "content"
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("claimed", [0, 1, 10_000])
def test_plain_body_is_as_long_as_it_says(claimed: int) -> None:
    """A body that is not compressed cannot pass the bound by claiming to be short."""
    body = body_of(answer_of(numbers(5000)))
    assert refused(with_body(body, claimed=claimed)) == "content"
    assert refused(with_body(body, claimed=len(body))) is None


@pytest.mark.parametrize("more", [b"\0", bytes(8), b"\1\2\3\4" * 4])
def test_bytes_that_belong_to_nothing_are_refused(more: bytes) -> None:
    """What follows the last tensor, or the last tensor's layout, is a writer's mistake, not to be guessed at."""
    body = body_of(answer_of(numbers(10)))
    assert refused(with_body(body + more)) == "content"
    assert refused(with_body(body[:-1])) == "content"
    (length,) = struct.unpack_from("<I", body)
    longer = struct.pack("<I", length + len(more)) + body[4 : 4 + length] + more + body[4 + length :]
    assert refused(with_body(longer)) == "content"


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("y", "FP33", (1,), bytes(4)),
        Tensor("y", "FP32", (2,), bytes(4)),
        Tensor("y", "FP32", (-1, -1), bytes(4)),
        Tensor("y", "BYTES", (2,), b"\1\0\0\0a"),
        Tensor("y", "BYTES", (1,), b"\xff\0\0\0a"),
        Tensor("\ud800", "FP32", (1,), bytes(4)),
    ],
)
def test_tensor_that_does_not_fit_is_refused(tensor: Tensor) -> None:
    """What a faulty writer stored whole is still no tensor: it reaches nobody."""
    answer = StoredAnswer((tensor,), 0.0, "t", None, len(tensor.raw), 100)
    assert refused(entry_of(answer)) == "content"


@pytest.mark.parametrize(
    ("left_ms", "age_s", "left_s"),
    [
        (60_000, 5.0, 60.0),
        (45_000, 20.0, 45.0),
        (1, 64.999, 0.001),
        (70_000, 5.0, 60.0),  # the clock went back
        (-2, 5.0, 60.0),  # stored a moment ago
    ],
)
def test_age_is_told_by_what_is_left(left_ms: int, age_s: float, left_s: float) -> None:
    """Age and remaining life follow the shared cache's clock, and neither is ever better than at the storing."""
    found = SharedEntry((), "t", age_s=5.0, ttl_s=60.0).age_and_left(left_ms)
    assert found == pytest.approx((age_s, left_s))


def test_entry_without_an_end_is_foreign() -> None:
    """Ours all end; one that lives for ever was put there by somebody else, and its age is unknown."""
    with pytest.raises(RefusedEntryError) as refusal:
        SharedEntry((), "t", age_s=5.0, ttl_s=60.0).age_and_left(-1)
    assert refusal.value.reason == "foreign"


@pytest.mark.parametrize(("age_s", "ttl_s"), [(-3.0, 0.0), (1e300, 1e300), (math.inf, math.inf)])
def test_impossible_times_are_bounded(age_s: float, ttl_s: float) -> None:
    """A clock's nonsense becomes an age that is not negative and a ttl above zero."""
    found = decode_entry(entry_of(answer_of(), age_s=age_s, ttl_s=ttl_s), KEY, body_bytes_max=MIB)
    assert found.age_s >= 0.0
    assert found.ttl_s > 0.0


def test_name_is_readable_and_escaped() -> None:
    """Names say whose entry it is; no name can reach beyond its place."""
    assert entry_name("inference.", CacheScope(None, "digits", "2", "f"), KEY) == (
        f"inference.cache:1::digits:2:{KEY.hex()}"
    )
    assert entry_name("", CacheScope("a:b*", "m?[x]\\", "1%", "f"), KEY) == (
        f"cache:1:a%3Ab%2A:m%3F%5Bx%5D%5C:1%25:{KEY.hex()}"
    )


@FAST
@given(st.lists(st.text(max_size=8), min_size=6, max_size=6))
def test_names_do_not_meet(names: list[str]) -> None:
    """Two scopes have one name only if tenant, model and version are the same."""
    one, other = CacheScope(names[0], names[1], names[2], "f"), CacheScope(names[3], names[4], names[5], "f")
    same = entry_name("p", one, KEY) == entry_name("p", other, KEY)
    assert same == (names[:3] == names[3:])


def test_pattern_names_whole_names() -> None:
    """None is a star, a star is a letter."""
    assert entry_pattern("p.", None, "digits", None) == "p.cache:1:*:digits:*:*"
    assert entry_pattern("p.", "", "*", "2") == "p.cache:1::%2A:2:*"


@pytest.mark.parametrize("prefix", ["", "t.", "cache:1:", "a*b"])
def test_no_pattern_finds_the_clear_mark(prefix: str) -> None:
    """What a clear removes first is no entry: neither a pattern of this pipeline's nor all of them cover it."""
    mark = clear_mark(prefix)
    assert not fnmatchcase(mark, entry_pattern(prefix, None, None, None))
    assert mark != clear_mark(prefix + "x")
