"""Records of requests: what a worker reads is what was asked."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.client.records import JSON_BYTES_MAX, build_record, record_from_json, to_tensors
from schemas.errors import ErrorCode, WireError
from schemas.request import decode_request
from schemas.tensor import Tensor, from_numpy

NUMPY_TYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
SMALL_SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, max_side=6)
ARRAYS = st.sampled_from(NUMPY_TYPES).flatmap(lambda name: arrays.arrays(np.dtype(name), SMALL_SHAPES))
TEXTS = st.lists(st.text(max_size=20), min_size=1, max_size=6)
RESERVED = frozenset({"priority", "timeout", "headers"})
PARAMETERS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["L"]), min_size=1).filter(lambda name: str(name) not in RESERVED),
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False),
              st.text(st.characters(codec="utf-8"))),
    max_size=3,
)  # fmt: skip
LINE = b'{"model_name": "digits", "inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [1]}]}'


def read_tensors(record: Any) -> list[Tensor]:
    """The inputs as a worker decodes them."""
    return [tensor.to_tensor() for tensor in decode_request(record.value, record.headers).inputs]


@given(ARRAYS, st.sampled_from([None, True, False]))
def test_arrays_survive_the_wire(array: npt.NDArray[Any], binary: bool | None) -> None:
    """Every array of the protocol's types reaches the worker bit for bit, in either form."""
    record = build_record("r", "m", {"x": array}, now=0.0, binary=binary)
    assert read_tensors(record) == [from_numpy("x", array)]


@given(TEXTS, st.booleans())
def test_texts_survive_the_wire(texts: list[str], binary: bool) -> None:
    """Strings reach the worker as their UTF-8 bytes, in either form."""
    array = np.array([text.encode("utf-8", "replace") for text in texts], dtype=object)
    record = build_record("r", "m", {"x": array}, now=0.0, binary=binary)
    assert read_tensors(record) == [from_numpy("x", array)]


@given(ARRAYS, PARAMETERS, st.sampled_from([None, "acme"]))
def test_partition_key_ignores_the_form(
    array: npt.NDArray[Any], parameters: dict[str, Any], tenant: str | None
) -> None:
    """JSON and binary forms of one request have one key, so they meet the same worker."""
    as_json, as_binary = (
        build_record("r", "m", {"x": array}, now=0.0, parameters=parameters, tenant=tenant, binary=binary)
        for binary in (False, True)
    )
    assert as_json.key == as_binary.key


def test_partition_key_covers_content_and_not_the_switches() -> None:
    """Tenant, model, inputs and parameters make the key; version, outputs, id and switches do not."""
    base: dict[str, Any] = {"request_id": "a", "model_name": "m", "inputs": {"x": [1, 2]}, "now": 0.0}
    key = build_record(**base).key
    same = (
        {"model_version": 3}, {"outputs": ["y"]}, {"request_id": "b"}, {"enable_cache": False},
        {"cache_control": "no-cache"}, {"timeout_ms": 5}, {"parameters": {"priority": 1}},
    )  # fmt: skip
    other = ({"tenant": "t"}, {"model_name": "n"}, {"inputs": {"x": [1, 3]}}, {"parameters": {"p": 1}})
    assert {build_record(**(base | change)).key for change in same} == {key}
    assert key not in {build_record(**(base | change)).key for change in other}


def test_headers_are_cloudevents_in_binary_mode() -> None:
    """A record carries the CloudEvents attributes as headers, and its form."""
    record = build_record("r-1", "digits", {"x": [1]}, now=1.5)
    assert record.headers == [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"r-1"),
        ("ce_source", b"/inference/client"),
        ("ce_type", b"inference.request.v1"),
        ("ce_time", b"1970-01-01T00:00:01.500000Z"),
        ("ce_subject", b"digits"),
        ("content-type", b"application/json"),
    ]


def test_binary_record_tells_its_json_length() -> None:
    """The binary form says where its JSON ends, and the rest is the tensors' raw bytes in their order."""
    record = build_record(
        "r", "m", {"x": np.array([1, 2], np.int64), "y": np.array([0.5], np.float32)}, now=0.0, binary=True
    )
    headers = dict(record.headers)
    length = int(headers["Inference-Header-Content-Length"])
    assert headers["content-type"] == b"application/octet-stream"
    assert json.loads(record.value[:length])["inputs"][0]["parameters"] == {"binary_data_size": 16}
    assert record.value[length:] == np.array([1, 2], np.int64).tobytes() + np.array([0.5], np.float32).tobytes()


@pytest.mark.parametrize(
    ("array", "is_binary"),
    [
        (np.zeros(JSON_BYTES_MAX // 4, np.float32), False),
        (np.zeros(JSON_BYTES_MAX // 4 + 1, np.float32), True),
        (np.array([np.nan], np.float32), True),
        (np.array([-np.inf], np.float64), True),
        (np.array([1], np.float16), True),
        (np.array([b"\xff"], dtype=object), True),
        (np.array(["text"]), False),
    ],
)
def test_form_is_chosen_by_size_and_content(array: npt.NDArray[Any], is_binary: bool) -> None:
    """Large tensors and those that JSON cannot carry are binary; small ones stay readable."""
    record = build_record("r", "m", {"x": array}, now=0.0)
    assert ("Inference-Header-Content-Length" in dict(record.headers)) is is_binary


def test_bf16_tensors_are_sent_as_they_are() -> None:
    """A `Tensor` may have a datatype that numpy does not have."""
    tensor = Tensor("x", "BF16", (2,), b"\x80\x3f\x00\x40")
    record = build_record("r", "m", [tensor], now=0.0)
    assert read_tensors(record) == [tensor]


@pytest.mark.parametrize(
    ("given_list", "datatype"),
    [([1, 2], "INT64"), ([0.5], "FP32"), (["a"], "BYTES"), ([True], "BOOL"), ([[1.0, 2.0]], "FP32")],
)
def test_lists_get_the_datatype_of_their_elements(given_list: list[Any], datatype: str) -> None:
    """Plain lists become the tensors that the documentation says."""
    (tensor,) = to_tensors({"x": given_list})
    assert tensor.datatype == datatype


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"model_name": ""}, ErrorCode.INVALID_REQUEST, "model_name"),
        ({"model_version": "latest"}, ErrorCode.INVALID_REQUEST, "model_version"),
        ({"request_id": "a b"}, ErrorCode.INVALID_REQUEST, "id"),
        ({"parameters": {"triton_x": 1}}, ErrorCode.INVALID_REQUEST, "triton_x"),
        ({"parameters": {"p": float("nan")}}, ErrorCode.INVALID_REQUEST, "parameters"),
        ({"parameters": {"p": object()}}, ErrorCode.INVALID_REQUEST, "JSON"),
        ({"parameters": {"p": 2**70}}, ErrorCode.INVALID_REQUEST, "64-bit"),
        ({"outputs": [""]}, ErrorCode.INVALID_REQUEST, "outputs"),
        ({"inputs": {}}, ErrorCode.INVALID_REQUEST, "inputs"),
        ({"inputs": {"x": [[1], [2, 3]]}}, ErrorCode.INVALID_INPUT, "'x'"),
        ({"inputs": {"x": np.array([1j])}}, ErrorCode.INVALID_INPUT, "complex128"),
        ({"inputs": [Tensor("x", "FP32", (2,), b"1234")]}, ErrorCode.INVALID_INPUT, "'x'"),
        ({"timeout_ms": -1}, ErrorCode.INVALID_REQUEST, "timeout_ms"),
    ],
)
def test_refused_requests_name_their_fault(change: dict[str, Any], code: ErrorCode, field: str) -> None:
    """What the worker would refuse is refused before it is sent, and the message names it."""
    arguments: dict[str, Any] = {"request_id": "r", "model_name": "m", "inputs": {"x": [1]}, "now": 0.0} | change
    with pytest.raises(WireError, match=field) as raised:
        build_record(**arguments)
    assert raised.value.code is code


def test_line_without_an_id_is_given_one() -> None:
    """A line's own text is kept; only the id is added."""
    record = record_from_json(LINE, "fresh", now=0.0)
    assert record.id == "fresh"
    assert record.value == b'{"id":"fresh",' + LINE[1:]


def test_line_keeps_its_own_id() -> None:
    """A line that brings an id is sent as it stands."""
    line = b'{"id":"own",' + LINE[1:]
    record = record_from_json(line, "fresh", now=0.0)
    assert (record.id, record.value) == ("own", line)


def test_line_and_arguments_have_one_key() -> None:
    """A request from a file meets the same worker as the same request from Python."""
    built = build_record("r", "digits", {"image": np.array([1], np.float32)}, now=0.0, binary=True)
    assert record_from_json(LINE, "r", now=0.0).key == built.key


@pytest.mark.parametrize("switch", [b"", b'"enable_cache": true, ', b'"id": null, "enable_cache": true, '])
def test_cache_switch_replaces_the_lines_own(switch: bytes) -> None:
    """`enable_cache` of a line is replaced where it is there and added where it is not."""
    record = record_from_json(b"{" + switch + LINE[1:], "fresh", now=0.0, enable_cache=False)
    request = decode_request(record.value, record.headers)
    assert (request.id, request.enable_cache) == ("fresh", False)


@pytest.mark.parametrize("line", [b"", b"null", b"[]", b"{", b'{"model_name": "m"}', b'{"inputs": NaN}'])
def test_line_that_is_no_request_is_refused(line: bytes) -> None:
    """Whatever a line holds, the outcome is a record or a WireError."""
    with pytest.raises(WireError):
        record_from_json(line, "fresh", now=0.0)
