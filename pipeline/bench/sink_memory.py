"""`sink.backlog_memory`: what a sink holds while it moves large event lines, beside what its settings promise."""

import asyncio
import time
from collections.abc import Iterator

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from pipeline.adapters.kafka import client_options
from pipeline.bench.answering import Place, encode, event_lines, take
from pipeline.bench.blobs import blob_records
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure
from pipeline.bench.kafka_load import EVENT_HEADERS, compress_topics, producer_of, send_all
from pipeline.bench.process_memory import MIB, peak_resident_bytes
from pipeline.bench.rig import LogEnds, Rig
from pipeline.config import Settings
from pipeline.core.answer import Answer, stored_answer
from pipeline.engine import Prepared
from pipeline.sink.run import SINK_GROUP
from pipeline.stack.plan import PartFailedError
from pipeline.stack.process import Child

_BAR = Bar("ratio_at_most", 1.0)
_PARTITIONS = 2
_BATCH_BYTES = 16 * MIB
# As `pipeline/sink/run.py` asks; a record that is larger comes whole.
_FETCH_BYTES = 4 * MIB
# A line has the inputs and the result as base64 (4/3 + 4/3 of a tensor); its row the inputs, the outputs as base64 and
# the result's own bytes (4/3 + 4/3 + 1).
_ROWS_PER_LINE = 11 / 8
_LOOK_S = 0.1
# A start of 10 s, then the slowest machine seen: 10 MB/s.
_START_S, _RATE_MIN = 60.0, 5.0


async def measure(rig: Rig, effort: Effort) -> list[Figure]:
    """One figure: the lines of requests whose inputs and outputs are as large as a backlog's."""
    idle, _ = await _moved(rig, effort, 1)
    peak, seconds = await _moved(rig, effort, effort.backlog_records)
    rows_bytes = _ROWS_PER_LINE * _BATCH_BYTES
    # A batch that is inserted, and the next one that collects meanwhile; the first as the insert's blocks, as they are
    # made and as they leave (the client queues ten of 2 MiB); a fetch that is taken, and the next one.
    parts = {
        "rows": _PARTITIONS * 2 * rows_bytes,
        "inserts": _PARTITIONS * 2 * rows_bytes,
        "fetched": float(_PARTITIONS * 2 * max(_FETCH_BYTES, 3 * effort.backlog_bytes)),
    }
    bound, growth = sum(parts.values()), peak - idle
    rig.tell(f"sink.backlog_memory: {idle / MIB:.0f} MiB idle, {growth / MIB:+.0f} MiB, {bound / MIB:.0f} promised")
    return [
        Figure(
            "sink.backlog_memory", growth / MIB, "MiB", bound / MIB, growth / bound, _BAR,
            how=f"peak resident memory of a sink over the events of {effort.backlog_records:,} requests with inputs "
            f"and results of {effort.backlog_bytes:,} bytes, less that of one that moved a single request's",
            yardstick_how=f"for each of {_PARTITIONS} partitions two batches of {_BATCH_BYTES // MIB} MiB of lines, as "
            "rows, an insert's blocks, and two fetches",
            rounds=1,
            steps={f"promised: {name}": part / MIB for name, part in parts.items()},
            notes={"idle_mib": idle / MIB, "peak_mib": peak / MIB, "seconds": seconds},
        )
    ]  # fmt: skip


async def _moved(rig: Rig, effort: Effort, count: int) -> tuple[int, float]:
    """A sink on a backlog of its own: its peak of resident bytes, and the seconds from its start."""
    name = f"sink-memory-{count}"
    settings = await rig.topics(name, event_partitions=_PARTITIONS)
    await asyncio.to_thread(compress_topics, settings.kafka, [settings.topic("events")], "lz4")
    rig.tell(f"sink.backlog_memory: {count:,} requests' events into Kafka")
    await asyncio.to_thread(_prefill, settings, count, effort.backlog_bytes)
    variables = {"PIPELINE_SINK__BATCH_BYTES_MAX": str(_BATCH_BYTES)}
    async with rig.process(settings, name, "pipeline", "sink", variables=variables) as child:
        began = time.monotonic()
        await _committed(settings, child, began + _START_S + count / _RATE_MIN)
        assert child.pid is not None, "started"
        return peak_resident_bytes(child.pid), time.monotonic() - began


async def _committed(settings: Settings, child: Child, limit: float) -> None:
    """Waits until the sink's commits are the ends of its topic.

    Raises:
        PartFailedError: the process ended, or did not get it done until `limit`, monotonic seconds.
    """
    async with LogEnds(settings, settings.topic("events")) as log:
        ends = await log.now()
    left = {TopicPartition(settings.topic("events"), number): end for number, end in ends.items() if end}
    admin = AIOKafkaAdminClient(**client_options(settings.kafka))
    ended = asyncio.create_task(child.wait_exit())
    try:
        await admin.start()
        while left:
            if ended.done() or time.monotonic() > limit:
                raise PartFailedError(child.spec.name, f"not all events are in ClickHouse: {child.find_cause()}")
            for partition, commit in (await admin.list_consumer_group_offsets(SINK_GROUP)).items():
                if commit.offset == left.get(partition):
                    del left[partition]
            await asyncio.sleep(_LOOK_S)
    finally:
        ended.cancel()
        await admin.close()


def _prefill(settings: Settings, count: int, size: int) -> None:
    """Event records as a worker writes them for requests of this size: each has one of its own."""
    producer = producer_of(settings.kafka, **{"message.max.bytes": settings.limits.event_record_bytes})
    lines = enumerate(_lines(settings, count, size))
    send_all(
        producer,
        settings.topic("events"),
        ({"value": some, "partition": number % _PARTITIONS, "headers": EVENT_HEADERS} for number, some in lines),
    )


def _lines(settings: Settings, count: int, size: int) -> Iterator[bytes]:
    """The lines of requests that gave their inputs back, as raw bytes."""
    writer = event_lines(settings)
    for offset, record in enumerate(blob_records(count, size)):
        place = Place(settings.topic("requests"), 0, offset, int(time.time() * 1e3), record.key)
        exchange = take(record.value, record.headers, place)
        assert exchange.request is not None, "set by `take`"
        outputs = stored_answer(
            [tensor.to_tensor() for tensor in exchange.request.inputs], stored_at=0.0, instance="bench"
        )
        answer = Answer("succeeded", "1", outputs, None, "miss")
        yield writer.of(exchange, answer, encode(exchange, answer, Prepared()))
