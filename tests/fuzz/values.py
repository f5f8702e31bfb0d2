"""What requests are drawn from: names, shapes, elements and parameters, chosen where keys could go wrong."""

import struct
from collections.abc import Mapping

Value = str | int | float | bool
Parameters = Mapping[str, Value]

SIZES = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "FP32": 4, "FP64": 8, "BF16": 2,
}  # fmt: skip
DATATYPES = (*SIZES, "BYTES", "BYTES", "BYTES", "FP32", "FP32", "FP64", "INT64")
INTEGER_CODES = {"UINT8": "<B", "UINT16": "<H", "UINT32": "<I", "UINT64": "<Q", "INT8": "<b", "INT16": "<h",
                 "INT32": "<i", "INT64": "<q"}  # fmt: skip
FLOAT_CODES = {"FP32": "<f", "FP64": "<d"}
# Which bits of the last bytes, little-endian, are the exponent: all of them set is NaN or infinity, none a denormal.
EXPONENTS = {"FP16": 0x7C00, "BF16": 0x7F80, "FP32": 0x7F800000, "FP64": 0x7FF0000000000000}

# Pairs that run together ("a" + "bc", "ab" + "c"), one letter in two Unicode forms, code points that UTF-16 orders
# otherwise (U+FF5E before U+1F600), texts that look like parts of the encoding or of JSON.
NAMES = (
    "x", "y", "a", "ab", "abc", "b", "bc", "c", "X", "x ", "x\0", "\0", "input_ids", "caf\u00e9", "\uff5e",
    "\U0001f600", "\u540d\u524d", '"', "\\", "/", "a/b", "\n", "\x7f", "data", "parameters", "1", "NaN", "Infinity",
    "cafe\u0301", "\x01\0\0\0x", "n" * 250,
)  # fmt: skip
TENANTS = (None, "acme", "a", "ac", "acm", "caf\u00e9", "\0", "1", "")
MODELS = ("digits", "d", "igits", "digit", "me", "acmedigits", "cme", "1", "\u540d", "m" * 256)
VERSIONS = ("1", "2", "12", "21", "3", "1" * 18)
# A parameter's name may come near those that are not keyed.
PARAMETER_NAMES = (
    "beam", "bean", "a", "ab", "b", "", "\0", "seed", "temperature", "binary", "priority_", "time", "sequence",
    "Timeout", "headers_", "caf\u00e9", "\U0001f600", "\uff5e",
)  # fmt: skip
VALUES: tuple[Value, ...] = (
    0, 1, -1, 2, 2**31, 2**53, 2**63 - 1, -(2**63), True, False, 0.0, -0.0, 1.0, -1.0, 1.5, 0.1, 1e308, 5e-324, 1e22,
    float(2**53), "", "1", "1.0", "true", "0", "a", "b", "ab", "c", "caf\u00e9", "\0", "\U0001f600",
)  # fmt: skip

# By rank; the counts of elements are 0 to 6 but for the last of a rank.
SHAPES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((),),
    ((0,), (1,), (1,), (2,), (2,), (3,), (4,), (6,)),
    ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (1, 6), (6, 1), (0, 2), (2, 0), (0, 0)),
    ((1, 1, 1), (1, 2, 1), (2, 1, 3), (3, 2, 1), (1, 2, 2), (1, 0, 2), (0, 1, 1), (2, 2, 1)),
)
RANK_MAX = 32

_TEXTS = (
    "", "", "a", "b", "ab", "bc", "abc", "c", "a\0", "\0a", "\0", "\0\0", "\x01\0\0\0a", "\x01", "caf\u00e9",
    "cafe\u0301", "\U0001f600", '"\\/', "\n\t\r\b\f", "NaN", "-Infinity", "1", "1.0", "true", "null", "\x7f\x80",
)  # fmt: skip


def _floats(code: str, *values: float) -> tuple[bytes, ...]:
    return tuple(struct.pack(code, value) for value in values)


def _bits(size: int, *values: int) -> tuple[bytes, ...]:
    return tuple(value.to_bytes(size, "little") for value in values)


def _integers(datatype: str) -> tuple[bytes, ...]:
    size, signed = SIZES[datatype], datatype[0] == "I"
    top = 1 << (8 * size - signed)
    values = (0, 0, 1, 2, 7, top - 1, top // 2, *((-1, -2, -top) if signed else (top - 2,)))
    return tuple(value.to_bytes(size, "little", signed=signed) for value in values)


# What JSON can carry. 7.038530691851e-26 is the FP32 that its own shortest digits miss when they are read as a double.
PLAIN: dict[str, tuple[bytes, ...]] = {
    "BOOL": (b"\0", b"\1"),
    **{datatype: _integers(datatype) for datatype in INTEGER_CODES},
    "FP16": _bits(2, 0, 0x8000, 0x3C00, 0xBC00, 1, 0x8001, 0x03FF, 0x0400, 0x7BFF),
    "BF16": _bits(2, 0, 0x8000, 0x3F80, 0xBF80, 1, 0x8001, 0x007F, 0x0080, 0x7F7F),
    "FP32": (
        *_floats("<f", 0.0, -0.0, 0.0, -0.0, 1.0, -1.0, 0.1, 0.5, 1e10, 16777216.0, -2.5, 100.0, 1e-7, 123456.79),
        *_bits(4, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x15AE43FD, 0x3F800001),
    ),
    "FP64": (
        *_floats("<d", 0.0, -0.0, 0.0, -0.0, 1.0, -1.0, 0.1, 0.5, 1e22, 2.0**53, 2.0**53 + 2, -2.5, 1e300, 1e-300),
        *_bits(8, 1, 1 << 63 | 1, 0xFFFFFFFFFFFFF, 1 << 52, 0x7FEFFFFFFFFFFFFF, 0x3FF0000000000001),
    ),
    "BYTES": tuple(text.encode() for text in _TEXTS),
}
# What needs the binary form: infinities, NaNs with payloads, bytes that are no UTF-8, booleans that are not 0 or 1.
ODD: dict[str, tuple[bytes, ...]] = {
    **PLAIN,
    "BOOL": (b"\2", b"\xff"),
    "FP16": _bits(2, 0x7C00, 0xFC00, 0x7E00, 0x7E01, 0xFE00, 0x7C01),
    "BF16": _bits(2, 0x7F80, 0xFF80, 0x7FC0, 0x7FC1, 0xFFC0, 0x7F81),
    "FP32": _bits(4, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FC00001, 0xFFC00000, 0x7F800001),
    "FP64": _bits(8, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, 0x7FF8 << 48 | 1, 0xFFF8 << 48, 0x7FF << 52 | 1),
    "BYTES": (b"\xff", b"\xc3", b"\0\xff", b"\xed\xa0\x80", b"\xc0\x80"),
}
