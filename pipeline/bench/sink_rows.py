"""`sink.throughput`: the sink from prefilled event records into real ClickHouse, beside a bare insert loop."""

import asyncio
import json
import time

from pipeline.bench.answering import LaterAnswer, Place, encode, engine_without_servers, event_lines, take
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure, paired
from pipeline.bench.kafka_load import EVENT_HEADERS, producer_of
from pipeline.bench.rig import Rig
from pipeline.bench.workload import RequestRecords
from pipeline.config import Settings
from pipeline.core.answer import Answer
from pipeline.engine import Prepared
from pipeline.stack.plan import PartFailedError
from pipeline.worker.publisher import EVENT_RECORD_BYTES
from schemas.request import decode_request

_BAR = Bar("ratio_at_least", 0.5)
_PARTITIONS = 2
# Lines of one hit: received, hit, published.
_LINES = 3
_TIMEOUT_S = 120.0


async def measure(rig: Rig, effort: Effort) -> list[Figure]:
    """`sink.throughput`, each pair on a topic of its own: the sink's group and tokens are new each time."""
    ours: list[dict[str, float]] = []
    plain: list[dict[str, float]] = []
    # One record more than the batches need closes the last of them.
    requests = effort.sink_batches * effort.sink_batch_rows // _LINES + EVENT_RECORD_BYTES // 1000
    for number in range(effort.sink_pairs):
        settings = await rig.topics(f"sink-{number}", event_partitions=_PARTITIONS)
        rig.tell(f"sink.throughput: {_PARTITIONS * requests:,} requests' events into Kafka")
        await _prefill(settings, requests, effort.distinct)
        batches = str(effort.sink_batches * _PARTITIONS)
        variables = {"PIPELINE_SINK__BATCH_ROWS_MAX": str(effort.sink_batch_rows)}
        ours.append(await _run(rig, settings, f"sink-{number}", variables, "sink", batches))
        plain.append(await _run(rig, settings, f"bare-{number}", variables, "bare"))
        rig.tell(f"sink.throughput: sink {_rate(ours[-1]):,.0f} rows/s, bare inserts {_rate(plain[-1]):,.0f} rows/s")
    return [
        paired(
            "sink.throughput", "rows/s", [_rate(run) for run in ours], [_rate(run) for run in plain], _BAR,
            how=f"the sink: Kafka to events, requests and their view, full batches of {effort.sink_batch_rows:,} lines",
            yardstick_how="the same batches as prepared columns, inserted one after the other",
            notes={
                "cpu_us_per_row": min(run["cpu_seconds"] / run["rows"] for run in ours) * 1e6,
                "cpu_us_per_row_yardstick": min(run["cpu_seconds"] / run["rows"] for run in plain) * 1e6,
            },
        )
    ]  # fmt: skip


def _rate(run: dict[str, float]) -> float:
    return run["rows"] / run["seconds"]


async def _run(rig: Rig, settings: Settings, name: str, variables: dict[str, str], *mode: str) -> dict[str, float]:
    """One process to its end; what its last line says.

    Raises:
        PartFailedError: it failed, or took too long.
    """
    arguments = ("pipeline.bench.sink_child", *mode)
    async with rig.process(settings, name, *arguments, variables=variables) as child:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                code = await child.wait_exit()
        except TimeoutError:
            raise PartFailedError(name, f"not done after {_TIMEOUT_S:g} s: {child.find_cause()}") from None
        if code:
            raise PartFailedError(name, child.find_cause())
        lines = await asyncio.to_thread(child.log_path.read_text)
    numbers: dict[str, float] = json.loads(lines.splitlines()[-1])
    return numbers


async def _prefill(settings: Settings, requests: int, distinct: int) -> None:
    """Event records as a worker writes them: the lines of hits, about half a megabyte each."""
    engine, _ = engine_without_servers(settings)
    lines = event_lines(settings)
    for record in RequestRecords(distinct, seed=1).take(distinct):
        await engine.perform_inference_with_cache_check(decode_request(record.value, record.headers))
    producer = producer_of(settings.kafka, **{"message.max.bytes": settings.limits.event_record_bytes})
    for partition in range(_PARTITIONS):
        some: list[bytes] = []
        size = 0
        for offset, record in enumerate(RequestRecords(distinct, seed=1).take(requests)):
            place = Place(settings.topic("requests"), partition, offset, int(time.time() * 1e3), record.key)
            exchange, prepared = take(record.value, record.headers, place), Prepared()
            assert exchange.request is not None, "set by `take`"
            answer = engine.submit(exchange.request, LaterAnswer(exchange, prepared, _unexpected), prepared=prepared)
            assert answer is not None, "warm"
            some.append(lines.of(exchange, answer, encode(exchange, answer, prepared)))
            size += len(some[-1])
            if size > EVENT_RECORD_BYTES:
                producer.produce(settings.topic("events"), b"".join(some), partition=partition, headers=EVENT_HEADERS)
                producer.poll(0)
                some, size = [], 0
                await asyncio.sleep(0)
        producer.produce(settings.topic("events"), b"".join(some), partition=partition, headers=EVENT_HEADERS)
        await asyncio.to_thread(producer.flush)
    await engine.stop()


def _unexpected(later: LaterAnswer, answer: Answer) -> None:
    raise RuntimeError(f"a request that should be a hit was computed: {answer}")
