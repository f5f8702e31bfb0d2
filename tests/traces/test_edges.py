"""Spans where requests come in and callbacks go out: gateway, clients, webhooks."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from pipeline.client import HttpClient
from pipeline.client.errors import KafkaUnavailable
from pipeline.client.records import RequestRecord, build_record
from pipeline.client.requests import KafkaRequests
from pipeline.core.webhook_schedule import Answered, Outcome, Unanswered
from pipeline.errors import InferenceFailed, PipelineError
from pipeline.gateway.app import create_app
from pipeline.gateway.http.limits import Limits
from schemas.errors import ErrorCode
from tests.client.scripted_gateway import ScriptedGateway, says
from tests.gateway.fake_inferences import FakeInferences
from tests.gateway.front import BODY, settings_of
from tests.simulation.virtual_time import simulated
from tests.traces.recorded import (
    OUTSIDE,
    UNSAMPLED,
    Recorded,
    ids_of,
    parent_of,
    told,
    traceparent_of,
)
from tests.webhooks.test_deliverer import Bench

PLACE = "/v1/inferences"


@asynccontextmanager
async def traced_front(recorded: Recorded) -> AsyncIterator[tuple[FakeInferences, httpx.AsyncClient]]:
    """A gateway asked without sockets, with its spans recorded."""
    settings = settings_of()
    inferences = FakeInferences()
    app = create_app(inferences, settings, limits=Limits(settings.gateway), tracer=recorded.tracer)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        yield inferences, http


async def test_request_at_the_gateway_is_a_server_span() -> None:
    """Named by its route, under the caller's span; what is handed on names it as the cause."""
    recorded = Recorded()
    async with traced_front(recorded) as (inferences, http):
        await http.post(PLACE, json=BODY | {"id": "r-1"}, headers={"traceparent": OUTSIDE.decode()})
    span = recorded.one(f"POST {PLACE}")
    assert (span.kind.name, parent_of(span)) == ("SERVER", ids_of(OUTSIDE))
    assert inferences.submissions[0].traceparent == traceparent_of(span)
    attributes = told(span)
    assert {name: attributes[name] for name in ("http.request.method", "http.route", "http.response.status_code")} == {
        "http.request.method": "POST", "http.route": PLACE, "http.response.status_code": 202,
    }  # fmt: skip
    assert (attributes["url.path"], attributes["inference.request_id"]) == (PLACE, "r-1")


@pytest.mark.parametrize("given", [["nonsense"], [OUTSIDE.decode(), UNSAMPLED.decode()], []])
async def test_broken_trace_at_the_gateway_begins_a_new_one(given: list[str]) -> None:
    """No trace context, or two: neither counts."""
    recorded = Recorded()
    async with traced_front(recorded) as (inferences, http):
        await http.post(PLACE, json=BODY, headers=[("traceparent", one) for one in given])
    span = recorded.one(f"POST {PLACE}")
    assert span.parent is None
    assert inferences.submissions[0].traceparent == traceparent_of(span)


async def test_refusals_are_told_and_probes_are_not() -> None:
    """A 404 is the client's mistake and no error of the span's; health and metrics are asked each second, unseen."""
    recorded = Recorded()
    async with traced_front(recorded) as (_, http):
        for path in ("/health/live", "/health/ready", "/metrics", "/v2/health/live"):
            await http.get(path)
        assert recorded.spans == []
        await http.get(f"{PLACE}/nobody")
        await http.get("/nowhere")
    found, nowhere = recorded.spans
    assert (found.name, told(found)["http.response.status_code"]) == (f"GET {PLACE}/{{request_id}}", 404)
    assert found.status.status_code is StatusCode.UNSET
    assert nowhere.name == "GET"


class Confirming(KafkaRequests):
    """The requests topic without Kafka: confirms, or refuses as it is told."""

    def __init__(self, recorded: Recorded, refusal: PipelineError | None = None) -> None:
        super().__init__({}, "inference.requests", record_bytes_max=1 << 20, timeout_s=1, tracer=recorded.tracer)
        self.appended: list[RequestRecord] = []
        self._refusal = refusal

    async def _append(self, record: RequestRecord, partition: int) -> int:
        self.appended.append(record)
        if self._refusal is not None:
            raise self._refusal
        return 41


def a_record(*headers: tuple[str, bytes]) -> RequestRecord:
    """A small request."""
    record = build_record("r-1", "digits", {"image": [[1.0]]}, now=time.time())
    return record._replace(headers=[*record.headers, *headers])


@pytest.mark.parametrize("given", [OUTSIDE, None])
async def test_record_is_sent_under_a_producer_span(given: bytes | None) -> None:
    """The record names its span as the cause, once; the span's own cause is what the record named before."""
    recorded = Recorded()
    topic = Confirming(recorded)
    assert await topic.append(a_record(*([] if given is None else [("traceparent", given)])), 3) == 41
    span = recorded.one("send inference.requests")
    (sent,) = topic.appended
    assert [text for name, text in sent.headers if name == "traceparent"] == [traceparent_of(span)]
    assert (span.parent and parent_of(span)) == (given and ids_of(given))
    assert span.kind.name == "PRODUCER"
    attributes = told(span)
    assert (attributes["messaging.destination.partition.id"], attributes["messaging.kafka.offset"]) == ("3", 41)
    assert (attributes["messaging.destination.name"], attributes["messaging.message.id"]) == (
        "inference.requests", "r-1",
    )  # fmt: skip


async def test_caller_s_own_span_is_the_parent() -> None:
    """Within a span of the caller's program the request belongs to that span's trace."""
    recorded = Recorded()
    topic = Confirming(recorded)
    with recorded.provider.get_tracer("theirs").start_as_current_span("their work"):
        await topic.append(a_record(), 0)
    their, ours = recorded.one("their work"), recorded.one("send inference.requests")
    assert parent_of(ours) == ids_of(traceparent_of(their))
    assert not trace.get_current_span().is_recording()


@pytest.mark.parametrize(
    ("refusal", "word"),
    [
        (KafkaUnavailable("away"), "KafkaUnavailable"),
        (InferenceFailed("r-1", ErrorCode.PAYLOAD_TOO_LARGE, "8 MiB"), "PAYLOAD_TOO_LARGE"),
    ],
)
async def test_record_that_was_not_taken_is_an_error(refusal: PipelineError, word: str) -> None:
    """The span of a record that Kafka has not confirmed says what came instead; the caller hears the same."""
    recorded = Recorded()
    with pytest.raises(type(refusal)):
        await Confirming(recorded, refusal).append(a_record(), 0)
    assert told(recorded.one("send inference.requests"))["error.type"] == word


class TracedHttpClient(HttpClient):
    """A client whose spans are recorded."""

    def __init__(self, url: str, recorded: Recorded) -> None:
        super().__init__(url)
        self._recorded = recorded

    async def connect(self) -> None:
        """Connects, with that tracer."""
        await super().connect()
        self._tracer = self._recorded.tracer


async def test_http_client_sends_its_span_along() -> None:
    """One CLIENT span for a request however often it is tried, named by the route; every try names it."""
    recorded = Recorded()
    async with ScriptedGateway() as gateway:
        gateway.faults.append(says(503))
        async with TracedHttpClient(f"{gateway.url}", recorded) as client:
            await client.infer("digits", {"image": [[1.0]]})
        posted = [{name.lower(): text for name, text in headers.items()} for _, headers in gateway.posts]
    span = recorded.one(f"POST {PLACE}")
    assert [headers["traceparent"].encode() for headers in posted] == [traceparent_of(span)] * 2
    assert span.kind.name == "CLIENT"
    assert told(span)["url.full"] == f"{gateway.url}{PLACE}"
    assert (told(span)["http.request.method"], told(span)["http.response.status_code"]) == ("POST", 200)


async def test_http_client_tells_a_refusal() -> None:
    """An answer that is an error marks the span with its status."""
    recorded = Recorded()
    async with ScriptedGateway() as gateway, TracedHttpClient(gateway.url, recorded) as client:
        gateway.faults.append(says(400, "INVALID_REQUEST"))
        with pytest.raises(InferenceFailed):
            await client.submit("digits", {"image": [[1.0]]})
    assert told(recorded.one(f"POST {PLACE}"))["error.type"] == "400"


@pytest.mark.parametrize(
    ("outcome", "told_of_it"),
    [
        (Answered(200), {"http.response.status_code": 200}),
        (Answered(500), {"http.response.status_code": 500, "error.type": "500"}),
        (Unanswered("timeout", "no answer within 15 s"), {"error.type": "timeout"}),
    ],
)
@simulated
async def test_callback_is_a_client_span(outcome: Outcome, told_of_it: dict[str, Any]) -> None:
    """Each attempt is a span under the worker's, the receiver is told of it, and no query with secrets is shown."""
    recorded = Recorded()
    made = Bench(outcome)
    made.deliverer._tracer = recorded.tracer
    changed = [("traceparent", OUTSIDE), ("webhook-attempt", b"2")]
    await made.take(url="https://receiver.example:8443/in?token=secret", changed=changed)
    span = recorded.one("POST")
    ((_, headers),) = made.http.calls
    assert headers["traceparent"].encode() == traceparent_of(span)
    assert (span.kind.name, parent_of(span)) == ("CLIENT", ids_of(OUTSIDE))
    attributes = told(span)
    assert told_of_it.items() <= attributes.items()
    assert attributes["url.full"] == "https://receiver.example:8443/in"
    assert (attributes["server.address"], attributes["server.port"]) == ("receiver.example", 8443)
    assert attributes["http.request.resend_count"] == 2


@simulated
async def test_callback_without_a_tracer_carries_what_came() -> None:
    """Nobody follows it here: the receiver gets the trace context as the result has it."""
    made = Bench(Answered(200))
    await made.take(changed=[("traceparent", OUTSIDE)])
    ((_, headers),) = made.http.calls
    assert headers["traceparent"].encode() == OUTSIDE
