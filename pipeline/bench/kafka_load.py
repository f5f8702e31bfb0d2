"""The load generator: confluent-kafka, another client than the one that is measured."""

import asyncio
import time
from collections.abc import Iterable
from threading import Event, Thread
from typing import Any

from pipeline.client.records import RequestRecord
from pipeline.config import KafkaSettings
from pipeline.errors import SettingsError

_POLL_S = 0.05
# What may still be on its way when the last request was sent.
_DRAIN_S = 10.0
# 200,000 small records, or a hundred large ones.
_QUEUED_KIB_MAX = 256 * 1024
_ADMIN_TIMEOUT_S = 30.0
# Each waits `_DRAIN_S` for its answer.
_FIRST_TRIES = 60


def producer_of(kafka: KafkaSettings, **options: object) -> Any:
    """A producer that places records as Java's client does.

    Raises:
        SettingsError: the package is not installed.
    """
    try:
        from confluent_kafka import Producer
    except ImportError as error:
        raise SettingsError("benchmarks on Kafka need the package confluent-kafka: run `make install`") from error
    defaults = {"partitioner": "murmur2_random", "acks": "all", "queue.buffering.max.kbytes": _QUEUED_KIB_MAX}
    return Producer({**_connection(kafka), **defaults, **options})


def _connection(kafka: KafkaSettings) -> dict[str, object]:
    """Raises SettingsError for TLS and SASL, which the load generator does not speak."""
    if kafka.security_protocol != "PLAINTEXT":
        raise SettingsError("benchmarks run on a Kafka without TLS and SASL only")
    # Its own lines on a broker that goes away at the end would stand among the figures; failures come as errors.
    return {"bootstrap.servers": kafka.bootstrap_servers, "log_level": 2}


def prefill(kafka: KafkaSettings, topic: str, records: Iterable[RequestRecord], compression: str = "none") -> int:
    """Puts request records into a topic and waits until Kafka has them; returns how many.

    Args:
        kafka: where.
        topic: the requests topic.
        records: taken one by one, as fast as Kafka takes them.
        compression: Kafka's name of a codec.

    Raises:
        RuntimeError: Kafka refused one.
    """
    options: dict[str, object] = {"linger.ms": 5, "queue.buffering.max.messages": 200_000}
    producer = producer_of(kafka, **options, **{"compression.type": compression})
    return send_all(producer, topic, ({"value": one.value, "key": one.key, "headers": one.headers} for one in records))


# Of event records as a worker's first generation writes them: the sink looks up what others wrote.
EVENT_HEADERS = [("generation", b"1")]


def send_all(producer: Any, topic: str, messages: Iterable[dict[str, Any]]) -> int:
    """Sends messages, given as the producer's own arguments, and waits until Kafka has them; returns how many.

    Raises:
        RuntimeError: Kafka refused one.
    """
    failures: list[str] = []

    def delivered(error: object, _: object) -> None:
        if error is not None:
            failures.append(str(error))

    count = 0
    for message in messages:
        while True:
            try:
                producer.produce(topic, on_delivery=delivered, **message)
                break
            except BufferError:  # its queue is full: there is room when Kafka has confirmed some
                producer.poll(_POLL_S)
        count += 1
        if not count % 1000:
            producer.poll(0)
    producer.flush()
    if failures:
        raise RuntimeError(f"{len(failures)} of {count} records were not accepted by Kafka: {failures[0]}")
    return count


def compress_topics(kafka: KafkaSettings, topics: Iterable[str], codec: str) -> None:
    """Has the broker compress what is written to these topics: a long run must not fill the disk.

    Raises:
        KafkaException: it refused.
    """
    import confluent_kafka.admin

    api: Any = confluent_kafka.admin  # its types leave out what it takes from its own modules
    setting = api.ConfigEntry("compression.type", codec, incremental_operation=api.AlterConfigOpType.SET)
    resources = [api.ConfigResource("topic", name, incremental_configs=[setting]) for name in topics]
    admin = api.AdminClient(_connection(kafka))
    for future in admin.incremental_alter_configs(resources).values():
        future.result(_ADMIN_TIMEOUT_S)


def read_values(kafka: KafkaSettings, topic: str, since: dict[int, int], until: dict[int, int]) -> list[Any]:
    """The messages of a topic between two sets of offsets."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({**_connection(kafka), "group.id": "unused", "enable.auto.commit": False})
    left = {number for number, offset in since.items() if until[number] > offset}
    consumer.assign([TopicPartition(topic, number, since[number]) for number in left])
    messages: list[Any] = []
    while left:
        for message in consumer.consume(5000, 1.0):
            if message.error() is not None:
                raise RuntimeError(f"{topic} cannot be read: {message.error()}")
            partition, offset = int(message.partition() or 0), int(message.offset() or 0)
            if offset < until[partition]:
                messages.append(message)
            if offset >= until[partition] - 1:
                left.discard(partition)
    consumer.close()
    return messages


class OpenLoop:
    """Sends requests at a fixed rate whatever becomes of them, and takes the time until each answer.

    The time of a request runs from when it was due, not from when it was sent: a late sender hides nothing.

    Args:
        kafka: where.
        requests_topic: where requests go.
        answers_topic: where answers come from; their value begins with `{"id":"<uuid>"`.
    """

    def __init__(self, kafka: KafkaSettings, requests_topic: str, answers_topic: str) -> None:
        from confluent_kafka import OFFSET_END, Consumer, TopicPartition

        self._producer = producer_of(kafka, **{"linger.ms": 0})
        self._requests_topic = requests_topic
        self._consumer = Consumer(
            {**_connection(kafka), "group.id": "unused", "enable.auto.commit": False, "fetch.wait.max.ms": 100}
        )
        partitions = self._consumer.list_topics(answers_topic, 10.0).topics[answers_topic].partitions
        ends = [TopicPartition(answers_topic, number, OFFSET_END) for number in partitions]
        self._consumer.assign(ends)
        self._answered: dict[bytes, float] = {}
        self._stop = Event()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def run(self, records: list[RequestRecord], rate: float, skip: int) -> list[float]:
        """Milliseconds from due to answered, of all but the first `skip`; blocks.

        Raises:
            TimeoutError: an answer did not come.
        """
        due: dict[bytes, float] = {}
        began = time.perf_counter() + 0.01
        for number, record in enumerate(records):
            at = began + number / rate
            if (pause := at - time.perf_counter()) > 0:
                time.sleep(pause)
            if self._stop.is_set():
                return []
            due[record.id.encode()] = at
            self._producer.produce(self._requests_topic, record.value, record.key, headers=record.headers)
            self._producer.poll(0)
        limit = time.perf_counter() + _DRAIN_S
        while len(due.keys() - self._answered.keys()) and not self._stop.is_set():
            if time.perf_counter() > limit:
                missing = len(due.keys() - self._answered.keys())
                raise TimeoutError(f"{missing} of {len(due)} answers did not come on {self._requests_topic}'s side")
            time.sleep(_POLL_S)
        if self._stop.is_set():
            return []
        return [(self._answered.pop(name) - at) * 1e3 for name, at in due.items()][skip:]

    def close(self) -> None:
        """Stops reading; a running `run` returns."""
        self._stop.set()
        self._producer.flush(_DRAIN_S)
        self._reader.join()
        self._consumer.close()

    def _read(self) -> None:
        while not self._stop.is_set():
            # One at a time: `consume` would wait for its whole number.
            message = self._consumer.poll(_POLL_S)
            if message is not None and message.error() is None:
                self._answered[(message.value() or b"")[7:43]] = time.perf_counter()


async def first_answer(loop: OpenLoop, record: RequestRecord) -> None:
    """Asks again and again until the process answers: it joins its group, reads the models topic, computes.

    Raises:
        TimeoutError: it never answered.
    """
    for left in reversed(range(_FIRST_TRIES)):
        try:
            await asyncio.to_thread(loop.run, [record], 100.0, 0)
            break
        except TimeoutError:
            if not left:
                raise
