"""The yardstick of `hit.throughput`: aiokafka alone around the engine's own code, in a process of its own.

getmany -> decode, engine, encode, event lines -> one batch per partition, acks=all, idempotent -> commit. No Faust, no
overlap, no life of a worker around it: no revocation, no bound in flight, no refusals, no dead letters.
"""

import asyncio
import sys
from collections import defaultdict
from typing import Any

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from pipeline.adapters.kafka import client_options
from pipeline.adapters.models_topic import read_models
from pipeline.adapters.system import rare_garbage_collections
from pipeline.adapters.triton import TritonServer, instance_names
from pipeline.bench.answering import LaterAnswer, Place, encode, event_lines, take
from pipeline.config import Settings, load_settings
from pipeline.core.answer import Answer
from pipeline.core.catalog import ModelCatalog
from pipeline.core.result_record import ResultRecord
from pipeline.engine import InferenceEngine, Prepared
from pipeline.metrics import EngineMetrics
from pipeline.worker.assembly import engine_of
from pipeline.worker.publisher import EVENT_RECORD_BYTES, PRODUCE_BATCH_BYTES

# A round waits for its confirmations and its commit, 5 ms together: with 4,000 requests they no longer show.
_ROUND_RECORDS_MAX = 4000


class _BareLoop:
    """One consumer, one producer, one loop."""

    def __init__(
        self, settings: Settings, engine: InferenceEngine, consumer: AIOKafkaConsumer, producer: AIOKafkaProducer
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._consumer = consumer
        self._producer = producer
        self._lines = event_lines(settings)
        self._done: defaultdict[int, list[tuple[bytes | None, ResultRecord, bytes]]] = defaultdict(list)
        self._missing = 0
        self._complete = asyncio.Event()

    async def run(self) -> None:
        """Until the process is ended."""
        while True:
            fetched = await self._consumer.getmany(timeout_ms=200, max_records=_ROUND_RECORDS_MAX)
            for records in fetched.values():
                for record in records:
                    self._take(record)
            while self._missing:
                self._complete.clear()
                await self._complete.wait()
            if fetched:
                await self._publish()
                await self._consumer.commit()

    def _take(self, record: Any) -> None:
        place = Place(record.topic, record.partition, record.offset, record.timestamp, record.key)
        exchange, prepared = take(record.value, record.headers, place), Prepared()
        later = LaterAnswer(exchange, prepared, self._answered)
        assert exchange.request is not None, "set by `take`"
        answer = self._engine.submit(
            exchange.request,
            later,
            requested_at=exchange.requested_at,
            appended_at=record.timestamp / 1e3,
            prepared=prepared,
        )
        if answer is None:
            self._missing += 1
        else:
            self._finish(later, answer)

    def _answered(self, later: LaterAnswer, answer: Answer) -> None:
        self._missing -= 1
        self._finish(later, answer)
        self._complete.set()

    def _finish(self, later: LaterAnswer, answer: Answer) -> None:
        result = encode(later.exchange, answer, later.prepared)
        lines = self._lines.of(later.exchange, answer, result)
        self._done[later.exchange.partition].append((later.exchange.key, result, lines))

    async def _publish(self) -> None:
        done, self._done = self._done, defaultdict(list)
        confirmations = []
        for partition, answers in done.items():
            confirmations += await self._send_results(partition, answers)
            confirmations += await self._send_events(partition, b"".join([lines for _, _, lines in answers]))
        for confirmation in confirmations:
            await confirmation

    async def _send_results(self, partition: int, answers: list[tuple[bytes | None, ResultRecord, bytes]]) -> list[Any]:
        topic, sent = self._settings.topic("results"), []
        batch = self._producer.create_batch()
        for key, result, _ in answers:
            if batch.append(key=key, value=result.value, timestamp=None, headers=result.headers) is None:
                batch.close()
                sent.append(await self._producer.send_batch(batch, topic, partition=partition))
                batch = self._producer.create_batch()
                batch.append(key=key, value=result.value, timestamp=None, headers=result.headers)
        batch.close()
        sent.append(await self._producer.send_batch(batch, topic, partition=partition))
        return sent

    async def _send_events(self, partition: int, lines: bytes) -> list[Any]:
        """Records of about the size that the worker's have, cut at line ends."""
        topic, sent, start = self._settings.topic("events"), [], 0
        while start < len(lines):
            end = lines.find(b"\n", start + EVENT_RECORD_BYTES)
            end = len(lines) if end < 0 else end + 1
            value = lines[start:end]
            sent.append(
                await self._producer.send(topic, value, partition=partition % self._settings.kafka.event_partitions)
            )
            start = end
        return sent


async def _main(settings: Settings) -> None:
    options = client_options(settings.kafka)
    catalog = ModelCatalog((await read_models(options, settings.topic("models"))).values())
    urls = settings.triton.urls or ()
    fleet = [TritonServer(name, url, settings.triton.tls) for name, url in zip(instance_names(urls), urls, strict=True)]
    engine, _ = engine_of(settings, catalog, fleet, EngineMetrics(), None)
    consumer = AIOKafkaConsumer(
        settings.topic("requests"),
        **options,
        group_id=settings.worker.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=settings.limits.record_bytes,
    )
    producer = AIOKafkaProducer(
        **options,
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        max_batch_size=PRODUCE_BATCH_BYTES,
        max_request_size=settings.limits.event_record_bytes,
    )
    async with consumer, producer:
        with rare_garbage_collections():
            await _BareLoop(settings, engine, consumer, producer).run()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_main(load_settings())))
