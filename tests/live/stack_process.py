"""The local stack of a test run, as a process of its own: `python -m tests.live.stack_process DATA_DIR [kafka]`.

A process, because it must outlive every test's event loop. It stops when its standard input ends, so it goes with the
test run, however that ends, and takes the data folder with it. `ready.json` tells where everything is. With `kafka`
there is nothing but a broker.
"""

import asyncio
import json
import logging
import os
import random
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.adapters.kafka import client_options
from pipeline.adapters.topics import create_topics
from pipeline.config import KafkaSettings, Settings, TritonSettings
from pipeline.errors import TopicError
from pipeline.stack import Endpoints, PartState, Stack, StackPlan
from pipeline.stack.ports import is_port_free
from pipeline.stack.process import RestartPolicy
from pipeline.watcher.repository_pass import register_models
from tests.models.folders import ECHO, MODEL_REPOSITORY, PROJECT

READY_FILE = "ready.json"
# The prefix of the topics that come with the stack; every test has topics of its own besides.
PREFIX = "run."
_LISTENERS = (
    "kafka",
    "kafka-controller",
    "valkey",
    "clickhouse",
    *(f"triton-{index}-{kind}" for index in (0, 1) for kind in ("http", "grpc", "metrics")),
)
# Below the ports that Linux gives to outgoing connections (32768 and up), above the usual ones of servers.
_PORTS = range(20_000, 32_000)


async def serve(data_dir: Path, *, only_kafka: bool) -> None:
    """Starts everything, tells where it is, stays until standard input ends."""
    serving_dir = data_dir / "serving"
    serving_dir.mkdir(parents=True)
    _choose_ports(data_dir / "ports.json")
    plan = StackPlan(
        data_dir=data_dir,
        valkey=not only_kafka,
        clickhouse=not only_kafka,
        triton_count=0 if only_kafka else 2,
        serving_dir=serving_dir,
        backends_dir=PROJECT / "infra" / "triton" / "backends",
    )
    # Tests kill servers on purpose: a pause that grows would only make them longer.
    async with Stack(plan, _tell, RestartPolicy(first_s=0.2, max_s=0.5)) as stack:
        following = asyncio.create_task(_follow_parent())
        endpoints = await stack.start_servers()
        ready = asdict(endpoints) | {"serving_dir": str(serving_dir)}
        ready["models"] = {} if only_kafka else await _register(endpoints, data_dir, serving_dir)
        unfinished = data_dir / "ready.part"
        unfinished.write_text(json.dumps(ready))
        unfinished.replace(data_dir / READY_FILE)
        await following


def _choose_ports(book: Path) -> None:
    """Ports that no stack takes by itself: a pipeline that runs on this machine is not disturbed, nor are other tests.

    The stack takes the ports of its book where they are free.
    """
    chosen: set[int] = set()
    while len(chosen) < len(_LISTENERS):
        port = random.choice(_PORTS)
        if is_port_free(port):
            chosen.add(port)
    book.write_text(json.dumps(dict(zip(_LISTENERS, chosen, strict=True))))


async def _register(endpoints: Endpoints, data_dir: Path, serving_dir: Path) -> dict[str, Any]:
    """The shipped models and the tests' own on every Triton; their records."""
    kafka = KafkaSettings(bootstrap_servers=endpoints.kafka, topic_prefix=PREFIX)
    urls = tuple(one.grpc for one in endpoints.triton)
    settings = Settings(data_dir=data_dir, kafka=kafka, triton=TritonSettings(urls=urls))
    await create_topics(settings)
    own = data_dir / "test_models"
    shutil.copytree(ECHO, own / ECHO.name)
    records: dict[str, Any] = {}
    for repository in (MODEL_REPOSITORY, own):
        report = await register_models(
            repository=repository,
            serving_dir=serving_dir,
            triton_urls=urls,
            kafka_options=client_options(kafka),
            topic=settings.topic("models"),
        )
        if not report.ok:
            raise TopicError(f"the models of {repository} cannot be served: {report}")
        records |= {name: record.model_dump(mode="json") for name, record in report.records.items()}
    return records


async def _follow_parent() -> None:
    """Ends this process as SIGTERM does once standard input ends: at the run's end, or with its death."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.Event().wait()


def _tell(state: PartState) -> None:
    logging.getLogger("stack").info("%s %s %s", state.name, state.phase, state.why)


def main() -> None:
    """Serves, then removes the data folder."""
    data_dir = Path(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    try:
        asyncio.run(serve(data_dir, only_kafka="kafka" in sys.argv[2:]))
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
