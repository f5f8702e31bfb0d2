"""The yardstick of `hit.latency`: aiokafka alone, getmany -> send, nothing in between. A process of its own.

Arguments: the topic to read, the topic to write. A record goes to the partition with the number it came from.
"""

import asyncio
import sys

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from pipeline.adapters.kafka import client_options
from pipeline.adapters.system import rare_garbage_collections
from pipeline.config import Settings, load_settings


async def _main(settings: Settings, source: str, target: str) -> None:
    options = client_options(settings.kafka)
    consumer = AIOKafkaConsumer(source, **options, group_id=f"{source}.echo", auto_offset_reset="earliest")
    producer = AIOKafkaProducer(**options, acks="all", enable_idempotence=True, linger_ms=0)
    async with consumer, producer:
        with rare_garbage_collections():
            while True:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    for record in records:
                        await producer.send(target, record.value, key=record.key, partition=record.partition)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_main(load_settings(), *sys.argv[1:3])))
