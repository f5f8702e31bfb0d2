"""Records to try: valid ones of every kind, and ways to break them."""

import json
import math
import struct
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from schemas.tensor import JsonData, Tensor

Record = tuple[bytes, list[tuple[str, bytes]]]

# No deadline: the first example of a run also pays for imports and caches.
FAST = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FASTER = settings(FAST, max_examples=40)

INTEGER_RANGES = {
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, 2**64 - 1),
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}
ELEMENT_SIZES = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "FP32": 4, "FP64": 8, "BF16": 2,
}  # fmt: skip
JSON_DATATYPES = ("BOOL", *INTEGER_RANGES, "FP32", "FP64", "BYTES")
ALL_DATATYPES = ("BOOL", *INTEGER_RANGES, "FP16", "FP32", "FP64", "BF16", "BYTES")

IDS = st.text("abcXYZ019._:-", min_size=1, max_size=128)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SHAPES = st.lists(st.integers(0, 3), max_size=3)
PARAMETERS = st.dictionaries(
    NAMES,
    TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    max_size=3,
)


def members(decoded: Any) -> Any:
    """What was decoded as dictionaries and lists, whether it is a model, a struct derived from one, or inside of it."""
    if isinstance(decoded, BaseModel):
        return {name: members(getattr(decoded, name)) for name in type(decoded).model_fields}
    if isinstance(decoded, msgspec.Struct):
        return {name: members(getattr(decoded, name)) for name in decoded.__struct_fields__}
    if isinstance(decoded, JsonData):
        return json.loads(decoded.text)
    return [members(part) for part in decoded] if isinstance(decoded, list) else decoded


def body(record: dict[str, Any]) -> bytes:
    """A record's JSON."""
    return json.dumps(record).encode()


def minimal(**changes: Any) -> dict[str, Any]:
    """The smallest request, with members changed or added."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5]}
    return {"model_name": "digits", "inputs": [tensor], **changes}


def one_input(datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    """The smallest request with this tensor."""
    return minimal(inputs=[{"name": "x", "datatype": datatype, "shape": shape, "data": data}])


def binary_record(record: dict[str, Any], tail: bytes, header: str = "Inference-Header-Content-Length") -> Record:
    """A record in the binary form."""
    text = body(record)
    return text + tail, [(header, str(len(text)).encode())]


def elements(datatype: str) -> st.SearchStrategy[Any]:
    """Elements that a datatype has in JSON."""
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return TEXTS
    if datatype == "FP32":
        return st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-(2**24), 2**24)
    if datatype == "FP64":
        return st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
    return st.integers(*INTEGER_RANGES[datatype])


def nested(flat: list[Any], shape: list[int]) -> list[Any]:
    """Flat elements in lists nested as a shape says."""
    if len(shape) <= 1:
        return flat
    step = math.prod(shape[1:])
    return [nested(flat[index * step : (index + 1) * step], shape[1:]) for index in range(shape[0])]


@st.composite
def json_tensors(draw: st.DrawFn, name: st.SearchStrategy[str] = NAMES) -> dict[str, Any]:
    """A valid tensor with JSON data, flat or nested."""
    datatype = draw(st.sampled_from(JSON_DATATYPES))
    shape = draw(SHAPES)
    count = math.prod(shape)
    flat = draw(st.lists(elements(datatype), min_size=count, max_size=count))
    data = nested(flat, shape) if draw(st.booleans()) else flat
    return {"name": draw(name), "datatype": datatype, "shape": shape, "data": data}


@st.composite
def raw_tensors(draw: st.DrawFn, name: st.SearchStrategy[str] = NAMES) -> Tensor:
    """A tensor of any datatype, of any bits."""
    datatype = draw(st.sampled_from(ALL_DATATYPES))
    shape = tuple(draw(SHAPES))
    count = math.prod(shape)
    if datatype == "BYTES":
        parts = draw(st.lists(st.binary(max_size=8), min_size=count, max_size=count))
        raw = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    elif datatype == "BOOL":
        raw = bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    else:
        size = count * ELEMENT_SIZES[datatype]
        raw = draw(st.binary(min_size=size, max_size=size))
    return Tensor(draw(name), datatype, shape, raw)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A valid request with JSON tensors and any of the optional members."""
    optional: dict[str, st.SearchStrategy[Any]] = {
        "id": IDS,
        "model_version": st.integers(0, 10**18 - 1).map(str),
        "parameters": PARAMETERS,
        "outputs": st.lists(st.fixed_dictionaries({"name": NAMES}, optional={"parameters": PARAMETERS}), max_size=3),
        "stream": st.booleans(),
        "enable_cache": st.booleans(),
        "cache_control": st.sampled_from(["no-cache", "no-store", "max-age=60", "only-if-cached", ""]),
        "tenant": TEXTS.filter(bool),
        "timeout_ms": st.integers(0, 7 * 86_400_000),
        "requested_at": st.sampled_from(["2026-11-22T22:00:00.123456Z", "2026-11-22T23:00:00+01:00"]),
        "source_ip": st.ip_addresses().map(str),
        "reply_to": st.fixed_dictionaries(
            {"partition": st.integers(0, 99)}, optional={"topic": st.just("inference.replies")}
        ),
        "callback": st.just({"url": "https://example.com/x"}),
    }
    inputs = draw(st.lists(json_tensors(), min_size=1, max_size=3))
    required = {"model_name": draw(NAMES), "inputs": inputs}
    return {**required, **draw(st.fixed_dictionaries({}, optional=optional))}


@st.composite
def binary_requests(draw: st.DrawFn) -> Record:
    """A valid request in the binary form, some tensors in JSON all the same."""
    record = draw(requests())
    tail = b""
    for tensor in draw(st.lists(raw_tensors(), min_size=1, max_size=3)):
        record["inputs"].append(
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {"binary_data_size": len(tensor.raw)},
            }
        )
        tail += tensor.raw
    return binary_record(record, tail)


_HOSTILE_VALUES: st.SearchStrategy[Any] = st.sampled_from([
    None, True, False, 0, -1, 1.5, 1e308, 2**31, 2**63, 2**64, 10**308, -(10**400), "", "x", "\0", "9" * 50, [], {},
    [[]], [[[1]]], [None], {"a": 1}, [2**63 - 1] * 300, [10**308, 10**308], ["a", 1], "fe80::1%eth0",
    "9999-12-31T23:59:59-14:00", "max-age=x", {"binary_data_size": -1}, {"binary_data_size": 2**62},
])  # fmt: skip
_HOSTILE_BYTES = st.sampled_from([
    b"NaN", b"-Infinity", b"1e999", b"-1e999", b"null", b"true", b"\xff", b"\0", b"\xef\xbb\xbf", b'"\\ud800"',
    b"[" * 300, b'{"a":' * 300, b"9" * 4300, b"9" * 5000, b",", b":", b'"', b"}", b"]", b"\\u0000", b"1E5", b"-0", b"-",
])  # fmt: skip
_HOSTILE_LENGTHS = st.sampled_from([b"", b"0", b"-1", b"1e3", b" 5", b"\xff", b"9" * 5000, b"18446744073709551616"])


def _places(node: Any) -> list[tuple[Callable[[Any], None], Any]]:
    """Every member and element below a node: how to replace it, and what is there."""
    found: list[tuple[Callable[[Any], None], Any]] = []
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(pairs):
        found.append((lambda new, node=node, key=key: node.__setitem__(key, new), value))  # type: ignore[misc]
        found += _places(value)
    return found


@st.composite
def hostile_records(draw: st.DrawFn) -> Record:
    """A valid record, broken in one to three places: its tree, its bytes or its header."""
    value, headers = draw(binary_requests() | requests().map(lambda record: (body(record), [])))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["tree", "tree", "insert", "cut", "flip", "header"]))
        if kind == "tree":
            length = (
                int(headers[0][1]) if headers and headers[0][1].isdigit() and len(headers[0][1]) < 9 else len(value)
            )
            try:
                record = json.loads(value[:length])
            except (ValueError, RecursionError):
                continue
            places = _places(record)
            if not places:
                continue
            draw(st.sampled_from(places))[0](draw(_HOSTILE_VALUES))
            value, headers = body(record) + value[length:], headers
            headers = [(name, str(len(body(record))).encode()) for name, _ in headers]
        elif kind == "header":
            headers = [("inference-HEADER-content-length", draw(_HOSTILE_LENGTHS))]
        else:
            start = draw(st.integers(0, len(value)))
            if kind == "insert":
                value = value[:start] + draw(_HOSTILE_BYTES) + value[start:]
            elif kind == "cut":
                value = value[:start] + value[start + draw(st.integers(1, 20)) :]
            elif start < len(value):
                value = value[:start] + bytes([value[start] ^ draw(st.integers(1, 255))]) + value[start + 1 :]
    return value, headers
