"""One topic of one partition in memory, for the clients that `pipeline/adapters/control_topic.py` makes."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaConnectionError, OffsetOutOfRangeError

from pipeline.adapters import control_topic
from schemas.control import IN_REPLY_TO, ControlCommand, ControlReply

TOPIC = "inference.control"
GROUP = "workers"
OPTIONS = {"bootstrap_servers": "unused:9092"}
PARTITION = TopicPartition(TOPIC, 0)
Headers = Sequence[tuple[str, bytes]]


class ScriptedKafka:
    """A broker that a test steers.

    Attributes:
        exists: whether the topic is there.
        begin: the first offset that it still has.
        records: from offset 0 on, those before `begin` too.
        down: no client can connect, and no request is answered.
        failures: what the next fetches raise, one after the other.
        refusals: what the next writes of clients raise, likewise.
        members: of the group: host and partitions; None while a rebalance runs.
        codes: Kafka's error codes of the next answers about the group.
        on_record: called for each record that is written.
    """

    def __init__(self) -> None:
        self.exists = True
        self.begin = 0
        self.records: list[SimpleNamespace] = []
        self.down = False
        self.failures: list[Exception] = []
        self.refusals: list[Exception] = []
        self.members: list[tuple[str, list[int] | None]] = []
        self.codes: list[int] = []
        self.on_record: Callable[[SimpleNamespace], None] = lambda _: None
        self.open_clients = 0
        self._written = asyncio.Event()

    def write(self, value: bytes | None, headers: Headers = ()) -> None:
        """Appends a record."""
        record = SimpleNamespace(topic=TOPIC, offset=len(self.records), value=value, headers=list(headers))
        self.records.append(record)
        self._written.set()
        self.on_record(record)

    def command(self, command: ControlCommand) -> None:
        """Appends a command, as `ask_workers` writes it."""
        self.write(command.model_dump_json(exclude_none=True).encode())

    def reply(self, reply: ControlReply) -> None:
        """Appends a reply, as a worker writes it."""
        self.write(reply.model_dump_json().encode(), [(IN_REPLY_TO, reply.id.encode())])

    async def fetch(self, position: int, timeout_s: float) -> list[SimpleNamespace]:
        """What stands from a place on, once there is something or the time is over."""
        if self.failures:
            raise self.failures.pop(0)
        if not self.begin <= position <= len(self.records):
            raise OffsetOutOfRangeError({PARTITION: position})
        if position == len(self.records):
            self._written.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._written.wait()
            except TimeoutError:
                return []
        return [] if self.down else self.records[position:]


class ScriptedClient:
    """Consumer, producer and admin client in one.

    Args:
        kafka: the broker.
    """

    def __init__(self, kafka: ScriptedKafka) -> None:
        self._kafka = kafka
        self._position: int | None = None
        self._started = False

    async def start(self) -> None:
        """Connects, unless the broker is down."""
        await asyncio.sleep(0.001)
        if self._kafka.down:
            raise KafkaConnectionError("nobody listens")
        self._started = True
        self._kafka.open_clients += 1

    async def stop(self) -> None:
        """Disconnects; idempotent."""
        if self._started:
            self._started = False
            self._kafka.open_clients -= 1

    close = stop

    async def topics(self) -> set[str]:
        """All topics."""
        return {"inference.requests", *([TOPIC] if self._kafka.exists else [])}

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        """The topic's only partition."""
        assert list(partitions) == [PARTITION]
        assert self._kafka.exists, "assigning a topic that is not there makes it"

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Where the log begins."""
        return dict.fromkeys(partitions, self._kafka.begin)

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Where it ends."""
        return dict.fromkeys(partitions, len(self._kafka.records))

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Where the next fetch begins."""
        assert partition == PARTITION
        self._position = offset

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[SimpleNamespace]]:
        """The next records."""
        assert self._position is not None, "nobody said where to read"
        records = await self._kafka.fetch(self._position, timeout_ms / 1000)
        self._position += len(records)
        return {PARTITION: records} if records else {}

    async def send_and_wait(self, topic: str, value: bytes, *, key: bytes, partition: int, headers: Headers) -> None:
        """Writes a record."""
        await asyncio.sleep(0.001)
        if self._kafka.down:
            raise KafkaConnectionError("nobody listens any more")
        if self._kafka.refusals:
            raise self._kafka.refusals.pop(0)
        assert (topic, partition, bool(key)) == (TOPIC, 0, True)
        self._kafka.write(value, headers)

    async def describe_consumer_groups(self, groups: list[str]) -> list[Any]:
        """The group's members, as DescribeGroups tells of them."""
        assert groups == [GROUP]
        code = self._kafka.codes.pop(0) if self._kafka.codes else 0
        members = [
            (f"member-{number}", "faust", f"/{host}", b"", _assignment(partitions))
            for number, (host, partitions) in enumerate([] if code else self._kafka.members)
        ]
        return [SimpleNamespace(groups=[(code, GROUP, "Stable", "consumer", "faust", members, 0)])]


def _assignment(partitions: list[int] | None) -> bytes:
    if partitions is None:
        return b""
    encoded: bytes = ConsumerProtocolMemberAssignment(0, [("inference.requests", partitions)], b"").encode()
    return encoded


def script_kafka(monkeypatch: pytest.MonkeyPatch) -> Callable[[], ScriptedKafka]:
    """Puts a scripted broker in the place of Kafka; the function makes it, inside the test's event loop."""
    made: list[ScriptedKafka] = []

    def client(**options: Any) -> ScriptedClient:
        _check(options)
        return ScriptedClient(made[-1])

    for name in ("AIOKafkaConsumer", "AIOKafkaProducer", "AIOKafkaAdminClient"):
        monkeypatch.setattr(control_topic, name, client)

    def make() -> ScriptedKafka:
        made.append(ScriptedKafka())
        return made[-1]

    return make


def _check(options: Mapping[str, Any]) -> None:
    assert options["bootstrap_servers"] == OPTIONS["bootstrap_servers"]
    assert options.get("group_id") is None, "every worker reads all commands"
