"""Where a result is: in this gateway's memory, in the result store, in the inference log, asked in that order.

The log is asked for what the store has pending, too, once that has been so for long: a store that lost its results, and
was told of a request once more that had been answered by then, would have it pending for as long as it remembers.
"""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Protocol

import msgspec

from pipeline.adapters.result_log import LoggedResult
from pipeline.core.circuit_breaker import BreakerPolicy, Circuit, CircuitBreaker
from pipeline.core.duplicates import WINDOW_MS
from pipeline.core.stored_result import DIGEST_BYTES, Pending, StoredResult
from pipeline.errors import EventStoreError, PipelineError, ResultStoreError
from pipeline.gateway.delivery.metrics import DeliveryMetrics
from pipeline.gateway.delivery.waiting import Asked
from pipeline.ports import Clock, ResultStore
from schemas.result import json_object_length

_log = logging.getLogger(__name__)

# Receipts of some 400 bytes: 25 MB; at 100 a second, ten minutes of them.
RECEIPTS_MAX = 65_536
# Results that came as copies: 64 MiB is 40,000 of 1.5 kB.
RESULTS_BYTES_MAX = 64 << 20
# A query by id reads a granule or none, in 5-50 ms.
_LOG_S_MAX = 2.0
# While the store is away, who waits is looked for in the log; so many at a time, for each is a query.
_LOG_QUERIES_MAX = 16
_NO_DIGEST = bytes(DIGEST_BYTES)
# Pending for longer than an answer usually takes, and than the log lags behind. The next looks come after twice the
# time each: a thousand requests that wait through a backlog of five minutes are six queries each, 20 a second.
_PENDING_S_FIRST = 5.0
_PENDING_S_MAX = 80.0
# For so long a worker answers an id that comes again by nothing at all; later, by a result. What ended before that is
# an earlier request's.
_REPEATED_S_MAX = WINDOW_MS / 1e3


class _Completion(msgspec.Struct):
    completed_at: datetime


_completion = msgspec.json.Decoder(_Completion)


class ResultGone(PipelineError):  # noqa: N818 - a state, not a mistake
    """The request was answered; the result's bytes were cut, redacted or have expired."""


class ResultLog(Protocol):
    """The inference log, as far as it is asked for results."""

    async def find(self, tenant: str | None, request_id: str) -> LoggedResult | None:
        """The row of a request that ended; None where there is none.

        Raises:
            EventStoreError: it refused, or was not reached.
        """


@dataclass(slots=True, eq=False)
class RecentReceipt:
    """A request that this gateway knows Kafka has.

    Attributes:
        digest: of its content.
        comes_by_reply: its result is copied to a partition of this gateway's.
        result: the copy, once it came and while there is room.
        is_answered: a copy came; later ones do not count.
    """

    digest: bytes
    partition: int
    comes_by_reply: bool
    noted_at: float
    result: StoredResult | None = None
    is_answered: bool = False


class RecentReceipts:
    """This gateway's own receipts, the latest ones: what it says where the store has forgotten, or is away.

    Args:
        ttl_s: how long a receipt is remembered.
        clock: this process's time.
        count_max: how many are.
        bytes_max: of results, the oldest leave first; their receipts stay.
    """

    def __init__(
        self, ttl_s: float, clock: Clock, *, count_max: int = RECEIPTS_MAX, bytes_max: int = RESULTS_BYTES_MAX
    ) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._receipts: OrderedDict[bytes, RecentReceipt] = OrderedDict()
        self._with_result: OrderedDict[bytes, RecentReceipt] = OrderedDict()
        self.bytes_held = 0

    def __len__(self) -> int:
        return len(self._receipts)

    def note(self, name: bytes, digest: bytes, partition: int, *, comes_by_reply: bool) -> None:
        """Kafka has this request."""
        self._forget(name)
        now = self._clock.monotonic()
        self._receipts[name] = RecentReceipt(digest, partition, comes_by_reply, now)
        oldest = next(iter(self._receipts.values()))
        while len(self._receipts) > self._count_max or oldest.noted_at <= now - self._ttl_s:
            self._forget(next(iter(self._receipts)))
            oldest = next(iter(self._receipts.values()))

    def get(self, name: bytes) -> RecentReceipt | None:
        """What is remembered of a request."""
        receipt = self._receipts.get(name)
        if receipt is not None and receipt.noted_at <= self._clock.monotonic() - self._ttl_s:
            self._forget(name)
            return None
        return receipt

    def keep(self, name: bytes, result: StoredResult) -> bool:
        """Keeps the first result of a request of ours; says whether it is one."""
        receipt = self.get(name)
        if receipt is None:
            return False
        if not receipt.is_answered:
            receipt.is_answered = True
            receipt.result = result
            self._with_result[name] = receipt
            self.bytes_held += len(result.value)
            while self.bytes_held > self._bytes_max:
                self._drop_result(next(iter(self._with_result)))
        return True

    def _forget(self, name: bytes) -> None:
        self._drop_result(name)
        self._receipts.pop(name, None)

    def _drop_result(self, name: bytes) -> None:
        receipt = self._with_result.pop(name, None)
        if receipt is not None and receipt.result is not None:
            self.bytes_held -= len(receipt.result.value)
            receipt.result = None


class LongPending:
    """Requests that are pending, and when the log is asked for each; the latest ones.

    Args:
        count_max: how many are remembered; one that is forgotten counts from anew.
    """

    def __init__(self, count_max: int = RECEIPTS_MAX) -> None:
        self._count_max = count_max
        self._looks: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._looks)

    def is_due(self, name: bytes, now: float) -> bool:
        """Whether the log is to be asked for a request that is pending now; the next time is later."""
        look_at, pause_s = self._looks.get(name, (now + _PENDING_S_FIRST, _PENDING_S_FIRST))
        is_due = look_at <= now
        if is_due:
            pause_s = min(2 * pause_s, _PENDING_S_MAX)
            look_at = now + pause_s
        self._looks[name] = (look_at, pause_s)
        self._looks.move_to_end(name)
        if len(self._looks) > self._count_max:
            self._looks.popitem(last=False)
        return is_due

    def found(self, name: bytes) -> None:
        """The log has its result: from now on it is always asked."""
        self._looks[name] = (0.0, 0.0)


class LookUp:
    """Finds results.

    Args:
        receipts: this gateway's own.
        store: None where there is no Redis.
        log: None where there is no ClickHouse.
        clock: this process's time.
        rng: the pauses' jitter.
        metrics: where it counts.
    """

    def __init__(
        self,
        receipts: RecentReceipts,
        store: ResultStore | None,
        log: ResultLog | None,
        clock: Clock,
        rng: random.Random,
        metrics: DeliveryMetrics,
    ) -> None:
        self._receipts = receipts
        self._store = store
        self._result_log = log
        self._clock = clock
        self._metrics = metrics
        self._log_breaker = CircuitBreaker(BreakerPolicy(), rng.random)
        self._long_pending = LongPending()

    async def find(self, asked: Asked) -> StoredResult | Pending | None:
        """What is known of a request; None: nobody knows of it.

        Raises:
            ResultGone: its bytes were cut, redacted or have expired.
            ResultStoreError: what could know of it does not answer.
        """
        try:
            where, found = await self._find(asked)
        except ResultGone:
            self._metrics.look_ups["gone"] += 1
            raise
        except ResultStoreError:
            self._metrics.look_ups["unavailable"] += 1
            raise
        self._metrics.look_ups[where] += 1
        return found

    async def _find(self, asked: Asked) -> tuple[str, StoredResult | Pending | None]:
        receipt = self._receipts.get(asked.name)
        if receipt is not None and receipt.result is not None:
            return "memory", receipt.result
        away: ResultStoreError | None = None
        try:
            stored = (await self._store.find([asked.name]))[0] if self._store is not None else None
        except ResultStoreError as error:
            self._metrics.store_errors["find"] += 1
            stored, away = None, error
        if isinstance(stored, StoredResult):
            return "store", stored
        if stored is not None:
            answered = await self._answered_before(asked)
            return ("pending", stored) if answered is None else ("log", answered)
        try:
            logged = await self._logged(asked)
        except EventStoreError as error:
            # The store answers that it knows of no such request, or there is none to say so.
            logged, away = None, away or (None if self._store is not None else ResultStoreError(str(error)))
        if logged is not None:
            return "log", logged
        if receipt is not None:
            return "pending", Pending(receipt.digest)
        if away is not None:
            raise ResultStoreError(f"request {asked.request_id} is not known here, and {away}") from away
        return "unknown", None

    async def results_of(self, asked: Sequence[Asked]) -> Mapping[bytes, StoredResult]:
        """The results that are there, of requests that are waited for; raises nothing that is to be expected."""
        if self._store is not None:
            try:
                found = await self._store.find([one.name for one in asked])
            except ResultStoreError:
                self._metrics.store_errors["find"] += 1
            else:
                results = dict(zip((one.name for one in asked), found, strict=True))
                kept = {name: result for name, result in results.items() if isinstance(result, StoredResult)}
                return kept | await self._answered_long_ago([one for one in asked if one.name not in kept])
        logged = await asyncio.gather(*(self._logged_quietly(one) for one in asked[:_LOG_QUERIES_MAX]))
        pairs_logged = zip(asked, logged, strict=False)
        return {one.name: result for one, result in pairs_logged if result is not None}

    async def _answered_long_ago(self, pending: Sequence[Asked]) -> dict[bytes, StoredResult]:
        """Those of them that the log is due to be asked for, and knows."""
        now = self._clock.monotonic()
        # Only as many are looked at as may be asked for: the others stay due.
        due = list(islice((one for one in pending if self._long_pending.is_due(one.name, now)), _LOG_QUERIES_MAX))
        found = await asyncio.gather(*(self._repeated(one) for one in due))
        return {one.name: result for one, result in zip(due, found, strict=True) if result is not None}

    async def _answered_before(self, asked: Asked) -> StoredResult | None:
        """The result in the log of a request that the store has pending, where that has been so for long."""
        if not self._long_pending.is_due(asked.name, self._clock.monotonic()):
            return None
        return await self._repeated(asked)

    async def _repeated(self, asked: Asked) -> StoredResult | None:
        """The answer that a worker gives no second time; None for one that is too old to be this request's."""
        result = await self._logged_quietly(asked)
        if result is None or not _ended_since(result, self._clock.now() - _REPEATED_S_MAX):
            return None
        self._long_pending.found(asked.name)
        return result

    async def _logged_quietly(self, asked: Asked) -> StoredResult | None:
        try:
            return await self._logged(asked)
        except (EventStoreError, ResultGone) as error:
            _log.debug("request %s: %s", asked.request_id, error)
            return None

    async def _logged(self, asked: Asked) -> StoredResult | None:
        """The result in the log; None where it is not there, or there is no log.

        Raises:
            ResultGone: see `find`.
            EventStoreError: it does not answer, or is not asked, for it did not answer.
        """
        if self._result_log is None:
            return None
        now = self._clock.monotonic()
        if not self._log_breaker.allows(now):
            raise EventStoreError("ClickHouse is not asked at present: it did not answer", retryable=True)
        self._log_breaker.asking(now)
        try:
            async with asyncio.timeout(_LOG_S_MAX):
                row = await self._result_log.find(asked.tenant, asked.request_id)
        except TimeoutError:
            self._log_breaker.failed(self._clock.monotonic())
            raise EventStoreError(f"ClickHouse gave no answer within {_LOG_S_MAX:g} s", retryable=True) from None
        except EventStoreError:
            self._log_breaker.failed(self._clock.monotonic())
            raise
        except BaseException:
            # Who asked has gone: that says nothing about ClickHouse, but a probe must have an outcome.
            if self._log_breaker.state is Circuit.HALF_OPEN:
                self._log_breaker.failed(self._clock.monotonic())
            raise
        self._log_breaker.answered()
        return None if row is None else _stored(asked, row)


def _ended_since(result: StoredResult, since: float) -> bool:
    """Whether a result says that it ended after this time, Unix seconds."""
    text = result.value[: result.json_bytes] if result.json_bytes else result.value
    try:
        return bool(_completion.decode(text).completed_at.timestamp() >= since)
    except msgspec.MsgspecError:
        return False


def _stored(asked: Asked, row: LoggedResult) -> StoredResult:
    """A row's result as the store would have it."""
    if row.value is None:
        raise ResultGone(f"the result of request {asked.request_id} is not kept any more")
    try:
        json_bytes = json_object_length(row.value)
    except ValueError as error:
        raise ResultGone(f"the result of request {asked.request_id} is not there as it was: {error}") from None
    return StoredResult(_NO_DIGEST, 0 if json_bytes == len(row.value) else json_bytes, row.value)
