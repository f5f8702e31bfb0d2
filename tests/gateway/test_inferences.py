"""Submitting: pending before the record, a receipt after Kafka's word, and the same request sent once."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest

from pipeline.adapters.system import SystemClock
from pipeline.client.errors import KafkaUnavailable
from pipeline.client.records import RequestRecord
from pipeline.config import KafkaSettings, Settings
from pipeline.core.stored_result import Pending, StoredResult, name_of
from pipeline.errors import InferenceFailed
from pipeline.gateway.delivery.appending import Appending
from pipeline.gateway.delivery.current_request import RequestNames, enter
from pipeline.gateway.delivery.inferences import IdReused, Inferences, Submission
from pipeline.gateway.delivery.lookup import LookUp
from pipeline.gateway.delivery.waiting import Waiting
from schemas.errors import ErrorCode, WireError
from schemas.request import decode_request
from tests.contracts.result_store import MemoryResultStore, a_result
from tests.live.asking import echo_request

SETTINGS = Settings(kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1", reply_partitions=4))


async def until(is_so: Callable[[], bool]) -> None:
    """Returns when it is so."""
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110 - a look at what others do, with a limit
            await asyncio.sleep(0)


class Topic:
    """A requests topic that takes what it is given, or does as it is told."""

    def __init__(self, store: MemoryResultStore) -> None:
        self.records: list[RequestRecord] = []
        self.error: Exception | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.starts = self.stops = 0
        self._store = store
        self.was_reserved: list[bool] = []

    async def start(self) -> None:
        self.starts += 1

    def partition_of(self, key: bytes) -> int:
        return key[0] % 4

    async def append(self, record: RequestRecord, partition: int) -> int:
        request = decode_request(record.value, record.headers)
        self.was_reserved.append(name_of(request.tenant, record.id) in self._store.entries)
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        self.records.append(record)
        return len(self.records) - 1

    async def stop(self) -> None:
        self.stops += 1


class Delivery(Inferences):
    """A gateway's delivery on a scripted topic and a store in memory, with a partition of the replies."""

    def __init__(self, store: MemoryResultStore, topic: Topic, reply_partition: int | None) -> None:
        super().__init__(SETTINGS)
        self.topic, self.memory, self.reply_partition = topic, store, reply_partition

    async def __aenter__(self) -> "Delivery":
        async with AsyncExitStack() as opening:
            self._store = self.memory
            self._look_up = LookUp(self._receipts, self._store, None, SystemClock(), random.Random(1), self.metrics)
            self._waiting = Waiting(self._look_up.results_of, SystemClock(), self.metrics, poll_s=0.01)
            self._appending = Appending(lambda: self.topic)
            self._replies = Place(self.reply_partition)  # type: ignore[assignment]
            for work in (self._appending.run, self._waiting.run):
                self._start_part(opening, work.__qualname__, work)
            self._open = opening.pop_all()
        await until(lambda: self._appending.problem is None)
        return self


class Place:
    """A place for replies."""

    problem = None

    def __init__(self, partition: int | None) -> None:
        self.partition = partition


@asynccontextmanager
async def gateways(*places: int | None) -> AsyncIterator[tuple[list[Delivery], Topic, MemoryResultStore]]:
    """Gateways with these partitions of the replies, over one topic and one store."""
    store = MemoryResultStore()
    topic = Topic(store)
    async with AsyncExitStack() as opened:
        yield [await opened.enter_async_context(Delivery(store, topic, place)) for place in places], topic, store


def a_submission(request: dict[str, Any], **given: Any) -> Submission:
    """As a route hands it over."""
    return Submission(orjson.dumps(request), [], given.pop("tenant", None), "203.0.113.7", **given)


def name(request: dict[str, Any]) -> bytes:
    """Its name in the store."""
    return name_of(None, request["id"])


def reply_of(record: RequestRecord) -> int | None:
    """Where its copy goes."""
    reply = decode_request(record.value, record.headers).reply_to
    return None if reply is None else reply.partition


async def test_request_is_pending_before_its_record() -> None:
    """The store has the id before Kafka has the record, and a receipt comes after Kafka's word alone."""
    async with gateways(2) as ((one,), topic, store):
        topic.go_on.clear()
        request = echo_request()
        task = asyncio.create_task(one.submit(a_submission(request)))
        await until(lambda: bool(topic.was_reserved))
        assert isinstance((await store.find([name(request)]))[0], Pending)
        assert not task.done()
        topic.go_on.set()
        receipt = await task
        assert (receipt.id, receipt.offset, receipt.is_repeated) == (request["id"], 0, False)
        assert topic.was_reserved == [True]
        assert reply_of(topic.records[0]) == 2


async def test_refusal_by_kafka_takes_the_reservation_back() -> None:
    """What Kafka has not confirmed is neither pending nor remembered: the same request is sent when it comes again."""
    async with gateways(0) as ((one,), topic, store):
        request = echo_request()
        topic.error = KafkaUnavailable("not confirmed in time")
        with pytest.raises(KafkaUnavailable):
            await one.submit(a_submission(request))
        assert store.entries == {}
        assert await one.wait(None, request["id"], 0) is None
        topic.error = InferenceFailed(request["id"], ErrorCode.PAYLOAD_TOO_LARGE, "too large for the broker")
        with pytest.raises(WireError) as told:
            await one.submit(a_submission(request))
        assert told.value.code is ErrorCode.PAYLOAD_TOO_LARGE
        assert store.entries == {}
        topic.error = None
        assert not (await one.submit(a_submission(request))).is_repeated
        assert one.metrics.submissions == {"unconfirmed": 1, "invalid": 1, "accepted": 1}


async def test_same_request_again_is_not_sent_again() -> None:
    """The same id with the same content is a repetition; with other content it is another request's id."""
    async with gateways(1) as ((one,), topic, _):
        request = echo_request()
        first = await one.submit(a_submission(request))
        again = await one.submit(a_submission({**request, "requested_at": "2026-11-22T22:00:00Z"}))
        assert (again.is_repeated, again.offset, again.partition) == (True, -1, first.partition)
        for change in ({"timeout_ms": 5}, {"inputs": echo_request()["inputs"]}, {"reply_to": {"partition": 3}}):
            with pytest.raises(IdReused, match=request["id"]):
                await one.submit(a_submission(request | change))
        assert not (await one.submit(a_submission(request, tenant="acme"))).is_repeated, "tenants never meet"
        assert len(topic.records) == 2


async def test_equal_submissions_at_once_are_one() -> None:
    """Two that come together are one record: the second waits for the first, and sends its own only if that failed."""
    async with gateways(1) as ((one,), topic, _):
        topic.go_on.clear()
        request = echo_request()
        tasks = [asyncio.create_task(one.submit(a_submission(request))) for _ in range(3)]
        await until(lambda: bool(topic.was_reserved))
        topic.go_on.set()
        receipts = await asyncio.gather(*tasks)
        assert sorted(receipt.is_repeated for receipt in receipts) == [False, True, True]
        assert len(topic.records) == 1


async def test_request_accepted_elsewhere_is_sent_as_it_was() -> None:
    """Nobody knows whether a gateway that died had it appended: sent again it is the same to the worker."""
    async with gateways(1, 3, None) as ((first, second, third), topic, store):
        request = echo_request()
        await first.submit(a_submission(request))
        for other in (second, third):
            receipt = await other.submit(a_submission(request))
            assert not receipt.is_repeated
            with pytest.raises(IdReused):
                await other.submit(a_submission(request | {"stream": True}))
        assert [reply_of(record) for record in topic.records] == [1, 1, 1]
        digest = (await store.find([name(request)]))[0]
        assert isinstance(digest, Pending)
        await store.keep([(name(request), StoredResult(digest.digest, 0, b"{}"))])
        fourth = Delivery(store, topic, 2)
        async with fourth:
            receipt = await fourth.submit(a_submission(request))
            assert (receipt.is_repeated, receipt.offset) == (True, -1)
        assert len(topic.records) == 3


async def test_store_that_is_away_refuses_nothing() -> None:
    """Without the store requests are taken in, repetitions are known from memory, and copies end the waiting."""
    async with gateways(1) as ((one,), topic, store):
        store.away = True
        request = echo_request()
        await one.submit(a_submission(request))
        assert (await one.submit(a_submission(request))).is_repeated
        assert isinstance(await one.wait(None, request["id"], 0), Pending)
        task = asyncio.create_task(one.wait(None, request["id"], 5.0))
        await asyncio.sleep(0)
        one._reply(name(request), a_result(1))
        assert await task == a_result(1)
        assert await one.wait(None, request["id"], 0) == a_result(1), "what came is remembered"
        assert len(topic.records) == 1


async def test_copy_that_came_before_the_wait_is_there() -> None:
    """A result that is quicker than its caller is given at once, and the store is not asked for it."""
    async with gateways(1) as ((one,), _, store):
        request = echo_request()
        await one.submit(a_submission(request))
        one._reply(name(request), a_result(1))
        finds = store.finds
        assert await one.wait(None, request["id"], 5.0) == a_result(1)
        assert store.finds == finds


async def test_wait_ends_with_its_time() -> None:
    """Who waits in vain is told that it is pending; of what nobody knows, at once that it is unknown."""
    async with gateways(1) as ((one,), _, _store):
        request = echo_request()
        await one.submit(a_submission(request))
        assert isinstance(await one.wait(None, request["id"], 0.01), Pending)
        assert await one.wait("acme", request["id"], 60.0) is None
        assert one.metrics.waits == {"time": 1}


async def test_result_of_another_gateways_request_is_waited_for() -> None:
    """What another gateway accepted is looked for in the store until it is there."""
    async with gateways(1, 2) as ((first, second), _, store):
        request = echo_request()
        await first.submit(a_submission(request))
        task = asyncio.create_task(second.wait(None, request["id"], 10.0))
        await until(lambda: store.finds >= 3)
        await store.keep([(name(request), a_result(1))])
        assert await task == a_result(1)


async def test_lost_producer_is_replaced() -> None:
    """After an error of Kafka's the next record goes through another producer; a mere timeout replaces nothing."""
    async with gateways(0) as ((one,), topic, _):
        topic.error = KafkaUnavailable("not in time")
        with pytest.raises(KafkaUnavailable):
            await one.submit(a_submission(echo_request()))
        assert topic.starts == 1
        topic.error.__cause__ = OSError("fenced")
        with pytest.raises(KafkaUnavailable):
            await one.submit(a_submission(echo_request()))
        await until(lambda: topic.stops == 1)
        topic.error = None
        await one.submit(a_submission(echo_request()))
        assert topic.starts == 2


async def test_part_that_fails_is_told() -> None:
    """A part of the gateway that ends by a mistake makes it not ready, and says so."""
    async with gateways(0) as ((one,), _, _store):
        assert one.not_ready() == {}

        async def broken() -> None:
            raise RuntimeError("a mistake")

        async with AsyncExitStack() as opening:
            one._start_part(opening, "part", broken)
            await until(lambda: bool(one.not_ready()))
        assert "a mistake" in one.not_ready()["part"]
        assert one.state()["reply_partition"] == 0


async def test_gateway_without_kafka_starts_and_says_so() -> None:
    """With no broker there it starts, is not ready, refuses requests as unconfirmed, and stops."""
    async with Inferences(SETTINGS) as inferences:
        assert set(inferences.not_ready()) == {"kafka", "replies"}
        with pytest.raises(KafkaUnavailable):
            await inferences.submit(a_submission(echo_request()))
        assert await inferences.wait(None, "r", 0) is None


async def test_request_at_hand_is_named_before_kafka_has_it() -> None:
    """Whoever writes a line while Kafka is waited for, or because it does not answer, knows whose it is."""
    names = RequestNames()
    enter(names)
    async with gateways(1) as ((one,), topic, _):
        topic.error = KafkaUnavailable("away")
        with pytest.raises(KafkaUnavailable):
            await one.submit(a_submission(echo_request(1) | {"id": "r-1"}))
    assert (names.request_id, names.model_name) == ("r-1", "echo")
