"""Results: what readers make of a result record."""

import json
import struct
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ErrorCode, WireError
from schemas.result import decode_result, json_object_length
from schemas.tensor import Tensor, json_from_raw
from tests.schemas.records import FAST, binary_record, body, raw_tensors


def result(**changes: Any) -> dict[str, Any]:
    """Returns the smallest result, with members changed or added."""
    completed_at = "2026-11-22T22:00:00.125656Z"
    return {"id": "a-1", "model_name": "digits", "status": "succeeded", "completed_at": completed_at, **changes}


def output(tensor: Tensor, name: str) -> tuple[dict[str, Any], bytes]:
    """Returns an output as a worker writes it, in JSON where that can carry it, and the bytes behind the JSON."""
    head: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    text = json_from_raw(tensor)
    if text is None:
        return {**head, "parameters": {"binary_data_size": len(tensor.raw)}}, tensor.raw
    return {**head, "data": json.loads(text)}, b""


@FAST
@given(st.lists(raw_tensors(), max_size=4))
def test_outputs_come_back_bit_for_bit(tensors: list[Tensor]) -> None:
    """Every output, in JSON or behind it, comes back with its bits."""
    written = [output(tensor, str(index)) for index, tensor in enumerate(tensors)]
    record = binary_record(result(outputs=[head for head, _ in written]), b"".join(tail for _, tail in written))
    found = decode_result(*record)
    assert [found.output(str(index)) for index in range(len(tensors))] == [
        Tensor(str(index), tensor.datatype, tensor.shape, tensor.raw) for index, tensor in enumerate(tensors)
    ]


def test_failed_result_has_its_error() -> None:
    """A failed result has code, message and whether a retry can help, and no outputs."""
    error = {"code": "OVERLOADED", "message": "try later", "retryable": True}
    found = decode_result(body(result(status="failed", error=error)))
    assert found.error is not None
    assert (found.error.code, found.error.message, found.error.retryable, found.outputs) == (
        ErrorCode.OVERLOADED, "try later", True, None,
    )  # fmt: skip


def test_newer_members_are_ignored() -> None:
    """A reader takes results of a newer writer: members that it does not know do no harm."""
    parameters = {"cache_status": "hit", "later": [1]}
    found = decode_result(body(result(later={"a": 1}, parameters=parameters)))
    assert (found.parameters.cache_status, found.completed_at) == (
        "hit",
        datetime(2026, 11, 22, 22, 0, 0, 125656, UTC),
    )


def test_unknown_output_is_key_error() -> None:
    """Asking for an output that is not there names it."""
    with pytest.raises(KeyError, match="probabilities"):
        decode_result(body(result(outputs=[]))).output("probabilities")


def test_output_with_wrong_bytes_is_refused() -> None:
    """An output whose bytes do not fit its shape is refused, not read past its end."""
    head = {"name": "x", "datatype": "FP32", "shape": [3], "parameters": {"binary_data_size": 8}}
    with pytest.raises(WireError) as caught:
        decode_result(*binary_record(result(outputs=[head]), bytes(8))).output("x")
    assert caught.value.message == "tensor 'x': binary data has 8 bytes, FP32 [3] needs 12"


@pytest.mark.parametrize(
    "value",
    [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000, body({}), body(result(status="done")), body(result(id=None)),
     body(result(completed_at="2026-11-22T22:00:00")), body(result(error={"code": "OOPS"})), body(result()) + b"x"],
    ids=["empty", "open", "list", "number", "latin", "deep", "no members", "status", "id", "zone", "error", "tail"],
)  # fmt: skip
def test_no_result_is_value_error(value: bytes) -> None:
    """What is not a result record raises ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's and our own sentences
        decode_result(value)


@pytest.mark.parametrize("length", [None, b"", b"-4", b"x", b"999999", b"9" * 5000])
def test_broken_length_header_is_value_error(length: bytes | None) -> None:
    """A length header that is no length within the record raises ValueError."""
    headers: list[tuple[str, Any]] = [("inference-header-content-length", length)]
    with pytest.raises(ValueError, match="Inference-Header-Content-Length is "):
        decode_result(body(result()), headers)


@pytest.mark.parametrize("sizes", [(-4, 8), (9, -5), (True, 3), (4.0, 0), (5, 0), (3, 0)])
def test_binary_sizes_must_use_up_the_tail(sizes: tuple[Any, Any]) -> None:
    """Sizes that are negative, no integers, too large or too small raise ValueError, also where their sum fits."""
    outputs = [
        {"name": str(size), "datatype": "UINT8", "shape": [4], "parameters": {"binary_data_size": size}}
        for size in sizes
    ]
    with pytest.raises(ValueError, match=r"^result 'a-1': "):
        decode_result(*binary_record(result(outputs=outputs), bytes(4)))


@FAST
@given(st.binary(max_size=20), st.text(max_size=10))
def test_json_part_ends_where_tail_begins(tail: bytes, text: str) -> None:
    """The length of the JSON is found without the header, whatever bytes follow it and whatever text is in it."""
    json_part = json.dumps(result(model_name=text), ensure_ascii=False).encode("utf-8", "replace")
    assert json_object_length(json_part + tail) == len(json_part)


@pytest.mark.parametrize("value", [b"", b"[1]", b'"{}"', b"7", b" {}", b"{", b'{"a":' + b"[" * 100_000])
def test_no_json_object_has_no_length(value: bytes) -> None:
    """Bytes that do not begin with a JSON object raise ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011 - the decoder's sentences and our own
        json_object_length(value)


def test_output_reads_as_an_array() -> None:
    """An output in JSON has the raw form that numpy reads."""
    head = {"name": "x", "datatype": "FP32", "shape": [2], "data": [0.1, -0.0]}
    found = decode_result(body(result(outputs=[head]))).output("x")
    assert found.raw == np.array([0.1, -0.0], "<f4").tobytes() == struct.pack("<2f", 0.1, -0.0)
