"""`Client`: asks for inferences over Kafka and gives their answers.

async with Client("127.0.0.1:9092") as client:
    result = await client.infer("digits", {"image": pixels})
    print(result.output("label"), result.parameters.cache_status)
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from uuid_utils import uuid7

from pipeline.adapters.kafka import client_options
from pipeline.client.errors import KafkaUnavailable
from pipeline.client.pending import PendingAnswers, ResultRecord
from pipeline.client.records import Inputs, RequestRecord, build_record
from pipeline.client.requests import KafkaRequests, RequestsTopic
from pipeline.client.results import KafkaResults, ResultsTopic, header
from pipeline.client.submitted import Submitted
from pipeline.config import MIB, KafkaSettings, Settings
from pipeline.errors import InferenceFailed, PipelineError
from schemas.errors import WireError
from schemas.result import InferenceResult

_log = logging.getLogger(__name__)

# The worker answers EXPIRED when a request's own time is over; that answer is worth a moment more than "nothing came".
_EXPIRY_GRACE_S = 1.0


def fresh_id() -> str:
    """A UUIDv7: unique, and in the order of time."""
    return str(uuid7())


class Client:
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
        settings = kafka or KafkaSettings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
        self._settings = settings
        self._record_bytes_max = record_bytes_max
        self._answer_timeout_s = answer_timeout_s
        self._delivery_timeout_s = delivery_timeout_s
        self._pending = PendingAnswers(pending_max)
        self._requests: RequestsTopic | None = None
        self._results: ResultsTopic | None = None
        self._reading: asyncio.Task[None] | None = None
        self._lost: PipelineError | None = None

    @classmethod
    def from_settings(cls, settings: Settings, **limits: Any) -> Self:
        """A client of the pipeline that these settings describe; `limits` as for the constructor."""
        return cls(kafka=settings.kafka, record_bytes_max=settings.limits.record_bytes, **limits)

    def _topics(self) -> tuple[RequestsTopic, ResultsTopic]:
        """The two topics; tests put scripted ones here."""
        options = client_options(self._settings)
        prefix, timeout_s = self._settings.topic_prefix, self._delivery_timeout_s
        results = KafkaResults(options, f"{prefix}results", timeout_s=timeout_s)
        requests = KafkaRequests(
            options, f"{prefix}requests", record_bytes_max=self._record_bytes_max, timeout_s=timeout_s
        )
        return requests, results

    async def __aenter__(self) -> Self:
        """Connects; results are read from each partition's end, before any request can be sent.

        Raises:
            SettingsError: no address is known.
            KafkaUnavailable: Kafka does not answer.
            TopicError: the topics do not exist.
        """
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
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Disconnects; whoever still waits for an answer is told so. Idempotent."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
        self._lost = self._lost or KafkaUnavailable("this client was closed")
        self._pending.fail(self._lost)
        await self._disconnect()

    async def _disconnect(self) -> None:
        requests, self._requests = self._requests, None
        results, self._results = self._results, None
        try:
            if requests is not None:
                await requests.stop()
        finally:
            if results is not None:
                await results.stop()

    async def infer(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        model_version: str | int | None = None,
        parameters: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | None = None,
        id: str | None = None,  # noqa: A002 - the protocol's name
        enable_cache: bool = True,
        cache_control: str | None = None,
        tenant: str | None = None,
        timeout_s: float | None = None,
        binary: bool | None = None,
    ) -> InferenceResult:
        """Asks and waits: `submit`, then `Submitted.result`.

        Raises:
            InferenceFailed: the answer failed or expired, or the request is not valid; `code` says why.
            ResultNotReceived: no answer in time.
            KafkaUnavailable: the connection was lost, or Kafka did not confirm the request.
        """
        submitted = await self.submit(
            model_name,
            inputs,
            model_version=model_version,
            parameters=parameters,
            outputs=outputs,
            id=id,
            enable_cache=enable_cache,
            cache_control=cache_control,
            tenant=tenant,
            timeout_s=timeout_s,
            binary=binary,
        )
        return await submitted.result()

    async def submit(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        model_version: str | int | None = None,
        parameters: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | None = None,
        id: str | None = None,  # noqa: A002 - the protocol's name
        enable_cache: bool = True,
        cache_control: str | None = None,
        tenant: str | None = None,
        timeout_s: float | None = None,
        binary: bool | None = None,
    ) -> Submitted:
        """Sends a request; returns once Kafka has it on all in-sync replicas.

        Args:
            model_name: the model.
            inputs: arrays by name, or tensors (`client.records.to_tensors` says which datatype a list becomes).
            model_version: None for the version served by default when the request runs.
            parameters: reach the model, and are part of the cache key.
            outputs: names of the outputs that are wanted; None for all.
            id: a fresh UUIDv7 unless given; the answer to an id is the first one, so an id is used once.
            enable_cache: False: neither read, nor stored, nor coalesced.
            cache_control: RFC 9111 words: no-cache, no-store, max-age=N, only-if-cached.
            tenant: whose request it is; caches of tenants never meet.
            timeout_s: past it nothing is executed and the answer is EXPIRED; it bounds the wait for it, too.
            binary: whether tensors travel as raw bytes; None: above 1 kB.

        Raises:
            InferenceFailed: the request is not valid, too large, or one too many; `code` says why.
            KafkaUnavailable: not connected, or not confirmed in time (it may still be taken in).
        """
        request_id = id or fresh_id()
        try:
            record = build_record(
                request_id,
                model_name,
                inputs,
                now=time.time(),
                model_version=model_version,
                parameters=parameters,
                outputs=outputs,
                enable_cache=enable_cache,
                cache_control=cache_control,
                tenant=tenant,
                timeout_ms=None if timeout_s is None else round(timeout_s * 1000),
                binary=binary,
            )
        except WireError as error:
            raise InferenceFailed(request_id, error.code, error.message) from error
        return await self.submit_record(record, None if timeout_s is None else timeout_s + _EXPIRY_GRACE_S)

    async def submit_record(self, record: RequestRecord, timeout_s: float | None = None) -> Submitted:
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
        return Submitted(record.id, partition, offset, answer, limit_s)

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
