"""The shared second level of the cache in Redis (7.0 or later) or Valkey: `SharedCache` of the ports.

All look-ups of one round of the event loop leave as one pipeline; while it is out, the next ones collect. A look-up is
told "nothing" when its budget is over, and its late reply only counts: cancelling a running command would cost the
connection. Answers are written behind, by a task of their own. One server, or something that looks like one: the keys
of a Redis Cluster's pipelines would lie on several.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.exceptions import RedisError

from pipeline.adapters.redis_connection import RedisGate, address_of, cause_of, client_of, is_of_another_type
from pipeline.config import CacheSettings, RedisSettings
from pipeline.core.answer import StoredAnswer, stored_answer
from pipeline.core.cache_key import CacheScope, scopes_of
from pipeline.core.circuit_breaker import Circuit
from pipeline.core.shared_entry import RefusedEntryError, decode_entry, encode_entry, entry_name, entry_pattern
from pipeline.core.write_behind import Write, WriteQueue
from pipeline.errors import PipelineError
from pipeline.metrics import SharedCacheMetrics
from pipeline.ports import Clock, SharedAnswer

Told = TypeVar("Told")
_log = logging.getLogger(__name__)

# A value of 1 MiB takes 0.4-3 ms on the same host, one of 4 MiB 12: what cannot come back in time is not written.
ENTRY_BYTES_MAX = 1 << 20
# 25-40 us each, the client library's work and ours: a pipeline of 32 takes a millisecond, and the last of 128 that wait
# behind it are told when a budget of 5 ms ends.
_LOOK_UPS_OUT_MAX = 32
_LOOK_UPS_WAITING_MAX = 128
_WRITES_OUT_MAX = 64
_BYTES_OUT_MAX = 1 << 20
# A pipeline without a reply this long has lost its server; its connection is given up. The library's own time limit
# is for each reply, and takes a third of a pipeline's time.
_REPLY_S_MAX = 1.0
_CLEAR_REPLY_S_MAX = 10.0
_CLOSE_S_MAX = 1.0
_SCAN_COUNT = 1000
# Ten years: Redis refuses what its clock cannot count.
_TTL_S_MAX = 315_360_000.0
# A budget may be over only because this process was busy, and then the reply is here already: it is read, its reader
# is woken and the pipeline's end is told within four rounds of the loop, asyncio's and uvloop's (measured). An idle
# loop does eight in 20 us.
_ROUNDS_OF_GRACE = 8


@dataclass(slots=True, eq=False)
class _LookUp:
    key: bytes
    name: str
    asked_at: float
    found: Callable[[SharedAnswer | None], None] | None
    timer: asyncio.Handle | None = None


class RedisSharedCache:
    """`SharedCache` over redis.asyncio. Connects at the first call and again whenever that is needed.

    Args:
        redis: where the server is and who we are.
        cache: budget and bounds.
        prefix: of all names, so that several pipelines may share a server.
        clock: this process's time.
        rng: the pauses' jitter.
        metrics: where it counts.

    Raises:
        SettingsError: the address is missing or no redis URL, or a TLS file cannot be read.
    """

    def __init__(
        self,
        redis: RedisSettings,
        cache: CacheSettings,
        prefix: str,
        clock: Clock,
        rng: random.Random,
        metrics: SharedCacheMetrics | None = None,
    ) -> None:
        self._client = client_of(redis)
        self.metrics = metrics or SharedCacheMetrics()
        self._budget_s = cache.shared_budget_ms / 1000
        self._prefix = prefix
        self._clock = clock
        self._where = f"the shared cache at {address_of(redis)}"
        # Asking it at all, and its taking of writes: a full or read-only Redis still answers look-ups.
        self._server = RedisGate(f"{self._where} is not asked", rng, clock, self.metrics.errors)
        self._writing = RedisGate(f"{self._where} is not written to", rng, clock, self.metrics.errors)
        self._waiting: deque[_LookUp] = deque()
        self._queue: WriteQueue[SharedAnswer] = WriteQueue(cache.shared_queue_bytes)
        self._asked = asyncio.Event()
        self._queued = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._late_counts_at = 0.0
        self._closed = False

    async def connect(self) -> None:
        """Opens a connection, so that the first look-up's budget need not pay for it.

        What fails here fails the first look-up too, which tells of it.
        """
        with suppress(RedisError, OSError):
            async with asyncio.timeout(_REPLY_S_MAX):
                await self._client.ping()

    def look_up(self, key: bytes, scope: CacheScope, found: Callable[[SharedAnswer | None], None]) -> bool:
        """See `pipeline.ports.SharedCache.look_up`."""
        now = self._clock.monotonic()
        if self._closed or len(self._waiting) >= _LOOK_UPS_WAITING_MAX or not self._server.breaker.allows(now):
            self.metrics.look_ups["not_asked",] += 1
            return False
        self._server.breaker.asking(now)
        look_up = _LookUp(key, entry_name(self._prefix, scope, key), now, found)
        look_up.timer = asyncio.get_running_loop().call_later(self._budget_s, self._budget_over, look_up)
        self._waiting.append(look_up)
        self._asked.set()
        self._start()
        return True

    def store(
        self,
        key: bytes,
        scope: CacheScope,
        answer: StoredAnswer,
        ttl_s: float,
        *,
        replace: bool,
        winner: Callable[[SharedAnswer], None],
    ) -> None:
        """See `pipeline.ports.SharedCache.store`."""
        now = self._clock.monotonic()
        if self._closed:
            return
        if answer.raw_bytes > ENTRY_BYTES_MAX:
            self.metrics.writes["too_large",] += 1
        elif self._may_write(now):
            self._enqueue(Write(key, scope, answer, now + min(ttl_s, _TTL_S_MAX), replace, winner))
        else:
            self.metrics.writes["dropped",] += 1

    def forget(self, wanted: Callable[[CacheScope], bool]) -> None:
        """See `pipeline.ports.SharedCache.forget`."""
        self._queue.forget(wanted)
        self.metrics.queue_bytes = self._queue.bytes_held

    async def clear(
        self, *, tenant: str | None = None, model_name: str | None = None, model_version: str | None = None
    ) -> int:
        """See `pipeline.ports.SharedCache.clear`."""
        self.forget(scopes_of(tenant, model_name, model_version))
        pattern = entry_pattern(self._prefix, tenant, model_name, model_version)
        cursor, removed = 0, 0
        try:
            while True:
                async with asyncio.timeout(_CLEAR_REPLY_S_MAX):
                    cursor, names = await self._client.scan(cursor, match=pattern, count=_SCAN_COUNT)
                    if names:
                        removed += await self._client.unlink(*names)
                if not cursor:
                    return removed
        except (RedisError, OSError) as error:  # asyncio's TimeoutError is an OSError
            raise PipelineError(
                f"{self._where} cannot be cleared, {removed} answers are gone: {cause_of(error)}"
            ) from error

    async def close(self) -> None:
        """See `pipeline.ports.SharedCache.close`."""
        if self._closed:
            return
        self._closed = True
        self._asked.set()
        self._queued.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_S_MAX)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for look_up in self._waiting:
            self._settle(look_up, "failed", None)
        self.metrics.writes["dropped",] += self._queue.drop()
        await self._client.aclose()

    def _start(self) -> None:
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._ask_forever(), name="shared cache: look-ups"),
                asyncio.create_task(self._write_forever(), name="shared cache: writes"),
            ]

    async def _ask_forever(self) -> None:
        while not self._closed:
            await self._asked.wait()
            self._asked.clear()
            while self._waiting:
                count = min(len(self._waiting), _LOOK_UPS_OUT_MAX)
                batch = [self._waiting.popleft() for _ in range(count)]
                try:
                    await self._ask([look_up for look_up in batch if look_up.found is not None])
                except Exception as error:  # noqa: BLE001 - a mistake of ours costs these answers, and no more
                    _log.exception("look-ups in the shared cache failed; their answers are computed")
                    self._server.failed(error)
                finally:
                    for look_up in batch:
                        self._settle(look_up, "failed", None)

    async def _ask(self, look_ups: Sequence[_LookUp]) -> None:
        if not look_ups:
            return
        pipeline = self._client.pipeline(transaction=False)
        for look_up in look_ups:
            # In this order: what replaces the entry in between looks older than it is, never younger.
            pipeline.execute_command("PTTL", look_up.name)
            pipeline.execute_command("GET", look_up.name)
        replies = await self._replies(pipeline)
        if isinstance(replies, Exception):
            self._server.failed(replies)
            return
        refusals = [reply for reply in replies if isinstance(reply, Exception) and not is_of_another_type(reply)]
        if refusals:
            self._server.failed(refusals[0])
            return
        now = self._clock.monotonic()
        if any(look_up.found is not None for look_up in look_ups):
            self._server.answered()
        for look_up, left_ms, value in zip(look_ups, replies[::2], replies[1::2], strict=True):
            self.metrics.look_up_seconds.observe(now - look_up.asked_at)
            if look_up.found is not None:
                self._replied(look_up, left_ms, value)

    def _replied(self, look_up: _LookUp, left_ms: int, value: Any) -> None:
        try:
            shared = self._shared(look_up.key, left_ms, value)
        except RefusedEntryError as refused:
            self.metrics.refused_entries[refused.reason,] += 1
            self._settle(look_up, "refused", None)
        else:
            self._settle(look_up, "miss" if shared is None else "hit", shared)

    def _shared(self, key: bytes, left_ms: int, value: Any) -> SharedAnswer | None:
        """What an entry says now, or None where there is none.

        Raises:
            RefusedEntryError: it cannot be read.
        """
        if value is None or left_ms == 0:
            return None
        if not isinstance(value, bytes):
            raise RefusedEntryError("foreign")
        self.metrics.bytes["in",] += len(value)
        entry = decode_entry(value, key, body_bytes_max=ENTRY_BYTES_MAX)
        age_s, left_s = entry.age_and_left(left_ms)
        stored_at = self._clock.monotonic() - age_s
        return SharedAnswer(stored_answer(entry.tensors, stored_at=stored_at, instance=entry.instance), age_s, left_s)

    def _budget_over(self, look_up: _LookUp, rounds_left: int = _ROUNDS_OF_GRACE) -> None:
        if look_up.found is None:
            return
        if rounds_left:
            loop = asyncio.get_running_loop()
            look_up.timer = loop.call_soon(self._budget_over, look_up, rounds_left - 1)
            return
        now = self._clock.monotonic()
        # All of a pipeline are late together, and that is one slow moment, not thirty.
        if now >= self._late_counts_at or self._server.breaker.state is not Circuit.CLOSED:
            self._late_counts_at = now + self._budget_s
            self._server.late(f"no answer within {self._budget_s * 1000:g} ms")
        self._settle(look_up, "late", None)

    def _settle(self, look_up: _LookUp, outcome: str, shared: SharedAnswer | None) -> None:
        """Tells who asked, once; nothing where it was told before."""
        found, look_up.found = look_up.found, None
        if found is None:
            return
        if look_up.timer is not None:
            look_up.timer.cancel()
        self.metrics.look_ups[outcome,] += 1
        self.metrics.usable = self._server.breaker.state is Circuit.CLOSED
        _tell(found, shared)

    def _may_write(self, now: float) -> bool:
        # In a burst it is this process that is late; nobody waits for a write, and the next worker has use for it.
        server = self._server.breaker
        return (server.is_merely_late or server.allows(now)) and self._writing.breaker.allows(now)

    def _enqueue(self, write: Write[SharedAnswer]) -> None:
        if not self._queue.offer(write):
            self.metrics.writes["dropped",] += 1
            return
        self.metrics.queue_bytes = self._queue.bytes_held
        self._queued.set()
        self._start()

    async def _write_forever(self) -> None:
        while not self._closed or self._queue:
            await self._queued.wait()
            self._queued.clear()
            while self._queue:
                try:
                    await self._write_some()
                except Exception as error:  # noqa: BLE001 - likewise
                    _log.exception("answers could not be written to the shared cache")
                    self._writing.failed(error)
                    self._server.failed(error)
                self.metrics.queue_bytes = self._queue.bytes_held
                self.metrics.usable = self._server.breaker.state is Circuit.CLOSED

    async def _write_some(self) -> None:
        now = self._clock.monotonic()
        if not self._may_write(now):
            self.metrics.writes["dropped",] += self._queue.drop()
            return
        pipeline = self._client.pipeline(transaction=False)
        batch = self._packed(pipeline, now)
        if not batch:
            return
        self._server.breaker.asking(now)
        self._writing.breaker.asking(now)
        replies = await self._replies(pipeline)
        if isinstance(replies, Exception):
            self.metrics.writes["failed",] += len(batch)
            self._server.failed(replies)
            if self._writing.breaker.state is Circuit.HALF_OPEN:
                self._writing.failed(replies)
            return
        self._server.answered()
        self._written(batch, replies)

    def _packed(self, pipeline: Any, now: float) -> list[Write[SharedAnswer]]:
        """The next writes, put into a pipeline: two commands each, one after the other."""
        batch: list[Write[SharedAnswer]] = []
        packed_bytes = 0
        while self._queue and len(batch) < _WRITES_OUT_MAX and packed_bytes < _BYTES_OUT_MAX:
            write = self._queue.take()
            left_s = write.expires_at - now
            if left_s < 0.001:
                self.metrics.writes["expired",] += 1
                continue
            age_s = now - write.answer.stored_at
            entry, saved = encode_entry(write.key, write.answer, age_s=age_s, ttl_s=left_s)
            name = entry_name(self._prefix, write.scope, write.key)
            pipeline.pttl(name)
            pipeline.set(name, entry, px=max(int(left_s * 1000), 1), nx=not write.replace, get=not write.replace)
            packed_bytes += len(entry)
            self.metrics.saved_bytes += saved
            batch.append(write)
        self.metrics.bytes["out",] += packed_bytes
        return batch

    def _written(self, batch: Sequence[Write[SharedAnswer]], replies: Sequence[Any]) -> None:
        refusal: Exception | None = None
        for write, left_ms, reply in zip(batch, replies[::2], replies[1::2], strict=True):
            if isinstance(reply, Exception) and not is_of_another_type(reply):
                self.metrics.writes["failed",] += 1
                refusal = reply
            elif reply is None or write.replace:
                self.metrics.writes["stored",] += 1
            else:
                self._lost(write, left_ms, reply)
        if refusal is not None:
            self._writing.failed(refusal)
        else:
            self._writing.answered()

    def _lost(self, write: Write[SharedAnswer], left_ms: int, reply: Any) -> None:
        """Another was first: its answer counts, unless nobody can read it."""
        try:
            shared = self._shared(write.key, left_ms, reply)
        except RefusedEntryError as refused:
            self.metrics.refused_entries[refused.reason,] += 1
            write.replace = True
            self._enqueue(write)
            return
        self.metrics.writes["not_first",] += 1
        if shared is not None:
            _tell(write.winner, shared)

    async def _replies(self, pipeline: Any) -> list[Any] | Exception:
        """The replies of a pipeline, errors among them, or the error that ended it as a whole."""
        try:
            async with asyncio.timeout(_REPLY_S_MAX):
                replies: list[Any] = await pipeline.execute(raise_on_error=False)
                return replies
        except Exception as error:  # noqa: BLE001 - whatever it is, the cache does not answer: counted, and told once
            return error


def _tell(callback: Callable[[Told], None], shared: Told) -> None:
    try:
        callback(shared)
    except Exception:  # noqa: BLE001 - one who fails must not keep the answers of the others back
        _log.exception("an answer of the shared cache could not be taken")
