"""`Client`: asks for inferences over Kafka and gives their answers.

async with Client("127.0.0.1:9092") as client:
    result = await client.infer("digits", {"image": pixels})
    print(result.output("label"), result.parameters.cache_status)
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Self

from pipeline.adapters.kafka import cancel_until_ended, client_options
from pipeline.adapters.tracing import OtelTracer, client_tracer
from pipeline.client.errors import KafkaUnavailable
from pipeline.client.interface import InferenceClient, fresh_id
from pipeline.client.pending import PendingAnswers, ResultRecord
from pipeline.client.records import RequestRecord
from pipeline.client.requests import KafkaRequests, RequestsTopic
from pipeline.client.result_stream import Wanted, first_results
from pipeline.client.results import KafkaResults, ResultsTopic, header
from pipeline.client.submitted import SubmittedToKafka
from pipeline.config import MIB, KafkaSettings, Settings
from pipeline.errors import PipelineError
from schemas.result import InferenceResult, Status

__all__ = ["Client", "fresh_id"]

_log = logging.getLogger(__name__)


class Client(InferenceClient[SubmittedToKafka]):
    """Asks for inferences and waits for their answers. Use it as an async context manager, in one event loop.

    Args:
        bootstrap_servers: Kafka's addresses, comma-separated.
        topic_prefix: of the pipeline's topics.
        kafka: connection settings with TLS and SASL; replaces both of the above.
        record_bytes_max: the pipeline's limit for a record.
        pending_max: requests whose answer is waited for at once.
        answer_timeout_s: how long to wait for an answer where the request has no limit of its own.
        delivery_timeout_s: how long Kafka may take to accept a connection or a record.
    """

    def __init__(
        self,
        bootstrap_servers: str | None = None,
        topic_prefix: str = "inference.",
        *,
        kafka: KafkaSettings | None = None,
        record_bytes_max: int = 8 * MIB,
        pending_max: int = 10_000,
        answer_timeout_s: float = 60.0,
        delivery_timeout_s: float = 20.0,
    ) -> None:
        super().__init__(answer_timeout_s)
        settings = kafka or KafkaSettings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
        self._settings = settings
        self._record_bytes_max = record_bytes_max
        self._delivery_timeout_s = delivery_timeout_s
        self._pending = PendingAnswers(pending_max)
        self._requests: RequestsTopic | None = None
        self._results: ResultsTopic | None = None
        self._reading: asyncio.Task[None] | None = None
        self._lost: PipelineError | None = None
        self._tracer: OtelTracer | None = None

    @classmethod
    def from_settings(cls, settings: Settings, **limits: Any) -> Self:
        """A client of the pipeline that these settings describe; `limits` as for the constructor."""
        return cls(kafka=settings.kafka, record_bytes_max=settings.limits.record_bytes, **limits)

    def _topics(self) -> tuple[RequestsTopic, ResultsTopic]:
        """The two topics; tests put scripted ones here."""
        requests = KafkaRequests(
            client_options(self._settings), f"{self._settings.topic_prefix}requests",
            record_bytes_max=self._record_bytes_max, timeout_s=self._delivery_timeout_s,
            tracer=self._tracer,
        )  # fmt: skip
        return requests, self._results_topic(from_beginning=False)

    async def connect(self) -> None:
        """Connects; results are read from each partition's end, before any request can be sent.

        Raises:
            SettingsError: no address is known, or the environment asks for spans and they cannot be had.
            KafkaUnavailable: Kafka does not answer.
            TopicError: the topics do not exist.
        """
        self._tracer = client_tracer()
        self._requests, self._results = self._topics()
        try:
            # Results first: it asks for topics in a way that makes none.
            await self._results.start()
            await self._requests.start()
        except BaseException:
            await self._disconnect()
            raise
        self._lost = None
        self._reading = asyncio.create_task(self._read(self._results), name="read results")

    async def close(self) -> None:
        """Disconnects; whoever still waits for an answer is told so. Idempotent."""
        if self._reading is not None:
            await cancel_until_ended(self._reading)
            self._reading = None
        self._lost = self._lost or KafkaUnavailable("this client was closed")
        self._pending.fail(self._lost)
        await self._disconnect()

    async def _disconnect(self) -> None:
        requests, self._requests = self._requests, None
        results, self._results = self._results, None
        tracer, self._tracer = self._tracer, None
        try:
            if requests is not None:
                await requests.stop()
        finally:
            if results is not None:
                await results.stop()
            if tracer is not None:
                await tracer.close()

    async def submit_record(self, record: RequestRecord, timeout_s: float | None = None) -> SubmittedToKafka:
        """Sends a record that was built before (`client.records`). Raises as `submit` does.

        Args:
            record: the record.
            timeout_s: the limit of `Submitted.record` and its kin; None: the client's.
        """
        if self._lost is not None:
            raise self._lost
        if self._requests is None:
            raise KafkaUnavailable("this client is not connected: use it as `async with Client(…) as client`")
        partition = self._requests.partition_of(record.key)
        # The answer can be there before the confirmation: it is expected first.
        answer = self._pending.expect(record.id, partition)
        offset = await self._requests.append(record, partition)
        limit_s = self._answer_timeout_s if timeout_s is None else timeout_s
        return SubmittedToKafka(record.id, partition, offset, answer, limit_s)

    async def results(
        self,
        *,
        model_name: str | None = None,
        tenant: str | None = None,
        status: Status | None = None,
        id: str | None = None,  # noqa: A002 - the protocol's name
        from_beginning: bool = False,
    ) -> AsyncGenerator[InferenceResult, None]:
        """The stream of everybody's results as they come, without end; no consumer group, so nothing is taken away.

        The first result of an id is yielded, later ones are not, as far back as 100,000 results.

        Args:
            model_name: only this model's.
            tenant: only this tenant's; "" for those without one.
            status: only results in this state.
            id: only this request's.
            from_beginning: start with the oldest that is kept; else with what comes from now on.

        Raises:
            KafkaUnavailable: no connection, or it was lost.
            TopicError: the topic does not exist.
        """
        topic = self._results_topic(from_beginning=from_beginning)
        try:
            await topic.start()
            async with aclosing(first_results(topic, Wanted(model_name, status, id, tenant))) as found:
                async for _, answer in found:
                    yield answer
        finally:
            await topic.stop()

    def _results_topic(self, *, from_beginning: bool) -> ResultsTopic:
        options, name = client_options(self._settings), f"{self._settings.topic_prefix}results"
        return KafkaResults(options, name, from_beginning=from_beginning, timeout_s=self._delivery_timeout_s)

    async def _read(self, results: ResultsTopic) -> None:
        try:
            while True:
                for record in await results.read():
                    self._offer(record)
        except PipelineError as error:
            _log.warning("answers cannot be read any more: %s", error)
            self._lost = error
            self._pending.fail(error)

    def _offer(self, record: ResultRecord) -> None:
        # Others' answers are told apart by a header, before anything is parsed.
        request_id = header(record.headers, "ce_id")
        if request_id is not None:
            self._pending.offer(request_id.decode("utf-8", "replace"), record)
