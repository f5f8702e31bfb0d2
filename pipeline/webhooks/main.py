"""The webhooks process: clients made from the settings, topics waited for, everything closed again.

Any number may run, up to one for each partition; a topic is divided among them. Whatever one has not committed when it
dies, the next one delivers again.
"""

import asyncio
import logging
import os
import random
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from pipeline.adapters.event_topic import EventTopic
from pipeline.adapters.kafka import client_options
from pipeline.adapters.status_http import StatusServer
from pipeline.adapters.system import SystemClock, rare_garbage_collections
from pipeline.adapters.topics import RECORD_OVERHEAD_BYTES, webhook_topics
from pipeline.adapters.tracing import OtelTracer, open_tracer
from pipeline.adapters.webhook_http import LookUp, WebhookHttp
from pipeline.config import MIB, Settings
from pipeline.core.webhook_events import WebhookEvents
from pipeline.core.webhook_schedule import RetrySchedule
from pipeline.core.webhook_signature import signing_key
from pipeline.errors import SettingsError
from pipeline.outage import Outage, retry_pause_s
from pipeline.webhooks.deliverer import Deliverer, DeliveryRules
from pipeline.webhooks.deliveries import Deliveries
from pipeline.webhooks.in_flight import IN_HAND_MAX, HostLines, InHand
from pipeline.webhooks.metrics import WebhookMetrics

_log = logging.getLogger(__name__)

WEBHOOKS_GROUP = "inference-webhooks"
# What waits in memory of each partition that is read: Kafka sends a larger record whole all the same.
_FETCH_BYTES = 1 * MIB
# Partitions that are added to a topic are noticed this soon.
_METADATA_AGE_MS = 30_000
# Calls that are out get 10 s, then what follows from them is written; the local supervisor kills after 15 s. With Kafka
# gone, its clients wait for it much longer: what is not committed by then is delivered again.
_END_LIMIT_S = 13.0


def run_webhooks(settings: Settings) -> int:
    """Delivers callbacks until SIGTERM or SIGINT; returns the process's exit code.

    Raises:
        SettingsError: something it needs is not configured, or a secret is none.
        KafkaError: Kafka refused for good.
    """
    tracer = open_tracer("inference-webhooks")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings, tracer))
    return 0


async def _run(settings: Settings, tracer: OtelTracer | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _ask_to_stop, stop)
    await WebhooksProcess(settings, tracer=tracer).run(stop)


def _ask_to_stop(stop: asyncio.Event) -> None:
    """Whatever the end waits for, it comes; an end in time closes the loop, and this call with it."""
    stop.set()
    asyncio.get_running_loop().call_later(_END_LIMIT_S, _give_up)


def _give_up() -> None:
    _log.error("the end took over %g s, the process leaves as it is: is Kafka there?", _END_LIMIT_S)
    os._exit(1)


def signing_keys(secrets: Mapping[str, tuple[SecretStr, ...]]) -> dict[str, list[bytes]]:
    """The keys of each tenant.

    Raises:
        SettingsError: a secret is none; the line says whose and what was expected, and no part of it.
    """
    keys: dict[str, list[bytes]] = {}
    for tenant, texts in secrets.items():
        for number, text in enumerate(texts, 1):
            try:
                keys.setdefault(tenant, []).append(signing_key(text.get_secret_value()))
            except ValueError as error:
                raise SettingsError(
                    f"setting PIPELINE_WEBHOOKS__SECRETS (webhooks.secrets in pipeline.toml): tenant {tenant!r}, "
                    f"secret {number}: {error}"
                ) from None
    return keys


class WebhooksProcess:
    """One process that delivers callbacks.

    Args:
        settings: with the address of Kafka.
        look_up: how names are resolved; None: by the system.
        tls: whose certificates are believed; None: the system's.
        tracer: makes spans of the calls; closed at the end. None: nobody follows any.

    Raises:
        SettingsError: something it needs is not configured, or a secret is none.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        look_up: LookUp | None = None,
        tls: ssl.SSLContext | None = None,
        tracer: OtelTracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._settings = settings
        self._look_up = look_up
        self._tls = tls
        self._options = client_options(settings.kafka)
        self._keys = signing_keys(settings.webhooks.secrets)
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._rng = random.Random()
        self._registry = CollectorRegistry()
        self._metrics = WebhookMetrics.on(self._registry)
        self._deliveries: Deliveries | None = None
        self._waits_for: str | None = "not connected yet"

    async def run(self, stop: asyncio.Event) -> None:
        """Delivers until `stop` is set; then calls that are out get a moment to end.

        Kafka and the topics may be missing at the start and at any time later: one line says so, and the process goes
        on when they are there.

        Raises:
            KafkaError: Kafka refused for good.
        """
        settings = self._settings
        if not self._keys:
            _log.warning("PIPELINE_WEBHOOKS__SECRETS is empty: every callback becomes a dead letter, none is unsigned")
        kafka = Outage("Kafka", asyncio.get_running_loop().time)
        tiers_s = {settings.topic(name): tier_s for name, tier_s in webhook_topics(settings).items()}
        async with AsyncExitStack() as resources:
            if self._tracer is not None:
                resources.push_async_callback(self._tracer.close)
            port = settings.webhooks.metrics_port
            await resources.enter_async_context(StatusServer(port, self._registry, self._not_ready, self._state))
            consumer = await resources.enter_async_context(self._consumer(list(tiers_s), stop, kafka))
            if consumer is None:
                return
            bytes_max = settings.webhooks.max_in_flight_bytes
            hosts = HostLines(
                settings.webhooks.max_in_flight,
                settings.webhooks.max_in_flight_per_host,
                count_max=IN_HAND_MAX,
                bytes_max=bytes_max,
            )
            deliverer = await self._deliverer(resources, tiers_s, hosts, kafka)
            deliveries = Deliveries(
                consumer,
                tiers_s,
                deliverer,
                in_hand=InHand(IN_HAND_MAX, bytes_max),
                hosts=hosts,
                clock=SystemClock(),
                kafka=kafka,
            )
            self._metrics.watch(lambda: hosts.calls, deliveries.oldest_due_s)
            self._deliveries, self._waits_for = deliveries, None
            _log.info("webhooks %s reads %s", self._name, ", ".join(tiers_s))
            with rare_garbage_collections():
                await deliveries.run(stop)

    async def _deliverer(
        self, resources: AsyncExitStack, tiers_s: Mapping[str, float], hosts: HostLines, kafka: Outage
    ) -> Deliverer:
        settings, webhooks = self._settings, self._settings.webhooks
        producer = AIOKafkaProducer(
            **self._options,
            acks="all",
            enable_idempotence=True,
            # Twice: a dead letter has the callback's headers and its own.
            max_request_size=settings.limits.record_bytes + 2 * RECORD_OVERHEAD_BYTES,
        )
        await resources.enter_async_context(producer)
        http = WebhookHttp(
            webhooks.allowed_networks,
            webhooks.timeout_s,
            look_ups_max=webhooks.max_in_flight,
            look_up=self._look_up,
            tls=self._tls,
        )
        await resources.enter_async_context(http)
        rules = DeliveryRules(
            keys=self._keys,
            schedule=RetrySchedule(webhooks.retry_delays_s, webhooks.tiers_s),
            tier_topics={tier_s: topic for topic, tier_s in tiers_s.items() if tier_s},
            dead_letter_topic=settings.topic("dead-letter"),
            allow_http=webhooks.allow_http,
        )
        return Deliverer(
            rules,
            http,
            producer,
            EventTopic(producer, settings.topic("events")),
            WebhookEvents(self._name, settings.retention.events_days),
            hosts=hosts,
            metrics=self._metrics,
            clock=SystemClock(),
            rng=self._rng,
            kafka=kafka,
            tracer=self._tracer,
        )

    @asynccontextmanager
    async def _consumer(
        self, topics: list[str], stop: asyncio.Event, kafka: Outage
    ) -> AsyncIterator[AIOKafkaConsumer | None]:
        """A started consumer whose topics exist; None when `stop` was set before all were there."""
        attempt, session_ms = 0, int(self._settings.kafka.session_timeout_s * 1000)
        while not stop.is_set():
            consumer = AIOKafkaConsumer(
                **self._options,
                group_id=WEBHOOKS_GROUP,
                enable_auto_commit=False,
                # Where commits are lost, what is there is delivered again rather than forgotten.
                auto_offset_reset="earliest",
                session_timeout_ms=session_ms,
                heartbeat_interval_ms=session_ms // 5,
                max_partition_fetch_bytes=_FETCH_BYTES,
                metadata_max_age_ms=_METADATA_AGE_MS,
            )
            try:
                self._waits_for = await _missing(consumer, topics)
                if self._waits_for is None:
                    kafka.over()
                    yield consumer
                    return
            finally:
                await consumer.stop()
            attempt += 1
            kafka.met(self._waits_for)
            try:
                async with asyncio.timeout(retry_pause_s(attempt, self._rng)):
                    await stop.wait()
            except TimeoutError:
                continue
        yield None

    def _not_ready(self) -> dict[str, str]:
        if self._deliveries is None:
            return {"kafka": self._waits_for or "not connected yet"}
        return self._deliveries.not_ready()

    def _state(self) -> dict[str, Any]:
        state = {} if self._deliveries is None else self._deliveries.state()
        return {"pid": os.getpid(), "webhooks": self._name, **state}


async def _missing(consumer: AIOKafkaConsumer, topics: list[str]) -> str | None:
    """Connects; what is missing, or None."""
    try:
        await consumer.start()
        found = await consumer.topics()
    except KafkaConnectionError as error:
        return str(error)
    if missing := [topic for topic in topics if topic not in found]:
        return f"topics are missing: {', '.join(missing)}; `pipeline topics create` makes them"
    return None
