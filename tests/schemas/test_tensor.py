"""Tensors: JSON and raw bytes say the same, and what does not fit is refused."""

import json
import math
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ErrorCode, WireError
from schemas.tensor import (
    DATATYPES,
    Tensor,
    check_raw,
    element_count,
    element_size,
    from_numpy,
    json_from_raw,
    raw_from_json,
    split_bytes_elements,
    to_numpy,
)
from tests.schemas.records import (
    ALL_DATATYPES,
    ELEMENT_SIZES,
    FAST,
    INTEGER_RANGES,
    JSON_DATATYPES,
    json_tensors,
    nested,
    raw_tensors,
)

CODES = {"BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h",
         "INT32": "i", "INT64": "q", "FP32": "f", "FP64": "d"}  # fmt: skip
# The one FP32 whose shortest digits, read as a double and then rounded, are its neighbour.
ROUNDED_TWICE = 0x15AE43FD


def refusal(datatype: str, shape: list[int], data: Any) -> str:
    """Returns the message with which data is refused as INVALID_INPUT."""
    with pytest.raises(WireError) as caught:
        raw_from_json("x", datatype, shape, data)
    assert caught.value.code is ErrorCode.INVALID_INPUT
    return caught.value.message


def fp32(*bits: int) -> Tensor:
    """Returns a tensor of FP32 with these bits."""
    return Tensor("x", "FP32", (len(bits),), struct.pack(f"<{len(bits)}I", *bits))


def text_of(tensor: Tensor) -> bytes:
    """Returns a tensor's JSON data, which must exist."""
    text = json_from_raw(tensor)
    assert text is not None
    return text


def test_datatypes_are_the_protocols_fourteen() -> None:
    """All datatypes of the protocol are known, with the sizes of their elements."""
    assert sorted(DATATYPES) == sorted(ALL_DATATYPES)
    assert {name: element_size(name) for name in DATATYPES} == {**ELEMENT_SIZES, "BYTES": None}


@FAST
@given(json_tensors())
def test_json_elements_pack_little_endian(tensor: dict[str, Any]) -> None:
    """JSON data, flat or nested, becomes the little-endian bytes of its elements in row-major order."""
    flat = tensor["data"]
    for _ in range(len(tensor["shape"]) - 1):
        flat = [element for part in flat for element in part] if flat and type(flat[0]) is list else flat
    if tensor["datatype"] == "BYTES":
        expected = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in flat)
    else:
        expected = struct.pack(f"<{len(flat)}{CODES[tensor['datatype']]}", *flat)
    assert raw_from_json("x", tensor["datatype"], tensor["shape"], tensor["data"]) == expected


@FAST
@given(raw_tensors())
def test_json_gives_same_bits_back(tensor: Tensor) -> None:
    """Whatever bits a tensor has: JSON gives them back, or JSON cannot carry them and there is none."""
    text = json_from_raw(tensor)
    if text is not None:
        data = json.loads(text)
        assert Tensor("x", tensor.datatype, tensor.shape, raw_from_json("x", tensor.datatype, tensor.shape, data)) == (
            Tensor("x", tensor.datatype, tensor.shape, tensor.raw)
        )
        return
    finite = True
    if tensor.datatype in {"FP32", "FP64"}:
        finite = bool(np.isfinite(to_numpy(tensor)).all())
    elif tensor.datatype == "BYTES":
        assert any(part.decode(errors="replace").encode() != part for part in split_bytes_elements("x", tensor.raw))
        return
    assert not finite or tensor.datatype in {"FP16", "BF16"}


@FAST
@given(st.lists(st.integers(0, 2**32 - 1).filter(lambda bits: bits & 0x7F800000 != 0x7F800000), max_size=50))
def test_fp32_text_gives_same_bits(bits: list[int]) -> None:
    """FP32 text, read as a double and rounded, is the same FP32, for any finite bit pattern."""
    tensor = fp32(*bits)
    assert raw_from_json("x", "FP32", tensor.shape, json.loads(text_of(tensor))) == tensor.raw


def test_fp32_text_holds_for_many_bits() -> None:
    """The same for 200,000 bit patterns at once, subnormals and both zeros among them."""
    random = np.random.default_rng(20261122)
    drawn = random.integers(0, 2**32, 200_000, dtype=np.uint64).astype("<u4")
    edges = np.array([0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, ROUNDED_TWICE], "<u4")
    bits = np.concatenate([drawn, edges, edges | 0x80000000])
    tensor = from_numpy("x", bits.view("<f4")[np.isfinite(bits.view("<f4"))])
    assert raw_from_json("x", "FP32", tensor.shape, orjson.loads(text_of(tensor))) == tensor.raw


@pytest.mark.parametrize("bits", [ROUNDED_TWICE, ROUNDED_TWICE | 0x80000000])
def test_twice_rounded_fp32_survives_text(bits: int) -> None:
    """7.038531e-26 is the shortest text of an FP32 that a reader's double would turn into its neighbour."""
    for tensor in (fp32(bits), fp32(0x3F800000, bits), fp32(bits, bits)):
        data = json.loads(text_of(tensor))
        assert np.array(data, "f8").astype("<f4").tobytes() == tensor.raw


@FAST
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_fp32_text_is_shortest(value: float) -> None:
    """FP32 is written with as few digits as tell it from its neighbours, not with those of a double."""
    text = text_of(from_numpy("x", np.array([value], "<f4")))[1:-1].decode()
    digits = [part.replace(".", "").replace("-", "").strip("0") for part in (
        text.lower().partition("e")[0], np.format_float_scientific(np.float32(value), unique=True).partition("e")[0]
    )]  # fmt: skip
    if struct.unpack("<I", struct.pack("<f", abs(value)))[0] != ROUNDED_TWICE:
        assert len(digits[0]) == len(digits[1])


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_travel_in_binary_only(datatype: str) -> None:
    """FP16 and BF16 have no JSON form, in either direction."""
    assert refusal(datatype, [1], [1.0]) == f"tensor 'x': {datatype} travels as binary tensor data only, not as JSON"
    assert json_from_raw(Tensor("x", datatype, (1,), b"\0\0")) is None


@pytest.mark.parametrize(("datatype", "bounds"), INTEGER_RANGES.items())
def test_integer_bounds_are_exact(datatype: str, bounds: tuple[int, int]) -> None:
    """The least and the greatest value of an integer datatype fit, the next ones are named with their place."""
    low, high = bounds
    raw = raw_from_json("x", datatype, [2], [low, high])
    assert json.loads(text_of(Tensor("x", datatype, (2,), raw))) == [low, high]
    for value in (low - 1, high + 1, 2**64, -(2**64), 10**400):
        expected = f"tensor 'x': data[1] is {value!r:.40}, outside the range of {datatype}"
        assert refusal(datatype, [2], [0, value]) == expected


@pytest.mark.parametrize("datatype", [*INTEGER_RANGES])
def test_integers_take_no_other_kind(datatype: str) -> None:
    """A boolean, a fraction, a string, null, a list or an object is no integer, not even 1.0."""
    for value, kind in [
        (True, "a boolean"), (1.0, "a number with a fraction"), ("1", "a string"), (None, "missing or null"),
        ([], "a list"), ({}, "an object"),
    ]:  # fmt: skip
        assert refusal(datatype, [2], [0, value]) == f"tensor 'x': data[1] is {kind}, {datatype} needs integers"


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_floats_take_numbers_only(datatype: str) -> None:
    """Floats take integers and fractions; a boolean, a string or null is no number."""
    assert raw_from_json("x", datatype, [2], [1, 1.0]) == struct.pack(f"<2{CODES[datatype]}", 1.0, 1.0)
    for value, kind in [(False, "a boolean"), ("1.0", "a string"), (None, "missing or null"), ([1.0], "a list")]:
        assert refusal(datatype, [2], [0, value]) == f"tensor 'x': data[1] is {kind}, {datatype} needs numbers"


def test_booleans_take_booleans_only() -> None:
    """BOOL takes true and false, not 0 and 1."""
    assert raw_from_json("x", "BOOL", [2], [True, False]) == b"\x01\x00"
    assert refusal("BOOL", [1], [1]) == "tensor 'x': data[0] is an integer, BOOL needs true or false"


def test_strings_are_the_only_bytes_elements() -> None:
    """BYTES in JSON are strings."""
    assert refusal("BYTES", [2], ["a", 1]) == "tensor 'x': data[1] is an integer, BYTES needs strings"
    assert refusal("BYTES", [1], [["a"]]) == "tensor 'x': data[0] is a list, BYTES needs strings"


@pytest.mark.parametrize("value", [3.4028236e38, -3.4028236e38, 1e39, 10**39, math.inf, -math.inf, math.nan])
def test_fp32_overflow_is_refused(value: float) -> None:
    """A number that rounds to no finite FP32 is refused."""
    assert refusal("FP32", [2], [0.0, value]).startswith("tensor 'x': data[1] is ")


@pytest.mark.parametrize("value", [10**309, math.inf, -math.inf, math.nan])
def test_fp64_overflow_is_refused(value: float) -> None:
    """A number that rounds to no finite FP64 is refused."""
    assert refusal("FP64", [2], [0.0, value]).startswith("tensor 'x': data[1] is ")


@pytest.mark.parametrize(
    "data", [[1e308, 1e308], [10**308, 10**308], [10**308, 10**308, -1.5], [1e308, 10**308, -1e308, -(10**308)]]
)
def test_fp64_sums_may_overflow(data: list[float]) -> None:
    """Numbers that fit are taken, also where their sum fits no double."""
    assert raw_from_json("x", "FP64", [len(data)], data) == struct.pack(f"<{len(data)}d", *data)


def test_fp32_rounds_to_nearest() -> None:
    """A double between two FP32 becomes the nearest one; one too small becomes zero with its sign."""
    assert raw_from_json("x", "FP32", [3], [0.1, -1e-60, 16777217]) == struct.pack("<IIf", 0x3DCCCCCD, 1 << 31, 2**24)


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ([2], [1], "data has 1 elements, shape [2] needs 2"),
        ([], [], "data has 0 elements, shape [] needs 1"),
        ([0], [1], "data has 1 elements, shape [0] needs 0"),
        ([2, 2], [1, 2, 3], "data has 3 elements, shape [2, 2] needs 4"),
        ([2, 2], [[1, 2], [3]], "data has 1 elements on axis 1, shape [2, 2] needs 2"),
        ([2, 2], [[1, 2]], "data has 1 elements on axis 0, shape [2, 2] needs 2"),
        ([2, 2], [[1, 2], 3], "data has an integer on axis 1, shape [2, 2] needs 2"),
        ([1, 2, 1], [[[1], 2]], "data has an integer on axis 2, shape [1, 2, 1] needs 1"),
        ([2**63 - 1] * 32, [1], f"data has 1 elements, shape {[2**63 - 1] * 32} needs {(2**63 - 1) ** 32}"),
        ([1], 1, "data must be a list, not an integer"),
        ([1], None, "data must be a list, not missing or null"),
        ([1], "1", "data must be a list, not a string"),
        ([1], {"0": 1}, "data must be a list, not an object"),
    ],
)
def test_data_must_fill_shape_exactly(shape: list[int], data: Any, message: str) -> None:
    """Data that is too short, too long or nested otherwise than its shape is refused with what was needed."""
    assert refusal("INT32", shape, data) == f"tensor 'x': {message}"


@pytest.mark.parametrize("datatype", JSON_DATATYPES)
@pytest.mark.parametrize(
    ("shape", "data"), [([0], []), ([2, 0], [[], []]), ([2, 0], []), ([0, 2], []), ([1, 0, 3], [[]])]
)
def test_zero_sized_dims_hold_nothing(datatype: str, shape: list[int], data: list[Any]) -> None:
    """A tensor with a dimension of size zero has no bytes, and comes back as an empty list and an empty array."""
    assert raw_from_json("x", datatype, shape, data) == b""
    tensor = Tensor("x", datatype, tuple(shape), b"")
    assert (json_from_raw(tensor), to_numpy(tensor).shape) == (b"[]", tuple(shape))


def test_scalars_have_the_empty_shape() -> None:
    """The empty shape has one element."""
    assert (element_count([]), raw_from_json("x", "INT8", [], [-1])) == (1, b"\xff")


@pytest.mark.parametrize("text", ["", "\0", "a\0b", "\0\0", "é", "🙂", "\ufeff", "\x7f", "﷽" * 50, '"\\/\b\n'])
def test_strings_keep_every_character(text: str) -> None:
    """Empty strings, embedded zeros and any other character come through as UTF-8 with their own lengths."""
    raw = raw_from_json("x", "BYTES", [3], [text, "", text])
    assert split_bytes_elements("x", raw) == [text.encode(), b"", text.encode()]
    assert json.loads(text_of(Tensor("x", "BYTES", (3,), raw))) == [text, "", text]


@pytest.mark.parametrize("element", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"])
def test_bytes_beyond_utf8_have_no_json(element: bytes) -> None:
    """Elements that are not UTF-8, lone surrogates among them, cannot be JSON."""
    raw = struct.pack("<I", len(element)) + element
    assert json_from_raw(Tensor("x", "BYTES", (1,), raw)) is None


def test_lone_surrogates_have_bytes_of_their_own() -> None:
    """A string of Python's that is no Unicode text still has one form of bytes, which JSON then cannot carry."""
    raw = raw_from_json("x", "BYTES", [2], ["\ud800", "a\udfff"])
    assert split_bytes_elements("x", raw) == [b"\xed\xa0\x80", b"a\xed\xbf\xbf"]
    assert json_from_raw(Tensor("x", "BYTES", (2,), raw)) is None


@pytest.mark.parametrize(("datatype", "bits"), [("FP32", 0x7F800000), ("FP32", 0xFF800000), ("FP32", 0x7FC00001),
                                                ("FP64", 0x7FF << 52), ("FP64", 0xFFF8 << 48)])  # fmt: skip
def test_numbers_beyond_json_have_none(datatype: str, bits: int) -> None:
    """One NaN or infinity among finite numbers leaves a tensor without JSON."""
    size = ELEMENT_SIZES[datatype]
    assert json_from_raw(Tensor("x", datatype, (2,), bytes(size) + bits.to_bytes(size, "little"))) is None


@FAST
@given(raw_tensors())
def test_numpy_gives_same_tensor_back(tensor: Tensor) -> None:
    """A tensor as an array and back is the same tensor; BF16 has become the FP32 of the same value."""
    array = to_numpy(tensor)
    assert array.shape == tensor.shape
    found = from_numpy(tensor.name, array)
    if tensor.datatype == "BF16":
        upper = np.frombuffer(found.raw, "<u4") >> 16
        assert (found.datatype, upper.astype("<u2").tobytes()) == ("FP32", tensor.raw)
    else:
        assert found == tensor


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[1, 2]], ">i4"), Tensor("x", "INT32", (1, 2), struct.pack("<2i", 1, 2))),
        (np.arange(6, dtype="<i2").reshape(2, 3).T, Tensor("x", "INT16", (3, 2), struct.pack("<6h", 0, 3, 1, 4, 2, 5))),
        (np.array(1.5), Tensor("x", "FP64", (), struct.pack("<d", 1.5))),
        (np.array([True, False]), Tensor("x", "BOOL", (2,), b"\x01\x00")),
        (np.array([1.5], "<f2"), Tensor("x", "FP16", (1,), struct.pack("<e", 1.5))),
        (np.array(["é", ""]), Tensor("x", "BYTES", (2,), b"\x02\0\0\0\xc3\xa9\0\0\0\0")),
        (np.array([b"a"], "S1"), Tensor("x", "BYTES", (1,), b"\x01\0\0\0a")),
        (np.array([b"\0", "é"], object), Tensor("x", "BYTES", (2,), b"\x01\0\0\0\0\x02\0\0\0\xc3\xa9")),
        (np.empty((0, 3), "<u8"), Tensor("x", "UINT64", (0, 3), b"")),
    ],
)
def test_arrays_become_row_major_tensors(array: np.ndarray[Any, Any], expected: Tensor) -> None:
    """Any byte order, any memory layout and any kind of string becomes the protocol's form."""
    assert from_numpy("x", array) == expected


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "V4"])
def test_arrays_beyond_the_protocol_are_refused(dtype: str) -> None:
    """A numpy type without a datatype is INVALID_INPUT."""
    with pytest.raises(WireError) as caught:
        from_numpy("x", np.zeros(1, dtype))
    assert (caught.value.code, caught.value.message[:20]) == (ErrorCode.INVALID_INPUT, "tensor 'x': numpy ty")


@FAST
@given(raw_tensors(), st.binary(min_size=1, max_size=3))
def test_raw_bytes_must_fit_exactly(tensor: Tensor, extra: bytes) -> None:
    """The bytes of a tensor fit it; one to three more never do."""
    check_raw("x", tensor.datatype, tensor.shape, tensor.raw)
    if tensor.datatype == "BYTES" or len(extra) % ELEMENT_SIZES[tensor.datatype]:
        with pytest.raises(WireError):
            check_raw("x", tensor.datatype, tensor.shape, tensor.raw + extra)


@FAST
@given(json_tensors())
def test_nested_and_flat_are_the_same(tensor: dict[str, Any]) -> None:
    """Nested lists and the flat list of the same elements are the same bytes."""
    raw = raw_from_json("x", tensor["datatype"], tensor["shape"], tensor["data"])
    flat = json.loads(text_of(Tensor("x", tensor["datatype"], tuple(tensor["shape"]), raw)))
    shaped = nested(flat, tensor["shape"])
    assert raw_from_json("x", tensor["datatype"], tensor["shape"], shaped) == raw
