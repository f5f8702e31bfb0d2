"""Requests in and results out through the gateway's delivery, on a real Kafka, Valkey, ClickHouse and worker."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import orjson
import pytest
from aiokafka import ConsumerRecord

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.adapters.redis_result_store import RedisResultStore
from pipeline.adapters.system import SystemClock
from pipeline.config import RedisSettings, Settings
from pipeline.core.stored_result import Pending, StoredResult, name_of
from pipeline.gateway.delivery.inferences import IdReused, Inferences, ResultGone, Submission
from pipeline.sink.migrations import migrate
from tests.adapters.valkey_process import ValkeyProcess
from tests.live.asking import Asking, echo_request, fresh_id
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.topics import TopicLog, end_offsets, header, prepare_topics
from tests.live.waiting import until

pytestmark = [pytest.mark.live, pytest.mark.timeout(90)]

WAIT_S = 20.0


@pytest.fixture
async def served(stack: LiveStack, valkey: ValkeyProcess) -> Settings:
    """Settings with topics made, and a Valkey that runs and is empty."""
    valkey.reset()
    settings = stack.make_settings(redis={"url": valkey.url})
    await prepare_topics(settings, stack.models.values())
    return settings


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[Inferences]:
    """A gateway's delivery, ready."""
    async with Inferences(settings) as inferences:

        async def ready() -> bool:
            return not inferences.not_ready()

        await until(ready, WAIT_S, f"the gateway is ready: {inferences.not_ready()}")
        yield inferences


def a_submission(request: dict[str, object], tenant: str | None = None) -> Submission:
    """A JSON request as a route hands it over."""
    return Submission(orjson.dumps(request), [], tenant, "203.0.113.7")


def is_named(request_id: str, record: ConsumerRecord) -> bool:
    """Whether a record is of this request."""
    return header(record, "ce_id") == request_id


async def test_result_has_the_bytes_of_the_topic(served: Settings, processes: ProcessGroup) -> None:
    """What is waited for is the very record of the results topic, JSON or binary; the worker sees the same content."""
    await processes.start("worker", served)
    async with gateway(served) as inferences, Asking(served) as asking:
        for members in ({}, {"parameters": {"binary_data_output": True}}, {"model_name": "nobody"}):
            request = echo_request(**members)
            receipt = await inferences.submit(a_submission(request, "acme"))
            assert (receipt.id, receipt.tenant, receipt.is_repeated) == (request["id"], "acme", False)
            found = await inferences.wait("acme", receipt.id, WAIT_S)
            record = await asking.results.first(partial(is_named, receipt.id), 10, "the result")
            assert isinstance(found, StoredResult)
            assert found.value == record.value
            assert found.digest.hex() == header(record, "request-digest")
            assert str(found.json_bytes or None) == str(header(record, "Inference-Header-Content-Length"))
            again = await inferences.submit(a_submission(request, "acme"))
            assert (again.is_repeated, again.offset, again.partition) == (True, -1, receipt.partition)
            assert await inferences.wait(None, receipt.id, 0) is None
        # The copy and the store's filler race; neither wait lasted its time.
        assert inferences.metrics.waits["reply"] + inferences.metrics.waits["store"] == 3


async def test_another_gateway_answers_for_one_that_died(served: Settings, processes: ProcessGroup) -> None:
    """Between receipt and result the gateway dies: another one knows the id as pending, and gives its result."""
    request = echo_request()
    async with gateway(served) as first:
        receipt = await first.submit(a_submission(request))
    async with gateway(served) as second:
        found = await second.wait(None, receipt.id, 0)
        assert isinstance(found, Pending)
        waiting = asyncio.create_task(second.wait(None, receipt.id, 60.0))
        # The same request again, where nobody can tell that the first one had it appended.
        again = await second.submit(a_submission(request))
        assert (again.is_repeated, again.partition) == (False, receipt.partition)
        with pytest.raises(IdReused):
            await second.submit(a_submission(echo_request(id=request["id"])))
        await processes.start("worker", served)
        result = await waiting
        assert isinstance(result, StoredResult)
        assert orjson.loads(result.value)["status"] == "succeeded"
        async with TopicLog(served, "results") as results, TopicLog(served, "dead-letter") as letters:
            other = await second.submit(a_submission(echo_request()))
            assert isinstance(await second.wait(None, other.id, WAIT_S), StoredResult)
            await results.first(lambda record: header(record, "ce_id") == other.id, 10, "the other's result")
            named = [record for record in results.records if header(record, "ce_id") == receipt.id]
        assert [record.value for record in named] == [result.value], "sent twice, answered once"
        assert letters.records == []


async def test_receipts_and_answers_go_on_without_redis(
    served: Settings, processes: ProcessGroup, valkey: ValkeyProcess
) -> None:
    """Valkey killed, and restarted empty: requests are taken in, answered, and later ones are found there again."""
    await processes.start("worker", served)
    async with gateway(served) as inferences:
        before = await inferences.submit(a_submission(echo_request()))
        valkey.kill()
        receipts = [await inferences.submit(a_submission(echo_request())) for _ in range(5)]
        answers = [await inferences.wait(None, receipt.id, WAIT_S) for receipt in [before, *receipts]]
        assert all(isinstance(answer, StoredResult) for answer in answers)
        repeated = await inferences.submit(a_submission(request := echo_request()))
        assert not repeated.is_repeated
        assert (await inferences.submit(a_submission(request))).is_repeated
        valkey.start()
        store = RedisResultStore(RedisSettings(url=valkey.url), served.kafka.topic_prefix, 60.0, SystemClock(),
                                 random.Random(1))  # fmt: skip

        async def is_kept() -> bool:
            # What came while it was away waited in Kafka.
            return isinstance((await store.find([name_of(None, repeated.id)]))[0], StoredResult)

        await until(is_kept, WAIT_S, "the results of the outage are in the store")
        await store.close()


async def test_log_answers_for_an_empty_store(served: Settings, processes: ProcessGroup, valkey: ValkeyProcess) -> None:
    """What neither this gateway nor the store knows is found in ClickHouse, byte for byte; redacted it is gone."""
    await migrate(served.clickhouse)
    await processes.start("worker", served)
    await processes.start("sink", served)
    request = echo_request(parameters={"binary_data_output": True})
    async with gateway(served) as first:
        receipt = await first.submit(a_submission(request, "acme"))
        answer = await first.wait("acme", receipt.id, WAIT_S)
    assert isinstance(answer, StoredResult)
    async with AsyncExitStack() as opened, ClickHouseEventStore(served.clickhouse) as log:

        async def is_logged() -> bool:
            rows = await log.query("SELECT count() FROM requests")
            return bool(rows.rows[0][0])

        await until(is_logged, WAIT_S, "the row")
        second = await opened.enter_async_context(gateway(served))
        # Before the gateway's filler can have put it there again: it goes on where the group has got to.
        with valkey.admin as admin:
            admin.flushall()
        found = await second.wait("acme", receipt.id, 0)
        assert isinstance(found, StoredResult)
        assert (found.value, found.json_bytes) == (answer.value, answer.json_bytes)
        assert await second.wait("acme", fresh_id(), 0) is None
        assert await second.wait(None, receipt.id, 0) is None
        await log.command("ALTER TABLE requests UPDATE result = '' WHERE 1 SETTINGS mutations_sync = 1")
        with pytest.raises(ResultGone):
            await second.wait("acme", receipt.id, 0)


async def test_gateway_without_a_partition_answers_by_the_store(served: Settings, processes: ProcessGroup) -> None:
    """With more gateways than partitions of the replies the last one has none: it is ready, and its waits end."""
    await processes.start("worker", served)
    async with AsyncExitStack() as opened:
        gateways = [await opened.enter_async_context(gateway(served)) for _ in range(4)]

        async def settled() -> bool:
            places = [one.state()["reply_partition"] for one in gateways]
            return sorted(place for place in places if place is not None) == [0, 1, 2]

        await until(settled, 40.0, "three of four gateways have a partition")
        for one in gateways:
            receipt = await one.submit(a_submission(echo_request()))
            assert isinstance(await one.wait(None, receipt.id, WAIT_S), StoredResult)
        without = next(one for one in gateways if one.state()["reply_partition"] is None)
        assert without.metrics.waits["reply"] == 0
    assert sum((await end_offsets(served, "replies")).values()) == 3
