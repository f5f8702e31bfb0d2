"""Reads results and dead letters from their first record to their last, without a consumer group."""

import json
import time
from collections.abc import Sequence
from threading import Event, Thread

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from tests.faults.account import Account, Answer, DeadLetter, Place

_ANSWER_TIMEOUT_S = 10.0
_LENGTH_HEADER = "inference-header-content-length"


class Reader:
    """Follows the two topics in a thread of its own, into the account.

    Args:
        bootstrap_servers: Kafka's.
        account: what is read goes there.
        results: the topic's name; likewise `dead_letters`.
    """

    def __init__(self, bootstrap_servers: str, account: Account, results: str, dead_letters: str) -> None:
        self._account = account
        self._results = results
        self._topics = (results, dead_letters)
        self._options = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "oracle",
            "enable.auto.commit": False,
            "reconnect.backoff.max.ms": 500,
            "fetch.wait.max.ms": 20,
            "log_level": 0,
        }
        self._next: dict[tuple[str, int], int] = {}
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="reader", daemon=True)
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread.

        Raises:
            BaseException: what ended it before.
        """
        self._stopping.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def is_at_end(self) -> bool:
        """Whether everything that is in the topics now has been read."""
        ends = read_ends(self._options, self._topics)
        return all(self._next.get(place, 0) >= end for place, end in ends.items())

    def has_consumed(self, group: str, topic: str) -> bool:
        """Whether a group's commits are at the ends of a topic."""
        return not lag(self._options, group, topic)

    def _run(self) -> None:
        consumer = Consumer(self._options)
        try:
            partitions = [
                TopicPartition(topic, number, OFFSET_BEGINNING)
                for topic in self._topics
                for number in consumer.list_topics(topic, _ANSWER_TIMEOUT_S).topics[topic].partitions
            ]
            consumer.assign(partitions)
            while not self._stopping.is_set():
                for message in consumer.consume(500, 0.05):
                    self._take(message)
        except BaseException as error:  # noqa: BLE001 - told by `stop`, in the thread that waits for the end
            self.failure = error
        finally:
            consumer.close()

    def _take(self, message: Message) -> None:
        if message.error() is not None:
            return  # a broker that is away: the consumer goes on by itself
        topic, partition, offset = message.topic() or "", message.partition() or 0, message.offset() or 0
        if topic == self._results:
            self._account.answer(as_answer(message, time.time()))
        else:
            headers = headers_of(message)
            place = Place(int(headers.get("source-partition", "-1")), int(headers.get("source-offset", "-1")))
            self._account.letters.append(DeadLetter(place, headers.get("reason", "")))
        self._next[topic, partition] = offset + 1


def read_ends(options: dict[str, object], topics: Sequence[str]) -> dict[tuple[str, int], int]:
    """The end offsets of topics' partitions.

    Raises:
        KafkaException: the broker does not answer.
    """
    consumer = Consumer(options)
    try:
        return {
            (topic, number): consumer.get_watermark_offsets(TopicPartition(topic, number), _ANSWER_TIMEOUT_S)[1]
            for topic in topics
            for number in consumer.list_topics(topic, _ANSWER_TIMEOUT_S).topics[topic].partitions
        }
    finally:
        consumer.close()


def lag(options: dict[str, object], group: str, topic: str) -> dict[int, tuple[int, int]]:
    """Committed offset and end of each partition where a group is not at the end.

    Raises:
        KafkaException: the broker does not answer.
    """
    ends = read_ends(options, (topic,))
    consumer = Consumer(options | {"group.id": group})
    try:
        places = [TopicPartition(topic, number) for _, number in ends]
        committed = {one.partition: one.offset for one in consumer.committed(places, _ANSWER_TIMEOUT_S)}
    finally:
        consumer.close()
    # A partition nothing was ever written to may have no commit.
    return {number: (committed[number], end) for (_, number), end in ends.items() if committed[number] < end and end}


def headers_of(message: Message) -> dict[str, str]:
    """A record's headers as text, names in lower case."""
    headers = message.headers() or []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return {
        name.lower(): value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
        for name, value in pairs
    }


def as_answer(message: Message, read_at: float) -> Answer:
    """A result record, looked into. What is missing is empty, and will not be what was expected."""
    headers = headers_of(message)
    value = message.value() or b""
    length = int(headers[_LENGTH_HEADER]) if _LENGTH_HEADER in headers else len(value)
    body = json.loads(value[:length])
    labels = [output["data"] for output in body.get("outputs", ()) if output["name"] == "label" and "data" in output]
    parameters = body.get("parameters", {})
    return Answer(
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        request_offset=int(headers.get("request-offset", "-1")),
        request_timestamp=int(headers.get("request-timestamp", "-1")),
        answer_id=body.get("id", ""),
        ce_id=headers.get("ce_id", ""),
        key=message.key(),
        group=headers.get("worker-group", ""),
        status=body.get("status", ""),
        error=body.get("error", {}).get("code", ""),
        version=body.get("model_version", ""),
        label=labels[0][0] if labels else -1,
        cache_status=parameters.get("cache_status", ""),
        total_ms=parameters.get("total_ms", 0.0),
        created_ms=message.timestamp()[1],
        read_at=read_at,
    )
