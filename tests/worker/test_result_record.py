"""What stands in a result record: the values that went in, in the form that was asked for."""

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.answer import Answer, failed, stored_answer
from pipeline.core.exchange import Exchange
from pipeline.core.result_record import ResultRecord, binary_outputs, encode_result
from schemas.decoded import DecodedRequest
from schemas.errors import ErrorCode, WireError
from schemas.request import decode_request
from schemas.result import InferenceResult, decode_result
from schemas.tensor import Tensor
from tests.schemas.records import TEXTS, raw_tensors

FAST = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOW = 1_795_384_800.25
# What breaks records that are put together from text.
AWKWARD = ['"', "\\", 'a"b\\c', "\n\t\x00\x1f", "ü€🙂", "\u2028", "%s%b", "{}", "</script>", "\x7f"]


def an_exchange(request: DecodedRequest | None = None, **changes: Any) -> Exchange:
    """A completed exchange."""
    exchange = Exchange(
        topic="inference.requests", partition=3, offset=41, timestamp_ms=int(NOW * 1000) - 20, key=b"k",
        taken_at=NOW - 0.01, request_id="r-1", model_name="adder", request=request, requested_at=NOW - 1,
        digest="ab" * 16, tenant=request.tenant if request is not None else None,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(exchange, name, value)
    exchange.complete(NOW)
    return exchange


def encoded(answer: Answer, exchange: Exchange | None = None, worker: str = "w-1") -> ResultRecord:
    """The record of an answer."""
    return encode_result(exchange or an_exchange(), answer, json.dumps(worker).encode(), b"group")


def decoded(record: ResultRecord) -> InferenceResult:
    """The record as a reader of the topic sees it."""
    return decode_result(record.value, record.headers)


def succeeded(*tensors: Tensor, **changes: Any) -> Answer:
    """An answer with these outputs."""
    return Answer("succeeded", "2", stored_answer(tensors, stored_at=1.0, instance="t"), **changes)


def asking(**members: Any) -> DecodedRequest:
    """A request with these members."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5]}
    return decode_request(json.dumps({"model_name": "adder", "inputs": [tensor], **members}).encode())


@st.composite
def output_tensors(draw: st.DrawFn) -> list[Tensor]:
    """Outputs of a model: any datatypes, any bytes, names of their own."""
    tensors = draw(st.lists(raw_tensors(), min_size=0, max_size=3))
    return [
        Tensor(f"{index}{tensor.name}", tensor.datatype, tensor.shape, tensor.raw)
        for index, tensor in enumerate(tensors)
    ]


@FAST
@given(output_tensors(), st.sampled_from(["json", "all", "some"]))
def test_outputs_come_back_as_they_were(tensors: list[Tensor], form: str) -> None:
    """Whatever form was asked for, a reader gets the very bytes that the model answered."""
    request = asking()
    if form == "all":
        request = asking(parameters={"binary_data_output": True})
    elif form == "some":
        outputs = [{"name": t.name, "parameters": {"binary_data": index % 2 == 0}} for index, t in enumerate(tensors)]
        request = asking(outputs=outputs)
    record = encoded(succeeded(*tensors), an_exchange(request))
    result = decoded(record)
    assert [output.to_tensor() for output in result.outputs or ()] == tensors
    for index, output in enumerate(result.outputs or ()):
        wanted = form == "all" or (form == "some" and index % 2 == 0)
        assert ("binary_data_size" in output.parameters) or not wanted


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({}, []),
        ({"parameters": {"binary_data_output": True}}, ["a", "b"]),
        ({"parameters": {"binary_data_output": False}}, []),
        ({"parameters": {"binary_data_output": "true"}}, []),
        ({"outputs": [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}]}, ["a"]),
        ({"parameters": {"binary_data_output": True}, "outputs": [{"name": "a"}, {"name": "b"}]}, ["a", "b"]),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}],
            },
            ["b"],
        ),
        ({"parameters": {"binary_data_output": True}, "outputs": []}, ["a", "b"]),
    ],
)
def test_binary_form_is_asked_for_per_output(members: dict[str, Any], wanted: list[str]) -> None:
    """`binary_data_output` speaks for all outputs, an output's own `binary_data` for itself, as in the protocol."""
    tensors = [Tensor(name, "INT16", (1,), b"\1\0") for name in "ab"]
    result = decoded(encoded(succeeded(*tensors), an_exchange(asking(**members))))
    assert [t.name for t in result.outputs or () if "binary_data_size" in t.parameters] == wanted


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("t", "FP16", (1,), b"\0\x3c"),
        Tensor("t", "BF16", (1,), b"\x80\x3f"),
        Tensor("t", "FP32", (2,), struct.pack("<2f", math.nan, math.inf)),
        Tensor("t", "BYTES", (1,), b"\2\0\0\0\xff\xfe"),
    ],
)
def test_what_json_cannot_carry_is_binary(tensor: Tensor) -> None:
    """FP16, BF16, NaN, infinities and bytes that are no text come in binary though nobody asked for it."""
    plain = Tensor("n", "INT64", (2,), struct.pack("<2q", -(2**63), 2**63 - 1))
    record = encoded(succeeded(plain, tensor))
    assert record.is_binary
    assert dict(record.headers)["content-type"] == b"application/octet-stream"
    assert dict(record.headers)["Inference-Header-Content-Length"] == b"%d" % record.json_bytes
    result = decoded(record)
    assert result.output("t") == tensor
    assert result.output("n") == plain
    assert json.loads(record.value[: record.json_bytes])["outputs"][0]["data"] == [-(2**63), 2**63 - 1]


def test_json_form_is_flat_and_unmarked() -> None:
    """A JSON result is one JSON object with flat data, and no header that says otherwise."""
    record = encoded(succeeded(Tensor("label", "INT64", (2, 2), struct.pack("<4q", 1, 2, 3, 4))))
    assert not record.is_binary
    assert dict(record.headers)["content-type"] == b"application/json"
    assert "Inference-Header-Content-Length" not in dict(record.headers)
    assert json.loads(record.value)["outputs"] == [
        {"name": "label", "datatype": "INT64", "shape": [2, 2], "data": [1, 2, 3, 4]}
    ]


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_stays_itself(text: str) -> None:
    """Quotes, backslashes, control characters and other scripts survive in every place that holds text."""
    answer = succeeded(Tensor(text, "INT16", (1,), b"\1\0"), cache_status="miss", key=b"k" * 32, instance=text)
    record = encoded(answer, an_exchange(asking(model_name=text), model_name=text), worker=text)
    result = decoded(record)
    assert (result.model_name, result.parameters.worker, result.parameters.instance) == (text, text, text)
    assert [output.name for output in result.outputs or ()] == [text]
    assert dict(record.headers)["ce_subject"].decode() == text
    told = decoded(encoded(failed(WireError(ErrorCode.INVALID_REQUEST, text))))
    assert told.error is not None
    assert told.error.message == text


@FAST
@given(TEXTS, TEXTS, st.sampled_from(list(ErrorCode)))
def test_every_error_decodes_again(model: str, message: str, code: ErrorCode) -> None:
    """An error result carries code, message and whether to retry; EXPIRED is a status of its own."""
    answer = failed(WireError(code, message), "miss", "7")
    result = decoded(encoded(answer, an_exchange(model_name=model)))
    assert result.error is not None
    assert (result.error.code, result.error.message, result.error.retryable) == (code, message, code.retryable)
    assert result.status == ("expired" if code is ErrorCode.EXPIRED else "failed")
    assert (result.model_name, result.model_version, result.outputs) == (model, "7", None)


def test_absent_members_are_absent() -> None:
    """Where there is nothing to say nothing stands: no null, no empty text."""
    record = json.loads(encoded(failed(WireError(ErrorCode.MODEL_NOT_FOUND, "no"))).value)
    assert set(record) == {"id", "model_name", "status", "error", "parameters", "requested_at", "completed_at"}
    assert set(record["parameters"]) == {"queue_ms", "total_ms", "worker"}
    hit = json.loads(encoded(succeeded(cache_status="hit", key=b"\1" * 32, age_s=0.8129)).value)
    assert hit["outputs"] == []
    assert hit["parameters"]["cache_age_ms"] == 812
    assert hit["parameters"]["cache_key"] == "01" * 32
    assert hit["parameters"]["inference_ms"] == 0.0
    assert "null" not in json.dumps(hit)


def test_headers_are_what_readers_rely_on() -> None:
    """CloudEvents attributes, and the four headers by which a worker finds what it answered before."""
    headers = dict(encoded(succeeded(), an_exchange(traceparent=b"00-" + b"1" * 52)).headers)
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": b"r-1",
        "ce_source": b"/inference/worker",
        "ce_type": b"inference.result.v1",
        "ce_time": b"2026-11-22T22:00:00.250000Z",
        "ce_subject": b"adder",
        "request-offset": b"41",
        "request-timestamp": b"1795384800230",
        "request-digest": b"ab" * 16,
        "worker-group": b"group",
        "traceparent": b"00-" + b"1" * 52,
        "content-type": b"application/json",
    }


def test_times_are_never_negative() -> None:
    """Clocks that disagree give durations of zero, not negative ones."""
    exchange = an_exchange()
    exchange.timestamp_ms = int(NOW * 1000) + 5000
    exchange.complete(NOW)
    result = decoded(encoded(succeeded(), exchange))
    assert result.parameters.queue_ms == result.parameters.total_ms == 0.0


def test_no_request_asks_for_no_binary() -> None:
    """An error of a record that is no request is JSON."""
    assert binary_outputs(None) == frozenset()


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BYTES", "BOOL", "FP64", "UINT8"])
def test_outputs_without_elements_decode(datatype: str) -> None:
    """An output without elements is one, in JSON too."""
    empty = Tensor("t", datatype, (1, 0), b"")
    assert decoded(encoded(succeeded(empty))).output("t") == empty


def test_large_outputs_are_encoded_when_asked() -> None:
    """Outputs too large for their JSON text to be kept are the same to their reader."""
    large = Tensor("t", "FP32", (1, 40_000), struct.pack("<40000f", *map(float, range(40_000))))
    answer = succeeded(large)
    assert answer.outputs is not None
    assert answer.outputs.json is None
    assert decoded(encoded(answer)).output("t") == large
