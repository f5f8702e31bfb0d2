"""The binary form: JSON, then raw tensor bytes, the JSON's length in a header."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ErrorCode, WireError
from schemas.request import UndecodableRecordError, decode_request
from schemas.tensor import Tensor
from tests.schemas.records import FAST, Record, binary_record, binary_requests, body, minimal, raw_tensors

RAW = struct.pack("<2f", 1.5, -2.0)


def binary_input(size: Any, shape: list[int], datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    """Returns a request whose one tensor has its bytes behind the JSON."""
    tensor = {"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}, **more}
    return minimal(inputs=[tensor])


def refusal(value: bytes, headers: list[tuple[str, bytes]]) -> tuple[ErrorCode, str]:
    """Returns code and message of a record that is refused with an error result."""
    with pytest.raises(WireError) as caught:
        decode_request(value, headers).inputs[0].to_tensor()
    return caught.value.code, caught.value.message


@pytest.mark.parametrize("name", ["Inference-Header-Content-Length", "inference-header-content-length",
                                  "INFERENCE-HEADER-CONTENT-LENGTH", "iNfErEnCe-hEaDeR-CoNtEnT-LeNgTh"])  # fmt: skip
def test_header_marks_form_in_any_case(name: str) -> None:
    """The length header alone marks the binary form, in any case of its letters."""
    request = decode_request(*binary_record(binary_input(8, [2]), RAW, name))
    assert request.inputs[0].to_tensor() == Tensor("x", "FP32", (2,), RAW)


@FAST
@given(st.lists(raw_tensors(), min_size=1, max_size=4))
def test_binary_tensors_keep_every_byte(tensors: list[Tensor]) -> None:
    """All 14 datatypes come through with the very bytes sent, whatever their bits, NaN and infinities too."""
    inputs = [
        {"name": t.name, "datatype": t.datatype, "shape": list(t.shape), "parameters": {"binary_data_size": len(t.raw)}}
        for t in tensors
    ]
    record = binary_record(minimal(inputs=inputs), b"".join(t.raw for t in tensors))
    assert [given_tensor.to_tensor() for given_tensor in decode_request(*record).inputs] == tensors


@FAST
@given(binary_requests())
def test_json_and_binary_tensors_mix(record: Record) -> None:
    """Tensors with JSON data and tensors with bytes behind it may stand in one request."""
    request = decode_request(*record)
    assert all(type(tensor.to_tensor().raw) is bytes for tensor in request.inputs)


def test_header_works_without_binary_tensors() -> None:
    """The header over a record that is all JSON changes nothing."""
    assert decode_request(*binary_record(minimal(), b"")) == decode_request(body(minimal()))


def test_first_of_two_length_headers_counts() -> None:
    """Where the header is there twice, the first one counts."""
    value, headers = binary_record(binary_input(8, [2]), RAW)
    assert decode_request(value, [*headers, (headers[0][0], b"0")]) == decode_request(value, headers)


def test_other_headers_are_no_marks() -> None:
    """Other headers, also a content type of bytes, do not make a record binary."""
    headers = [("content-type", b"application/octet-stream"), ("ce_id", b"a")]
    assert decode_request(body(minimal()), headers) == decode_request(body(minimal()))


@pytest.mark.parametrize(
    "length", [b"", b"-1", b"+5", b" 5", b"5 ", b"0x10", b"1e2", b"5.0", b"\xd9\xa3", b"99999", b"9" * 5000, None]
)
def test_broken_binary_length_is_undecodable(length: bytes | None) -> None:
    """A length that is no number, absent or beyond the record goes to the dead letters."""
    headers: list[tuple[str, Any]] = [("Inference-Header-Content-Length", length)]
    with pytest.raises(UndecodableRecordError) as caught:
        decode_request(body(minimal()), headers)
    assert caught.value.reason == "BAD_BINARY_LENGTH"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("change", [-1, 1, -50])
def test_wrong_binary_length_is_no_json(change: int) -> None:
    """A length that cuts the JSON elsewhere leaves no JSON."""
    value, headers = binary_record(binary_input(8, [2]), RAW)
    with pytest.raises(UndecodableRecordError) as caught:
        decode_request(value, [(headers[0][0], str(int(headers[0][1]) + change).encode())])
    assert caught.value.reason == "NOT_JSON"


@pytest.mark.parametrize(
    ("record", "tail", "code", "message"),
    [
        (binary_input(8, [2]), RAW + b"xy", "INVALID_INPUT", "inputs: 2 bytes follow the last binary tensor"),
        (binary_input(9, [2]), RAW, "INVALID_INPUT", "inputs: 'x' claims 9 bytes of binary data, 8 are left"),
        (binary_input(-1, [2]), RAW, "INVALID_INPUT", "inputs: 'x' claims -1 bytes of binary data, 8 are left"),
        (binary_input(True, [2]), RAW, "INVALID_INPUT", "inputs: 'x' claims True bytes of binary data, 8 are left"),
        (binary_input(8.0, [2]), RAW, "INVALID_INPUT", "inputs: 'x' claims 8.0 bytes of binary data, 8 are left"),
        (binary_input("8", [2]), RAW, "INVALID_INPUT", "inputs: 'x' claims '8' bytes of binary data, 8 are left"),
        (binary_input(8, [2], data=[1, 2]), RAW, "INVALID_REQUEST", "inputs: 'x' has both data and binary_data_size"),
        (binary_input(8, [3]), RAW, "INVALID_INPUT", "tensor 'x': binary data has 8 bytes, FP32 [3] needs 12"),
        (binary_input(8, [2], "FP64"), RAW, "INVALID_INPUT", "tensor 'x': binary data has 8 bytes, FP64 [2] needs 16"),
        (minimal(), RAW, "INVALID_INPUT", "inputs: 8 bytes follow the last binary tensor"),
        (
            minimal(inputs=[{"name": "x", "datatype": "FP32", "shape": [1]}]),
            b"",
            "INVALID_INPUT",
            "tensor 'x': data must be a list, not missing or null",
        ),
    ],
)
def test_wrong_binary_sizes_are_refused(record: dict[str, Any], tail: bytes, code: str, message: str) -> None:
    """Sizes must be integers that use up exactly what follows the JSON, and fit datatype and shape."""
    assert refusal(*binary_record(record, tail)) == (ErrorCode(code), message)


def test_binary_size_without_header_is_refused() -> None:
    """A tensor that claims bytes in a record without the header is INVALID_REQUEST."""
    assert refusal(body(binary_input(8, [2])) + b"", []) == (
        ErrorCode.INVALID_REQUEST,
        "inputs: 'x' has binary_data_size, the header Inference-Header-Content-Length is absent",
    )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x01\0\0", "binary data ends inside the length of element 0"),
        (b"\x02\0\0\0a", "element 0 claims 2 bytes, 1 are left"),
        (b"\x01\0\0\0a\xff\xff\xff\xff", "element 1 claims 4294967295 bytes, 0 are left"),
        (b"\x01\0\0\0a", "binary data has 1 elements, shape [2] needs 2"),
        (b"\0\0\0\0" * 3, "binary data has 3 elements, shape [2] needs 2"),
    ],
)
def test_broken_bytes_elements_are_refused(raw: bytes, message: str) -> None:
    """The lengths inside a BYTES tensor must use up its bytes and fill its shape."""
    record = binary_record(binary_input(len(raw), [2], "BYTES"), raw)
    assert refusal(*record) == (ErrorCode.INVALID_INPUT, f"tensor 'x': {message}")
