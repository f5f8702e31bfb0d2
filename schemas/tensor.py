"""Tensors of the Open Inference Protocol: their datatypes, their JSON form, their raw bytes.

Raw bytes are little-endian and row-major; a BYTES element is a 4-byte length followed by that many bytes (Open
Inference Protocol v2, "Binary Tensor Data Extension"). JSON data is flat or nested, row-major. FP16 and BF16 have no
JSON form, and JSON has no NaN and no infinity (RFC 8259 section 6).
"""

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import orjson

from schemas.errors import ErrorCode, WireError

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
    "BYTES",
]  # fmt: skip


class _Layout(NamedTuple):
    """One element: its `struct` code, its numpy type (None where numpy has none), its size in bytes."""

    code: str
    numpy: np.dtype[Any] | None
    size: int


def _layout(code: str, numpy: str | None, size: int) -> _Layout:
    return _Layout(code, np.dtype(numpy) if numpy else None, size)


_LAYOUTS: dict[str, _Layout] = {
    "BOOL": _layout("?", "?", 1),
    "UINT8": _layout("B", "<u1", 1),
    "UINT16": _layout("H", "<u2", 2),
    "UINT32": _layout("I", "<u4", 4),
    "UINT64": _layout("Q", "<u8", 8),
    "INT8": _layout("b", "<i1", 1),
    "INT16": _layout("h", "<i2", 2),
    "INT32": _layout("i", "<i4", 4),
    "INT64": _layout("q", "<i8", 8),
    "FP16": _layout("e", "<f2", 2),
    "FP32": _layout("f", "<f4", 4),
    "FP64": _layout("d", "<f8", 8),
    "BF16": _layout("", None, 2),
}
DATATYPES: tuple[str, ...] = (*_LAYOUTS, "BYTES")
_FLOATS = frozenset({"FP16", "FP32", "FP64"})
_BINARY_ONLY = frozenset({"FP16", "BF16"})
# Readers parse a number as a double, then round to FP32. For one FP32 and its negative that gives the neighbour:
# 0x15ae43fd, 7.038531e-26, found by trying all of them. Its bytes but the last, which holds the sign; a tensor with
# them is written with the digits of doubles.
_FP32_ROUNDED_TWICE = b"\xfd\x43\xae"
_ACCEPTED: dict[str, frozenset[type]] = {
    name: frozenset({bool}) if name == "BOOL" else frozenset({int, float}) if name in _FLOATS else frozenset({int})
    for name in _LAYOUTS
}
# How JSON numbers become bytes: the `struct` code, the type of the list, whether they are floats.
_NUMBERS: dict[str, tuple[str, Any, bool]] = {
    name: (
        layout.code,
        list[bool] if name == "BOOL" else list[float] if name in _FLOATS else list[int],
        name in _FLOATS,
    )
    for name, layout in _LAYOUTS.items()
    if name not in _BINARY_ONLY
}
_decode_any: Callable[[bytes], Any] = msgspec.json.Decoder().decode
# Typed: what is no number is refused while it is parsed, and 1e999 as out of range.
_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "BYTES": msgspec.json.Decoder(list[str]).decode,
    **{name: msgspec.json.Decoder(kind).decode for name, (_, kind, _) in _NUMBERS.items()},
}


class JsonData(NamedTuple):
    """A tensor's data that came as JSON and fits: its text, and the raw bytes that it says."""

    text: bytes
    raw: bytes


class Tensor(NamedTuple):
    """One tensor in its raw form.

    Attributes:
        name: as the model declares it.
        datatype: one of `DATATYPES`.
        shape: row-major dimensions, the batch axis first where the model has one.
        raw: little-endian bytes of all elements.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes


def element_count(shape: Sequence[int]) -> int:
    """How many elements a tensor of this shape has."""
    return math.prod(shape)


def element_size(datatype: str) -> int | None:
    """Bytes of one element, or None for BYTES, whose elements have lengths of their own."""
    layout = _LAYOUTS.get(datatype)
    return layout.size if layout else None


@lru_cache(maxsize=1024)
def _packer(code: str, count: int) -> struct.Struct:
    return struct.Struct(f"<{count}{code}")


def raw_from_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> bytes:
    """The raw bytes of a tensor whose data came as JSON.

    Args:
        name: the tensor's name, for the message of an error.
        datatype: one of `DATATYPES`.
        shape: the dimensions that `data` must fill exactly.
        data: a flat list, or lists nested as the shape says.

    Raises:
        WireError: INVALID_INPUT when the data does not fit the datatype or the shape.
    """
    flat = _flat(name, shape, data)
    numbers = _NUMBERS.get(datatype)
    if numbers is None:
        if datatype == "BYTES":
            return _pack_strings(name, flat)
        raise _invalid(name, f"{datatype} travels as binary tensor data only, not as JSON")
    code, kind, is_float = numbers
    try:
        # Packing alone would take `true` for 1. 64 numbers: 0.7 us, against 1.1 by a set of their types.
        flat = msgspec.convert(flat, kind)
        raw = _packer(code, len(flat)).pack(*flat)
    except (msgspec.ValidationError, struct.error, OverflowError):
        raise _bad_element(name, datatype, flat) from None
    # One infinity makes the sum infinite or NaN: a finite sum clears all of them in one pass.
    if is_float and not math.isfinite(sum(flat)) and not all(map(math.isfinite, flat)):
        raise _bad_element(name, datatype, flat)
    return raw


# A tensor that is asked again has the same text, most often: 64 numbers are read in 2.1 us, and found again in 0.4. So
# many texts, of so many bytes at most: 5 MB of usual ones, 30 of the longest.
_TEXTS_REMEMBERED = 4096
_TEXT_BYTES_REMEMBERED = 4096


def json_data(datatype: str, shape: Sequence[int], text: bytes) -> Any:
    """What a tensor's JSON text says: `JsonData` where it is a flat list that fits, else the parsed value.

    `raw_from_json` judges the value, and says what is wrong with it.

    Raises:
        msgspec.MsgspecError, ValueError, RecursionError: the text is no JSON, or none that can be read.
    """
    read = _remembered_data if len(text) <= _TEXT_BYTES_REMEMBERED else _fitting_data
    found = read(datatype, tuple(shape), text)
    return _decode_any(text) if found is None else found


def _fitting_data(datatype: str, shape: tuple[int, ...], text: bytes) -> JsonData | None:
    decode = _DECODERS.get(datatype)
    if decode is None:
        return None
    try:
        flat = decode(text)
        if len(flat) != element_count(shape):
            return None
        raw = _pack_strings("", flat) if datatype == "BYTES" else _packer(_NUMBERS[datatype][0], len(flat)).pack(*flat)
    except (msgspec.MsgspecError, ValueError, RecursionError, struct.error, OverflowError):
        return None  # nested, or wrong: whoever looks closer finds out
    return JsonData(text, raw)


_remembered_data = lru_cache(maxsize=_TEXTS_REMEMBERED)(_fitting_data)


def _flat(name: str, shape: Sequence[int], data: Any) -> list[Any]:
    if type(data) is not list:
        raise _invalid(name, f"data must be a list, not {_json_kind(data)}")
    count = element_count(shape)
    if not data or type(data[0]) is not list:
        if len(data) != count:
            raise _invalid(name, f"data has {len(data)} elements, shape {list(shape)} needs {count}")
        return data
    level = [data]
    for axis, size in enumerate(shape):
        for part in level:
            if type(part) is not list or len(part) != size:
                found = f"{len(part)} elements" if type(part) is list else _json_kind(part)
                raise _invalid(name, f"data has {found} on axis {axis}, shape {list(shape)} needs {size}")
        level = [element for part in level for element in part]
    return level


def _pack_strings(name: str, flat: list[Any]) -> bytes:
    parts: list[bytes] = []
    for index, text in enumerate(flat):
        if type(text) is not str:
            raise _invalid(name, f"data[{index}] is {_json_kind(text)}, BYTES needs strings")
        encoded = text.encode("utf-8", "surrogatepass")
        parts.append(len(encoded).to_bytes(4, "little"))
        parts.append(encoded)
    return b"".join(parts)


def _bad_element(name: str, datatype: str, flat: list[Any]) -> WireError:
    """The error that names the first element which does not fit."""
    packer = _packer(_LAYOUTS[datatype].code, 1)
    for index, value in enumerate(flat):
        if type(value) not in _ACCEPTED[datatype]:
            return _invalid(name, f"data[{index}] is {_json_kind(value)}, {datatype} needs {_wanted(datatype)}")
        try:
            packer.pack(value)
        except (struct.error, OverflowError):
            return _invalid(name, f"data[{index}] is {value!r:.40}, outside the range of {datatype}")
        if type(value) is float and not math.isfinite(value):
            return _invalid(name, f"data[{index}] is outside the range of {datatype}")
    return _invalid(name, f"data does not fit {datatype}")


def _wanted(datatype: str) -> str:
    if datatype == "BOOL":
        return "true or false"
    return "numbers" if datatype in _FLOATS else "integers"


def _json_kind(value: Any) -> str:
    kinds = {bool: "a boolean", int: "an integer", float: "a number with a fraction", str: "a string", list: "a list",
             dict: "an object", type(None): "missing or null", bytes: "binary"}  # fmt: skip
    return kinds.get(type(value), type(value).__name__)


def _invalid(name: str, what: str) -> WireError:
    return WireError(ErrorCode.INVALID_INPUT, f"tensor {name!r}: {what}")


def check_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> None:
    """Refuses raw bytes that are not exactly the tensor they claim to be.

    Raises:
        WireError: INVALID_INPUT when their length, or the lengths inside BYTES, do not fit the shape.
    """
    count = element_count(shape)
    size = element_size(datatype)
    if size is None:
        found = sum(1 for _ in _bytes_elements(name, raw))
        if found != count:
            raise _invalid(name, f"binary data has {found} elements, shape {list(shape)} needs {count}")
    elif len(raw) != count * size:
        raise _invalid(name, f"binary data has {len(raw)} bytes, {datatype} {list(shape)} needs {count * size}")


def split_bytes_elements(name: str, raw: bytes) -> list[bytes]:
    """The elements of a BYTES tensor.

    Raises:
        WireError: INVALID_INPUT when a length runs past the end.
    """
    return [raw[start:end] for start, end in _bytes_elements(name, raw)]


_element_length = struct.Struct("<I").unpack_from


def _bytes_elements(name: str, raw: bytes) -> Iterator[tuple[int, int]]:
    """Where the elements of a BYTES tensor begin and end: 0.2 us each, and none of them is copied."""
    position, end = 0, len(raw)
    index = 0
    while position < end:
        if end - position < 4:
            raise _invalid(name, f"binary data ends inside the length of element {index}")
        start = position + 4
        position = start + _element_length(raw, position)[0]
        if position > end:
            raise _invalid(name, f"element {index} claims {position - start} bytes, {end - start} are left")
        yield start, position
        index += 1


def json_from_raw(tensor: Tensor) -> bytes | None:
    """The tensor's `data` as JSON text: a flat list.

    FP32 is written with the fewest digits that give the same FP32 back, through a double too. None where JSON cannot
    carry it: FP16, BF16, NaN, infinities, BYTES that are not UTF-8.
    """
    if tensor.datatype == "BYTES":
        try:
            return orjson.dumps([element.decode() for element in split_bytes_elements(tensor.name, tensor.raw)])
        except UnicodeDecodeError:
            return None
    if tensor.datatype in _BINARY_ONLY:
        return None
    array = np.frombuffer(tensor.raw, _LAYOUTS[tensor.datatype].numpy)
    if tensor.datatype == "FP32" and _FP32_ROUNDED_TWICE in tensor.raw:
        array = array.astype("<f8")
    text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    # What is not finite is written as null. A look for it costs a tenth of asking numpy for a small tensor.
    return None if tensor.datatype in _FLOATS and b"null" in text else text


def rows_as_json(tensor: Tensor) -> list[bytes] | None:
    """The elements of each row along the first axis as JSON text, without brackets: `json_from_raw` of it, unwrapped.

    None for what is not numbers, has none, or has some that JSON cannot carry, and where numbers are written one by one
    (FP32 that would be rounded twice).
    """
    layout = _LAYOUTS.get(tensor.datatype)
    if layout is None or tensor.datatype in _BINARY_ONLY or not tensor.raw:
        return None
    if tensor.datatype == "FP32" and _FP32_ROUNDED_TWICE in tensor.raw:
        return None
    rows = np.frombuffer(tensor.raw, layout.numpy).reshape(tensor.shape[0], -1)
    text = orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)
    return None if tensor.datatype in _FLOATS and b"null" in text else text[2:-2].split(b"],[")


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor as an array of its shape; BYTES as objects, BF16 widened to FP32 (numpy has no bfloat16)."""
    if tensor.datatype == "BYTES":
        elements = split_bytes_elements(tensor.name, tensor.raw)
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return array.reshape(tensor.shape)
    if tensor.datatype == "BF16":
        wide = np.frombuffer(tensor.raw, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(tensor.shape)
    return np.frombuffer(tensor.raw, _LAYOUTS[tensor.datatype].numpy).reshape(tensor.shape)


def from_numpy(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    """An array as a tensor; strings and objects become BYTES.

    Raises:
        WireError: INVALID_INPUT for a type the protocol does not have.
    """
    if array.dtype.kind in "OSU":
        encoded = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1).tolist()]
        raw = b"".join(len(item).to_bytes(4, "little") + item for item in encoded)
        return Tensor(name, "BYTES", array.shape, raw)
    wanted = array.dtype.newbyteorder("<")
    for datatype, layout in _LAYOUTS.items():
        if layout.numpy == wanted:
            return Tensor(name, datatype, array.shape, np.ascontiguousarray(array, wanted).tobytes())
    raise _invalid(name, f"numpy type {array.dtype} has no datatype in the protocol")
