"""A Kafka that is not there yet, dies, or hangs."""

import os
import signal

import pytest

from tests.live.asking import Asking, echo_request
from tests.live.gate import Gate
from tests.live.load import Load
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.topics import prepare_topics


@pytest.mark.timeout(90)
async def test_worker_waits_for_kafka_and_topics(stack: LiveStack, processes: ProcessGroup) -> None:
    """Without Kafka a worker says so once and waits; then it names the missing topics; then it serves."""
    async with Gate(stack.bootstrap_servers) as gate:
        settings = stack.make_settings(kafka={"bootstrap_servers": gate.address})
        worker = await processes.start("worker", settings, ready=False)
        await worker.wait_log(f"Kafka at {gate.address} does not answer")
        status, body = await worker.get("/health/ready")
        assert status == 503
        assert "kafka" in body
        assert (await worker.get("/health/live"))[0] == 200
        await gate.open()
        await worker.wait_log(f"topics are missing: {settings.topic('requests')}")
        assert worker.log.count("does not answer") == 1
        await prepare_topics(settings, stack.models.values())
        await worker.wait_ready()
        async with Asking(settings) as asking:
            assert (await asking.ask(echo_request())).status == "succeeded"


@pytest.mark.timeout(60)
async def test_worker_that_waits_for_kafka_stops_at_once(stack: LiveStack, processes: ProcessGroup) -> None:
    """SIGTERM ends a worker that still waits for Kafka, with exit code 0."""
    async with Gate(stack.bootstrap_servers) as gate:
        worker = processes.spawn("worker", stack.make_settings(kafka={"bootstrap_servers": gate.address}))
        await worker.wait_log("does not answer")
        assert worker.stop() is None
        assert worker.exit_code == 0


@pytest.mark.timeout(120)
async def test_killed_kafka_loses_no_request(stack: LiveStack, own_kafka: LiveStack, processes: ProcessGroup) -> None:
    """SIGKILL of the broker under load: once it is back, everything that it took is answered."""
    settings = stack.make_settings(kafka={"bootstrap_servers": own_kafka.bootstrap_servers})
    await prepare_topics(settings, stack.models.values())
    worker = await processes.start("worker", settings)
    async with Asking(settings) as asking:
        async with Load(asking, 100, parameters={"delay_ms": 10}) as load:
            await load.answered(100, 30)
            os.kill(own_kafka.pid("kafka"), signal.SIGKILL)
            await load.answered(len(load.sent) + 100, 60)
        await load.all_answered(30)
    worker.check_running()


@pytest.mark.timeout(120)
async def test_hung_kafka_keeps_no_worker_from_ending(
    stack: LiveStack, own_kafka: LiveStack, processes: ProcessGroup
) -> None:
    """SIGTERM ends a worker within its limit although Kafka hangs (SIGSTOP); the next one answers what is open."""
    settings = stack.make_settings(kafka={"bootstrap_servers": own_kafka.bootstrap_servers})
    await prepare_topics(settings, stack.models.values())
    worker = await processes.start("worker", settings)
    hung = own_kafka.pid("kafka")
    async with Asking(settings) as asking:
        async with Load(asking, 100, parameters={"delay_ms": 10}) as load:
            await load.answered(100, 30)
            os.kill(hung, signal.SIGSTOP)
            try:
                worker.send(signal.SIGTERM)
                assert await worker.wait_exit() == 1
            finally:
                os.kill(hung, signal.SIGCONT)
            assert "is Kafka there?" in worker.log
            await processes.start("worker", settings)
            await load.answered(len(load.sent) + 50, 40)
        await load.all_answered(30)
