"""A record's spans in the worker: the work on it, the calls for it, its result on the way; on a fake fleet."""

import asyncio
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from pipeline.core.event_lines import EventLines
from pipeline.metrics import publish_seconds
from pipeline.worker.intake import InFlight, Intake, IntakeSettings
from pipeline.worker.publisher import Publisher, TopicNames
from pipeline.worker.record_spans import RecordSpans
from pipeline.worker.request_reader import CallbackRules
from tests.simulation.fleet import FAILING_ROW
from tests.simulation.system import MODEL, make_system
from tests.simulation.topics import FakeProducer, RecordedTopic
from tests.simulation.virtual_time import UNIX_START, settle, simulated
from tests.traces.recorded import (
    OUTSIDE,
    UNSAMPLED,
    Recorded,
    context_of,
    ids_of,
    links_of,
    parent_of,
    told,
    traceparent_of,
)
from tests.worker.lanes import SureMembership, new_lane
from tests.worker.test_intake import LIMIT, TOPIC, Bench, body

WORK, CALL, SEND = f"process {TOPIC}", "inference.GRPCInferenceService/ModelInfer", "send inference.results"
CALLBACKS = CallbackRules("inference.webhooks", False)


async def traced(recorded: Recorded, **changes: Any) -> Bench:
    """A running worker's core whose spans are recorded."""
    system = make_system(tracer=recorded.tracer, **changes)
    spans = RecordSpans(recorded.tracer, system.clock, "group", "inference.results")
    log = RecordedTopic()
    topics = TopicNames("inference.results", "inference.replies", "inference.events", 4)
    producers = FakeProducer(log), FakeProducer(log)
    publisher = Publisher(*producers, topics, SureMembership(), publish_seconds(None), spans.sent)
    settings = IntakeSettings("w-1", "group", "inference.replies", 8, "inference.dead-letter", LIMIT, CALLBACKS)
    in_flight, lines = InFlight(4096, 1 << 30), EventLines("w-1", 7, 30, 3 * LIMIT)
    intake = Intake(system.engine, publisher, lines, system.clock, settings, in_flight, lambda: None, spans)
    publishing = asyncio.get_running_loop().create_task(publisher.run())
    await settle()
    return Bench(system, intake, in_flight, log, new_lane(2, 1), publishing)


def header_of(made: Bench, offset: int) -> bytes | None:
    """The span that a result names."""
    return dict(made.record_of(offset).headers).get("traceparent")


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    """Whether a span is another one's child."""
    return parent_of(span) == ids_of(traceparent_of(parent))


def seconds_of(span: ReadableSpan) -> tuple[float, float]:
    """When it began and ended, from the start of virtual time."""
    assert span.start_time is not None
    assert span.end_time is not None
    return round(span.start_time / 1e9 - UNIX_START, 3), round(span.end_time / 1e9 - UNIX_START, 3)


@simulated
async def test_miss_has_work_call_and_publish_in_the_request_s_trace() -> None:
    """Work under the request's span, call and publish under the work; server, result and callback are told of them."""
    recorded = Recorded()
    made = await traced(recorded)
    made.system.server.latency_s = 0.05
    asked = body(1, id="r-1", callback={"url": "https://receiver.example/"})
    await made.answer(asked, [("traceparent", OUTSIDE)])
    work, call, send = (recorded.one(name) for name in (WORK, CALL, SEND))
    assert parent_of(work) == ids_of(OUTSIDE)
    assert is_child(call, work)
    assert is_child(send, work)
    assert [span.kind.name for span in (work, call, send)] == ["CONSUMER", "CLIENT", "PRODUCER"]
    assert header_of(made, 0) == traceparent_of(work)
    (callback,) = made.log.of("inference.webhooks")
    assert dict(callback.headers)["traceparent"] == traceparent_of(work)
    (heard,) = made.system.server.heard
    assert heard.call.traceparent == traceparent_of(call)
    assert seconds_of(work) == seconds_of(call) == (0.0, 0.05)
    assert told(work) == {
        "messaging.system": "kafka", "messaging.operation.name": "process", "messaging.operation.type": "process",
        "messaging.destination.name": TOPIC, "messaging.destination.partition.id": "2", "messaging.kafka.offset": 0,
        "messaging.consumer.group.name": "group", "messaging.message.id": "r-1", "inference.request_id": "r-1",
        "inference.model_name": MODEL, "inference.model_version": "1", "inference.cache_status": "miss",
        "inference.status": "succeeded", "inference.instance": "fake-0", "inference.queue_ms": 0.0,
    }  # fmt: skip
    assert told(call) == {
        "rpc.system.name": "grpc", "rpc.method": CALL, "inference.instance": "fake-0", "inference.batch_requests": 1,
        "inference.batch_rows": 1, "inference.attempt": 1,
    }  # fmt: skip
    assert told(send)["messaging.message.body.size"] == len(made.record_of(0).value or b"")


@simulated
async def test_hit_has_no_call() -> None:
    """A hit's trace is the work, marked as one, and the publish; without a trace from outside it begins its own."""
    recorded = Recorded()
    made = await traced(recorded)
    await made.answer(body(1), [("traceparent", OUTSIDE)])
    await made.answer(body(1))
    assert len(recorded.named(CALL)) == 1
    miss, hit = recorded.named(WORK)
    assert (told(miss)["inference.cache_status"], told(hit)["inference.cache_status"]) == ("miss", "hit")
    assert hit.parent is None
    assert context_of(hit).trace_id != context_of(miss).trace_id
    assert header_of(made, 1) == traceparent_of(hit)


@simulated
async def test_follower_links_to_the_call_it_waited_for() -> None:
    """A coalesced request has no call of its own, and points to its leader's."""
    recorded = Recorded()
    made = await traced(recorded)
    for _ in range(3):
        made.take(body(1))
    await asyncio.sleep(1)
    call = recorded.one(CALL)
    leader, *followers = sorted(recorded.named(WORK), key=lambda span: told(span)["messaging.kafka.offset"])
    assert is_child(call, leader)
    assert links_of(leader) == []
    for follower in followers:
        assert told(follower)["inference.cache_status"] == "coalesced"
        assert links_of(follower) == [ids_of(traceparent_of(call))]


@simulated
async def test_batch_is_a_call_in_each_request_s_trace() -> None:
    """Requests that ride along have a span of the call each; the server knows the first, and the others link to it."""
    recorded = Recorded()
    made = await traced(recorded)
    for row in (1, 2, 3):
        made.take(body(row))
    await asyncio.sleep(1)
    (heard,) = made.system.server.heard
    calls = recorded.named(CALL)
    first = next(call for call in calls if traceparent_of(call) == heard.call.traceparent)
    assert [told(call)["inference.batch_requests"] for call in calls] == [3, 3, 3]
    works = recorded.named(WORK)
    assert {parent_of(call) for call in calls} == {ids_of(traceparent_of(work)) for work in works}
    assert [links_of(call) for call in calls if call is not first] == [[ids_of(traceparent_of(first))]] * 2


@simulated
async def test_server_is_told_of_a_span_that_is_seen() -> None:
    """Where the first of a batch is not sampled and another is, the server's own spans join the one that is shown."""
    recorded = Recorded()
    made = await traced(recorded)
    made.take(body(1), [("traceparent", UNSAMPLED)])
    made.take(body(2), [("traceparent", OUTSIDE)])
    await asyncio.sleep(1)
    (heard,) = made.system.server.heard
    assert heard.call.traceparent == traceparent_of(recorded.one(CALL))


@simulated
async def test_failure_is_on_work_and_call() -> None:
    """The wire's error code marks the work, the server's error the call; whoever was only near it is halved away."""
    recorded = Recorded()
    made = await traced(recorded)
    made.take(body(FAILING_ROW))
    await asyncio.sleep(1)
    work, call = recorded.one(WORK), recorded.one(CALL)
    assert (told(work)["error.type"], told(work)["inference.status"]) == ("MODEL_ERROR", "failed")
    assert not work.status.is_ok
    assert told(call)["error.type"] == "ModelFailed"
    assert call.status.description == "fake-0: bad row"


@simulated
async def test_second_attempt_is_a_second_call() -> None:
    """An instance that does not answer, and the other one that does: two calls, counted, under the same work."""
    recorded = Recorded()
    made = await traced(recorded, servers=2)
    made.system.servers[0].down = True
    for row in range(20):
        made.take(body(row))
        await asyncio.sleep(0.2)
        if len(recorded.named(CALL)) > row + 1:
            break
    failed = next(call for call in recorded.named(CALL) if not call.status.is_ok and "error.type" in told(call))
    again = next(call for call in recorded.named(CALL) if call.parent == failed.parent and call is not failed)
    assert (told(failed)["inference.attempt"], told(failed)["error.type"]) == (1, "ServerUnavailable")
    assert (told(again)["inference.attempt"], told(again)["inference.instance"]) == (2, "fake-1")


@simulated
async def test_attempt_that_was_outrun_ends_its_span() -> None:
    """The rival answered first: the slower call's span ends there, and says why."""
    recorded = Recorded()
    made = await traced(recorded, servers=2)
    for row in range(60):
        await made.answer(body(row))
    made.system.servers[0].hangs = True
    for row in range(100, 110):
        made.take(body(row))
        await asyncio.sleep(3)
    assert "outrun" in {told(call).get("error.type") for call in recorded.named(CALL)}


@pytest.mark.parametrize(
    ("value", "status", "headers"),
    [
        (b"no JSON", "dead_letter", []),
        ({"id": "r-1", **body(1)}, "duplicate", []),
        (body(1, unknown=1), "failed", [("traceparent", OUTSIDE)]),
    ],
)
@simulated
async def test_record_without_an_answer_has_its_span(value: Any, status: str, headers: Any) -> None:
    """What becomes a dead letter, a duplicate or a refusal ends its span with that word, in its own trace."""
    recorded = Recorded()
    made = await traced(recorded)
    await made.answer({"id": "r-1", **body(1)})
    offset = made.take(value, headers)
    await asyncio.sleep(1)
    (work,) = (span for span in recorded.named(WORK) if told(span)["messaging.kafka.offset"] == offset)
    assert told(work)["inference.status"] == status
    assert (work.parent is not None) is bool(headers)


@simulated
async def test_what_is_not_sampled_leaves_nothing_but_its_name() -> None:
    """The flag from outside holds through the worker: no span is kept, the trace's id and its flag go on."""
    recorded = Recorded()
    made = await traced(recorded)
    await made.answer(body(1), [("traceparent", UNSAMPLED)])
    assert recorded.spans == []
    carried = header_of(made, 0)
    assert carried is not None
    assert (carried[:36], carried[-2:]) == (UNSAMPLED[:36], b"00")
    assert carried != UNSAMPLED


@simulated
async def test_sampler_decides_where_nobody_did() -> None:
    """A request without a trace is followed if the sampler says so, and else not."""
    recorded = Recorded(ALWAYS_OFF)
    made = await traced(recorded)
    await made.answer(body(1))
    await made.answer(body(2), [("traceparent", OUTSIDE)])
    assert {context_of(span).trace_id for span in recorded.spans} == {int(OUTSIDE[3:35], 16)}


@pytest.mark.parametrize("header", [b"ff" + OUTSIDE[2:], b"00-" + b"0" * 32 + OUTSIDE[35:], OUTSIDE.upper()])
@simulated
async def test_broken_trace_from_outside_is_ignored(header: bytes) -> None:
    """What is no trace context begins a trace of the worker's own."""
    recorded = Recorded()
    made = await traced(recorded)
    await made.answer(body(1), [("traceparent", header)])
    assert recorded.one(WORK).parent is None
