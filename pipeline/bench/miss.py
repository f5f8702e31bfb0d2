"""`miss.throughput`, `miss.dispatch`, `miss.latency`: the way to one real Triton, beside calls of a raw stub."""

import time
from statistics import median
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2_grpc

from pipeline.adapters.system import rare_garbage_collections
from pipeline.adapters.triton import TritonServer
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure, paired
from pipeline.bench.miss_loops import RAW_BATCH, EngineLoop, FlightLoop, calls, raw_call, raw_rate
from pipeline.bench.rig import Rig
from pipeline.bench.workload import MODEL, RequestRecords, images
from pipeline.core.catalog import ModelCatalog
from pipeline.engine import InferenceEngine
from pipeline.metrics import EngineMetrics
from pipeline.worker.assembly import engine_of
from schemas.decoded import DecodedRequest
from schemas.request import decode_request

_BAR = Bar("ratio_at_least", 0.9)
IN_FLIGHT = 64


async def measure(rig: Rig, effort: Effort) -> list[Figure]:
    """All three, on one Triton."""
    url = (rig.settings.triton.urls or ("",))[0]
    catalog = ModelCatalog(rig.models.values())
    server = TritonServer("triton-0", url, rig.settings.triton.tls)
    metrics = EngineMetrics()
    engine, _ = engine_of(rig.settings, catalog, [server], metrics, None)
    async with grpc.aio.insecure_channel(url) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        version = catalog.resolve(MODEL, None, time.time()).version
        try:
            with rare_garbage_collections():
                figures = await _throughput(rig, effort, engine, metrics, server, infer)
                return [*figures, await _latency(effort, engine, infer, version)]
        finally:
            await engine.stop()
            await server.close()


async def _throughput(
    rig: Rig, effort: Effort, engine: InferenceEngine, metrics: EngineMetrics, server: TritonServer, infer: Any
) -> list[Figure]:
    served = engine.catalog.resolve(MODEL, None, time.time())
    rates: dict[str, list[float]] = {"engine": [], "dispatcher": [], "raw stub": []}
    count, rows = effort.miss_requests, 0.0
    for number in range(effort.miss_pairs + 1):
        calls_before = calls(metrics)
        taken = {
            "engine": await EngineLoop(engine, _requests(count)).run(IN_FLIGHT),
            "dispatcher": await FlightLoop(rig.settings, server, served, images(count)).run(IN_FLIGHT),
            "raw stub": await raw_rate(infer, served.version, count),
        }
        rows = count / max(calls(metrics) - calls_before, 1)
        if number:  # the first round warms the server up
            for name, rate in taken.items():
                rates[name].append(rate)
            rig.tell("miss.throughput: " + ", ".join(f"{name} {rate:,.0f}/s" for name, rate in taken.items()))
    raw_how = f"preformed batches of {RAW_BATCH} on the raw stub, {IN_FLIGHT // RAW_BATCH} calls at a time"
    return [
        paired(
            "miss.throughput", "requests/s", rates["engine"], rates["raw stub"], _BAR,
            how=f"engine, dispatcher and Triton client: {IN_FLIGHT} distinct digits in flight, none stored before",
            yardstick_how=raw_how,
            notes={"rows_per_call": rows},
        ),
        paired(
            "miss.dispatch", "requests/s", rates["dispatcher"], rates["raw stub"], None,
            how=f"the part of it behind the cache: dispatcher and Triton client, {IN_FLIGHT} flights out",
            yardstick_how=raw_how,
        ),
    ]  # fmt: skip


def _requests(count: int) -> list[DecodedRequest]:
    records = RequestRecords(count)
    return [decode_request(record.value, record.headers) for record in records.take(count)]


async def _latency(effort: Effort, engine: InferenceEngine, infer: Any, version: str) -> Figure:
    """Call by call in turn: the host's noise meets both alike."""
    requests = _requests(effort.miss_calls)
    preformed = [raw_call(version, image) for image in images(effort.miss_calls)]
    ours: list[float] = []
    plain: list[float] = []
    for request, call in zip(requests, preformed, strict=True):
        began = time.perf_counter()
        answer = await engine.perform_inference_with_cache_check(request)
        middle = time.perf_counter()
        await infer(call, timeout=20.0)
        ended = time.perf_counter()
        if answer.cache_status != "miss":
            raise RuntimeError(f"a request that should be a miss was answered: {answer}")
        ours.append((middle - began) * 1e3)
        plain.append((ended - middle) * 1e3)
    # The first calls wake up what rested since the throughput rounds.
    skip = min(50, effort.miss_calls // 2)
    one, other = median(ours[skip:]), median(plain[skip:])
    return Figure(
        "miss.latency", one, "ms", other, one / other, None,
        "p50 of one miss at a time through engine, dispatcher and Triton client",
        "p50 of one preformed call of the raw stub, call by call in turn",
        effort.miss_calls - skip,
    )  # fmt: skip
