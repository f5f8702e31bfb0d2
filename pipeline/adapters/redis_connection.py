"""How this package speaks to Redis: its clients, an exchange of commands and replies, errors, and when not to ask."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from pipeline.adapters.kafka import tls_context
from pipeline.config import RedisSettings
from pipeline.core.circuit_breaker import BreakerPolicy, Circuit, CircuitBreaker
from pipeline.errors import SettingsError
from pipeline.ports import Clock

_log = logging.getLogger(__name__)

_PORT = 6379
# A server that says nothing for so long is lost, and its connection is given up.
REPLY_S_MAX = 1.0
# A budget may be over only because this process was busy, and then a reply is here already: it is read within four
# rounds of the loop, asyncio's and uvloop's (measured). An idle loop does eight in 20 us.
_ROUNDS_OF_GRACE = 8
# The first that fits.
_ERROR_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (exceptions.AuthenticationError, "auth"),
    (exceptions.BusyLoadingError, "loading"),
    (exceptions.TimeoutError, "timeout"),
    (TimeoutError, "timeout"),
    (OSError, "connection"),
    (exceptions.ConnectionError, "connection"),
    (exceptions.ReadOnlyError, "read_only"),
    (exceptions.OutOfMemoryError, "out_of_memory"),
    (exceptions.NoPermissionError, "permission"),
    (exceptions.ResponseError, "response"),
)


def client_of(settings: RedisSettings) -> Redis:
    """A client without retries and time limits of its own: those are the caller's. Connects when it is used.

    Raises:
        SettingsError: the address is missing or no redis URL, or a TLS file cannot be read.
    """
    url = _split(settings)
    options: dict[str, Any] = {
        "host": url.hostname,
        "port": url.port or _PORT,
        "db": int(url.path.strip("/") or 0),
        "username": unquote(url.username) if url.username else None,
        "password": settings.password.get_secret_value() if settings.password else None,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": None,
        "socket_connect_timeout": None,
        # No HELLO: plain commands work with every server and proxy.
        "protocol": 2,
    }
    tls = settings.tls
    if url.scheme == "rediss" or tls.enabled:
        tls_context(tls, "redis")  # tells of a missing file now, not at the first use
        files = {"ssl_ca_certs": tls.ca_file, "ssl_certfile": tls.cert_file, "ssl_keyfile": tls.key_file}
        options |= {"ssl": True} | {name: str(path) for name, path in files.items() if path}
    return Redis(**options)


def address_of(settings: RedisSettings) -> str:
    """host:port, for messages.

    Raises:
        SettingsError: the address is missing or no redis URL.
    """
    url = _split(settings)
    return f"{url.hostname}:{url.port or _PORT}"


def error_kind(error: BaseException) -> str:
    """The kind of an error of the client's, in a word for metrics."""
    if isinstance(error, exceptions.ResponseError) and str(error).startswith("NOREPLICAS"):
        return "no_replicas"
    return next((kind for family, kind in _ERROR_KINDS if isinstance(error, family)), "other")


def cause_of(error: BaseException) -> str:
    """Kind and text of an error, in a line."""
    return f"{error_kind(error)}: {str(error).strip() or type(error).__name__}"[:300]


def refusal_in(replies: Iterable[object]) -> exceptions.ResponseError | None:
    """The first reply that refuses its command, if there is one.

    That somebody keeps a list or the like under a name of ours is none: it says nothing about the server.
    """
    refusals = (reply for reply in replies if isinstance(reply, exceptions.ResponseError))
    return next((refusal for refusal in refusals if not str(refusal).startswith("WRONGTYPE")), None)


def packed(*words: bytes) -> bytes:
    """A command as it is sent: 0.6 us for a short one, where the library takes 5."""
    return b"*%d\r\n%b" % (len(words), b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words]))


class Exchange:
    """Commands out, and their replies one by one, on a connection that nobody else uses meanwhile.

    Args:
        connection: connected.
        limit: ends the exchange when nothing came for `REPLY_S_MAX`.
    """

    def __init__(self, connection: AbstractConnection, limit: asyncio.Timeout) -> None:
        self._connection = connection
        self._limit = limit

    async def send(self, commands: bytes) -> None:
        """Sends what `packed` made, any number in one piece; returns when it has left."""
        await self._connection.send_packed_command(commands)

    async def reply(self) -> Any:
        """The next reply; one that refuses the command is returned, too."""
        try:
            return await self._connection.read_response()
        except exceptions.ResponseError as refusal:
            return refusal

    def goes_on(self) -> None:
        """Replies have come: the time limit counts from now."""
        self._limit.reschedule(asyncio.get_running_loop().time() + REPLY_S_MAX)

    async def watch(self, key: bytes) -> None:
        """From its return on, the next `transaction` is done only if nobody removes this key, which exists.

        Raises:
            ResponseError: refused, or no writes are taken.
        """
        made: object = True
        while made is not None:
            # Watched before it is made, so that no removal is missed; to have made it counts as a change.
            await self.send(packed(b"UNWATCH") + packed(b"WATCH", key) + packed(b"SET", key, b"", b"NX"))
            replies = [await self.reply() for _ in range(3)]
            if (refusal := refusal_in(replies)) is not None:
                raise refusal
            made = replies[2]

    async def transaction(self, commands: Sequence[bytes]) -> list[Any] | None:
        """The commands' replies, or None where what is watched was changed: nothing is done then.

        Raises:
            ResponseError: one of them was refused, and most likely nothing is done.
        """
        await self.send(packed(b"MULTI") + b"".join(commands) + packed(b"EXEC"))
        queued = [await self.reply() for _ in range(1 + len(commands))]
        replies: list[Any] | None = await self.reply()
        # The last one names no reason where one of the others does.
        done = replies if isinstance(replies, list) else (replies,)
        if (refusal := refusal_in([*queued, *done])) is not None:
            raise refusal
        return replies


@asynccontextmanager
async def exchange_on(client: Redis) -> AsyncIterator[Exchange]:
    """An exchange. One that did not end well gives its connection up: replies still to come are nobody else's.

    Raises:
        RedisError, OSError: the server is not reached, went away, or said nothing for `REPLY_S_MAX`.
    """
    pool = client.connection_pool
    async with asyncio.timeout(REPLY_S_MAX) as limit:
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            yield Exchange(connection, limit)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)


class ReplyBudget:
    """How long Redis may owe replies. While they are being read it is this process that is slow, and nothing is over.

    Args:
        seconds: from the last `begin`.
        over: is called when no reply was read in time.
    """

    def __init__(self, seconds: float, over: Callable[[], None]) -> None:
        self._seconds = seconds
        self._over = over
        self._timer: asyncio.Handle | None = None
        self._replies = 0

    @property
    def is_counting(self) -> bool:
        """Whether it has begun, and was neither over nor ended."""
        return self._timer is not None

    def begin(self) -> None:
        """Counts from now, whatever was counted before."""
        self.end()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._seconds, self._is_over, _ROUNDS_OF_GRACE, self._replies)

    def read(self) -> None:
        """A reply was read."""
        self._replies += 1

    def end(self) -> None:
        """Nothing is owed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_over(self, rounds_left: int, replies: int) -> None:
        if replies != self._replies:
            rounds_left = _ROUNDS_OF_GRACE
        if rounds_left:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_soon(self._is_over, rounds_left - 1, self._replies)
            return
        self._timer = None
        self._over()


class RedisGate:
    """One breaker, what it counts, and its two lines in the log: that it opened, and that it is closed again.

    Args:
        closed: what is not done while it is open, for the log.
        rng: the pauses' jitter.
        clock: this process's time.
        errors: are counted here, by kind; None: by nobody.
        meanwhile: what is done instead, for the log.
    """

    def __init__(
        self,
        closed: str,
        rng: random.Random,
        clock: Clock,
        errors: dict[tuple[str, ...], int] | None = None,
        meanwhile: str = "answers are computed instead",
    ) -> None:
        self.breaker = CircuitBreaker(BreakerPolicy(), rng.random)
        self._closed = closed
        self._meanwhile = meanwhile
        self._clock = clock
        self._errors = errors
        self._since = 0.0

    def answered(self) -> None:
        """In time, and not refused."""
        was = self.breaker.state
        self.breaker.answered()
        if was is not Circuit.CLOSED and self.breaker.state is Circuit.CLOSED:
            _log.warning("%s: over after %.1f s", self._closed, self._clock.monotonic() - self._since)

    def late(self, cause: str) -> None:
        """Too late for its budget."""
        was, now = self.breaker.state, self._clock.monotonic()
        self.breaker.late(now)
        self._tell(was, now, cause)

    def failed(self, error: Exception) -> None:
        """Not answered, or refused."""
        was, now = self.breaker.state, self._clock.monotonic()
        if self._errors is not None:
            self._errors[error_kind(error),] += 1
        self.breaker.failed(now)
        self._tell(was, now, cause_of(error))

    def _tell(self, was: Circuit, now: float, cause: str) -> None:
        if was is Circuit.CLOSED and self.breaker.state is not Circuit.CLOSED:
            self._since = now
            _log.warning("%s, tried again until it answers; %s: %s", self._closed, self._meanwhile, cause)


def _split(settings: RedisSettings) -> SplitResult:
    try:
        url = urlsplit(settings.url or "")
        port_ok = url.port is None or url.port > 0
    except ValueError:
        port_ok = False
    if not port_ok or url.scheme not in ("redis", "rediss") or not url.hostname or url.password or not _is_number(url):
        # Not quoted: a URL with a password in it must not be printed.
        raise SettingsError(
            "setting PIPELINE_REDIS__URL is not of the form redis://[user@]host:port[/number], rediss:// for TLS; "
            "the password is a setting of its own (PIPELINE_REDIS__PASSWORD)"
        ) from None
    return url


def _is_number(url: SplitResult) -> bool:
    number = url.path.removeprefix("/")
    return not number or (number.isascii() and number.isdigit())
