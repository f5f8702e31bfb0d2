"""The models topic, read outside Faust: no group, every partition assigned by hand, always from its beginning.

The topic is compacted and small (one record per model), so its state is read again at every start. Kafka access comes
as client options: `pipeline/adapters/kafka.py` makes them.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from pipeline.adapters.kafka import all_partitions
from pipeline.errors import TopicError
from schemas.registry import ModelRecord

logger = logging.getLogger(__name__)

# How long the broker may hold an empty fetch. A worker must know within a second that it has seen everything; five
# answers a second cost a broker nothing.
FETCH_WAIT_S = 0.2
RECONNECT_PAUSE_S = 0.5


def decode_model_record(key: bytes | None, value: bytes) -> ModelRecord | None:
    """A record of the topic, or None (and a line in the log) when it is none."""
    try:
        record = ModelRecord.model_validate_json(value)
    except ValidationError as error:
        logger.warning("a record of the models topic is skipped, key %r: %s", key, error.errors(include_url=False)[:1])
        return None
    if key != record.model_name.encode():
        logger.warning("a record of the models topic is skipped: its key is %r, its model %r", key, record.model_name)
        return None
    return record


async def read_models(kafka_options: Mapping[str, Any], topic: str, timeout_s: float = 30.0) -> dict[str, ModelRecord]:
    """The newest valid record of every model, read to the end the topic has now.

    Raises:
        TopicError: there is no such topic, or its end was not reached in `timeout_s`.
        KafkaError: no broker answers.
    """
    consumer = AIOKafkaConsumer(**_consumer_options(kafka_options))
    models: dict[str, ModelRecord] = {}
    try:
        async with asyncio.timeout(timeout_s):
            await consumer.start()
            partitions = await _assign_all(consumer, topic)
            ends = await consumer.end_offsets(partitions)
            while not await _reached(consumer, ends):
                for name, record in _decoded(await consumer.getmany(timeout_ms=int(FETCH_WAIT_S * 1000))):
                    _apply(models, name, record)
    except TimeoutError:
        raise TopicError(f"{topic} was not read to its end in {timeout_s:.0f} s") from None
    finally:
        await consumer.stop()
    return models


class ModelsFollower:
    """Follows the models topic for as long as it runs, and reconnects by itself.

    While it reads up to the end it hands out nothing, then the newest record of each model: nobody sees a default
    that was replaced long ago. After a reconnection it reads from the beginning again, and hands out what differs.

    Args:
        kafka_options: for an aiokafka client.
        topic: the topic's full name.
        on_record: called in this event loop with each new record. An exception from it ends the follower.
        on_removed: called with a model's name when its record was deleted.
        monotonic: the clock of `last_poll_monotonic`.
    """

    def __init__(
        self,
        kafka_options: Mapping[str, Any],
        topic: str,
        on_record: Callable[[ModelRecord], None],
        on_removed: Callable[[str], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = _consumer_options(kafka_options)
        self._topic = topic
        self._on_record = on_record
        self._on_removed = on_removed
        self._monotonic = monotonic
        self._delivered: dict[str, ModelRecord] = {}
        self._caught_up = asyncio.Event()
        self._last_poll = float("-inf")
        self._task: asyncio.Task[None] | None = None

    @property
    def caught_up(self) -> bool:
        """Whether everything the topic held at the start was handed out. Never false again afterwards."""
        return self._caught_up.is_set()

    @property
    def last_poll_monotonic(self) -> float:
        """Everything appended before this moment was handed out; minus infinity before anything was.

        A moment too early rather than too late: it is taken before the broker's answer was looked for.
        """
        return self._last_poll

    async def start(self) -> None:
        """Starts following; returns at once. `wait_caught_up` waits."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"follow {self._topic}")

    async def stop(self) -> None:
        """Stops; idempotent.

        Raises:
            Exception: what `on_record` raised, if that ended the follower.
        """
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def wait_caught_up(self) -> None:
        """Waits until `caught_up`.

        Raises:
            TopicError: it is not started.
            Exception: what `on_record` raised.
        """
        if self._task is None:
            raise TopicError(f"nobody follows {self._topic}: start() was not called")
        reached = asyncio.create_task(self._caught_up.wait())
        try:
            await asyncio.wait({reached, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reached.cancel()
        if not self.caught_up:
            self._task.result()

    async def _run(self) -> None:
        while True:
            consumer = AIOKafkaConsumer(**self._options)
            try:
                await consumer.start()
                await self._follow(consumer)
            except (KafkaError, TopicError, OSError) as error:
                logger.warning("the models topic cannot be followed, trying again: %s", error)
            finally:
                await consumer.stop()
            await asyncio.sleep(RECONNECT_PAUSE_S)

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        partitions = await _assign_all(consumer, self._topic)
        asked = self._monotonic()
        ends = await consumer.end_offsets(partitions)
        found: dict[str, ModelRecord] = {}
        while not await _reached(consumer, ends):
            for name, record in _decoded(await consumer.getmany(timeout_ms=int(FETCH_WAIT_S * 1000))):
                _apply(found, name, record)
        self._last_poll = max(self._last_poll, asked)
        self._deliver_state(found)
        polls: dict[TopicPartition, tuple[int | None, float]] = dict.fromkeys(partitions, (None, asked))
        before = self._monotonic()
        while True:
            records = await consumer.getmany(timeout_ms=int(FETCH_WAIT_S * 500))
            for name, record in _decoded(records):
                self._deliver(name, record)
            for partition in partitions:
                stamp = consumer.last_poll_timestamp(partition)
                behind = (consumer.highwater(partition) or 0) > await consumer.position(partition)
                if stamp is not None and stamp != polls[partition][0] and not behind:
                    polls[partition] = (stamp, before)
            self._last_poll = min(moment for _, moment in polls.values())
            before = self._monotonic()

    def _deliver_state(self, found: Mapping[str, ModelRecord]) -> None:
        for name in self._delivered.keys() - found.keys():
            self._deliver(name, None)
        for name, record in found.items():
            self._deliver(name, record)
        self._caught_up.set()

    def _deliver(self, model_name: str, record: ModelRecord | None) -> None:
        if self._delivered.get(model_name) == record:
            return
        _apply(self._delivered, model_name, record)
        if record is not None:
            self._on_record(record)
        elif self._on_removed is not None:
            self._on_removed(model_name)


def _consumer_options(kafka_options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **kafka_options,
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "fetch_max_wait_ms": int(FETCH_WAIT_S * 1000),
    }


async def _assign_all(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    # `topics` fetches metadata without making a topic that is not there.
    if topic not in await consumer.topics():
        raise TopicError(f"there is no topic {topic}: `pipeline topics create` makes it")
    partitions = await all_partitions(consumer, topic)
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    return partitions


async def _reached(consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> bool:
    for partition, end in ends.items():
        if await consumer.position(partition) < end:
            return False
    return True


def _decoded(
    batches: Mapping[TopicPartition, Sequence[Any]],
) -> list[tuple[str, ModelRecord | None]]:
    """Model and record, in order; None for a deleted one."""
    found: list[tuple[str, ModelRecord | None]] = []
    for records in batches.values():
        for record in records:
            if record.value is None:
                found.append(((record.key or b"").decode(errors="replace"), None))
            elif (model := decode_model_record(record.key, record.value)) is not None:
                found.append((model.model_name, model))
    return found


def _apply(models: dict[str, ModelRecord], model_name: str, record: ModelRecord | None) -> None:
    if record is None:
        models.pop(model_name, None)
    else:
        models[model_name] = record
