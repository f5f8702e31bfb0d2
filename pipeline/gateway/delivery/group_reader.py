"""Reading a topic in a consumer group for as long as the gateway runs, through outages of Kafka and rebalances."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import IllegalStateError, KafkaError

from pipeline.adapters.topics import partition_counts
from pipeline.config import Settings
from pipeline.core.ledger import read_answered
from pipeline.core.stored_result import StoredResult, name_of
from schemas.request import BINARY_HEADER, binary_header_length

_log = logging.getLogger(__name__)

# Only how soon a rebalance is acted upon depends on it; records are there when they are there.
_READ_MS = 200
_RECORDS_MAX = 1000
_PROBE_EVERY_S = 5.0
_PROBE_S_MAX = 3.0
_STOP_S_MAX = 5.0
_PAUSE_S_FIRST = 0.5
_PAUSE_S_MAX = 10.0
# Whoever reads may wait for Redis as long as it must, and stays in the group meanwhile.
_POLL_MS_MAX = 86_400_000
# Partitions that are added to the topic are noticed this soon.
_METADATA_AGE_MS = 30_000


def result_of(record: ConsumerRecord) -> tuple[bytes, StoredResult] | None:
    """Name and result of a record of results or replies; None for one that is no result."""
    answered = read_answered(record.headers, record.offset, record.value)
    if answered is None or not record.value:
        return None
    json_bytes: int | None = 0
    for name, text in answered.headers:
        if name.lower() == BINARY_HEADER:
            json_bytes = binary_header_length(text, len(record.value))
    if json_bytes is None:
        return None
    return name_of(answered.tenant, answered.request_id), StoredResult(answered.digest, json_bytes, record.value)


class GroupReader(ConsumerRebalanceListener, ABC):  # type: ignore[misc]
    """One topic, read by a group.

    Args:
        settings: where Kafka is.
        options: of an aiokafka client (`adapters.kafka.client_options`).
        topic: the topic.
        group: the group: the topic's partitions are shared by its members.
        reset: where a partition without a commit is begun: `latest` or `earliest`.
        fetch_bytes_max: what one fetch brings of all partitions together, but for a single larger record.

    Attributes:
        problem: why nothing is read; None while it is.
    """

    def __init__(
        self,
        settings: Settings,
        options: Mapping[str, Any],
        topic: str,
        group: str,
        *,
        reset: str,
        fetch_bytes_max: int,
    ) -> None:
        self.problem: str | None = "Kafka is not connected yet"
        self.topic = topic
        self.group = group
        self._settings = settings
        self._options = dict(options)
        self._reset = reset
        self._fetch_bytes_max = fetch_bytes_max
        self._moved: frozenset[TopicPartition] | None = None

    @abstractmethod
    async def place(self, consumer: AIOKafkaConsumer, partitions: frozenset[TopicPartition]) -> None:
        """These partitions are ours now, after every change of the group: sets where they are read from."""

    @abstractmethod
    async def take(
        self, consumer: AIOKafkaConsumer, records: Mapping[TopicPartition, Sequence[ConsumerRecord]]
    ) -> None:
        """The next records, each partition's in order; the next ones are read when this returns."""

    def left(self) -> None:
        """The partitions are given back, or lost."""

    async def run(self) -> None:
        """Reads for ever, and begins anew when Kafka's errors end a consumer."""
        pause_s = _PAUSE_S_FIRST
        while True:
            consumer = self._consumer()
            try:
                await self._begin(consumer)
                pause_s = _PAUSE_S_FIRST
                await self._read(consumer)
            except (KafkaError, OSError) as error:
                self._tell(f"Kafka at {self._settings.kafka.bootstrap_servers}: {str(error) or type(error).__name__}")
            finally:
                self.left()
                await self._stop(consumer)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _PAUSE_S_MAX)

    async def _stop(self, consumer: AIOKafkaConsumer) -> None:
        """Leaves the group; where Kafka does not answer, the group's session ends it."""
        try:
            async with asyncio.timeout(_STOP_S_MAX):
                await consumer.stop()
        except (KafkaError, TimeoutError) as error:
            _log.warning("%s: the group %s was not left: %s", self.topic, self.group, error or type(error).__name__)

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """A rebalance begins."""
        self.left()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """A rebalance is over: placed before anything more is read."""
        self._moved = frozenset(assigned)

    def _consumer(self) -> AIOKafkaConsumer:
        session_s = self._settings.kafka.session_timeout_s
        return AIOKafkaConsumer(
            **self._options,
            group_id=self.group,
            enable_auto_commit=False,
            auto_offset_reset=self._reset,
            session_timeout_ms=int(session_s * 1000),
            heartbeat_interval_ms=int(session_s * 1000 / 5),
            max_poll_interval_ms=_POLL_MS_MAX,
            # A member that waits must not keep the others from their partitions for as long as it may wait.
            rebalance_timeout_ms=int(session_s * 1000),
            fetch_max_bytes=self._fetch_bytes_max,
            max_partition_fetch_bytes=self._fetch_bytes_max,
            metadata_max_age_ms=_METADATA_AGE_MS,
        )

    async def _begin(self, consumer: AIOKafkaConsumer) -> None:
        while not await self._topic_is_there():
            self._tell(f"topic {self.topic} does not exist: make it with `pipeline topics create`")
            await asyncio.sleep(_PAUSE_S_MAX / 10)
        self._moved = None
        await consumer.start()
        self.problem = f"the group {self.group} is being joined"
        consumer.subscribe([self.topic], listener=self)

    async def _topic_is_there(self) -> bool:
        admin = AIOKafkaAdminClient(**self._options)
        try:
            await admin.start()
            return self.topic in await partition_counts(admin)
        finally:
            await admin.close()

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        loop = asyncio.get_running_loop()
        probe_at = loop.time() + _PROBE_EVERY_S
        while True:
            records = await consumer.getmany(timeout_ms=_READ_MS, max_records=_RECORDS_MAX)
            if self._moved is not None:
                partitions, self._moved = self._moved, None
                try:
                    await self.place(consumer, partitions)
                except IllegalStateError:  # moved again meanwhile
                    continue
                self._reads()
                # What was read of them before belongs to no place that was chosen.
                continue
            if records:
                await self.take(consumer, records)
                self._reads()
            elif loop.time() >= probe_at:
                await self._probe(consumer)
                probe_at = loop.time() + _PROBE_EVERY_S

    async def _probe(self, consumer: AIOKafkaConsumer) -> None:
        """Asks Kafka something: a consumer says nothing of an outage by itself, it only reads nothing."""
        try:
            async with asyncio.timeout(_PROBE_S_MAX):
                await consumer.end_offsets([TopicPartition(self.topic, 0)])
        except (KafkaError, TimeoutError) as error:
            self._tell(
                f"Kafka at {self._settings.kafka.bootstrap_servers} does not answer: "
                f"{str(error) or type(error).__name__}"
            )
        else:
            self._reads()

    def _reads(self) -> None:
        if self.problem is not None:
            _log.info("%s is read by the group %s", self.topic, self.group)
        self.problem = None

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            _log.warning("%s is not read at present: %s", self.topic, problem)
        self.problem = problem
