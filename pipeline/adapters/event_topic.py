"""Events that belong to no request, on the events topic: models and instances."""

from collections.abc import Iterable

from aiokafka import AIOKafkaProducer

# They belong to no partition of requests.
_PARTITION = 0
# No generation: the sink looks each line's id up before it inserts it, so a line that is written twice is kept once.
_HEADERS = [("content-type", b"application/x-ndjson")]


class EventTopic:
    """Publishes event lines.

    Args:
        producer: started; acks=all. A line that arrives twice is kept once by its id.
        topic: the events topic's full name.
    """

    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    async def publish(self, lines: Iterable[bytes]) -> None:
        """Returns when all in-sync replicas have the lines.

        Raises:
            KafkaError: the brokers do not take them.
        """
        value = b"".join(lines)
        if value:
            await self._producer.send_and_wait(self._topic, value, partition=_PARTITION, headers=_HEADERS)
