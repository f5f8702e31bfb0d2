"""The shared second level of the cache in Redis (7.0 or later) or Valkey: `SharedCache` of the ports.

All look-ups of one round of the event loop leave as one pipeline; while it is out, the next ones collect. The budget is
Redis's: it counts from when the pipeline left. When it is over, all who wait are told "nothing", and late replies only
count: cancelling would cost the connection. While a late pipeline is out, who asks waits a budget for it and no longer.

Answers are written behind, by a task of their own, as a transaction that watches a key which every `clear` removes. One
server, or something that looks like one: the keys of a Redis Cluster's pipelines would lie on several.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from redis.exceptions import RedisError, ResponseError

from pipeline.adapters.redis_connection import (
    REPLY_S_MAX,
    RedisGate,
    ReplyBudget,
    address_of,
    cause_of,
    client_of,
    exchange_on,
    packed,
    refusal_in,
)
from pipeline.config import CacheSettings, RedisSettings
from pipeline.core.answer import StoredAnswer, stored_answer
from pipeline.core.cache_key import CacheScope, scopes_of
from pipeline.core.circuit_breaker import Circuit
from pipeline.core.look_up_queue import LookUp, LookUpQueue
from pipeline.core.shared_entry import (
    RefusedEntryError,
    clear_mark,
    decode_entry,
    encode_entry,
    entry_name,
    entry_pattern,
)
from pipeline.core.write_behind import Write, WriteQueue
from pipeline.errors import PipelineError
from pipeline.metrics import SharedCacheMetrics
from pipeline.ports import Clock, SharedAnswer

Told = TypeVar("Told")
_log = logging.getLogger(__name__)

# A value of 1 MiB takes 0.4-3 ms on the same host, one of 4 MiB 12: what cannot come back in time is not written.
ENTRY_BYTES_MAX = 1 << 20
# 40 us each, the client library's work, ours, and what is done with the answer: others wait 1.3 ms for their turn.
_TOLD_AT_ONCE_MAX = 32
_WRITES_OUT_MAX = 64
_BYTES_OUT_MAX = 1 << 20
_CLEAR_REPLY_S_MAX = 10.0
_CLOSE_S_MAX = 1.0
# Ten years: Redis refuses what its clock cannot count.
_TTL_S_MAX = 315_360_000.0
# What a server is away by, where it is away; anything else is a mistake of ours, and the log has its place.
_AWAY = (RedisError, OSError, EOFError)


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
        self._budget = ReplyBudget(self._budget_s, self._budget_over)
        self._prefix = prefix
        self._clear_mark = clear_mark(prefix).encode()
        self._clock = clock
        self._where = f"the shared cache at {address_of(redis)}"
        # Asking it at all, and its taking of writes: a full or read-only Redis still answers look-ups.
        self._server = RedisGate(f"{self._where} is not asked", rng, clock, self.metrics.errors)
        self._writing = RedisGate(f"{self._where} is not written to", rng, clock, self.metrics.errors)
        self._look_ups: LookUpQueue[SharedAnswer | None] = LookUpQueue()
        self._queue: WriteQueue[SharedAnswer] = WriteQueue(cache.shared_queue_bytes)
        self._asked = asyncio.Event()
        self._queued = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    async def connect(self) -> None:
        """Opens a connection, so that the first look-up need not; what fails here that one tells of."""
        with suppress(RedisError, OSError):
            async with asyncio.timeout(REPLY_S_MAX):
                await self._client.ping()

    def look_up(self, key: bytes, scope: CacheScope, found: Callable[[SharedAnswer | None], None]) -> bool:
        """See `pipeline.ports.SharedCache.look_up`."""
        now = self._clock.monotonic()
        look_up = LookUp(key, entry_name(self._prefix, scope, key), now, found)
        if self._closed or not self._server.breaker.allows(now) or not self._look_ups.offer(look_up):
            self.metrics.look_ups["not_asked",] += 1
            return False
        self._server.breaker.asking(now)
        if self._look_ups.is_out and not self._budget.is_counting:
            self._budget.begin()
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
            async with asyncio.timeout(_CLEAR_REPLY_S_MAX):
                # First: what is on its way either is there by now, and found below, or is not written any more.
                await self._client.unlink(self._clear_mark)
            while True:
                async with asyncio.timeout(_CLEAR_REPLY_S_MAX):
                    cursor, names = await self._client.scan(cursor, match=pattern, count=1000)
                    if names:
                        removed += await self._client.unlink(*names)
                if not cursor:
                    return removed
        except (RedisError, OSError) as error:  # asyncio's TimeoutError is an OSError
            cause = f"{removed} answers are gone: {cause_of(error)}"
            raise PipelineError(f"{self._where} cannot be cleared, {cause}") from error

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
        for look_up in self._look_ups.give_up():
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
            while look_ups := self._look_ups.send():
                bytes_read: int | None = None
                try:
                    bytes_read = await self._ask(look_ups)
                except Exception as error:  # noqa: BLE001 - whatever it is costs these answers, and no more
                    self._failed(error, "look-ups in the shared cache failed; their answers are computed")
                finally:
                    for look_up in self._look_ups.landed(bytes_read):
                        self._settle(look_up, "not_asked", None)
                    self._budget.end()
                    for look_up in look_ups:
                        self._settle(look_up, "failed", None)

    async def _ask(self, look_ups: Sequence[LookUp[SharedAnswer | None]]) -> int:
        """Sends one pipeline, and tells who asked while its replies are read; returns how many bytes they brought."""
        # In this order: what replaces the entry in between looks older than it is, never younger.
        names = [look_up.name.encode() for look_up in look_ups]
        commands = b"".join([packed(b"PTTL", name) + packed(b"GET", name) for name in names])
        refusal: Exception | None = None
        in_time, bytes_read = False, 0
        self._budget.begin()  # a connection that is not there yet is Redis's time, too
        async with exchange_on(self._client) as exchange:
            await exchange.send(commands)
            self._budget.begin()
            for number, look_up in enumerate(look_ups, 1):
                left_ms, value = await exchange.reply(), await exchange.reply()
                self._budget.read()
                bytes_read += len(value) if isinstance(value, bytes) else 0
                self.metrics.look_up_seconds.observe(self._clock.monotonic() - look_up.asked_at)
                if (refused := refusal_in((left_ms, value))) is not None:
                    refusal = refused
                elif look_up.found is not None:
                    in_time = True
                    self._replied(look_up, left_ms, value)
                if number % _TOLD_AT_ONCE_MAX == 0:
                    exchange.goes_on()
                    await asyncio.sleep(0)
        if refusal is not None:
            self._server.failed(refusal)
        elif in_time:
            self._server.answered()
        return bytes_read

    def _replied(self, look_up: LookUp[SharedAnswer | None], left_ms: int, value: Any) -> None:
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

    def _budget_over(self) -> None:
        untold = self._look_ups.give_up()
        if untold:  # all are late together, and that is one slow moment, not a thousand
            self._server.late(f"no answer within {self._budget_s * 1000:g} ms")
        for look_up in untold:
            self._settle(look_up, "late", None)

    def _settle(self, look_up: LookUp[SharedAnswer | None], outcome: str, shared: SharedAnswer | None) -> None:
        """Tells who asked, once; nothing where it was told before."""
        found, look_up.found = look_up.found, None
        if found is None:
            return
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
                await self._write_some()
                self.metrics.queue_bytes = self._queue.bytes_held
                self.metrics.usable = self._server.breaker.state is Circuit.CLOSED

    async def _write_some(self) -> None:
        now = self._clock.monotonic()
        if not self._may_write(now):
            self.metrics.writes["dropped",] += self._queue.drop()
            return
        self._server.breaker.asking(now)
        self._writing.breaker.asking(now)
        try:
            await self._write()
        except ResponseError as refusal:
            self._server.answered()
            self._writing.failed(refusal)
            self.metrics.writes["failed",] += self._queue.lose(_WRITES_OUT_MAX)
        except Exception as error:  # noqa: BLE001 - likewise
            self._failed(error, "answers could not be written to the shared cache")
            if self._writing.breaker.state is Circuit.HALF_OPEN:
                self._writing.failed(error)
            self.metrics.writes["failed",] += self._queue.lose(_WRITES_OUT_MAX)

    async def _write(self) -> None:
        """Writes the next batch, unless a `clear` comes in between; then it waits again.

        Raises:
            ResponseError: Redis takes no writes.
            RedisError, OSError: it went away.
        """
        async with exchange_on(self._client) as exchange:
            await exchange.watch(self._clear_mark)
            # Taken and sent in one go: what is cleared before is not taken, what is cleared after is not done.
            batch, commands = self._next_writes()
            replies = await exchange.transaction(commands)
        if replies is None:
            self._queue.put_back()
            return
        self._queue.landed()
        self._server.answered()
        self._writing.answered()
        self._written(batch, replies)

    def _next_writes(self) -> tuple[list[Write[SharedAnswer]], list[bytes]]:
        """The next batch, and its commands: two for each write, one after the other."""
        now = self._clock.monotonic()
        batch: list[Write[SharedAnswer]] = []
        commands: list[bytes] = []
        for write in self._queue.send(_WRITES_OUT_MAX, _BYTES_OUT_MAX):
            left_s = write.expires_at - now
            if left_s < 0.001:
                self.metrics.writes["expired",] += 1
                write.forgotten = True
                continue
            entry, saved = encode_entry(write.key, write.answer, age_s=now - write.answer.stored_at, ttl_s=left_s)
            name = entry_name(self._prefix, write.scope, write.key).encode()
            words = (name, entry, b"PX", b"%d" % max(int(left_s * 1000), 1))
            commands += (packed(b"PTTL", name), packed(b"SET", *words, *(() if write.replace else (b"NX", b"GET"))))
            self.metrics.bytes["out",] += len(entry)
            self.metrics.saved_bytes += saved
            batch.append(write)
        return batch, commands

    def _written(self, batch: Sequence[Write[SharedAnswer]], replies: Sequence[Any]) -> None:
        for write, left_ms, reply in zip(batch, replies[::2], replies[1::2], strict=True):
            if reply is None or write.replace:
                self.metrics.writes["stored",] += 1
            else:
                self._lost(write, left_ms, reply)

    def _lost(self, write: Write[SharedAnswer], left_ms: int, reply: Any) -> None:
        """Another was first: its answer counts, unless nobody can read it."""
        try:
            shared = self._shared(write.key, left_ms, reply)
        except RefusedEntryError as refused:
            self.metrics.refused_entries[refused.reason,] += 1
            if not write.forgotten:
                write.replace = True
                self._enqueue(write)
            return
        self.metrics.writes["not_first",] += 1
        if shared is not None:
            _tell(write.winner, shared)

    def _failed(self, error: Exception, told: str) -> None:
        if not isinstance(error, _AWAY):
            _log.error("%s", told, exc_info=error)
        self._server.failed(error)


def _tell(callback: Callable[[Told], None], shared: Told) -> None:
    try:
        callback(shared)
    except Exception:  # noqa: BLE001 - one who fails must not keep the answers of the others back
        _log.exception("an answer of the shared cache could not be taken")
