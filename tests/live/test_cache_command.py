"""`pipeline cache` on two workers, their own caches and the shared one."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from aiokafka import AIOKafkaProducer

from pipeline.adapters.kafka import client_options
from pipeline.adapters.redis import RedisSharedCache
from pipeline.adapters.system import SystemClock
from pipeline.adapters.topics import create_topics
from pipeline.config import Settings
from schemas.registry import ModelRecord, ModelVersion
from tests.live.asking import Answered, Asking, echo_request, fresh_id, fresh_value
from tests.live.cache_command import cache_stats, run_cache
from tests.live.processes import ProcessGroup, ServiceProcess
from tests.live.stack import LiveStack
from tests.live.topics import prepare_topics
from tests.live.waiting import until

pytestmark = pytest.mark.timeout(150)

PARTITIONS = range(4)


@dataclass(frozen=True)
class Pair:
    """Two workers that share the partitions, and a producer of requests."""

    settings: Settings
    workers: tuple[ServiceProcess, ServiceProcess]
    asking: Asking

    async def ask(self, value: float, partition: int, tenant: str | None = None) -> Answered:
        """One request in a partition of choice, and so to a worker of choice."""
        request = echo_request(value, **({} if tenant is None else {"tenant": tenant}))
        answer = await self.asking.ask(request, partition=partition)
        assert answer.status == "succeeded", answer.message
        return answer

    async def ask_everywhere(self, value: float, tenant: str | None = None) -> list[str | None]:
        """The same request once in each partition, one after the other: both workers have its answer then."""
        return [(await self.ask(value, partition, tenant)).cache_status for partition in PARTITIONS]

    async def shared_entries(self) -> int:
        """How many answers the shared cache holds of these topics; they are gone afterwards."""
        cache = RedisSharedCache(
            self.settings.redis, self.settings.cache, self.settings.kafka.topic_prefix, SystemClock(), random.Random(1)
        )
        try:
            return await cache.clear()
        finally:
            await cache.close()


@pytest.fixture
async def pair(stack: LiveStack, processes: ProcessGroup) -> AsyncIterator[Pair]:
    """Two workers on topics of their own, each with half of the partitions."""
    settings = stack.make_settings()
    await prepare_topics(settings, stack.models.values())
    workers = await asyncio.gather(*(processes.start("worker", settings) for _ in range(2)))
    await asyncio.gather(*(worker.wait_partitions(lambda found: len(found) == 2) for worker in workers))
    async with Asking(settings) as asking:
        yield Pair(settings, (workers[0], workers[1]), asking)


async def test_stats_add_up_and_clear_is_exact(pair: Pair) -> None:
    """What both workers hold is shown; clearing a tenant of a model takes exactly that, everywhere; the rest stays."""
    acme, other = fresh_value(), fresh_value()
    assert await pair.ask_everywhere(acme, "acme") == ["miss", "hit", "hit", "hit"]
    assert await pair.ask_everywhere(other) == ["miss", "hit", "hit", "hit"]
    stats = await cache_stats(pair.settings)
    assert {(row["tenant"], row["entries"]) for row in stats["usage"]} == {("acme", 2), ("", 2)}
    assert [worker["entries"] for worker in stats["workers"]] == [2, 2]
    assert sorted(number for worker in stats["workers"] for number in worker["partitions"]) == list(PARTITIONS)
    (met,) = stats["requests"]
    assert (met["model_name"], met["hits"], met["misses"], met["hit_rate"]) == ("echo", 6, 2, 0.75)
    assert sum(worker["shared"]["writes"].get("stored", 0) for worker in stats["workers"]) == 2

    ran = await run_cache(pair.settings, "clear", "--model", "echo", "--tenant", "acme", "--json")
    assert (ran.exit_code, ran.errors) == (0, "")
    assert [worker["entries"] for worker in ran.document["workers"]] == [1, 1]
    assert all(worker["bytes"] > 0 for worker in ran.document["workers"])
    assert (ran.document["shared"], ran.document["missing"]) == ({"entries": 1}, [])
    assert await pair.ask_everywhere(other) == ["hit"] * 4
    assert await pair.ask_everywhere(acme, "acme") == ["miss", "hit", "hit", "hit"]


async def test_clear_by_another_model_takes_nothing(pair: Pair) -> None:
    """A filter that means nothing drops nothing; clearing all drops all, and the table says how much."""
    value = fresh_value()
    await pair.ask_everywhere(value)
    for filters in (("--model", "digits"), ("--model", "echo", "--version", "7"), ("--tenant", "acme")):
        ran = await run_cache(pair.settings, "clear", *filters, "--json")
        assert (ran.exit_code, ran.document["shared"]) == (0, {"entries": 0})
        assert [worker["entries"] for worker in ran.document["workers"]] == [0, 0]
    ran = await run_cache(pair.settings, "clear", "--model", "echo", "--version", "1")
    assert ran.exit_code == 0
    lines = [line.split() for line in ran.output.splitlines()]
    assert [line[1] for line in lines[1:3]] == ["1", "1"], ran.output
    assert lines[3] == ["shared", "cache", "1"]
    assert await pair.shared_entries() == 0
    assert (await pair.ask(value, 0)).cache_status == "miss"


async def test_running_request_is_not_stored_by_a_clear(pair: Pair) -> None:
    """What is being computed while the cache is cleared is answered, and stored nowhere."""
    request = echo_request(parameters={"delay_ms": 5000})
    running = asyncio.create_task(pair.asking.ask(request, partition=0))

    async def is_running() -> bool:
        return any([(await worker.state()).get("in_flight") for worker in pair.workers])

    await until(is_running, 20, "the request is being computed")
    ran = await run_cache(pair.settings, "clear", "--yes")
    assert (ran.exit_code, running.done()) == (0, False), "it ran longer than the clear"
    assert (await running).status == "succeeded"
    stats = await cache_stats(pair.settings)
    assert ([worker["entries"] for worker in stats["workers"]], await pair.shared_entries()) == ([0, 0], 0)


async def test_paused_worker_is_reported_and_clears_later(pair: Pair) -> None:
    """A worker that hangs is named, with exit code 1; the other is cleared, and it clears itself when it goes on."""
    value = fresh_value()
    await pair.ask_everywhere(value)
    hung = pair.workers[0]
    partitions = (await hung.state())["partitions"]
    hung.send(signal.SIGSTOP)
    ran = await run_cache(pair.settings, "clear", "--model", "echo", "--timeout", "2", "--json")
    assert ran.exit_code == 1
    assert [missing["partitions"] for missing in ran.document["missing"]] == [partitions]
    assert "no answer: the worker on 127.0.0.1 with the partitions" in ran.errors
    assert [worker["entries"] for worker in ran.document["workers"]] == [1]
    hung.send(signal.SIGCONT)

    async def cleared() -> bool:
        stats = await run_cache(pair.settings, "stats", "--json")
        return [worker["entries"] for worker in stats.document["workers"]] == [0, 0]

    await until(cleared, 60, "both caches are empty")


async def test_worker_without_the_topic_serves(stack: LiveStack, processes: ProcessGroup) -> None:
    """On a cluster of an earlier version a worker serves, says what is missing, and obeys once the topic is made."""
    settings = stack.make_settings()
    await prepare_topics(settings, stack.models.values())
    await delete_control(settings)
    worker = await processes.start("worker", settings)
    await worker.wait_log(f"there is no topic {settings.topic('control')}: `pipeline topics create` makes it")
    async with Asking(settings) as asking:
        assert (await asking.ask(echo_request())).status == "succeeded"
        ran = await run_cache(settings, "stats")
        assert (ran.exit_code, ran.output) == (1, "")
        assert "`pipeline topics create` makes it" in ran.errors
        assert (await create_topics(settings)).created == (settings.topic("control"),)
        assert [found["entries"] for found in (await cache_stats(settings))["workers"]] == [1]


async def test_retired_version_leaves_by_itself(pair: Pair, stack: LiveStack) -> None:
    """The answers of a version that is served no more are gone within a minute, without a request for them."""
    await pair.ask_everywhere(fresh_value())
    echo = stack.models["echo"]
    retired = {number: version.model_copy(update={"state": "unloaded"}) for number, version in echo.versions.items()}
    await announce(pair.settings, echo.model_copy(update={"versions": retired, "default_version": None}))

    async def gone() -> bool:
        stats = await cache_stats(pair.settings)
        return [(worker["entries"], worker["retired"]) for worker in stats["workers"]] == [(0, 1), (0, 1)]

    await until(gone, 60, "the retired version's answers are gone")
    _, metrics = await pair.workers[0].get("/metrics")
    assert "pipeline_cache_retired_total 1.0" in metrics


async def test_replaced_content_leaves_by_itself(pair: Pair, stack: LiveStack) -> None:
    """Other content under the same number is another version: the earlier one's answers leave, its own stay."""
    value = fresh_value()
    await pair.ask_everywhere(value)
    echo = stack.models["echo"]
    replaced = {
        number: ModelVersion(fingerprint=fresh_id(), state="ready", signature=version.signature)
        for number, version in echo.versions.items()
    }
    await announce(pair.settings, echo.model_copy(update={"versions": replaced}))

    async def retired() -> bool:
        stats = await cache_stats(pair.settings)
        return [worker["retired"] for worker in stats["workers"]] == [1, 1]

    await until(retired, 60, "the earlier content's answers are gone")
    assert await pair.ask_everywhere(value) == ["miss", "hit", "hit", "hit"]


async def announce(settings: Settings, record: ModelRecord) -> None:
    """Puts a model's record on the models topic."""
    async with AIOKafkaProducer(**client_options(settings.kafka), acks="all") as producer:
        value = record.model_dump_json().encode()
        await producer.send_and_wait(settings.topic("models"), value, key=record.model_name.encode())


async def delete_control(settings: Settings) -> None:
    """Takes the control topic away, as if `topics create` of an earlier version had been run."""
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(**client_options(settings.kafka))
    await admin.start()
    try:
        await admin.delete_topics([settings.topic("control")])

        async def is_gone() -> bool:
            return settings.topic("control") not in await admin.list_topics()

        await until(is_gone, 20, "the control topic is gone")
    finally:
        await admin.close()
