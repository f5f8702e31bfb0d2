"""Whatever bytes arrive, decoding ends in a request or in one of its two errors."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import WireError
from schemas.request import UndecodableRecordError, decode_request, is_request_id, normalized_ip, readable_request
from schemas.result import decode_result, json_object_length
from schemas.tensor import json_from_raw, to_numpy
from tests.schemas.records import FAST, Record, body, hostile_records, minimal


def use(value: bytes | None, headers: list[tuple[str, Any]]) -> type[Exception] | None:
    """Decodes a record and reads all of it; returns the type of the error it ends in."""
    try:
        request = decode_request(value, headers)
        for given_tensor in request.inputs:
            tensor = given_tensor.to_tensor()
            to_numpy(tensor)
            json_from_raw(tensor)
        if request.source_ip is not None:
            normalized_ip(request.source_ip)
    except (WireError, UndecodableRecordError) as error:
        return type(error)
    return None


@settings(FAST, max_examples=400)
@given(hostile_records())
def test_broken_records_end_in_two_errors(record: Record) -> None:
    """A valid record broken anywhere is refused with WireError or UndecodableRecordError, or is still a request."""
    use(*record)


@FAST
@given(st.binary(max_size=200), st.none() | st.binary(max_size=8))
def test_random_bytes_end_in_two_errors(value: bytes, length: bytes | None) -> None:
    """Random bytes with a random length header are never anything but an UndecodableRecordError."""
    assert use(value, [("Inference-Header-Content-Length", length)]) is UndecodableRecordError


@FAST
@given(hostile_records())
def test_broken_records_have_usable_names_or_none(record: Record) -> None:
    """Id and model name of a broken record are usable ones or None; looking for them never fails."""
    request_id, model_name, _ = readable_request(record[0])
    assert request_id is None or is_request_id(request_id)
    assert model_name is None or len(model_name) <= 256


@FAST
@given(hostile_records())
def test_broken_results_raise_value_error_only(record: Record) -> None:
    """A reader of results meets ValueError and nothing else."""
    for read in (lambda: decode_result(*record), lambda: json_object_length(record[0])):
        with contextlib.suppress(ValueError):
            read()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (minimal(inputs=[0] * 100_000), "inputs[0]: Input should be an object, got 0"),
        (minimal(outputs=[0] * 100_000), "outputs[0]: Input should be an object, got 0"),
        (
            minimal(inputs=[{"name": "x", "datatype": "FP32", "shape": [-1] * 100_000, "data": []}]),
            "inputs[0].shape[0]: Input should be greater than or equal to 0, got -1",
        ),
        (
            minimal(parameters={str(number): [] for number in range(100_000)}),
            "parameters: '0' must be a string, a boolean or a finite number, got []",
        ),
        ({str(number): 0 for number in range(100_000)}, "100002 members of the record are wrong or unknown"),
    ],
    ids=["inputs", "outputs", "shape", "parameters", "unknown members"],
)
def test_many_mistakes_are_not_all_reported(record: dict[str, Any], message: str) -> None:
    """Of a hundred thousand mistakes the first is named; a report of each would hold up the worker for seconds."""
    with pytest.raises(WireError) as caught:
        decode_request(body(record))
    assert caught.value.message == message
