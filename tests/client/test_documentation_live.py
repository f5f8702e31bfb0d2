"""The examples of docs/client.md, each a program of its own, on the real stack with a worker and a gateway."""

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from pipeline.config import Settings
from tests.live.processes import ProcessGroup, environment
from tests.live.waiting import until

PROJECT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "client.md").read_text(), re.DOTALL)
# What stands in the examples, as `pipeline up` makes it.
KAFKA, GATEWAY = 'Client("127.0.0.1:9092")', "http://127.0.0.1:8080"
# Imports and Kafka on a busy machine.
READY_TIMEOUT_S = 40.0

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


@pytest.fixture
async def gateway_url(topics: Settings) -> AsyncIterator[str]:
    """A gateway on these settings, as a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = environment(topics) | {"PIPELINE_GATEWAY__PORT": str(port)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pipeline", "gateway", cwd=PROJECT, env=os.environ | variables, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as session:

            async def ready() -> bool:
                assert process.returncode is None, "the gateway ended"
                try:
                    async with session.get(f"{url}/v2/health/ready") as response:
                        return response.status == 200
                except aiohttp.ClientError:
                    return False

            await until(ready, READY_TIMEOUT_S, "the gateway is ready")
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_every_example_runs(topics: Settings, processes: ProcessGroup, gateway_url: str) -> None:
    """Each example ends well and prints what it is there to show; a reader may copy it as it stands."""
    await processes.start("worker", topics)
    own = f'Client("{topics.kafka.bootstrap_servers}", "{topics.kafka.topic_prefix}")'
    printed = []
    for example in EXAMPLES:
        assert KAFKA in example or GATEWAY in example
        program = example.replace(KAFKA, own).replace(GATEWAY, gateway_url)
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-W", "error", "-c", program], cwd=PROJECT, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), f"{program}\n{done.stderr}"
        printed.append(done.stdout)
    asked, later, many, sync, stream = printed
    assert asked.splitlines()[1] == "(2, 384)"
    assert later.splitlines()[1] == "succeeded True"
    assert many == "done\n"
    assert sync.splitlines()[1] == "16 answers"
    assert "[[" in stream
