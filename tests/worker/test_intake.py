"""From a record to what it puts into Kafka: ids, digests, dead letters, limits, and what is in flight."""

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from pipeline.core.callback_record import read_callback
from pipeline.core.event_lines import EventLines
from pipeline.core.lane import Lane
from pipeline.metrics import publish_seconds
from pipeline.worker.intake import InFlight, Intake, IntakeSettings
from pipeline.worker.publisher import Publisher, TopicNames
from pipeline.worker.request_reader import CallbackRules
from schemas.errors import ErrorCode
from schemas.event import RequestEnd
from schemas.result import InferenceResult, decode_result
from tests.simulation.fleet import FAILING_ROW
from tests.simulation.system import MODEL, System, expected, make_system, model_record, request
from tests.simulation.topics import FakeProducer, RecordedTopic, WrittenRecord
from tests.simulation.virtual_time import settle, simulated, the_clock
from tests.worker.lanes import SureMembership, new_lane

TOPIC = "inference.requests"
Headers = list[tuple[str, Any]]
LIMIT = 64 * 1024


@dataclass
class Bench:
    """A worker's core on a fake fleet and fake topics."""

    system: System
    intake: Intake
    in_flight: InFlight
    log: RecordedTopic
    lane: Lane
    publishing: "asyncio.Task[None]"
    confirmed: int = 0
    rooms: list[int] = field(default_factory=list)
    next_offset: int = 0

    def take(self, value: Any, headers: Headers | None = None, *, overloaded: bool = False, **changes: Any) -> int:
        """One record of the requests topic; an object is its JSON. Returns its offset."""
        offset, self.next_offset = self.next_offset, self.next_offset + 1
        body = json.dumps(value).encode() if isinstance(value, dict) else value
        members: dict[str, Any] = {
            "topic": TOPIC, "partition": 2, "offset": offset, "timestamp": int(the_clock().now() * 1000),
            "timestamp_type": 1, "key": b"key-%d" % offset, "value": body, "checksum": None,
            "serialized_key_size": 5, "serialized_value_size": len(body or b""), "headers": tuple(headers or ()),
            **changes,
        }  # fmt: skip
        self.lane.offsets.begin(offset)
        self.intake.take(ConsumerRecord(**members), self.lane, self._one_confirmed, overloaded=overloaded)
        return offset

    def _one_confirmed(self) -> None:
        self.confirmed += 1

    async def answer(self, value: Any, headers: Headers | None = None, **changes: Any) -> InferenceResult:
        """The result of one record."""
        offset = self.take(value, headers, **changes)
        await asyncio.sleep(1)
        return decode_result(*_bytes_of(self.record_of(offset)))

    def record_of(self, offset: int) -> WrittenRecord:
        """The result record of one offset."""
        (record,) = (r for r in self.log.of("inference.results") if dict(r.headers)["request-offset"] == b"%d" % offset)
        return record

    def digest_of(self, offset: int) -> bytes:
        """The content's digest of one offset's request."""
        return dict(self.record_of(offset).headers)["request-digest"]


def _bytes_of(record: WrittenRecord) -> tuple[bytes, Any]:
    return record.value or b"", record.headers


async def bench(callbacks: CallbackRules | None = CallbackRules("inference.webhooks", False), **changes: Any) -> Bench:
    """A running worker's core."""
    system = make_system(**changes)
    log = RecordedTopic()
    topics = TopicNames("inference.results", "inference.replies", "inference.events", 4)
    publisher = Publisher(FakeProducer(log), FakeProducer(log), topics, SureMembership(), publish_seconds(None))
    settings = IntakeSettings("w-1", "group", "inference.replies", 8, "inference.dead-letter", LIMIT, callbacks)
    in_flight = InFlight(4096, 1 << 30)
    rooms: list[int] = []
    lines = EventLines("w-1", 7, 30, 3 * LIMIT)
    intake = Intake(
        system.engine, publisher, lines, system.clock, settings, in_flight, lambda: rooms.append(in_flight.count)
    )
    publishing = asyncio.get_running_loop().create_task(publisher.run())
    await settle()
    return Bench(system, intake, in_flight, log, new_lane(2, 1), publishing, rooms=rooms)


def body(*rows: int, **changes: Any) -> dict[str, Any]:
    """A request's JSON."""
    data = list(rows or (1,))
    tensor = {"name": "x", "datatype": "INT32", "shape": [len(data), 1], "data": data}
    return {"model_name": MODEL, "inputs": [tensor], **changes}


@simulated
async def test_miss_and_hit_are_answered_alike() -> None:
    """The worker's answers are the engine's: right values, the request's id, partition and key, its times."""
    made = await bench()
    first = await made.answer(body(5, id="r-1", requested_at="2026-11-22T21:59:59Z"))
    second = await made.answer(body(5, id="r-2"))
    assert (first.parameters.cache_status, second.parameters.cache_status) == ("miss", "hit")
    for result in (first, second):
        assert [o.to_tensor() for o in result.outputs or ()] == list(expected("one", request(5)))
        assert result.status == "succeeded"
    assert [result.id for result in (first, second)] == ["r-1", "r-2"]
    assert first.requested_at is not None
    assert first.requested_at.isoformat() == "2026-11-22T21:59:59+00:00"
    record = made.record_of(1)
    assert (record.partition, record.key) == (2, b"key-1")
    assert made.confirmed == 2
    assert made.lane.offsets.committable() == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "TOMBSTONE"),
        (b"", "TOMBSTONE"),
        (b"hello", "NOT_JSON"),
        (b"[1, 2]", "NOT_JSON"),
        (b"3", "NOT_JSON"),
        (b'{"model_name": NaN}', "NOT_JSON"),
        (b'{"model_name": "x"', "NOT_JSON"),
        (b"\xff\xfe", "NOT_JSON"),
    ],
)
@pytest.mark.parametrize("named", [None, b"r-77", b"bad id", None.__class__, b"inference.requests:2:0"])
@simulated
async def test_no_json_object_is_buried(value: bytes | None, reason: str, named: Any) -> None:
    """What is no JSON object goes to the dead letters as it came; `ce_id`, where it is an id, gets an error result."""
    made = await bench()
    headers: Headers = [("own", b"1"), ("empty", None)]
    if named is not None:
        headers.append(("ce_id", None if named is None.__class__ else named))
    made.take(value, headers, key=b"original")
    await asyncio.sleep(1)
    (letter,) = made.log.of("inference.dead-letter")
    assert (letter.key, letter.value, letter.partition) == (b"original", value, None)
    assert list(letter.headers[: len(headers)]) == headers
    told = dict(letter.headers[len(headers) :])
    assert told["reason"] == reason.encode()
    assert (told["source-topic"], told["source-partition"], told["source-offset"]) == (TOPIC.encode(), b"2", b"0")
    assert told["error"]
    results = made.log.results()
    assert [result.id for result in results] == (["r-77"] if named == b"r-77" else [])
    assert all(result.error and result.error.code is ErrorCode.INVALID_REQUEST for result in results)
    assert made.confirmed == 1
    assert made.intake.dead_letters == 1
    assert made.lane.offsets.committable() == 1


@pytest.mark.parametrize(
    ("value", "answered_as", "model"),
    [
        (body(id="bad id"), f"{TOPIC}:2:0", MODEL),
        (body(id=f"{TOPIC}:2:0"), f"{TOPIC}:2:0", MODEL),
        (body(id=f"{TOPIC}:0:9"), f"{TOPIC}:2:0", MODEL),
        (body(id=7), f"{TOPIC}:2:0", MODEL),
        (body(id="r-1", unknown=1), "r-1", MODEL),
        ({"id": "r-1"}, "r-1", ""),
        ({"id": "r-1", "model_name": 3}, "r-1", ""),
        ({}, f"{TOPIC}:2:0", ""),
        (body(id="r-1", reply_to={"partition": 8}), "r-1", MODEL),
        (body(id="r-1", reply_to={"topic": "inference.results", "partition": 0}), "r-1", MODEL),
        (body(id="r-1", callback={"url": "http://example.org"}), "r-1", MODEL),
        (body(id="r-1", callback={"url": "https://user@example.org"}), "r-1", MODEL),
        (body(id="r-1", callback={"url": "https://2130706433/"}), "r-1", MODEL),
        (body(id="r-1", parameters={"a": [1]}), "r-1", MODEL),
    ],
)
@simulated
async def test_invalid_request_is_answered(value: dict[str, Any], answered_as: str, model: str) -> None:
    """A JSON object that is no valid request gets its error result under its id, or its place in the log."""
    made = await bench()
    result = await made.answer(value, [("ce_id", b"never-this")])
    assert (result.id, result.model_name, result.status) == (answered_as, model, "failed")
    assert result.error is not None
    assert result.error.code is ErrorCode.INVALID_REQUEST
    assert made.log.of("inference.dead-letter") == []
    assert made.system.calls == 0
    assert made.log.event_lines()[-1].request_id == answered_as


@simulated
async def test_request_without_id_has_its_place() -> None:
    """A request that brings no id is known by topic, partition and offset, and needs no header."""
    made = await bench()
    assert (await made.answer(body(1))).id == f"{TOPIC}:2:0"
    assert (await made.answer(body(1), [("ce_id", b"ignored")])).id == f"{TOPIC}:2:1"


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"id": "other"}, True),
        ({"requested_at": "2026-11-22T21:00:00Z"}, True),
        ({"source_ip": "203.0.113.9"}, True),
        ({"tenant": "acme"}, False),
        ({"model_version": "1"}, False),
        ({"parameters": {"a": 1}}, False),
        ({"parameters": {"priority": 1}}, False),
        ({"parameters": {"binary_data_output": True}}, False),
        ({"outputs": [{"name": "y"}]}, False),
        ({"outputs": []}, False),
        ({"stream": True}, False),
        ({"enable_cache": False}, False),
        ({"cache_control": "max-age=9"}, False),
        ({"timeout_ms": 60000}, False),
        ({"reply_to": {"partition": 1}}, False),
        ({"reply_to": {"partition": 1_000}}, False),
        ({"model_name": "absent"}, False),
    ],
)
@simulated
async def test_digest_covers_all_but_id_time_and_address(changes: dict[str, Any], same: bool) -> None:
    """A repeated id is told from a reused one by the whole request without id, requested_at and source_ip."""
    made = await bench()
    first, second = made.take(body(5, id="r-1")), made.take({**body(5, id="r-2"), **changes})
    other = made.take(body(6, id="r-3"))
    await asyncio.sleep(1)
    assert (made.digest_of(first) == made.digest_of(second)) is same
    assert made.digest_of(other) != made.digest_of(first)
    assert len(made.digest_of(first)) == 32


@simulated
async def test_digest_of_an_unserved_model_is_stable() -> None:
    """Content counts also where no model could look at it."""
    made = await bench()
    one, two = made.take(body(5, model_name="absent")), made.take(body(5, model_name="absent"))
    other = made.take(body(6, model_name="absent"))
    await asyncio.sleep(1)
    assert made.digest_of(one) == made.digest_of(two) != made.digest_of(other)


@pytest.mark.parametrize("early", ["expired", "not served"])
@simulated
async def test_digest_is_the_same_however_it_ended(early: str) -> None:
    """One request sent twice has one digest, though once it came too late, or before its model."""
    made = await bench()
    asked = body(5, id="r-1", timeout_ms=60_000, parameters={"a": 1, "priority": 2})
    if early == "expired":
        first = made.take(asked, timestamp=0)
    else:
        made.system.catalog.discard(MODEL)
        first = made.take(asked)
        made.system.catalog.apply(model_record({"1": "one"}, "1"))
    second = made.take(asked | {"id": "r-2"})
    await asyncio.sleep(1)
    assert [result.status for result in made.log.results()].count("succeeded") == 1
    assert made.digest_of(first) == made.digest_of(second)


@simulated
async def test_reply_is_a_copy_of_the_result() -> None:
    """`reply_to` gets the very bytes of the result, keyed by the request's id, in the partition asked for."""
    made = await bench()
    await made.answer(body(5, id="r-1", reply_to={"topic": "inference.replies", "partition": 6}))
    (copy,) = made.log.of("inference.replies")
    (result,) = made.log.of("inference.results")
    assert (copy.partition, copy.key) == (6, b"r-1")
    assert (copy.value, list(copy.headers)) == (result.value, list(result.headers))


@simulated
async def test_callback_is_the_result_and_where_it_goes() -> None:
    """`callback` puts the very bytes of the result on the webhooks topic, with its headers and the first attempt's."""
    made = await bench()
    url = "https://example.org/in?a=1"
    await made.answer(body(5, id="r-1", tenant="acme", callback={"url": url}))
    (callback,) = made.log.of("inference.webhooks")
    (result,) = made.log.of("inference.results")
    assert (callback.partition, callback.key, callback.value) == (None, b"r-1", result.value)
    assert list(callback.headers[: len(result.headers)]) == list(result.headers)
    completed_ms = decode_result(*_bytes_of(result)).completed_at.timestamp() * 1e3
    assert dict(callback.headers[len(result.headers) :]) == {
        "webhook-url": url.encode(),
        "webhook-tenant": b"acme",
        "webhook-attempt": b"0",
        "webhook-due": b"%d" % completed_ms,
        "webhook-source": f"{TOPIC}:2:0".encode(),
    }
    read = read_callback(callback.value, callback.headers, 0.0, allow_http=False)
    assert (read.request_id, read.tenant, str(read.url), read.attempt) == ("r-1", "acme", url, 0)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"model_name": "absent"}, False),
        ({"timeout_ms": 0, "requested_at": "2020-01-01T00:00:00Z"}, False),
        ({"reply_to": {"partition": 99}}, True),
        ({"id": f"{TOPIC}:0:9"}, True),
    ],
)
@simulated
async def test_errors_are_delivered_too(changes: dict[str, Any], refused: bool) -> None:
    """Whoever asked for a callback hears of a failure by it, of a refusal for another reason as well."""
    made = await bench()
    result = await made.answer(body(5, **{"id": "r-1", "callback": {"url": "https://example.org"}, **changes}))
    assert result.status != "succeeded"
    (callback,) = made.log.of("inference.webhooks")
    assert (callback.value, callback.key) == (made.record_of(0).value, result.id.encode())
    if refused:
        assert result.error is not None
        assert result.error.code is ErrorCode.INVALID_REQUEST


@simulated
async def test_refused_callback_is_named_and_not_delivered() -> None:
    """A URL that nobody would call is an error of its field; a copy for `reply_to` tells of it, no callback does."""
    made = await bench()
    asked = body(5, id="r-1", callback={"url": "http://example.org"}, reply_to={"partition": 1})
    result = await made.answer(asked)
    assert result.error is not None
    assert result.error.message == "callback.url: 'http://example.org' begins with http://, https is expected"
    assert made.log.of("inference.webhooks") == []
    assert len(made.log.of("inference.replies")) == 1


@simulated
async def test_http_callback_is_taken_where_it_is_allowed() -> None:
    """The setting decides, nothing else."""
    made = await bench(CallbackRules("inference.webhooks", True))
    assert (await made.answer(body(5, callback={"url": "http://example.org"}))).status == "succeeded"
    assert len(made.log.of("inference.webhooks")) == 1


@simulated
async def test_worker_without_a_topic_for_callbacks_refuses_them() -> None:
    """A callback that nobody would deliver is told at once."""
    made = await bench(None)
    result = await made.answer(body(5, callback={"url": "https://example.org"}))
    assert result.error is not None
    assert result.error.message.startswith("callback: ")


@simulated
async def test_duplicate_request_has_no_callback() -> None:
    """A request that comes twice is delivered once: the second one has no result of its own."""
    made = await bench()
    asked = body(5, id="r-1", callback={"url": "https://example.org"})
    made.take(asked)
    made.take(asked)
    made.take({**asked, "callback": {"url": "https://example.org/other"}})
    await asyncio.sleep(1)
    (callback,) = made.log.of("inference.webhooks")
    assert dict(callback.headers)["webhook-url"] == b"https://example.org"


@pytest.mark.parametrize(
    ("header", "carried"),
    [
        (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        (b"", False),
        (None, False),
        (b"x" * 60_000, False),
    ],
)
@simulated
async def test_traceparent_is_carried_if_it_is_one(header: bytes | None, carried: bool) -> None:
    """A trace context goes on with the result; anything else in its place harms nobody."""
    made = await bench()
    await made.answer(body(5), [("traceparent", header)])
    headers = dict(made.record_of(0).headers)
    assert headers.get("traceparent") == (header if carried else None)


@pytest.mark.parametrize("key", [b"k", b"k" * (LIMIT - 4096)])
@simulated
async def test_result_beyond_the_limit_is_told(key: bytes) -> None:
    """A result that no topic takes, its key counted, becomes PAYLOAD_TOO_LARGE before it meets one."""
    made = await bench(max_batch_size=4096)
    rows = list(range(4000 if len(key) == 1 else 100))
    result = await made.answer(body(*rows, id="r-1"), key=key)
    assert result.error is not None
    assert result.error.code is ErrorCode.PAYLOAD_TOO_LARGE
    assert str(LIMIT) in result.error.message
    (record,) = made.log.of("inference.results")
    assert len(record.value or b"") + len(record.key or b"") < LIMIT
    (end,) = (line for line in made.log.event_lines() if isinstance(line, RequestEnd))
    assert end.error_code == "PAYLOAD_TOO_LARGE"


@simulated
async def test_result_whose_json_is_beyond_the_limit_is_binary() -> None:
    """What fits in binary form alone is answered in it though JSON was asked for, a miss and its hit alike."""
    made = await bench(max_batch_size=4096)
    rows = list(range(2000))
    first = await made.answer(body(*rows, id="r-1", outputs=[{"name": "y"}]))
    second = await made.answer(body(*rows, id="r-2", outputs=[{"name": "y"}]))
    assert (first.parameters.cache_status, second.parameters.cache_status) == ("miss", "hit")
    records = made.log.of("inference.results")
    assert [dict(record.headers)["content-type"] for record in records] == [b"application/octet-stream"] * 2
    assert all(len(record.value or b"") < LIMIT for record in records)
    assert len(first.output("y").raw) == 2000 * 16
    assert first.output("y") == second.output("y")


@simulated
async def test_only_misses_are_in_flight() -> None:
    """A miss counts with its bytes until it is answered, then there is room; hits and errors never count."""
    made = await bench()
    made.take(body(1, 2, 3))
    made.take(body(1, 2, 3))
    made.take(body(4, model_name="absent"))
    made.take(b"not json")
    assert (made.in_flight.count, made.in_flight.bytes) == (2, 24)
    await asyncio.sleep(1)
    assert (made.in_flight.count, made.in_flight.bytes) == (0, 0)
    assert made.rooms == [1, 0]
    made.take(body(1, 2, 3))
    assert made.in_flight.count == 0


@pytest.mark.parametrize(
    ("count", "size", "unconfirmed", "full"),
    [(3, 24, 3, False), (4, 0, 0, True), (0, 25, 0, True), (0, 24, 4, True), (0, 0, 100, True)],
)
def test_in_flight_is_bounded_both_ways(count: int, size: int, unconfirmed: int, full: bool) -> None:
    """The bound is on their number, and on the bytes of four times their inputs and of what waits for Kafka."""
    in_flight = InFlight(4, 100)
    in_flight.count, in_flight.bytes = count, size
    assert in_flight.is_full(unconfirmed) is full


@simulated
async def test_closed_lanes_answers_go_nowhere() -> None:
    """A miss that is answered after its partition was lost frees its room and publishes nothing."""
    made = await bench()
    made.take(body(1))
    made.lane.closed = True
    await asyncio.sleep(1)
    assert made.log.records == []
    assert made.in_flight.count == 0
    assert made.confirmed == 1


def some_record(rng: random.Random, number: int) -> tuple[Any, Headers]:
    """A record of any kind."""
    kind = rng.randrange(12)
    if kind == 0:
        return rng.choice([None, b"{", b"[]", b"\xff"]), rng.choice([[], [("ce_id", b"n-%d" % number)]])
    if kind == 1:
        return {"id": f"r-{number}", "model_name": MODEL, "inputs": rng.choice([[], 3, [{}]])}, []
    changes: dict[str, Any] = {"id": f"r-{number}"}
    if kind == 2:
        changes["timeout_ms"] = rng.choice([0, 5, 15, 500])
    if kind == 3:
        changes["model_name"] = "absent"
    if kind == 4:
        changes["enable_cache"] = False
    if kind == 5:
        changes["cache_control"] = rng.choice(["no-cache", "no-store", "only-if-cached", "max-age=0"])
    if kind == 6:
        changes["reply_to"] = {"partition": rng.randrange(10)}
    if kind == 7:
        changes["parameters"] = rng.choice([{"binary_data_output": True}, {"a": 1}, {"sequence_id": 1}])
    rows = [rng.choice([*range(6), FAILING_ROW])] * rng.choice([1, 1, 1, 3])
    return body(*rows, **changes), []


@pytest.mark.parametrize("seed", range(8))
@simulated
async def test_random_run_leaves_nothing_behind(seed: int) -> None:
    """Whatever comes, every record is confirmed once, every request has one result, and nothing stays in flight."""
    rng = random.Random(seed)
    made = await bench(servers=2, unavailable_timeout_s=1.0)
    made.system.servers[0].latency_s = lambda _: rng.uniform(0.001, 0.05)
    total = 300
    for number in range(total):
        if rng.random() < 0.02:
            for server in made.system.servers:
                server.down = not server.down and rng.random() < 0.5
        made.take(*some_record(rng, number))
        assert made.in_flight.count >= 0
        if rng.random() < 0.4:
            await asyncio.sleep(rng.choice([0, 0.001, 0.02]))
    for server in made.system.servers:
        server.down = False
    await asyncio.sleep(30)
    repeat = f"Repeat: pytest {__file__} -k 'random_run and {seed}'"
    assert (made.in_flight.count, made.in_flight.bytes) == (0, 0), repeat
    assert made.confirmed == total, repeat
    assert made.lane.offsets.committable() == total, repeat
    offsets = [dict(record.headers)["request-offset"] for record in made.log.of("inference.results")]
    assert len(offsets) == len(set(offsets)), repeat
    unnamed = [r for r in made.log.of("inference.dead-letter") if "ce_id" not in dict(r.headers)]
    assert len(offsets) + len(unnamed) == total, repeat
    ends = [line for line in made.log.event_lines() if isinstance(line, RequestEnd)]
    assert sorted(end.request_id for end in ends) == sorted(result.id for result in made.log.results()), repeat
    assert sum(made.intake.results.values()) == len(offsets), repeat
    assert made.system.engine.flights_running == 0, repeat
