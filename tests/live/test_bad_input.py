"""What is wrong with a request is said to its sender, and its partition goes on."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from aiokafka import ConsumerRecord

from tests.live.asking import Answered, Asking, Sent, binary_record, echo_request, fresh_id, fresh_value
from tests.live.topics import Headers, header
from tests.live.triton_statistics import TritonStatistics
from tests.live.waiting import until

PARTITION = 2


async def ask_bad(asking: Asking, value: bytes, headers: Headers = ()) -> Answered:
    """A bad record's answer, once the record after it in its partition was answered too."""
    bad = await asking.send(value, headers=headers, partition=PARTITION)
    await goes_on(asking)
    return await asking.answer(bad)


async def goes_on(asking: Asking) -> None:
    """A good request in the same partition is answered."""
    good = await asking.ask(echo_request(), partition=PARTITION)
    assert good.status == "succeeded", good.message


def changed(**members: Any) -> dict[str, Any]:
    """A good request with other members; `...` leaves one out."""
    request = {**echo_request(), **members}
    return {name: value for name, value in request.items() if value is not ...}


def with_tensor(**members: Any) -> dict[str, Any]:
    """A good request with other members in its tensor."""
    request = echo_request()
    return {**request, "inputs": [{**request["inputs"][0], **members}]}


BAD: dict[str, tuple[Mapping[str, Any], str, str]] = {
    "unknown member": (changed(modle="x"), "INVALID_REQUEST", "modle"),
    "unknown tensor member": (with_tensor(dtype="FP32"), "INVALID_REQUEST", "dtype"),
    "no model": (changed(model_name=...), "INVALID_REQUEST", "model_name"),
    "no inputs": (changed(inputs=...), "INVALID_REQUEST", "inputs"),
    "empty inputs": (changed(inputs=[]), "INVALID_REQUEST", "inputs"),
    "switch is text": (changed(enable_cache="no"), "INVALID_REQUEST", "enable_cache"),
    "negative timeout": (changed(timeout_ms=-1), "INVALID_REQUEST", "timeout_ms"),
    "time without a zone": (changed(requested_at="2026-11-22T22:00:00"), "INVALID_REQUEST", "requested_at"),
    "no address": (changed(source_ip="home"), "INVALID_REQUEST", "source_ip"),
    "parameter is a list": (changed(parameters={"p": [1]}), "INVALID_REQUEST", "p"),
    "shared memory": (changed(parameters={"shared_memory_region": "r"}), "INVALID_REQUEST", "shared_memory_region"),
    "headers parameter": (changed(parameters={"headers": "x"}), "INVALID_REQUEST", "headers"),
    "triton parameter": (changed(parameters={"triton_enable_x": True}), "INVALID_REQUEST", "triton_enable_x"),
    "unknown output": (changed(outputs=[{"name": "nothing"}]), "INVALID_REQUEST", "nothing"),
    "max-age is a word": (changed(cache_control="max-age=soon"), "INVALID_REQUEST", "max-age"),
    "unknown model": (changed(model_name="nobody"), "MODEL_NOT_FOUND", "nobody"),
    "unknown version": (changed(model_version="99"), "VERSION_NOT_FOUND", "99"),
    "unknown input": (with_tensor(name="other"), "INVALID_INPUT", "other"),
    "other datatype": (with_tensor(datatype="INT64", data=[1]), "INVALID_INPUT", "INT64"),
    "one dimension more": (with_tensor(shape=[1, 1, 1]), "INVALID_INPUT", "shape"),
    "more rows than a batch": (with_tensor(shape=[9, 1], data=[1.0] * 9), "INVALID_INPUT", "shape"),
    "no rows": (with_tensor(shape=[0, 1], data=[]), "INVALID_INPUT", "shape"),
    "too few values": (with_tensor(shape=[1, 2], data=[1.0]), "INVALID_INPUT", "data"),
    "too many values": (with_tensor(shape=[1, 2], data=[1.0, 2.0, 3.0]), "INVALID_INPUT", "data"),
    "no data": (with_tensor(data=...), "INVALID_INPUT", "data"),
    "text for a number": (with_tensor(data=["1"]), "INVALID_INPUT", "data[0]"),
    "null for a number": (with_tensor(data=[None]), "INVALID_INPUT", "data[0]"),
    "fraction for an integer": (
        with_tensor(name="int32", datatype="INT32", data=[1.5]),
        "INVALID_INPUT",
        "data[0]",
    ),
    "out of UINT8's range": (with_tensor(name="uint8", datatype="UINT8", data=[256]), "INVALID_INPUT", "256"),
    "below UINT64's range": (with_tensor(name="uint64", datatype="UINT64", data=[-1]), "INVALID_INPUT", "-1"),
    "out of FP32's range": (with_tensor(data=[1e39]), "INVALID_INPUT", "data[0]"),
    "size without binary header": (
        with_tensor(data=..., parameters={"binary_data_size": 4}),
        "INVALID_REQUEST",
        "binary_data_size",
    ),
    "webhook address is a number": (changed(callback={"url": 1}), "INVALID_REQUEST", "callback"),
    "foreign reply topic": (changed(reply_to={"topic": "elsewhere", "partition": 0}), "INVALID_REQUEST", "elsewhere"),
    "reply partition past the end": (changed(reply_to={"partition": 99}), "INVALID_REQUEST", "99"),
}


@pytest.mark.parametrize("case", BAD)
async def test_invalid_request_gets_its_error(asking: Asking, case: str) -> None:
    """A request that cannot be served is answered under its id with the code of its fault, naming it."""
    request, code, named = BAD[case]
    tensors = [
        {name: value for name, value in tensor.items() if value is not ...} for tensor in request.get("inputs", [])
    ]
    body = {**request, "id": fresh_id(), **({"inputs": tensors} if "inputs" in request else {})}
    answer = await ask_bad(asking, orjson.dumps(body))
    assert (answer.status, answer.error) == ("failed", code), answer.message
    assert named in answer.message
    assert answer.result.id == body["id"]
    assert answer.result.error is not None
    assert not answer.result.error.retryable
    assert answer.result.outputs is None
    assert not nulls(json.loads(answer.record.value)), "a member is null instead of absent"


def nulls(value: Any) -> bool:
    """Whether a null is anywhere in a JSON value."""
    if isinstance(value, dict | list):
        return any(map(nulls, value.values() if isinstance(value, dict) else value))
    return value is None


async def test_input_of_another_model_is_named_missing(asking: Asking) -> None:
    """An input that the model needs and the request lacks is named."""
    tensor = {"name": "picture", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}
    answer = await asking.ask({"id": fresh_id(), "model_name": "digits", "inputs": [tensor]})
    assert answer.error == "INVALID_INPUT"
    assert "picture" in answer.message
    assert "image" in answer.message


async def test_number_beyond_doubles_is_invalid_input(asking: Asking) -> None:
    """1e999 is a JSON number that FP32 cannot hold: INVALID_INPUT, as the contract says."""
    body = orjson.dumps(with_tensor(data=[7777.5])).replace(b"7777.5", b"1e999")
    answer = await ask_bad(asking, body)
    assert (answer.status, answer.error) == ("failed", "INVALID_INPUT")


async def test_binary_size_past_the_record_is_invalid_input(asking: Asking) -> None:
    """A tensor that claims more bytes than follow the JSON is refused."""
    value, headers = binary_record(echo_request(), [b"\0" * 4])
    answer = await ask_bad(asking, value[:-1], headers)
    assert (answer.status, answer.error) == ("failed", "INVALID_INPUT")


async def test_bytes_behind_the_last_tensor_are_refused(asking: Asking) -> None:
    """Bytes that belong to no tensor are refused."""
    value, headers = binary_record(echo_request(), [b"\0" * 4])
    answer = await ask_bad(asking, value + b"\0", headers)
    assert (answer.status, answer.error) == ("failed", "INVALID_INPUT")


UNDECODABLE: dict[str, tuple[bytes | None, Headers, str]] = {
    "not JSON": (b"hello \xff", (), "NOT_JSON"),
    "half an object": (b'{"id": "x"', (), "NOT_JSON"),
    "array": (b"[1, 2]", (), "NOT_JSON"),
    "text": (b'"hello"', (), "NOT_JSON"),
    "number": (b"1", (), "NOT_JSON"),
    "null": (b"null", (), "NOT_JSON"),
    "NaN literal": (orjson.dumps(with_tensor(data=[7777.5])).replace(b"7777.5", b"NaN"), (), "NOT_JSON"),
    "Infinity literal": (orjson.dumps(with_tensor(data=[7777.5])).replace(b"7777.5", b"-Infinity"), (), "NOT_JSON"),
    "tombstone": (None, (), "TOMBSTONE"),
    "length is a word": (
        orjson.dumps(echo_request()),
        [("inference-header-content-length", b"ten")],
        "BAD_BINARY_LENGTH",
    ),
    "length past the end": (
        orjson.dumps(echo_request()),
        [("INFERENCE-HEADER-CONTENT-LENGTH", b"99999")],
        "BAD_BINARY_LENGTH",
    ),
}


def is_letter_of(asking: Asking, sent: Sent, record: ConsumerRecord) -> bool:
    place = (asking.settings.topic("requests"), str(sent.partition), str(sent.offset))
    return tuple(header(record, f"source-{part}") for part in ("topic", "partition", "offset")) == place


@pytest.mark.parametrize("case", UNDECODABLE)
async def test_undecodable_record_goes_to_the_dead_letters(asking: Asking, case: str) -> None:
    """What is no JSON object goes to the dead letters, bytes and headers as they were, and gets no result."""
    value, headers, reason = UNDECODABLE[case]
    sent = await asking.send(value, headers=[*headers, ("trace", b"\x00\xff")], key=b"k", partition=PARTITION)
    await goes_on(asking)
    letter = await asking.dead_letters.first(
        lambda record: is_letter_of(asking, sent, record), 10, f"the dead letter of {case}"
    )
    assert letter.value == value
    assert letter.key == b"k"
    assert ("trace", b"\x00\xff") in letter.headers
    assert set(headers) <= set(letter.headers)
    assert header(letter, "reason") == reason
    assert header(letter, "error")
    answered = [header(record, "request-offset") for record in asking.results.records if record.partition == PARTITION]
    assert str(sent.offset) not in answered


@pytest.mark.parametrize("case", ["not JSON", "tombstone", "length is a word"])
async def test_undecodable_record_with_ce_id_gets_an_error_too(asking: Asking, case: str) -> None:
    """Where the header ce_id names a request that cannot be read, its sender hears of it, besides the dead letter."""
    value, headers, _ = UNDECODABLE[case]
    name = fresh_id("ce")
    # With a key, which is all that a record without a value has.
    sent = await asking.send(value, headers=[*headers, ("ce_id", name.encode())], key=b"k", partition=PARTITION)
    answer = await asking.answer(sent)
    assert (answer.result.id, answer.status, answer.error) == (name, "failed", "INVALID_REQUEST")
    assert answer.header("ce_id") == name
    await asking.dead_letters.first(lambda record: is_letter_of(asking, sent, record), 10, f"the dead letter of {case}")


async def test_ce_id_counts_for_nothing_beside_a_readable_body(asking: Asking) -> None:
    """A JSON object is answered under its own id, whatever ce_id says."""
    request = echo_request()
    answer = await asking.ask(request, headers=[("ce_id", b"somebody-else")])
    assert answer.result.id == request["id"]


@pytest.mark.parametrize("bad_id", ["with space", "", "x" * 129, "ümlaut", 7])
async def test_invalid_id_is_answered_under_its_place(asking: Asking, bad_id: object) -> None:
    """A request whose id cannot be one is answered as `topic:partition:offset`."""
    sent = await asking.send(orjson.dumps(echo_request(id=bad_id)), partition=PARTITION)
    await goes_on(asking)
    answer = await asking.answer(sent)
    assert (answer.status, answer.error) == ("failed", "INVALID_REQUEST")
    assert answer.result.id == f"{asking.settings.topic('requests')}:{sent.partition}:{sent.offset}"
    assert "id" in answer.message


async def test_absent_id_is_the_records_place(asking: Asking) -> None:
    """A request without an id is served, and answered as `topic:partition:offset`."""
    request = echo_request()
    del request["id"]
    sent = await asking.send(orjson.dumps(request))
    answer = await asking.answer(sent)
    assert answer.status == "succeeded"
    assert answer.result.id == f"{asking.settings.topic('requests')}:{sent.partition}:{sent.offset}"


async def test_own_id_in_the_form_of_a_place_is_refused(asking: Asking) -> None:
    """Nobody can take the id of another's record: such an id is refused, and answered under the record's own place."""
    taken = f"{asking.settings.topic('requests')}:0:0"
    sent = await asking.send(orjson.dumps(echo_request(id=taken)), partition=PARTITION)
    answer = await asking.answer(sent)
    assert (answer.status, answer.error) == ("failed", "INVALID_REQUEST")
    assert answer.result.id == f"{asking.settings.topic('requests')}:{sent.partition}:{sent.offset}"


async def test_result_whose_json_is_past_the_record_limit_is_binary(asking: Asking) -> None:
    """What fits a record in binary form alone comes in it, asked for or not, and is a hit for who asks for it."""
    # 160 kB of doubles are 400 kB of JSON; the limit here is 256 KiB.
    raw = bytes(range(1, 201)) * 800
    request = {
        "id": fresh_id(),
        "model_name": "echo",
        "inputs": [{"name": "fp64", "datatype": "FP64", "shape": [1, len(raw) // 8]}],
        "outputs": [{"name": "fp64_echo"}],
    }
    value, headers = binary_record(request, [raw])
    answer = await asking.answer(await asking.send(value, headers=headers))
    assert (answer.status, answer.cache_status) == ("succeeded", "miss")
    assert answer.result.id == request["id"]
    assert answer.result.output("fp64_echo").raw == raw
    value, headers = binary_record({**request, "id": fresh_id(), "parameters": {"binary_data_output": True}}, [raw])
    answer = await asking.answer(await asking.send(value, headers=headers))
    assert (answer.status, answer.cache_status) == ("succeeded", "hit")
    assert answer.result.output("fp64_echo").raw == raw


async def test_request_past_its_timeout_is_not_executed(asking: Asking, statistics: TritonStatistics) -> None:
    """A request that waited longer than its timeout is answered EXPIRED and never reaches a server."""
    before = await statistics.runs("echo")
    asked = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
    answer = await asking.ask(echo_request(timeout_ms=1000, requested_at=asked))
    assert (answer.status, answer.error) == ("expired", "EXPIRED")
    assert answer.result.error is not None
    assert answer.result.error.retryable
    assert await statistics.runs("echo") == before


async def test_request_expires_while_its_model_runs(asking: Asking, statistics: TritonStatistics) -> None:
    """A request whose time is over while the model still runs is answered EXPIRED; the next one is not hindered."""
    before = await statistics.runs("echo")
    answer = await asking.ask(echo_request(timeout_ms=200, parameters={"delay_ms": 1500}), partition=PARTITION)
    assert (answer.status, answer.error) == ("expired", "EXPIRED")
    await goes_on(asking)

    async def both_ran() -> bool:
        return (await statistics.runs("echo")).inferences - before.inferences >= 2

    # Other tests count runs: the one that nobody waits for must not end within them.
    await until(both_ran, 10, "the run that nobody waits for has ended")


async def test_transport_parameters_are_neither_keyed_nor_forwarded(asking: Asking) -> None:
    """Parameters that only concern transport do not make another request of it: the second one is a hit."""
    value = fresh_value()
    first = await asking.ask(echo_request(value))
    second = await asking.ask(echo_request(value, parameters={"binary_data_output": True}))
    third = await asking.ask(echo_request(value, parameters={"temperature": 1}))
    assert [answer.cache_status for answer in (first, second, third)] == ["miss", "hit", "miss"]
