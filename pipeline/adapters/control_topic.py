"""The control topic: commands to all workers, or to the watcher, and their replies; read without a group.

A worker reads from the topic's end at its start on, for it has nothing to clear yet. Afterwards it goes on where it was
whatever happens to its connection, and where it cannot (paused for longer than the topic keeps its records, or the
topic was made anew) it is told that it may have missed something.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError, for_code
from pydantic import ValidationError

from pipeline.adapters.kafka import answered_in_time, cancel_until_ended
from pipeline.errors import TopicError
from schemas.control import (
    COMMANDS,
    IN_REPLY_TO,
    REPLIES,
    CacheCommand,
    CacheReply,
    ControlCommand,
    ControlReply,
    ModelPromoteCommand,
    ModelPromoteReply,
)

logger = logging.getLogger(__name__)

RECONNECT_PAUSE_S = 0.5
# A topic that is not there is made by somebody, by hand: it is looked for now and then.
MISSING_LOOK_S = 5.0
# How long the broker may hold an empty fetch: it answers at once when a record comes.
_FETCH_WAIT_S = 0.5
_REPLY_S_MAX = 5.0
_LOADING_LOOK_S = 0.1


class ControlFollower:
    """Follows the control topic for as long as it runs, obeys every command, and replies.

    Args:
        kafka_options: for an aiokafka client.
        topic: the topic's full name.
        obey: does what a command asks and returns the reply; None where it is for somebody else. A bug in it costs
            this reply.
        on_gap: called when commands may have been missed. At the first look, too: until then nobody listened.
    """

    def __init__(
        self,
        kafka_options: Mapping[str, Any],
        topic: str,
        obey: Callable[[ControlCommand], Awaitable[ControlReply | None]],
        on_gap: Callable[[], None],
    ) -> None:
        self._options = kafka_options
        self._topic = topic
        self._partition = TopicPartition(topic, 0)
        self._obey = obey
        self._on_gap = on_gap
        self._position: int | None = None
        self._missing_told = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts following; returns at once, whether Kafka and the topic are there or not."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"follow {self._topic}")
            self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Stops; idempotent."""
        task, self._task = self._task, None
        if task is not None:
            await cancel_until_ended(task)

    async def _run(self) -> None:
        while True:
            try:
                async with AsyncExitStack() as clients:
                    await self._follow(clients)
            except (KafkaError, OSError) as error:  # asyncio's TimeoutError is an OSError
                logger.warning("%s cannot be followed, trying again: %s", self._topic, error or type(error).__name__)
            await asyncio.sleep(RECONNECT_PAUSE_S)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (bug := task.exception()) is not None:
            logger.error("%s is not followed any more", self._topic, exc_info=bug)

    async def _follow(self, clients: AsyncExitStack) -> None:
        consumer = await _started(clients, AIOKafkaConsumer(**_consumer_options(self._options)))
        producer = await _started(clients, AIOKafkaProducer(**_producer_options(self._options)))
        await self._until_there(consumer)
        consumer.assign([self._partition])
        position = await self._place(consumer)
        consumer.seek(self._partition, position)
        while True:
            for record in await _fetched(consumer, self._partition):
                self._position = record.offset + 1
                reply = await self._reply_to(record)
                if reply is not None:
                    async with asyncio.timeout(_REPLY_S_MAX):
                        await _send(producer, self._topic, reply)

    async def _until_there(self, consumer: AIOKafkaConsumer) -> None:
        # `topics` fetches metadata without making a topic that is not there.
        while self._topic not in await consumer.topics():
            if not self._missing_told:
                self._missing_told = True
                logger.warning(
                    "there is no topic %s: `pipeline topics create` makes it; until then this worker does not hear "
                    "`pipeline cache`, and serves all the same",
                    self._topic,
                )
            if self._position is None:
                self._position = 0  # whoever makes it, this worker was there before
            await asyncio.sleep(MISSING_LOOK_S)

    async def _place(self, consumer: AIOKafkaConsumer) -> int:
        """Where to read on; tells of a gap."""
        begin = (await consumer.beginning_offsets([self._partition]))[self._partition]
        end: int = (await consumer.end_offsets([self._partition]))[self._partition]
        position = self._position
        if position is None or not begin <= position <= end:
            if position is not None:
                places = (self._topic, begin, end, position)
                logger.warning("%s has %d to %d, this worker was at %d: it may have missed commands", *places)
            self._position = position = end
            self._on_gap()
        return position

    async def _reply_to(self, record: ConsumerRecord) -> ControlReply | None:
        if _in_reply_to(record) is not None:
            return None
        try:
            command = COMMANDS.validate_json(record.value or b"")
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[:1]
            logger.warning("%s@%d is no command that this worker knows: %s", self._topic, record.offset, problem)
            return None
        try:
            return await self._obey(command)
        except Exception:
            # A worker is there to answer requests. That it did not obey is told by its missing reply.
            logger.exception("command %s failed", command.id)
            return None


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One worker, as Kafka's consumer group knows it: where it runs, and its partitions; none during a rebalance."""

    host: str
    partitions: frozenset[int]

    def __str__(self) -> str:
        numbers = ", ".join(map(str, sorted(self.partitions))) or "none"
        return f"the worker on {self.host} with the partitions {numbers}"


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of a command: the workers' replies, and who of the group has not answered."""

    replies: tuple[CacheReply, ...]
    missing: tuple[GroupMember, ...]


async def ask_workers(
    kafka_options: Mapping[str, Any], topic: str, group: str, command: CacheCommand, timeout_s: float = 10.0
) -> Asked:
    """Sends a command, and gathers replies until every member of the group has answered or the time is over.

    Args:
        kafka_options: for an aiokafka client.
        topic: the control topic's full name.
        group: the workers' consumer group.
        command: with an id that nobody has used.
        timeout_s: for connecting, and then for the replies.

    Raises:
        TopicError: there is no such topic, Kafka does not answer or refuses, or the group cannot be looked up.
    """
    async with AsyncExitStack() as clients:
        async with answered_in_time(kafka_options["bootstrap_servers"], timeout_s):
            consumer = await _started(clients, AIOKafkaConsumer(**_consumer_options(kafka_options)))
            producer = await _started(clients, AIOKafkaProducer(**_producer_options(kafka_options)))
            partition = await _at_end(consumer, topic)
            members = await _members(kafka_options, group)
            await _send(producer, topic, command)
        return await _gather(consumer, partition, command, members, timeout_s)


async def ask_watcher(
    kafka_options: Mapping[str, Any], topic: str, command: ModelPromoteCommand, timeout_s: float = 30.0
) -> ModelPromoteReply:
    """Sends a command to whichever watcher runs, and returns its reply.

    Raises:
        TopicError: there is no such topic, Kafka does not answer or refuses, or no watcher replied in time.
    """
    async with AsyncExitStack() as clients:
        async with answered_in_time(kafka_options["bootstrap_servers"], timeout_s):
            consumer = await _started(clients, AIOKafkaConsumer(**_consumer_options(kafka_options)))
            producer = await _started(clients, AIOKafkaProducer(**_producer_options(kafka_options)))
            partition = await _at_end(consumer, topic)
            await _send(producer, topic, command)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    for record in await _fetched(consumer, partition):
                        reply = _decoded(record) if _in_reply_to(record) == command.id else None
                        if isinstance(reply, ModelPromoteReply):
                            return reply
    raise TopicError(f"no watcher replied in {timeout_s:g} s: is `pipeline watcher` running?")


async def _gather(
    consumer: AIOKafkaConsumer,
    partition: TopicPartition,
    command: CacheCommand,
    members: Sequence[GroupMember],
    timeout_s: float,
) -> Asked:
    replies: dict[str, CacheReply] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while unanswered(members, replies.values()):
                for record in await _fetched(consumer, partition):
                    if _in_reply_to(record) == command.id:
                        _note(replies, record)
    ordered = tuple(reply for _, reply in sorted(replies.items()))
    return Asked(ordered, unanswered(members, ordered))


def _note(replies: dict[str, CacheReply], record: ConsumerRecord) -> None:
    reply = _decoded(record)
    if reply is not None and not isinstance(reply, ModelPromoteReply):
        replies[reply.worker] = reply


def _decoded(record: ConsumerRecord) -> ControlReply | None:
    try:
        return REPLIES.validate_json(record.value or b"")
    except ValidationError as error:
        logger.warning("%s@%d cannot be read: %s", record.topic, record.offset, error.errors(include_url=False)[:1])
        return None


def unanswered(members: Iterable[GroupMember], replies: Iterable[CacheReply]) -> tuple[GroupMember, ...]:
    """The members whose reply is none of these.

    The group knows neither names nor processes, so a member is found by its partitions. One without any, and all of
    them during a rebalance, is content with any reply that is nobody else's.
    """
    left = list(replies)
    missing: list[GroupMember] = []
    for member in sorted(members, key=lambda member: not member.partitions):
        own = [reply for reply in left if not member.partitions or member.partitions & set(reply.partitions)]
        if own:
            left.remove(own[0])
        else:
            missing.append(member)
    return tuple(missing)


async def _members(kafka_options: Mapping[str, Any], group: str) -> list[GroupMember]:
    """Who is in the group now; nobody where there is no such group.

    Raises:
        KafkaError: the coordinator refused.
    """
    admin = AIOKafkaAdminClient(**kafka_options)
    try:
        await admin.start()
        while True:
            (answer,) = await admin.describe_consumer_groups([group])
            ((code, _name, _state, _type, _protocol, members, *_),) = answer.groups
            if code == 0:
                return [GroupMember(host.lstrip("/"), _assigned(raw)) for _id, _client, host, _metadata, raw in members]
            error = for_code(code)
            # A coordinator that has just moved is asked again; the caller's limit ends this.
            if not error.retriable:
                raise error(f"group {group}: {error.description}")
            await asyncio.sleep(_LOADING_LOOK_S)
    finally:
        await admin.close()


def _assigned(raw: bytes) -> frozenset[int]:
    if not raw:
        return frozenset()
    return frozenset(place.partition for place in ConsumerProtocolMemberAssignment.decode(raw).partitions())


async def _at_end(consumer: AIOKafkaConsumer, topic: str) -> TopicPartition:
    if topic not in await consumer.topics():
        raise TopicError(f"there is no topic {topic}: `pipeline topics create` makes it")
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek(partition, (await consumer.end_offsets([partition]))[partition])
    return partition


async def _fetched(consumer: AIOKafkaConsumer, partition: TopicPartition) -> list[ConsumerRecord]:
    found: list[ConsumerRecord] = (await consumer.getmany(timeout_ms=int(_FETCH_WAIT_S * 1000))).get(partition, [])
    return found


async def _send(producer: AIOKafkaProducer, topic: str, sent: ControlCommand | ControlReply) -> None:
    is_reply = isinstance(sent, ControlReply)
    headers = [(IN_REPLY_TO, sent.id.encode())] if is_reply else []
    value = sent.model_dump_json(exclude_none=True).encode()
    await producer.send_and_wait(topic, value, key=sent.id.encode(), partition=0, headers=headers)


def _in_reply_to(record: ConsumerRecord) -> str | None:
    return next((value.decode(errors="replace") for name, value in record.headers if name == IN_REPLY_TO), None)


async def _started(clients: AsyncExitStack, client: Any) -> Any:
    clients.push_async_callback(client.stop)
    await client.start()
    return client


def _consumer_options(kafka_options: Mapping[str, Any]) -> dict[str, Any]:
    # A place that is not in the log is an error, not a jump: what was missed there is told.
    return {
        **kafka_options,
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "fetch_max_wait_ms": int(_FETCH_WAIT_S * 1000),
    }


def _producer_options(kafka_options: Mapping[str, Any]) -> dict[str, Any]:
    # What waits for a Kafka that is gone is given up, so that the end of its worker or command need not wait for it.
    return {**kafka_options, "acks": "all", "request_timeout_ms": int(_REPLY_S_MAX * 1000)}
