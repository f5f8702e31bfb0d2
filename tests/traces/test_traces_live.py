"""One trace from HTTP, and from a Kafka client, to Triton and back, through real processes and a collector."""

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from aiokafka import ConsumerRecord

from pipeline.adapters.tracing import open_tracer
from pipeline.adapters.triton import TritonServer
from pipeline.client import Client, HttpClient
from pipeline.client.client import fresh_id
from pipeline.client.records import RequestRecord, build_record, traced
from pipeline.config import GatewaySettings, Settings
from pipeline.gateway.main import bound_socket
from pipeline.ports import InferenceCall
from pipeline.webhooks.main import WebhooksProcess
from schemas.result import InferenceResult
from schemas.tensor import Tensor
from tests.adapters.triton_process import TritonProcess
from tests.gateway.test_gateway_process import gateway, status_of
from tests.live.asking import fresh_value
from tests.live.processes import ProcessGroup, environment
from tests.live.stack import LiveStack
from tests.live.topics import TopicLog, header, prepare_topics
from tests.live.waiting import until
from tests.traces.collector import Collected, Collector
from tests.traces.recorded import OUTSIDE, TRACE
from tests.webhooks.callbacks import with_webhooks
from tests.webhooks.receivers import Receiver

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

CALL = "inference.GRPCInferenceService/ModelInfer"
DEAD = "http://127.0.0.1:9"
# (service, kind, name, index of the parent among these)
Shape = list[tuple[str, str, str, int | None]]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that everything of this test exports to, ten times a second."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    with Collector() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield running


@asynccontextmanager
async def webhooks(settings: Settings) -> AsyncIterator[None]:
    """The webhooks process, within this one, as its entry point makes it."""
    process, stop = WebhooksProcess(settings, tracer=open_tracer("inference-webhooks")), asyncio.Event()
    running = asyncio.create_task(process.run(stop))
    try:
        yield
    finally:
        stop.set()
        await running


@asynccontextmanager
async def gateway_at(settings: Settings, folder: Path, variables: Mapping[str, str]) -> AsyncIterator[str]:
    """A gateway process that is ready; its address."""
    with bound_socket(GatewaySettings(port=0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with gateway(folder, **environment(settings), PIPELINE_GATEWAY__PORT=str(port), **variables) as process:

        async def ready() -> bool:
            assert process.poll() is None, process.stdout and process.stdout.read()
            return await asyncio.to_thread(status_of, f"{url}/health/ready") == 200

        await until(ready, 40, "the gateway is ready")
        yield url


async def ask(client: Client | HttpClient, value: float, callback: str | None = None) -> InferenceResult:
    """One request to the echo model."""
    inputs = {"fp32": np.array([[value]], np.float32)}
    return await client.infer("echo", inputs, outputs=["fp32_echo"], callback=callback)


async def trace_of(collector: Collector, request_id: str, count: int) -> list[Collected]:
    """The spans of a request's trace, in the order of their beginnings, once there are so many."""

    def trace(spans: list[Collected]) -> list[Collected]:
        ids = {one.trace_id for one in spans if one.attributes.get("inference.request_id") == request_id}
        return sorted((one for one in spans if one.trace_id in ids), key=lambda one: one.started_ns)

    spans = await asyncio.to_thread(collector.wait, lambda spans: len(trace(spans)) >= count)
    return trace(spans)


def shape_of(spans: list[Collected]) -> Shape:
    """Who did what under whom."""
    places = {one.span_id: index for index, one in enumerate(spans)}
    return [(one.service, one.kind, one.name, places.get(one.parent_id) if one.parent_id else None) for one in spans]


async def test_one_trace_from_http_to_triton_and_back(
    stack: LiveStack, processes: ProcessGroup, collector: Collector, tmp_path: Path
) -> None:
    """A miss over HTTP with a callback, a hit, and a miss over Kafka: each is one trace, every span under its cause."""
    plain = stack.make_settings()
    settings = with_webhooks(plain)
    requests, results = settings.topic("requests"), settings.topic("results")
    await prepare_topics(settings, stack.models.values())
    await processes.start("worker", plain, variables={"PIPELINE_WEBHOOKS__ALLOW_HTTP": "true"})
    value = fresh_value()
    async with (
        gateway_at(plain, tmp_path, {}) as url, Receiver() as receiver, webhooks(settings),
        TopicLog(settings, "results") as log, HttpClient(url) as http, Client.from_settings(settings) as kafka,
    ):  # fmt: skip
        miss = await ask(http, value, receiver.url("/results"))
        await receiver.until_all([miss.id])
        hit = await ask(http, value)
        direct = await ask(kafka, fresh_value())
        traces = [await trace_of(collector, one.id, count) for one, count in ((miss, 7), (hit, 5), (direct, 4))]
        named = [
            header(await log.first(partial(is_of, one.id), 10, "the result"), "traceparent")
            for one in (miss, hit, direct)
        ]
    edge: Shape = [
        ("inference-client", "CLIENT", "POST /v1/inferences", None),
        ("inference-gateway", "SERVER", "POST /v1/inferences", 0),
        ("inference-gateway", "PRODUCER", f"send {requests}", 1),
        ("inference-worker", "CONSUMER", f"process {requests}", 2),
    ]
    call: Shape = [("inference-worker", "CLIENT", CALL, 3)]
    sent: Shape = [("inference-worker", "PRODUCER", f"send {results}", 3)]
    assert shape_of(traces[0]) == [*edge, *call, *sent, ("inference-webhooks", "CLIENT", "POST", 3)]
    assert shape_of(traces[1]) == [*edge, *sent]
    assert shape_of(traces[2]) == [
        ("inference-client", "PRODUCER", f"send {requests}", None),
        ("inference-worker", "CONSUMER", f"process {requests}", 0),
        ("inference-worker", "CLIENT", CALL, 1),
        ("inference-worker", "PRODUCER", f"send {results}", 1),
    ]
    works = [next(one for one in trace if one.kind == "CONSUMER") for trace in traces]
    assert [one.attributes["inference.cache_status"] for one in works] == ["miss", "hit", "miss"]
    # The result names the worker's span, and so does what the receiver is told: the span of its own delivery.
    assert named == [f"00-{one.trace_id}-{one.span_id}-{flags(text)}" for one, text in zip(works, named, strict=True)]
    delivery = traces[0][-1]
    (received,) = (one for one in receiver.received if one.webhook_id == miss.id)
    assert received.headers["traceparent"].split("-")[1:3] == [delivery.trace_id, delivery.span_id]
    assert len({one.trace_id for trace in traces for one in trace}) == 3


def is_of(request_id: str, record: ConsumerRecord) -> bool:
    """Whether a record is of this request."""
    return header(record, "ce_id") == request_id


def flags(traceparent: str | None) -> str:
    """The flags of a `traceparent`."""
    assert traceparent is not None
    return traceparent[-2:]


async def test_dead_collector_changes_no_answer(
    stack: LiveStack, processes: ProcessGroup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody listens where spans go: requests are answered, each process says it once, and ends as it should."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", DEAD)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    settings = stack.make_settings()
    await prepare_topics(settings, stack.models.values())
    worker = await processes.start("worker", settings)
    async with gateway_at(settings, tmp_path, {}) as url, HttpClient(url) as client:
        for value in [fresh_value() for _ in range(20)]:
            for status in ("miss", "hit"):
                assert (await ask(client, value)).parameters.cache_status == status
    await worker.wait_log("spans are not exported")
    assert worker.log.count("spans are not exported") == 1
    assert worker.stop() is None


async def test_context_goes_through_unchanged_without_an_exporter(stack: LiveStack, processes: ProcessGroup) -> None:
    """Where nobody makes spans, a result names the very span that its request named."""
    settings = stack.make_settings()
    await prepare_topics(settings, stack.models.values())
    await processes.start("worker", settings)
    async with TopicLog(settings, "results") as log, Client.from_settings(settings) as client:
        for _ in range(2):
            record = client_record(OUTSIDE)
            submitted = await client.submit_record(record)
            await submitted.result()
            found = await log.first(partial(is_of, record.id), 10, "the result")
            assert header(found, "traceparent") == OUTSIDE.decode()


def client_record(traceparent: bytes) -> RequestRecord:
    """A request that names a span."""
    inputs = {"fp32": np.array([[1.0]], np.float32)}
    return traced(build_record(fresh_id(), "echo", inputs, now=time.time(), outputs=["fp32_echo"]), traceparent)


async def test_triton_s_own_trace_joins(collector: Collector, tmp_path: Path) -> None:
    """A Triton that traces by OpenTelemetry puts its spans under the call, whatever its own sampling rate."""
    triton = await asyncio.to_thread(TritonProcess, tmp_path)
    spec = triton._triton.spec
    options = (
        "mode=opentelemetry", "level=TIMESTAMPS", "rate=1000", f"opentelemetry,url={collector.url}/v1/traces",
        "opentelemetry,bsp_schedule_delay=100", "opentelemetry,resource=service.name=triton",
    )  # fmt: skip
    argv = (*spec.argv, *(f"--trace-config={option}" for option in options))
    triton._triton.spec = dataclasses.replace(spec, argv=argv)
    await asyncio.to_thread(triton.start)
    server = TritonServer("triton-0", triton.address)
    try:
        tensor = Tensor("fp32", "FP32", (1, 1), np.array([1.0], np.float32).tobytes())
        call = InferenceCall("echo", "1", [tensor], [("fp32_echo", {})])
        await server.infer(call, 10)
        await server.infer(dataclasses.replace(call, traceparent=OUTSIDE), 10)
        spans = await asyncio.to_thread(
            collector.wait, lambda spans: any(one.parent_id == "00f067aa0ba902b7" for one in spans)
        )
    finally:
        await server.close()
        await asyncio.to_thread(triton.kill)
    assert {one.trace_id.encode() for one in spans} == {TRACE}
