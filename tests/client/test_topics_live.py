"""Topics and the client on a real Kafka."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from pipeline.adapters.broker_limits import refused_by_brokers
from pipeline.adapters.topics import create_topics
from pipeline.client import Client, KafkaUnavailable, ResultNotReceived
from pipeline.client.client import fresh_id
from pipeline.config import Settings
from pipeline.errors import InferenceFailed, TopicError
from schemas.errors import ErrorCode
from tests.client.scripted_topics import result_record

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]


@pytest.fixture
def own_settings(bootstrap_servers: str) -> Settings:
    """Topics and a group that no other test has."""
    return settings_for(bootstrap_servers)


def settings_for(bootstrap_servers: str, prefix: str | None = None, **sections: Any) -> Settings:
    """Settings with a topic prefix, fresh unless given; sections replace whole ones."""
    name = prefix or f"t-{fresh_id()}."
    kafka = {"bootstrap_servers": bootstrap_servers, "topic_prefix": name} | sections.pop("kafka", {})
    return Settings(kafka=kafka, worker={"group": f"group-{name}"}, **sections)


async def committed(settings: Settings) -> dict[int, int]:
    """The worker group's offsets on requests, by partition."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap_servers)
    await admin.start()
    try:
        places = await admin.list_consumer_group_offsets(settings.worker.group)
    finally:
        await admin.close()
    return {place.partition: offset.offset for place, offset in places.items()}


async def test_second_creation_changes_nothing(own_settings: Settings) -> None:
    """Topics are made once; the second call finds them as they should be."""
    first = await create_topics(own_settings)
    second = await create_topics(own_settings)
    assert len(first.created) == 16
    assert second == replace(second, created=(), existing=first.created, differences=(), altered=())


async def test_worker_group_starts_at_offset_zero(own_settings: Settings) -> None:
    """The group of a worker that never ran has the commit 0 everywhere, once."""
    first = await create_topics(own_settings)
    assert first.started_partitions == (0, 1, 2, 3)
    assert await committed(own_settings) == {0: 0, 1: 0, 2: 0, 3: 0}
    assert (await create_topics(own_settings)).started_partitions == ()


async def test_existing_commits_are_left_alone(own_settings: Settings) -> None:
    """What a worker has committed is never set back."""
    await create_topics(own_settings)
    place = TopicPartition(own_settings.topic("requests"), 1)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=own_settings.kafka.bootstrap_servers,
        group_id=own_settings.worker.group,
        enable_auto_commit=False,
    )
    consumer.assign([place])
    await consumer.start()
    await consumer.commit({place: 7})
    await consumer.stop()
    await create_topics(own_settings)
    assert await committed(own_settings) == {0: 0, 1: 7, 2: 0, 3: 0}


async def test_smaller_limits_are_reported_then_altered(own_settings: Settings, bootstrap_servers: str) -> None:
    """A topic that does not fit is only named, until altering it is asked for."""
    await create_topics(own_settings)
    larger = settings_for(bootstrap_servers, own_settings.kafka.topic_prefix, limits={"record_bytes": 16 << 20})
    reported = await create_topics(larger)
    assert {difference.setting for difference in reported.differences} == {"max.message.bytes"}
    altered = await create_topics(larger, alter=True)
    assert altered.altered == reported.differences
    assert (await create_topics(larger)).differences == ()


async def test_results_follow_existing_requests(bootstrap_servers: str) -> None:
    """Results are made with as many partitions as the requests topic has, whatever the settings say."""
    settings = settings_for(bootstrap_servers, kafka={"partitions": 2})
    await create_topics(settings)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.delete_topics([settings.topic("results")])
        wider = settings_for(bootstrap_servers, settings.kafka.topic_prefix, kafka={"partitions": 5})
        await create_topics(wider)
        topics = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}
    finally:
        await admin.close()
    assert topics[settings.topic("results")] == 2


async def test_unreachable_kafka_is_one_clear_error() -> None:
    """Nobody listens: the error names the address, and comes within the limit."""
    started = time.monotonic()
    with pytest.raises(TopicError, match=r"127\.0\.0\.1:1"):
        await create_topics(settings_for("127.0.0.1:1"), timeout_s=5)
    with pytest.raises(KafkaUnavailable, match=r"127\.0\.0\.1:1"):
        async with Client("127.0.0.1:1", delivery_timeout_s=5):
            pass
    assert time.monotonic() - started < 15


async def test_missing_topics_are_named(own_settings: Settings) -> None:
    """A client on a Kafka without our topics says which is missing and how to make it, and makes none."""
    with pytest.raises(TopicError, match=r"results does not exist.*pipeline topics create"):
        async with Client.from_settings(own_settings):
            pass


async def test_request_and_answer_cross_kafka(own_settings: Settings) -> None:
    """A submitted record is where its receipt says, key and headers with it, and its answer comes back."""
    await create_topics(own_settings)
    servers = own_settings.kafka.bootstrap_servers
    async with Client.from_settings(own_settings) as client, AIOKafkaProducer(bootstrap_servers=servers) as worker:
        submitted = await client.submit("digits", {"image": np.zeros((1, 64), np.float32)}, id="r-1")
        place = TopicPartition(own_settings.topic("requests"), submitted.partition)
        async with AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest") as reader:
            reader.assign([place])
            record = await reader.getone()
        assert (record.offset, dict(record.headers)["ce_id"]) == (submitted.offset, b"r-1")
        answer = result_record("r-1", submitted.partition)
        await worker.send_and_wait(
            own_settings.topic("results"), answer.value, partition=submitted.partition, headers=answer.headers
        )
        assert (await submitted.result(timeout_s=20)).id == "r-1"


async def test_client_places_as_other_producers_do(own_settings: Settings) -> None:
    """The client's placement is Kafka's default: an unmodified producer with the same key meets the same partition."""
    await create_topics(own_settings)
    topic = own_settings.topic("requests")
    servers = own_settings.kafka.bootstrap_servers
    async with Client.from_settings(own_settings) as client, AIOKafkaProducer(bootstrap_servers=servers) as producer:
        for number in range(8):
            submitted = await client.submit("digits", {"x": [number]})
            async with AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest") as reader:
                place = TopicPartition(topic, submitted.partition)
                reader.assign([place])
                reader.seek(place, submitted.offset)
                record = await reader.getone()
            sent = await producer.send_and_wait(topic, b"{}", key=record.key)
            assert sent.partition == submitted.partition


async def test_large_records_pass_and_larger_are_refused(own_settings: Settings) -> None:
    """A record just below the limit is accepted by Kafka; one above it is PAYLOAD_TOO_LARGE before it is sent."""
    await create_topics(own_settings)
    limit = own_settings.limits.record_bytes
    async with Client.from_settings(own_settings, answer_timeout_s=0.1) as client:
        with pytest.raises(ResultNotReceived):
            await client.infer("digits", {"x": np.zeros(limit - 1000, np.uint8)})
        with pytest.raises(InferenceFailed) as raised:
            await client.infer("digits", {"x": np.zeros(limit, np.uint8)})
    assert raised.value.code is ErrorCode.PAYLOAD_TOO_LARGE


@pytest.mark.parametrize(("record_bytes", "refused"), [(8 << 20, False), (256 << 20, True)])
async def test_brokers_that_refuse_large_records_are_named(
    bootstrap_servers: str, record_bytes: int, refused: bool
) -> None:
    """A broker whose requests are smaller than the largest event record is told of, with its setting and the need."""
    settings = settings_for(bootstrap_servers, limits={"record_bytes": record_bytes})
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        found = await refused_by_brokers(admin, settings)
    finally:
        await admin.close()
    assert bool(found) is refused
    assert all("socket.request.max.bytes is" in line and "need 807403520" in line for line in found)
