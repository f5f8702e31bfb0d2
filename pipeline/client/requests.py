"""Putting records on the requests topic: confirmed by all in-sync replicas, each once."""

import asyncio
from time import time
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import DefaultPartitioner

from pipeline.adapters.tracing import program_tracer
from pipeline.client.errors import KafkaUnavailable
from pipeline.client.records import RequestRecord, traced, traceparent_in
from pipeline.core.trace_context import Span, messaging_attributes
from pipeline.errors import InferenceFailed, PipelineError, TopicError
from pipeline.ports import Tracer
from schemas.errors import ErrorCode

# Records of one partition that leave together: 500 requests of 512 bytes.
_BATCH_BYTES_MAX = 256 * 1024
# Headers, key and the batch's own header around a value of the largest size.
_OVERHEAD_BYTES = 64 * 1024


class RequestsTopic(Protocol):
    """Where requests go."""

    async def start(self) -> None:
        """Connects.

        Raises:
            KafkaUnavailable: no connection.
            TopicError: the topic does not exist.
        """

    def partition_of(self, key: bytes) -> int:
        """The partition that a record with this key goes to."""

    async def append(self, record: RequestRecord, partition: int) -> int:
        """Appends a record; returns its offset once every in-sync replica has it.

        Raises:
            KafkaUnavailable: not confirmed in time; it may still be taken in.
            InferenceFailed: PAYLOAD_TOO_LARGE.
        """

    async def stop(self) -> None:
        """Sends what is buffered, within the limit of a delivery, and disconnects. Idempotent."""


class KafkaRequests:
    """The requests topic on Kafka.

    Args:
        options: of an aiokafka client (`adapters.kafka.client_options`).
        topic: the requests topic.
        record_bytes_max: of a record's value; the topic's own limit should match.
        timeout_s: for connecting, and for a delivery.
        tracer: makes spans of what is sent; None: the program's own, if it has one when this is started.
    """

    def __init__(
        self,
        options: dict[str, Any],
        topic: str,
        *,
        record_bytes_max: int,
        timeout_s: float,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._options = options
        self._topic = topic
        self._record_bytes_max = record_bytes_max
        self._timeout_s = timeout_s
        self._producer: AIOKafkaProducer | None = None
        self._partitions: list[int] = []
        self._place = DefaultPartitioner()

    async def start(self) -> None:
        """Connects and learns the partitions."""
        self._tracer = self._tracer or program_tracer()
        self._producer = AIOKafkaProducer(
            **self._options,
            acks="all",
            enable_idempotence=True,
            max_batch_size=_BATCH_BYTES_MAX,
            max_request_size=self._record_bytes_max + _OVERHEAD_BYTES,
            request_timeout_ms=int(self._timeout_s * 1000),
        )
        servers = self._options["bootstrap_servers"]
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._producer.start()
                numbers = await self._producer.partitions_for(self._topic)
        except TimeoutError:
            raise KafkaUnavailable(f"Kafka at {servers} gave no answer within {self._timeout_s:g} s") from None
        except KafkaConnectionError as error:
            raise KafkaUnavailable(f"Kafka at {servers} does not answer") from error
        except (KafkaError, OSError) as error:
            raise KafkaUnavailable(f"Kafka at {servers}: {error}") from error
        if not numbers:
            raise TopicError(f"topic {self._topic} does not exist: make it with `pipeline topics create`")
        self._partitions = sorted(numbers)

    def partition_of(self, key: bytes) -> int:
        """Kafka's default murmur2 placement, over the partitions there were at the start.

        A topic that has grown since is still served correctly; its new partitions are used after a reconnect.
        """
        partition: int = self._place(key, self._partitions, self._partitions)
        return partition

    async def append(self, record: RequestRecord, partition: int) -> int:
        """Appends a record and waits for its confirmation; where somebody follows it, under a span of its own."""
        if self._tracer is None:
            return await self._append(record, partition)
        span = self._begin(self._tracer, record, partition)
        try:
            offset = await self._append(traced(record, span.traceparent), partition)
        except PipelineError as error:
            word = error.code.value if isinstance(error, InferenceFailed) else type(error).__name__
            span.end(time(), {}, error=word, message=str(error))
            raise
        except BaseException as error:
            span.end(time(), {}, error=type(error).__name__)
            raise
        span.end(time(), {"messaging.kafka.offset": offset})
        return offset

    def _begin(self, tracer: Tracer, record: RequestRecord, partition: int) -> Span:
        attributes = messaging_attributes("send", self._topic, partition, record.id)
        attributes |= {"messaging.message.body.size": len(record.value), "inference.request_id": record.id}
        return tracer.begin(
            f"send {self._topic}", "producer", time(), attributes, parent=traceparent_in(record.headers)
        )

    async def _append(self, record: RequestRecord, partition: int) -> int:
        assert self._producer is not None, "started"
        if len(record.value) > self._record_bytes_max:
            message = f"the record has {len(record.value)} bytes, the limit is {self._record_bytes_max}"
            raise InferenceFailed(record.id, ErrorCode.PAYLOAD_TOO_LARGE, message)
        try:
            async with asyncio.timeout(self._timeout_s):
                sent = await self._producer.send_and_wait(
                    self._topic, record.value, record.key, partition, headers=record.headers
                )
        except MessageSizeTooLargeError as error:
            raise InferenceFailed(record.id, ErrorCode.PAYLOAD_TOO_LARGE, str(error)) from None
        except TimeoutError:
            raise KafkaUnavailable(
                f"Kafka did not confirm request {record.id} within {self._timeout_s:g} s; it may still be taken in"
            ) from None
        except (KafkaError, OSError) as error:
            raise KafkaUnavailable(f"request {record.id} was not confirmed: {error}") from error
        offset: int = sent.offset
        return offset

    async def stop(self) -> None:
        """Disconnects; what Kafka does not take within the limit is given up."""
        if self._producer is None:
            return
        producer, self._producer = self._producer, None
        try:
            async with asyncio.timeout(self._timeout_s):
                await producer.stop()
        except TimeoutError:
            raise KafkaUnavailable(f"Kafka did not take what was still to send within {self._timeout_s:g} s") from None
