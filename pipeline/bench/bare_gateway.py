"""The yardstick of `gateway.hit`: a FastAPI route that produces to Kafka and waits for the echo, in its own process.

Arguments: the port, the topic to write, the topic that the echo writes. Nothing is checked, kept, or looked up.
"""

import asyncio
import itertools
import sys

import uvicorn
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from fastapi import FastAPI, Request, Response

from pipeline.adapters.kafka import all_partitions, client_options
from pipeline.adapters.system import rare_garbage_collections
from pipeline.config import Settings, load_settings


async def _main(settings: Settings, port: int, source: str, target: str) -> None:
    options = client_options(settings.kafka)
    consumer = AIOKafkaConsumer(**options, group_id=None, enable_auto_commit=False)
    producer = AIOKafkaProducer(**options, acks="all", enable_idempotence=True, linger_ms=0)
    waiting: dict[bytes, asyncio.Future[bytes]] = {}
    numbers = itertools.count()
    app = FastAPI()

    @app.post("/infer")
    async def infer(request: Request) -> Response:
        key = b"%d" % next(numbers)
        answered = waiting[key] = asyncio.get_running_loop().create_future()
        await producer.send_and_wait(source, await request.body(), key=key)
        return Response(await answered, media_type="application/json")

    async def read() -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                for record in records:
                    if (answered := waiting.pop(record.key, None)) is not None:
                        answered.set_result(record.value)

    async with consumer, producer:
        partitions = await all_partitions(consumer, target)
        consumer.assign(partitions)
        await consumer.seek_to_end(*partitions)
        reading = asyncio.create_task(read())
        with rare_garbage_collections():
            server = uvicorn.Server(
                uvicorn.Config(app, host="127.0.0.1", port=port, http="h11", log_level="error", access_log=False)
            )
            await server.serve()
            reading.cancel()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_main(load_settings(), int(sys.argv[1]), *sys.argv[2:4])))
