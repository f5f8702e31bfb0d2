"""How this package's Redis clients are made, what their errors mean, and when Redis is not asked: in one place."""

import logging
import random
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from pipeline.adapters.kafka import tls_context
from pipeline.config import RedisSettings
from pipeline.core.circuit_breaker import BreakerPolicy, Circuit, CircuitBreaker
from pipeline.errors import SettingsError
from pipeline.ports import Clock

_log = logging.getLogger(__name__)

_PORT = 6379
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


def is_of_another_type(reply: object) -> bool:
    """Whether somebody keeps a list or the like under a name of ours: that says nothing about the server."""
    return isinstance(reply, exceptions.ResponseError) and str(reply).startswith("WRONGTYPE")


class RedisGate:
    """One breaker, what it counts, and its two lines in the log: that it opened, and that it is closed again.

    Args:
        closed: what is not done while it is open, for the log.
        rng: the pauses' jitter.
        clock: this process's time.
        errors: are counted here, by kind.
    """

    def __init__(self, closed: str, rng: random.Random, clock: Clock, errors: dict[tuple[str, ...], int]) -> None:
        self.breaker = CircuitBreaker(BreakerPolicy(), rng.random)
        self._closed = closed
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
        self._errors[error_kind(error),] += 1
        self.breaker.failed(now)
        self._tell(was, now, cause_of(error))

    def _tell(self, was: Circuit, now: float, cause: str) -> None:
        if was is Circuit.CLOSED and self.breaker.state is not Circuit.CLOSED:
            self._since = now
            _log.warning("%s, tried again until it answers; answers are computed instead: %s", self._closed, cause)


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
