"""What the pipeline needs of Kafka, of the local broker and of one in a container."""

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer

from pipeline.adapters.kafka import client_options
from pipeline.adapters.topics import create_topics
from pipeline.config import Settings
from tests.live.topics import TopicLog, committed_offsets


class KafkaContract:
    """The promises of Kafka that the pipeline leans on; a subclass gives `kafka_settings`."""

    async def test_topics_are_made_once(self, kafka_settings: Settings) -> None:
        """All topics are made with what they must be, and the second time nothing is left to do."""
        first = await create_topics(kafka_settings)
        again = await create_topics(kafka_settings)
        assert len(first.created) == len(again.existing) == 16
        assert (again.created, again.differences) == ((), ())

    async def test_group_begins_at_zero(self, kafka_settings: Settings) -> None:
        """Making the topics gives the worker's group its first commit, 0, in every partition."""
        await create_topics(kafka_settings)
        assert await committed_offsets(kafka_settings) == dict.fromkeys(range(kafka_settings.kafka.partitions), 0)

    async def test_requests_have_the_brokers_time(self, kafka_settings: Settings) -> None:
        """A request's timestamp is the broker's, whatever its producer claims; headers come back in order."""
        await create_topics(kafka_settings)
        headers = [("a", b"1"), ("b", b""), ("a", b"2")]
        async with AIOKafkaProducer(**client_options(kafka_settings.kafka), acks="all") as producer:
            await producer.send_and_wait(
                kafka_settings.topic("requests"), b"{}", key=b"k", timestamp_ms=1, headers=headers
            )
        async with TopicLog(kafka_settings, "requests") as log:
            (record,) = await log.until(lambda records: len(records) == 1, 10, "the record")
        assert record.timestamp_type == 1
        assert record.timestamp > 1
        assert list(record.headers) == headers

    async def test_record_of_the_limit_is_taken(self, kafka_settings: Settings) -> None:
        """A record as large as the settings allow is taken, and comes back whole."""
        await create_topics(kafka_settings)
        value = bytes(kafka_settings.limits.record_bytes)
        size = kafka_settings.limits.record_bytes + (1 << 16)
        async with AIOKafkaProducer(**client_options(kafka_settings.kafka), max_request_size=size) as producer:
            await producer.send_and_wait(kafka_settings.topic("requests"), value)
        async with TopicLog(kafka_settings, "requests") as log:
            (record,) = await log.until(lambda records: len(records) == 1, 20, "the record")
        assert record.value == value


class TestLocalKafka(KafkaContract):
    """The broker of the local stack."""

    @pytest.fixture
    def kafka_settings(self, settings: Settings) -> Settings:
        """Names of the test's own there."""
        return settings


@pytest.fixture(scope="module")
def container_address() -> Iterator[str]:
    """A broker in a container; without a Docker engine the tests are skipped, and say so."""
    from testcontainers.community.kafka import KafkaContainer

    # Asked without their library first: it leaves a socket open where nobody answers.
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        pytest.skip("no Docker engine answers here: DOCKER_HOST is not set, /var/run/docker.sock does not exist")
    docker = import_module("docker")  # what testcontainers stands on; it has no type information
    try:
        docker.from_env().close()
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine answers here: {error}")
    container = KafkaContainer("confluentinc/cp-kafka:7.9.0").with_kraft()
    # Room for the events topic's limit: 3 x the record limit + 1 MiB.
    container.with_env("KAFKA_MESSAGE_MAX_BYTES", str(32 << 20))
    with container:
        yield container.get_bootstrap_server()


@pytest.mark.timeout(300)
class TestContainerKafka(KafkaContract):
    """A broker in a container, where a Docker engine answers."""

    @pytest.fixture
    def kafka_settings(self, container_address: str) -> Settings:
        """Names of the test's own there."""
        name = f"t{uuid4().hex[:12]}"
        kafka = {"bootstrap_servers": container_address, "topic_prefix": f"{name}."}
        return Settings(kafka=kafka, worker={"group": f"{name}-worker"})
