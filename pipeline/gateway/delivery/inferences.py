"""One request of HTTP: into Kafka, and its result out again. What the routes know of delivery is here.

    submit  checked -> `pending` in the result store -> appended, confirmed by all in-sync replicas -> a receipt
    wait    this gateway's memory, the store, the log; then a copy of the result, or a look into the store

Nothing that is lost with this process is missed: the store knows what was accepted elsewhere, and a record is sent
again where nobody can tell that it was appended, for a worker answers the same id with the same content once.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from uuid_utils import uuid7

from pipeline.adapters.clickhouse import ClickHouseEventStore
from pipeline.adapters.kafka import cancel_until_ended, client_options
from pipeline.adapters.redis_result_store import RedisResultStore
from pipeline.adapters.result_log import ClickHouseResultLog
from pipeline.adapters.system import SystemClock
from pipeline.client.errors import KafkaUnavailable
from pipeline.client.requests import KafkaRequests
from pipeline.config import Settings
from pipeline.core.stored_result import Pending, StoredResult, name_of
from pipeline.errors import PipelineError, ResultStoreError
from pipeline.gateway.delivery.appending import Appending
from pipeline.gateway.delivery.current_request import name_current
from pipeline.gateway.delivery.filler import Filler
from pipeline.gateway.delivery.lookup import LookUp, RecentReceipt, RecentReceipts, ResultGone, ResultLog
from pipeline.gateway.delivery.metrics import DeliveryMetrics
from pipeline.gateway.delivery.replies import Replies
from pipeline.gateway.delivery.submission import (
    MEMBERS_BYTES_MAX,
    PlacedReply,
    PreparedRequest,
    Submission,
    prepare_request,
)
from pipeline.gateway.delivery.waiting import OVERDUE_S, Asked, Waiting
from pipeline.ports import Clock, ResultStore
from schemas.errors import WireError

__all__ = ["IdReused", "Inferences", "Receipt", "ResultGone", "Submission"]

_log = logging.getLogger(__name__)

# A change of leaders takes some seconds; whoever waits for a receipt waits no longer than this.
_APPEND_S_MAX = 15.0


class Receipt(NamedTuple):
    """Kafka has the request.

    Attributes:
        offset: -1 where it is a repetition and nothing was appended.
        is_repeated: the same id with the same content came before: nothing was sent again.
    """

    id: str
    tenant: str | None
    partition: int
    offset: int
    is_repeated: bool


class IdReused(PipelineError):  # noqa: N818 - a state, not a mistake
    """The id is another request's: it was used with other content."""


class Inferences:
    """Requests and their results, for the routes of one gateway: `async with Inferences(settings)`; one event loop.

    Kafka, Redis and ClickHouse may be away at the start and at any time later.

    Args:
        settings: addresses, names, limits.
        metrics: where it counts.
        clock: this process's time.

    Raises:
        SettingsError: an address is missing or wrong; on entering.
    """

    def __init__(
        self, settings: Settings, *, metrics: DeliveryMetrics | None = None, clock: Clock | None = None
    ) -> None:
        self.metrics = metrics or DeliveryMetrics()
        self._settings = settings
        self._clock = clock or SystemClock()
        self._rng = random.Random()
        self._receipts = RecentReceipts(settings.gateway.result_ttl_s, self._clock)
        self._sending: dict[bytes, asyncio.Event] = {}
        self._open = AsyncExitStack()
        self._failed: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        options = client_options(self._settings.kafka)
        async with AsyncExitStack() as opening:
            self._store = await self._opened_store(opening)
            log = await self._opened_log(opening)
            self._look_up = LookUp(self._receipts, self._store, log, self._clock, self._rng, self.metrics)
            self._waiting = Waiting(self._look_up.results_of, self._clock, self.metrics)
            self._appending = Appending(self._requests_topic(options))
            opening.push_async_callback(self._appending.close)
            self._replies = Replies(self._settings, options, self._group("gateway"), self._reply)
            works = {"kafka": self._appending.run, "replies": self._replies.run, "waiting": self._waiting.run}
            if self._store is not None:
                filler = Filler(
                    self._settings, options, self._group("result-store"), self._store, self._clock, self.metrics,
                    self._waiting.stored, partial(self._waiting.offer, brought_by="store"),
                )  # fmt: skip
                works["result-store"] = filler.run
            for name, work in works.items():
                self._start_part(opening, name, work)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def submit(self, submission: Submission) -> Receipt:
        """Appends a request, and returns once Kafka has it on all in-sync replicas.

        Raises:
            WireError: INVALID_REQUEST, INVALID_INPUT or PAYLOAD_TOO_LARGE; the model is the worker's business.
            IdReused: the id is another request's.
            KafkaUnavailable: Kafka has not confirmed the record.
        """
        outcome = "unconfirmed"
        try:
            prepared = self._prepare(submission, self._replies.partition)
            name_current(prepared.record.id, prepared.model_name)
            async with self._alone(_name(prepared)):
                receipt = await self._submit(submission, prepared)
            outcome = "repeated" if receipt.is_repeated else "accepted"
        except WireError:
            outcome = "invalid"
            raise
        except IdReused:
            outcome = "id_reused"
            raise
        finally:
            self.metrics.submissions[outcome] += 1
        return receipt

    async def wait(self, tenant: str | None, request_id: str, wait_s: float) -> StoredResult | Pending | None:
        """The result of a request, waiting up to `wait_s` seconds for it while it is pending; 0 looks once.

        Returns:
            Pending: accepted, no result yet. None: nobody knows of it.

        Raises:
            ResultGone: its bytes were cut, redacted or have expired.
            ResultStoreError: nothing that could know of it answers.
        """
        asked = Asked(name_of(tenant, request_id), tenant, request_id)
        if wait_s <= 0:
            return await self._look_up.find(asked)
        receipt = self._receipts.get(asked.name)
        by_reply = receipt is not None and receipt.comes_by_reply
        with self._waiting.awaiting(asked, comes_by_reply=by_reply) as awaited:
            if receipt is not None and by_reply and self._is_expected(receipt):
                # Its copy is on its way here: nothing need be asked for it.
                found: StoredResult | Pending | None = Pending(receipt.digest)
            else:
                found = await self._look_up.find(asked)
            if not isinstance(found, Pending):
                return found
            result = await awaited.wait(wait_s)
        if result is None:
            self.metrics.waits["time"] += 1
        return result or found

    def not_ready(self) -> dict[str, str]:
        """What keeps this gateway from serving, name and reason; empty: ready."""
        reasons = {"kafka": self._appending.problem, "replies": self._replies.problem}
        return {name: reason for name, reason in reasons.items() if reason is not None} | self._failed

    def state(self) -> dict[str, Any]:
        """Counts, for the status route."""
        return {
            "reply_partition": self._replies.partition,
            "waiting": len(self._waiting),
            "receipts": len(self._receipts),
            "results_bytes": self._receipts.bytes_held,
            **self.metrics.counts(),
        }

    async def _submit(self, submission: Submission, prepared: PreparedRequest) -> Receipt:
        name, request_id = _name(prepared), prepared.record.id
        receipt = self._receipts.get(name)
        if receipt is not None:
            self._place_of(prepared, receipt.digest)
            return Receipt(request_id, prepared.tenant, receipt.partition, -1, is_repeated=True)
        before = await self._reserve(name, prepared.digest)
        if before is not None:
            place = self._place_of(prepared, before.digest)
            if isinstance(before, StoredResult):
                partition = self._appending.partition_of(prepared.record.key)
                return Receipt(request_id, prepared.tenant, partition, -1, is_repeated=True)
            # Another gateway's, which may have died before Kafka had it: sent as it was sent there, so that a worker
            # which has it already sees the very same request again, and answers it once.
            prepared = self._prepare(submission, place.partition)
        try:
            partition, offset = await self._appending.append(prepared.record)
        except (KafkaUnavailable, WireError):
            if before is None:
                await self._release(name, prepared.digest)
            raise
        by_reply = prepared.reply_partition is not None and prepared.reply_partition == self._replies.partition
        self._receipts.note(name, prepared.digest, partition, comes_by_reply=by_reply)
        return Receipt(request_id, prepared.tenant, partition, offset, is_repeated=False)

    def _prepare(self, submission: Submission, reply_partition: int | None) -> PreparedRequest:
        return prepare_request(
            submission,
            now=self._clock.now(),
            fresh_id=lambda: str(uuid7()),
            topic=self._settings.topic("requests"),
            reply_partition=reply_partition,
            record_bytes_max=self._settings.limits.record_bytes,
        )

    def _is_expected(self, receipt: RecentReceipt) -> bool:
        return not receipt.is_answered and receipt.noted_at > self._clock.monotonic() - OVERDUE_S

    def _place_of(self, prepared: PreparedRequest, digest: bytes) -> PlacedReply:
        """Where the same request's copy goes.

        Raises:
            IdReused: it is not the same.
        """
        place = prepared.same_as(digest, self._settings.kafka.reply_partitions)
        if place is None:
            raise IdReused(f"id: {prepared.record.id!r} was used by another request, with other content")
        return place

    async def _reserve(self, name: bytes, digest: bytes) -> Pending | StoredResult | None:
        """What the store knew of it; nothing where the store is away: that refuses no request."""
        if self._store is None:
            return None
        try:
            return await self._store.reserve(name, digest)
        except ResultStoreError as error:
            self.metrics.store_errors["reserve"] += 1
            _log.debug("a request is not reserved: %s", error)
            return None

    async def _release(self, name: bytes, digest: bytes) -> None:
        if self._store is None:
            return
        try:
            await self._store.release(name, digest)
        except ResultStoreError as error:
            self.metrics.store_errors["release"] += 1
            _log.debug("a reservation is not taken back: %s", error)

    @asynccontextmanager
    async def _alone(self, name: bytes) -> AsyncIterator[None]:
        """One submission of a name at a time: the second one is a repetition of the first, or not."""
        while (other := self._sending.get(name)) is not None:
            await other.wait()
        done = self._sending[name] = asyncio.Event()
        try:
            yield
        finally:
            del self._sending[name]
            done.set()

    def _reply(self, name: bytes, result: StoredResult) -> None:
        """A copy of a result came."""
        is_own = self._receipts.keep(name, result)
        is_awaited = self._waiting.offer(name, result, "reply")
        self.metrics.replies["own" if is_own or is_awaited else "others"] += 1

    async def _opened_store(self, opening: AsyncExitStack) -> ResultStore | None:
        settings = self._settings
        if not settings.redis.url:
            return None
        store = RedisResultStore(
            settings.redis, settings.kafka.topic_prefix, settings.gateway.result_ttl_s, self._clock, self._rng
        )
        opening.push_async_callback(store.close)
        return store

    async def _opened_log(self, opening: AsyncExitStack) -> ResultLog | None:
        if not self._settings.clickhouse.url:
            return None
        store = await opening.enter_async_context(ClickHouseEventStore(self._settings.clickhouse))
        return ClickHouseResultLog(store)

    def _requests_topic(self, options: dict[str, Any]) -> Callable[[], KafkaRequests]:
        return lambda: KafkaRequests(
            options,
            self._settings.topic("requests"),
            record_bytes_max=self._settings.limits.record_bytes + MEMBERS_BYTES_MAX,
            timeout_s=_APPEND_S_MAX,
        )

    def _group(self, name: str) -> str:
        """`inference-gateway` by default: pipelines with other prefixes have groups of their own."""
        return f"{self._settings.kafka.topic_prefix.rstrip('.')}-{name}"

    def _start_part(self, opening: AsyncExitStack, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(work(), name=f"gateway: {name}")
        task.add_done_callback(partial(self._ended, name))
        opening.push_async_callback(cancel_until_ended, task)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        """A part of the gateway ended, which none does by itself: not ready from now on, and the log says why."""
        if not task.cancelled():
            self._failed[name] = f"ended by a mistake: {task.exception()!r}"
            _log.error("gateway: %s ended", name, exc_info=task.exception())


def _name(prepared: PreparedRequest) -> bytes:
    return name_of(prepared.tenant, prepared.record.id)
