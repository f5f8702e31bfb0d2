"""Results by request in Redis (7.0 or later) or Valkey: `ResultStore` of the ports.

Calls of one round of the event loop leave as one pipeline; while it is out, the next ones collect. Large values travel
in pieces, so that neither the server's buffers nor the second in which a reply must come set their size.

    {prefix}result:{name in hex} -> an entry (`core.stored_result`), which Redis drops by itself when its time is over
"""

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from pipeline.adapters.redis_connection import RedisGate, address_of, cause_of, client_of, exchange_on, packed
from pipeline.config import RedisSettings
from pipeline.core.circuit_breaker import Circuit
from pipeline.core.stored_result import Pending, StoredResult, decode_entry, encode_entry
from pipeline.errors import ResultStoreError
from pipeline.ports import Clock

# A pipeline of look-ups: 64 first pieces are 4 MiB of replies at most, 3-12 ms on the same host.
_COMMANDS_MAX = 64
_FIRST_PIECE_BYTES = 64 * 1024
_PIECE_BYTES = 1 << 20
# Readers of large values, each with a connection of its own: more only share the same wire.
_LARGE_READS_MAX = 4
# What is sent between two looks at the time: 256 KiB a second is 2 Mbit/s.
_SEND_BYTES = 256 * 1024

_RELEASE = b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
# A result wins over everything but a result. EVAL, not EVALSHA: no server that came back empty knows a digest, and 170
# bytes are little beside a result.
_KEEP = (
    b"if redis.call('GETRANGE', KEYS[1], 0, 0) ~= 'R' then "
    b"redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1 end return 0"
)


class ResultRefused(ResultStoreError):  # noqa: N818 - a state, not a mistake
    """The store answers, and has no room for these results; smaller or later ones may find some."""


class RedisResultStore:
    """`ResultStore` over redis.asyncio. Connects at the first call and again whenever that is needed.

    What fails three times in a row is not asked for a pause, 0.1 s growing to 5: then a call costs nothing and raises
    at once, but for one that tries.

    Args:
        redis: where the server is and who we are.
        prefix: of all names, so that several pipelines may share a server.
        ttl_s: how long a result lives, and a reservation.
        clock: this process's time.
        rng: the pauses' jitter.

    Raises:
        SettingsError: the address is missing or no redis URL, or a TLS file cannot be read.
    """

    def __init__(self, redis: RedisSettings, prefix: str, ttl_s: float, clock: Clock, rng: random.Random) -> None:
        self._client = client_of(redis)
        self._prefix = f"{prefix}result:".encode()
        self._ttl_ms = b"%d" % max(round(ttl_s * 1000), 1)
        self._clock = clock
        self._where = f"the result store at {address_of(redis)}"
        meanwhile = "results are looked for in the log"
        self._gate = RedisGate(f"{self._where} is not asked", rng, clock, meanwhile=meanwhile)
        self._small = _Pipeline(self)
        self._looks = _Pipeline(self)
        self._large_reads = asyncio.Semaphore(_LARGE_READS_MAX)

    async def reserve(self, name: bytes, digest: bytes) -> Pending | StoredResult | None:
        """See `pipeline.ports.ResultStore.reserve`."""
        entry = encode_entry(Pending(digest))
        command = packed(b"SET", self._key(name), entry, b"NX", b"GET", b"PX", self._ttl_ms)
        before = await self._small.ask(command)
        if isinstance(before, ResponseError):
            raise ResultStoreError(f"{self._where} has something of others under a name of ours: {cause_of(before)}")
        return None if before is None else decode_entry(before)

    async def release(self, name: bytes, digest: bytes) -> None:
        """See `pipeline.ports.ResultStore.release`."""
        await self._small.ask(packed(b"EVAL", _RELEASE, b"1", self._key(name), encode_entry(Pending(digest))))

    async def keep(self, results: Sequence[tuple[bytes, StoredResult]]) -> None:
        """See `pipeline.ports.ResultStore.keep`.

        Raises:
            ResultRefused: Redis is full; some of them may be kept all the same.
            ResultStoreError: it does not answer, or takes no writes at present.
        """
        commands = [
            packed(b"EVAL", _KEEP, b"1", self._key(name), encode_entry(result), self._ttl_ms)
            for name, result in results
        ]
        if commands:
            await self._exchanged(commands)

    async def find(self, names: Sequence[bytes]) -> list[Pending | StoredResult | None]:
        """See `pipeline.ports.ResultStore.find`."""
        last = b"%d" % (_FIRST_PIECE_BYTES - 1)
        commands = [packed(b"GETRANGE", self._key(name), b"0", last) for name in names]
        pieces = await asyncio.gather(*map(self._looks.ask, commands))
        found: list[Pending | StoredResult | None] = []
        for name, piece in zip(names, pieces, strict=True):
            if isinstance(piece, bytes) and len(piece) == _FIRST_PIECE_BYTES:
                found.append(await self._large(name))
            else:
                found.append(decode_entry(piece) if isinstance(piece, bytes) else None)
        return found

    async def close(self) -> None:
        """See `pipeline.ports.ResultStore.close`."""
        await self._small.close()
        await self._looks.close()
        await self._client.aclose()

    def _key(self, name: bytes) -> bytes:
        return self._prefix + name.hex().encode()

    async def _large(self, name: bytes) -> Pending | StoredResult | None:
        """An entry piece by piece; None where it went while it was read."""
        async with self._large_reads:
            key = self._key(name)
            size = (await self._exchanged([packed(b"STRLEN", key)]))[0]
            starts = range(0, size, _PIECE_BYTES)
            commands = [packed(b"GETRANGE", key, b"%d" % start, b"%d" % (start + _PIECE_BYTES - 1)) for start in starts]
            entry = b"".join(await self._exchanged(commands))
            # One that expired in between is short; results are never replaced by others while they live.
            return decode_entry(entry) if len(entry) == size else None

    async def _exchanged(self, commands: Sequence[bytes]) -> list[Any]:
        """Sends commands, any bytes of them, and returns their replies in order.

        Raises:
            ResultRefused, ResultStoreError: see `keep`.
        """
        now = self._clock.monotonic()
        if not self._gate.breaker.allows(now):
            raise ResultStoreError(f"{self._where} is not asked at present: it did not answer")
        self._gate.breaker.asking(now)
        replies: list[Any] = []
        try:
            async with exchange_on(self._client) as exchange:
                for piece in _pieces(commands):
                    await exchange.send(piece)
                    exchange.goes_on()
                for _ in commands:
                    replies.append(await exchange.reply())
                    exchange.goes_on()
        except (RedisError, OSError, EOFError) as error:  # TimeoutError is an OSError
            self._gate.failed(error)
            raise ResultStoreError(f"{self._where}: {cause_of(error)}") from error
        except BaseException:
            # Cancelled, or a mistake of ours: says nothing about the server, but a probe must have an outcome.
            if self._gate.breaker.state is Circuit.HALF_OPEN:
                self._gate.breaker.failed(self._clock.monotonic())
            raise
        self._judge(replies)
        return replies

    def _judge(self, replies: Sequence[object]) -> None:
        """An answer is an answer; one that refuses because of the server's state is as good as none."""
        refusals = [reply for reply in replies if isinstance(reply, ResponseError) and not _is_foreign(reply)]
        refusal = refusals[0] if refusals else None
        if refusal is None:
            self._gate.answered()
            return
        if isinstance(refusal, OutOfMemoryError):
            self._gate.answered()
            raise ResultRefused(f"{self._where} is full: {cause_of(refusal)}") from refusal
        self._gate.failed(refusal)
        raise ResultStoreError(f"{self._where}: {cause_of(refusal)}") from refusal


class _Pipeline:
    """Commands of many callers, one pipeline out at a time. Those that are refused get their refusal as an error."""

    def __init__(self, store: RedisResultStore) -> None:
        self._store = store
        self._queue: deque[tuple[bytes, asyncio.Future[Any]]] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def ask(self, command: bytes) -> Any:
        """The reply to one command.

        Raises:
            ResultStoreError: none came, or the server refuses.
        """
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((command, reply))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all(), name="result store")
        return await reply

    async def close(self) -> None:
        """Ends it; whoever waits is told so."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        self._tell(self._queue, ResultStoreError("the result store was closed"))
        self._queue.clear()

    async def _send_all(self) -> None:
        try:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), _COMMANDS_MAX))]
                try:
                    replies = await self._store._exchanged([command for command, _ in batch])
                except ResultStoreError as error:
                    self._tell(batch, error)
                except BaseException:
                    self._tell(batch, ResultStoreError("the result store was closed"))
                    raise
                else:
                    for (_, waiting), reply in zip(batch, replies, strict=True):
                        if not waiting.done():
                            waiting.set_result(reply)
        finally:
            self._sending = None

    @staticmethod
    def _tell(batch: Sequence[tuple[bytes, asyncio.Future[Any]]] | deque[Any], error: ResultStoreError) -> None:
        for _, waiting in batch:
            if not waiting.done():
                waiting.set_exception(error)


def _is_foreign(refusal: ResponseError) -> bool:
    return "WRONGTYPE" in str(refusal)


def _pieces(commands: Sequence[bytes]) -> list[bytes]:
    """Small commands joined, large ones cut: none of the pieces is larger than what is sent between two looks."""
    joined = b"".join(commands)
    return [joined[start : start + _SEND_BYTES] for start in range(0, len(joined), _SEND_BYTES)]
