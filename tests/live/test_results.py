"""A result as its readers rely on it: place, key, headers, copies, events."""

import json
import re
from collections import Counter
from datetime import datetime
from typing import Any
from uuid import uuid5

import orjson
import pytest

from schemas.event import EVENT_NAMESPACE, Event, RequestEnd
from tests.live.asking import Answered, Asking, binary_record, echo_request, fresh_id, fresh_value
from tests.live.topics import TopicLog, header

MICROSECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.mark.parametrize("partition", range(4))
async def test_result_has_its_requests_partition_and_key(asking: Asking, partition: int) -> None:
    """A result stands in the partition with its request's number, under its request's key."""
    key = fresh_id("key").encode()
    answer = await asking.ask(echo_request(), key=key, partition=partition)
    assert (answer.record.partition, answer.record.key) == (partition, key)


async def test_request_without_key_is_served(asking: Asking) -> None:
    """A record without a key is as good as any; its result has none either."""
    answer = await asking.ask(echo_request())
    assert (answer.status, answer.record.key) == ("succeeded", None)


async def test_result_headers_are_cloudevents_and_ours(asking: Asking) -> None:
    """A result carries the CloudEvents attributes, its request's place in the log, digest and group."""
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request = echo_request()
    sent = await asking.send(orjson.dumps(request), headers=[("traceparent", trace)])
    answer = await asking.answer(sent)
    headers = {name: value.decode() for name, value in answer.record.headers}
    assert len(headers) == len(answer.record.headers), "a header stands twice"
    assert headers["ce_specversion"] == "1.0"
    assert headers["ce_id"] == request["id"]
    assert headers["ce_source"].startswith("/inference/")
    assert headers["ce_type"] == "inference.result.v1"
    assert datetime.fromisoformat(headers["ce_time"]).tzinfo is not None
    assert headers["ce_subject"] == "echo"
    assert headers["content-type"] == "application/json"
    assert headers["request-offset"] == str(sent.offset)
    assert headers["request-timestamp"].isdigit()
    assert re.fullmatch(r"[0-9a-f]{32}", headers["request-digest"])
    assert headers["worker-group"] == asking.settings.worker.group
    assert headers["traceparent"] == trace.decode()


async def test_result_members_are_the_contracts(asking: Asking) -> None:
    """A succeeded result has the members of the contract with their types, and no null."""
    answer = await asking.ask(echo_request(requested_at="2026-11-22T22:00:00.123456Z"))
    body = json.loads(answer.record.value)
    assert body.keys() == {
        "id", "model_name", "model_version", "status", "outputs", "parameters", "requested_at", "completed_at",
    }  # fmt: skip
    assert body["outputs"] == [{"name": "fp32_echo", "datatype": "FP32", "shape": [1, 1], "data": body_row(answer)}]
    parameters = body["parameters"]
    assert parameters.keys() == {
        "cache_status", "cache_key", "queue_ms", "inference_ms", "total_ms", "instance", "worker",
    }  # fmt: skip
    assert re.fullmatch(r"[0-9a-f]{64}", parameters["cache_key"])
    assert parameters["instance"] in {"triton-0", "triton-1"}
    assert 0 <= parameters["queue_ms"] <= parameters["total_ms"]
    assert body["requested_at"] == "2026-11-22T22:00:00.123456Z"
    assert MICROSECONDS.fullmatch(body["completed_at"])


def body_row(answer: Answered) -> list[float]:
    assert answer.result.outputs is not None
    data: list[float] = answer.result.outputs[0].data
    return data


async def test_digest_is_of_the_content_alone(asking: Asking) -> None:
    """Requests that differ in id, time and address have one digest; other content has another."""
    value = fresh_value()
    first = await asking.ask(echo_request(value))
    same = await asking.ask(echo_request(value, source_ip="203.0.113.7", requested_at="2026-11-22T22:00:00Z"))
    other = await asking.ask(echo_request(fresh_value()))
    assert first.header("request-digest") == same.header("request-digest")
    assert first.header("request-digest") != other.header("request-digest")


@pytest.mark.parametrize("named", [False, True])
async def test_reply_copy_has_the_same_bytes(asking: Asking, named: bool) -> None:
    """`reply_to` puts a copy of the result into that partition of the replies topic: same bytes, key is the id."""
    async with TopicLog(asking.settings, "replies", from_beginning=False) as replies:
        reply_to: dict[str, Any] = {"partition": 1}
        if named:
            reply_to["topic"] = asking.settings.topic("replies")
        request = echo_request(reply_to=reply_to)
        answer = await asking.ask(request)
        copy = await replies.first(lambda record: header(record, "ce_id") == request["id"], 10, "the reply")
    assert (copy.partition, copy.key) == (1, request["id"].encode())
    assert copy.value == answer.record.value
    assert copy.headers == answer.record.headers


async def events_of(asking: Asking, log: TopicLog, request_id: str) -> list[dict[str, Any]]:
    """The event lines of a request, once the line that ends it is there."""

    def lines(records: list[Any]) -> list[dict[str, Any]]:
        parsed = (json.loads(line) for record in records for line in record.value.splitlines())
        return [line for line in parsed if line["request_id"] == request_id]

    records = await log.until(
        lambda records: any("status" in line for line in lines(records)), 10, f"the events of {request_id}"
    )
    return lines(records)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, ["request.received", "cache.miss", "inference.started", "inference.completed", "result.published"]),
        (
            {"enable_cache": False},
            ["request.received", "cache.bypass", "inference.started", "inference.completed", "result.published"],
        ),
        ({"model_name": "nobody"}, ["request.received", "inference.failed", "result.published"]),
    ],
    ids=["miss", "bypass", "failed"],
)
async def test_event_lines_follow_the_schema(asking: Asking, members: dict[str, Any], expected: list[str]) -> None:
    """A request's events are valid lines with stable ids; the last one has the columns of its row."""
    async with TopicLog(asking.settings, "events", from_beginning=False) as log:
        request = echo_request(source_ip="203.0.113.7", tenant="acme", **members)
        sent = await asking.send(orjson.dumps(request), partition=3)
        answer = await asking.answer(sent)
        lines = await events_of(asking, log, request["id"])
        record = next(record for record in log.records if request["id"].encode() in record.value)
    assert record.partition == 3 % asking.settings.kafka.event_partitions
    assert record.key is None
    assert header(record, "content-type") == "application/x-ndjson"
    assert (header(record, "generation") or "").isdigit()
    assert [line["event_type"] for line in lines] == expected
    for line in lines:
        event = Event.model_validate_json(json.dumps(line))
        place = f"{asking.settings.topic('requests')}:{sent.partition}:{sent.offset}:{event.event_type}"
        assert event.event_id == uuid5(EVENT_NAMESPACE, place)
        assert (event.tenant, event.source_ip) == ("acme", "::ffff:203.0.113.7")
    end = RequestEnd.model_validate_json(json.dumps(lines[-1]))
    assert end.result_record == answer.record.value
    assert (end.status, end.error_code) == (answer.status, answer.error or "")
    assert end.cache_status == (answer.cache_status or "")
    assert end.cache_key == (answer.result.parameters.cache_key or "")
    assert end.expires_at > end.completed_at
    assert "status" not in lines[0]


async def test_events_keep_binary_tensors(asking: Asking) -> None:
    """The end line has a binary request's inputs as base64, and the exact bytes of a binary result."""
    async with TopicLog(asking.settings, "events", from_beginning=False) as log:
        request = echo_request(parameters={"binary_data_output": True})
        value, headers = binary_record(request, [b"\x01\x02\x03\x04"])
        answer = await asking.answer(await asking.send(value, headers=headers))
        lines = await events_of(asking, log, request["id"])
    end = RequestEnd.model_validate_json(json.dumps(lines[-1]))
    assert end.inputs == [{"name": "fp32", "datatype": "FP32", "shape": [1, 1], "base64": "AQIDBA=="}]
    assert end.result_record == answer.record.value
    assert (end.input_bytes, end.output_bytes) == (4, 4)


async def test_hit_has_no_inference_events(asking: Asking) -> None:
    """A hit is received, hit and published, with the ids of its own record."""
    value = fresh_value()
    await asking.ask(echo_request(value))
    async with TopicLog(asking.settings, "events", from_beginning=False) as log:
        request = echo_request(value)
        await asking.ask(request)
        lines = await events_of(asking, log, request["id"])
    assert [line["event_type"] for line in lines] == ["request.received", "cache.hit", "result.published"]
    assert max(Counter(line["event_id"] for line in lines).values()) == 1
