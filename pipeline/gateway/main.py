"""The gateway's process: its socket, uvicorn on our loop, signals, and an orderly end.

SIGTERM   not ready any more, 503 for what is new; who waits answers at once
drain_s   what is in flight ends
the end   connections closed, Kafka's clients flushed
"""

import asyncio
import errno
import logging
import os
import random
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import uvicorn
import uvloop
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from pipeline.adapters.kafka import client_options, unless_stopped
from pipeline.adapters.keys_topic import KeysFollower
from pipeline.adapters.redis_rate_limits import RateLimits
from pipeline.adapters.system import SystemClock, rare_garbage_collections
from pipeline.adapters.tracing import OtelTracer, open_tracer
from pipeline.config import GatewaySettings, Settings
from pipeline.errors import SettingsError
from pipeline.gateway.app import create_app
from pipeline.gateway.delivery.inferences import Inferences
from pipeline.gateway.delivery.metrics import DeliveryMetrics
from pipeline.gateway.http.connections import HEAD_BYTES_MAX, ConnectionLimits, connection_class
from pipeline.gateway.http.credentials import Credentials
from pipeline.gateway.http.identity import needs_keys
from pipeline.gateway.http.limits import Limits

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8080
# Ports tried above the default one where nobody asked for a port.
_PORTS_TRIED_MAX = 200
_BACKLOG = 2048
# libuv accepts one connection of a socket in each turn of the loop: of one socket, all others would wait unseen for as
# many turns, just when turns are long.
_ACCEPTED_AT_ONCE = 32
# Proxies keep idle connections for 60 s; the longer one decides, so that none sends on one that is just closed.
_KEEP_ALIVE_S = 75
# Idle connections are many; files, Kafka and Redis need some descriptors besides.
_CONNECTIONS_PER_PLACE = 4
_OTHER_DESCRIPTORS = 128


def run_gateway(settings: Settings) -> int:
    """Runs a gateway until SIGTERM or SIGINT; returns the process's exit code.

    Raises:
        SettingsError: something it needs is not configured, it would serve everybody, or its port is taken.
    """
    if not settings.kafka.bootstrap_servers:
        raise SettingsError(
            "setting PIPELINE_KAFKA__BOOTSTRAP_SERVERS is not set and no local stack runs: start one with `pipeline up`"
        )
    # Of the whole program: what puts requests on the topic finds it there.
    tracer = open_tracer("inference-gateway", of_program=True)
    with bound_socket(settings.gateway) as listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings, listener, tracer))


def bound_socket(settings: GatewaySettings) -> socket.socket:
    """The socket to listen on: the port asked for, else 8080 or the next free one.

    Raises:
        SettingsError: the port is taken, or the host is none of this machine's.
    """
    ports = [settings.port] if settings.port is not None else range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED_MAX)
    for port in ports:
        try:
            return _bind(settings.host, port)
        except socket.gaierror as error:
            raise SettingsError(f"setting PIPELINE_GATEWAY__HOST is {settings.host!r}: {error.strerror}") from None
        except PermissionError:
            raise SettingsError(f"setting PIPELINE_GATEWAY__PORT is {port}: this user may not listen there") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise SettingsError(
                    f"setting PIPELINE_GATEWAY__HOST is {settings.host!r}: {error.strerror}; an address of this machine"
                    " was expected"
                ) from None
    if settings.port is not None:
        raise SettingsError(
            f"setting PIPELINE_GATEWAY__PORT is {settings.port}: another process listens there on {settings.host}; a"
            " free port was expected, or none for the next free one from 8080 on"
        )
    raise SettingsError(
        f"no port of {DEFAULT_PORT}-{DEFAULT_PORT + _PORTS_TRIED_MAX - 1} is free on {settings.host}: set"
        " PIPELINE_GATEWAY__PORT"
    )


def url_of(host: str, port: int) -> str:
    """Where a gateway is reached from this machine; one on all addresses by loopback."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - it is replaced
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # A gateway that starts again finds its old connections in TIME_WAIT, which are nobody's.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Another process may have bound to the port without listening yet: whoever listens first has it.
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: the end begins before uvicorn's does."""
        yield


async def _run(settings: Settings, listener: socket.socket, tracer: OtelTracer | None) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    gateway = settings.gateway
    limits = Limits(gateway)
    connections = ConnectionLimits(_connections_max(gateway.max_in_flight), gateway.body_timeout_s)
    registry = CollectorRegistry()
    async with AsyncExitStack() as resources:
        if tracer is not None:
            resources.push_async_callback(tracer.close)
        delivery = Inferences(settings, metrics=DeliveryMetrics(registry))
        inferences = await unless_stopped(stop, resources.enter_async_context(delivery))
        if inferences is None:
            return 0
        credentials: Credentials | None = None
        if needs_keys(gateway):
            credentials = await unless_stopped(stop, _known_keys(settings, resources))
            if credentials is None:
                return 0
        app = create_app(
            inferences,
            settings,
            registry=registry,
            limits=limits,
            connections=connections,
            credentials=credentials,
            tracer=tracer,
        )
        await resources.enter_async_context(app.router.lifespan_context(app))
        logger.info("gateway %d serves %s", os.getpid(), url_of(gateway.host, listener.getsockname()[1]))
        with rare_garbage_collections():
            return await serve(app, listener, stop, limits, connections, gateway)


async def _known_keys(settings: Settings, resources: AsyncExitStack) -> Credentials:
    """The API keys there are, once all of them are known; they are followed until the end."""
    redis = settings.redis if settings.redis.url else None
    limits = RateLimits(redis, settings.kafka.topic_prefix, SystemClock(), random.Random())
    resources.push_async_callback(limits.close)
    credentials = Credentials(limits)
    topic = settings.topic("keys")
    follower = KeysFollower(client_options(settings.kafka), topic, credentials.take, credentials.drop)
    resources.push_async_callback(follower.stop)
    await follower.start()
    await follower.wait_caught_up()
    if not len(credentials):
        logger.warning("API keys are needed, and there is none: `pipeline keys add` makes one")
    return credentials


async def serve(
    app: FastAPI,
    listener: socket.socket,
    stop: asyncio.Event,
    limits: Limits,
    connections: ConnectionLimits,
    settings: GatewaySettings,
) -> int:
    """Serves an app until `stop` is set, then lets what is in flight end; returns the process's exit code."""
    server = _Server(_config(app, connections))
    listeners = [listener, *(listener.dup() for _ in range(_ACCEPTED_AT_ONCE - 1))]
    serving = asyncio.create_task(server.serve(sockets=listeners))
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if serving.done():
        serving.result()  # raises what ended it
        logger.error("the HTTP server ended by itself")
        return 1
    limits.stop()
    if not await limits.drained(settings.drain_s):
        logger.warning("%d requests did not end within %g s and are cut off", limits.in_flight, settings.drain_s)
    server.should_exit = True
    await serving
    return 0


def _config(app: FastAPI, connections: ConnectionLimits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=connection_class(connections),
        ws="none",
        lifespan="off",
        # Whose X-Forwarded-For is believed is our setting, not uvicorn's.
        proxy_headers=False,
        server_header=False,
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        # Whoever is left by then had drain_s already.
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=HEAD_BYTES_MAX,
    )


def _connections_max(places: int) -> int:
    """How many connections fit into this process's descriptors, which are made as many as may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = _CONNECTIONS_PER_PLACE * places if hard == resource.RLIM_INFINITY else hard - _OTHER_DESCRIPTORS
    return max(places, min(_CONNECTIONS_PER_PLACE * places, room))
