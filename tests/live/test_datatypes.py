"""Every datatype of the protocol, in JSON and in binary, through Kafka, worker and Triton and back."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from schemas.tensor import DATATYPES
from tests.live.asking import Asking, binary_record, bytes_tensor, fresh_id

# Two rows of three: the corners of each type. JSON is None where the protocol has no JSON form.
_TEXTS = ["", "käse", "a\u0000b", "\U0001f9c0", '"', "x" * 300]
_NUMBERS: dict[str, list[Any]] = {
    "BOOL": [True, False, True, True, False, False],
    "UINT8": [0, 1, 127, 128, 254, 255],
    "UINT16": [0, 1, 255, 256, 65534, 65535],
    "UINT32": [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1],
    "UINT64": [0, 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1],
    "INT8": [-128, -127, -1, 0, 1, 127],
    "INT16": [-(2**15), -255, -1, 0, 1, 2**15 - 1],
    "INT32": [-(2**31), -65536, -1, 0, 1, 2**31 - 1],
    "INT64": [-(2**63), -(2**53) - 1, -1, 0, 1, 2**63 - 1],
    "FP32": [-0.0, 0.1, 1e-45, -3.4028234663852886e38, 16777217.0, 7.038531e-26],
    "FP64": [-0.0, 0.1, 5e-324, -1.7976931348623157e308, 2.0**53 + 2, 1 / 3],
}
_CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP32": "f", "FP64": "d",
}  # fmt: skip
_JSON_DATATYPES = [name for name in DATATYPES if name not in ("FP16", "BF16")]


@dataclass(frozen=True)
class Corners:
    """A datatype's values, as JSON and as raw bytes made by the standard library alone."""

    json: list[Any] | None
    raw: bytes


def corners(datatype: str) -> Corners:
    if datatype == "BYTES":
        return Corners(_TEXTS, bytes_tensor(*(text.encode() for text in _TEXTS)))
    if datatype == "FP16":
        return Corners(None, struct.pack("<6e", -0.0, 0.1, 6e-8, 65504.0, -1.0, 1 / 3))
    if datatype == "BF16":
        return Corners(None, bytes.fromhex("0080 803f cd3d 7f7f 0100 abbe"))
    values = _NUMBERS[datatype]
    return Corners(values, struct.pack(f"<6{_CODES[datatype]}", *values))


def request_for(datatype: str, **members: Any) -> dict[str, Any]:
    name = datatype.lower()
    tensor = {"name": name, "datatype": datatype, "shape": [2, 3]}
    return {
        "id": fresh_id(),
        "model_name": "echo",
        "inputs": [tensor],
        "outputs": [{"name": f"{name}_echo"}],
        **members,
    }


@pytest.mark.parametrize("datatype", _JSON_DATATYPES)
async def test_json_values_come_back_bit_for_bit(asking: Asking, datatype: str) -> None:
    """Values sent as JSON, flat or nested, come back as JSON and are the same bits when they are read."""
    expected = corners(datatype)
    request = request_for(datatype)
    assert expected.json is not None
    flat = await asking.ask({**request, "inputs": [{**request["inputs"][0], "data": expected.json}]})
    nested = [expected.json[:3], expected.json[3:]]
    again = await asking.ask({**request, "id": fresh_id(), "inputs": [{**request["inputs"][0], "data": nested}]})
    for answer in (flat, again):
        assert answer.status == "succeeded", answer.message
        assert answer.header("content-type") == "application/json"
        output = answer.result.output(f"{datatype.lower()}_echo")
        assert (output.datatype, output.shape) == (datatype, (2, 3))
        assert output.raw == expected.raw
    assert again.result.parameters.cache_key == flat.result.parameters.cache_key


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_binary_values_come_back_bit_for_bit(asking: Asking, datatype: str) -> None:
    """Raw bytes that are sent come back the same, as raw bytes where that is asked for."""
    expected = corners(datatype)
    request = request_for(datatype, parameters={"binary_data_output": True})
    value, headers = binary_record(request, [expected.raw])
    answer = await asking.answer(await asking.send(value, headers=headers))
    assert answer.status == "succeeded", answer.message
    assert answer.header("content-type") == "application/octet-stream"
    length = int(answer.header("Inference-Header-Content-Length") or "0")
    assert answer.record.value[length:] == expected.raw
    assert answer.result.output(f"{datatype.lower()}_echo").raw == expected.raw


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
async def test_binary_only_datatype_in_json_is_refused(asking: Asking, datatype: str) -> None:
    """FP16 and BF16 travel in binary only, as the protocol says."""
    request = request_for(datatype)
    answer = await asking.ask({**request, "inputs": [{**request["inputs"][0], "data": [1.0] * 6}]})
    assert (answer.status, answer.error) == ("failed", "INVALID_INPUT")
    assert datatype in answer.message


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
async def test_output_without_json_form_comes_in_binary(asking: Asking, datatype: str) -> None:
    """An output that JSON cannot carry comes as raw bytes although nobody asked for them."""
    expected = corners(datatype)
    value, headers = binary_record(request_for(datatype), [expected.raw])
    answer = await asking.answer(await asking.send(value, headers=headers))
    assert answer.header("content-type") == "application/octet-stream"
    assert answer.result.output(f"{datatype.lower()}_echo").raw == expected.raw


async def test_nan_and_infinity_are_legal_in_binary(asking: Asking) -> None:
    """NaN with its payload and both infinities go through in binary, bit for bit."""
    raw = struct.pack("<6I", 0x7FC00001, 0xFFC00000, 0x7F800000, 0xFF800000, 0x3F800000, 0x80000000)
    value, headers = binary_record(request_for("FP32"), [raw])
    answer = await asking.answer(await asking.send(value, headers=headers))
    assert answer.status == "succeeded", answer.message
    assert answer.result.output("fp32_echo").raw == raw


async def test_bytes_that_are_no_text_come_in_binary(asking: Asking) -> None:
    """BYTES elements that are not UTF-8 come back as they are."""
    raw = bytes_tensor(b"\xff\xfe", b"", b"\x00", b"abc", b"\x80" * 200, b"\n")
    value, headers = binary_record(request_for("BYTES"), [raw])
    answer = await asking.answer(await asking.send(value, headers=headers))
    assert answer.header("content-type") == "application/octet-stream"
    assert answer.result.output("bytes_echo").raw == raw


async def test_one_output_of_two_in_binary(asking: Asking) -> None:
    """Each output has the form that is asked for it, in the order that is asked."""
    tensors = [
        {"name": "int32", "datatype": "INT32", "shape": [1, 2], "data": [1, -1]},
        {"name": "fp32", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.25]},
    ]
    outputs = [{"name": "fp32_echo", "parameters": {"binary_data": True}}, {"name": "int32_echo"}]
    answer = await asking.ask({"id": fresh_id(), "model_name": "echo", "inputs": tensors, "outputs": outputs})
    assert answer.status == "succeeded", answer.message
    assert answer.result.outputs is not None
    assert [output.name for output in answer.result.outputs] == ["fp32_echo", "int32_echo"]
    assert answer.result.outputs[0].data == struct.pack("<2f", 0.5, 0.25)
    assert answer.result.outputs[1].data == [1, -1]


async def test_json_and_binary_of_one_meaning_share_an_answer(asking: Asking) -> None:
    """The same values in JSON, with integers for floats, and in binary have one key: the second is a hit."""
    values = [3.0, float(np.float32(fresh_number())), -0.5]
    tensor = {"name": "fp32", "datatype": "FP32", "shape": [1, 3]}
    request = {"model_name": "echo", "outputs": [{"name": "fp32_echo"}], "inputs": [tensor]}
    first = await asking.ask({**request, "id": fresh_id(), "inputs": [{**tensor, "data": [3, *values[1:]]}]})
    value, headers = binary_record({**request, "id": fresh_id()}, [struct.pack("<3f", *values)])
    second = await asking.answer(await asking.send(value, headers=headers))
    assert (first.cache_status, second.cache_status) == ("miss", "hit")
    assert first.result.parameters.cache_key == second.result.parameters.cache_key


def fresh_number() -> float:
    return int(fresh_id("n")[2:10], 16) / 7
