"""The two processes of `sink.throughput`. Each prints one line of JSON: rows, seconds, CPU seconds.

`sink BATCHES`: the sink itself, until so many are in. `bare`: the same batches, prepared before, in a loop.
"""

import asyncio
import json
import sys
import time

import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client import CollectorRegistry

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.adapters.kafka import client_options
from pipeline.adapters.system import rare_garbage_collections
from pipeline.config import Settings, load_settings
from pipeline.core.event_batch import BatchDraft, BatchLimits, EventBatch, EventRecord
from pipeline.ports import InsertBlock
from pipeline.sink.run import Readiness, run_sink

_LOOK_S = 0.005
_TABLES = ("events", "requests")


async def _sink(settings: Settings, batches: int) -> dict[str, float]:
    """From the assignment of partitions to the commit of the last batch: fetch, decode, insert, commit."""
    registry = CollectorRegistry()
    ready: list[Readiness] = []
    stop = asyncio.Event()
    running = asyncio.create_task(run_sink(settings, stop, registry=registry, on_ready=ready.append))
    while not running.done() and (not ready or ready[-1]()):  # noqa: ASYNC110 - the sink has no event to wait for
        await asyncio.sleep(_LOOK_S)
    began, cpu = time.perf_counter(), time.process_time()
    while not running.done() and _sample(registry, "inference_sink_batches_total") < batches:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    rows = sum(_sample(registry, "inference_sink_rows_total", table=table) for table in _TABLES)
    stop.set()
    await running
    return {"rows": rows, "seconds": seconds, "cpu_seconds": cpu}


def _sample(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


async def _bare(settings: Settings) -> dict[str, float]:
    """One batch after the other into the same tables, without Kafka, decoding, plan and commit."""
    prepared = await _prepared(settings)
    async with ClickHouseEventStore(settings.clickhouse) as store:
        await store.query("SELECT 1")  # connects
        with rare_garbage_collections():
            began, cpu = time.perf_counter(), time.process_time()
            for batch in prepared:
                blocks = []
                for table, columns in batch.tables.items():
                    blocks.append(InsertBlock(table, columns))
                # Another token than the sink's: else ClickHouse would drop the second of the two, and cost nothing.
                await store.insert(blocks, f"bare/{batch.token}")
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "rows": float(sum(sum(batch.row_counts.values()) for batch in prepared)),
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


async def _prepared(settings: Settings) -> list[EventBatch]:
    """The full batches that the sink would make of the topic; what is left over is left out."""
    topic = settings.topic("events")
    limits = BatchLimits(settings.sink.batch_rows_max, settings.sink.batch_bytes_max)
    batches: list[EventBatch] = []
    consumer = AIOKafkaConsumer(
        **client_options(settings.kafka), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    async with consumer:
        for number in range(settings.kafka.event_partitions):
            partition = TopicPartition(topic, number)
            consumer.assign([partition])
            await consumer.seek_to_beginning(partition)
            end = (await consumer.end_offsets([partition]))[partition]
            draft = BatchDraft(topic, number, 0, limits)
            while await consumer.position(partition) < end:
                for record in (await consumer.getmany(timeout_ms=500)).get(partition, []):
                    event = EventRecord.of(record.offset, record.value)
                    if not draft.offer(event):
                        batches.append(draft.finish())
                        draft = BatchDraft(topic, number, record.offset, limits)
                        draft.offer(event)
    return batches


if __name__ == "__main__":
    _settings = load_settings()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as _runner:
        _done = _runner.run(_sink(_settings, int(sys.argv[2])) if sys.argv[1] == "sink" else _bare(_settings))
    sys.stdout.write(json.dumps(_done) + "\n")
