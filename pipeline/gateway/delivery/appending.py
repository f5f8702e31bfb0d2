"""The requests topic for a gateway that outlives Kafka's outages: connected whenever it can be."""

import asyncio
import logging
from collections.abc import Callable

from pipeline.client.errors import KafkaUnavailable
from pipeline.client.records import RequestRecord
from pipeline.client.requests import RequestsTopic
from pipeline.errors import InferenceFailed, TopicError
from schemas.errors import ErrorCode, WireError

_log = logging.getLogger(__name__)

_PAUSE_S_FIRST = 0.2
_PAUSE_S_MAX = 5.0


class Appending:
    """Appends requests.

    Args:
        make_topic: makes an unconnected requests topic.

    Attributes:
        problem: why nothing can be appended; None while it can.
    """

    def __init__(self, make_topic: Callable[[], RequestsTopic]) -> None:
        self.problem: str | None = "Kafka is not connected yet"
        self._make_topic = make_topic
        self._topic: RequestsTopic | None = None
        self._lost = asyncio.Event()
        self._lost.set()

    async def run(self) -> None:
        """Connects, and again when a producer was lost, for ever."""
        pause_s = _PAUSE_S_FIRST
        while True:
            await self._lost.wait()
            topic = self._make_topic()
            try:
                await topic.start()
            except (KafkaUnavailable, TopicError) as error:
                await self._stop(topic)
                if str(error) != self.problem:
                    _log.warning("requests are not taken in at present: %s", error)
                self.problem = str(error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _PAUSE_S_MAX)
                continue
            except BaseException:
                await self._stop(topic)
                raise
            before, self._topic = self._topic, topic
            self.problem, pause_s = None, _PAUSE_S_FIRST
            self._lost.clear()
            if before is not None:
                await self._stop(before)

    async def append(self, record: RequestRecord) -> tuple[int, int]:
        """Appends a record; returns partition and offset once every in-sync replica has it.

        Raises:
            KafkaUnavailable: not connected, or not confirmed in time (it may still be taken in).
            WireError: PAYLOAD_TOO_LARGE.
        """
        topic = self._topic
        if topic is None:
            raise KafkaUnavailable(self.problem or "Kafka is not connected yet")
        partition = topic.partition_of(record.key)
        try:
            offset = await topic.append(record, partition)
        except InferenceFailed as error:
            raise WireError(ErrorCode.PAYLOAD_TOO_LARGE, error.message) from None
        except KafkaUnavailable as error:
            # A producer that Kafka refused once may never be let in again (a lost sequence, a lost right): another one.
            if topic is self._topic and error.__cause__ is not None:
                self._lost.set()
            raise
        return partition, offset

    def partition_of(self, key: bytes) -> int:
        """The partition that a record with this key goes to.

        Raises:
            KafkaUnavailable: Kafka was never connected.
        """
        if self._topic is None:
            raise KafkaUnavailable(self.problem or "Kafka is not connected yet")
        return self._topic.partition_of(key)

    async def close(self) -> None:
        """Sends what is on its way, and disconnects."""
        topic, self._topic = self._topic, None
        self.problem = "the gateway stops"
        if topic is not None:
            await self._stop(topic)

    @staticmethod
    async def _stop(topic: RequestsTopic) -> None:
        try:
            await topic.stop()
        except KafkaUnavailable as error:
            _log.warning("requests topic: %s", error)
