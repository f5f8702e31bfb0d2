"""Lines of the events topic that cannot become rows: to the dead letters, as they were, with the reason."""

from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer

from pipeline.core.event_batch import RejectedLine
from schemas.headers import DEAD_LETTER_ERROR_BYTES_MAX, dead_letter_headers

# Why a line is a dead letter: it is no event, or ClickHouse refuses its row.
INVALID_EVENT = "INVALID_EVENT"
POISON_ROW = "POISON_ROW"
# A record's bytes beside its value: the headers' texts, of which the error's is the long one, and Kafka's framing.
_HEADERS_BYTES_MAX = 2 * DEAD_LETTER_ERROR_BYTES_MAX


class DeadLetters:
    """Writes rejected lines to the dead-letter topic; connects at the first of them.

    Args:
        options: how clients connect.
        topic: the dead-letter topic.
        value_bytes_max: the longest line.
    """

    def __init__(self, options: dict[str, Any], topic: str, value_bytes_max: int) -> None:
        self._options = options
        self._topic = topic
        self._value_bytes_max = value_bytes_max
        self._producer: AIOKafkaProducer | None = None

    async def send(
        self, source_topic: str, source_partition: int, lines: Sequence[RejectedLine], reason: str = INVALID_EVENT
    ) -> None:
        """Returns when all lines are on the topic's in-sync replicas.

        A repeated call writes them again: dead letters are at least once.

        Raises:
            KafkaError: not reached, or refused.
        """
        producer = await self._connected()
        for rejected in lines:
            headers = dead_letter_headers(reason, rejected.error, source_topic, source_partition, rejected.offset)
            await producer.send_and_wait(self._topic, value=rejected.line, headers=headers)

    async def close(self) -> None:
        """Closes the connection; a later `send` connects again."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = AIOKafkaProducer(
                **self._options,
                acks="all",
                enable_idempotence=True,
                compression_type=None,
                max_request_size=self._value_bytes_max + _HEADERS_BYTES_MAX,
            )
            try:
                await producer.start()
            except BaseException:
                await producer.stop()
                raise
            self._producer = producer
        return self._producer
