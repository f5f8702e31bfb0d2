"""One callback: waits on, is attempted, and what follows from it is written before its offset counts as done.

Written first: the next record, or the dead letter; then the event. Whatever ends the process in between, the record is
read again: the receiver may be called once more with the same `webhook-id`, the log of events has one of each.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.errors import KafkaError

from pipeline.adapters.event_topic import EventTopic
from pipeline.adapters.webhook_http import WebhookHttp
from pipeline.core.callback_record import Callback, read_callback
from pipeline.core.result_record import Headers
from pipeline.core.trace_context import Span, is_traceparent
from pipeline.core.webhook_events import WebhookEvents
from pipeline.core.webhook_schedule import (
    BUSY_S_MAX,
    WEBHOOK_FAILED,
    WEBHOOK_REFUSED,
    Answered,
    Delivered,
    GivenUp,
    Outcome,
    Refused,
    Retry,
    RetrySchedule,
    outcome_word,
)
from pipeline.core.webhook_signature import signatures
from pipeline.outage import Outage, retry_pause_s
from pipeline.ports import Clock, Tracer
from pipeline.webhooks.in_flight import HostLines
from pipeline.webhooks.metrics import WebhookMetrics
from schemas.headers import dead_letter_headers

# Hosts that are remembered to have failed last; one that is forgotten is asked a little sooner.
_FAILING_MAX = 10_000


@dataclass(frozen=True, slots=True)
class DeliveryRules:
    """How callbacks are delivered.

    Attributes:
        keys: signing keys by tenant, the current one first.
        schedule: when to try again.
        tier_topics: the full names of the delay tiers' topics, by seconds.
        dead_letter_topic: where callbacks go that are given up.
        allow_http: whether http is as good as https.
    """

    keys: Mapping[str, Sequence[bytes]]
    schedule: RetrySchedule
    tier_topics: Mapping[float, str]
    dead_letter_topic: str
    allow_http: bool


class Deliverer:
    """Delivers callbacks, one attempt for each record.

    Args:
        rules: how.
        http: makes the calls.
        producer: started; acks=all.
        events: where events go.
        lines: writes them.
        hosts: calls to each host, and the lines before them.
        metrics: collectors.
        clock: time.
        rng: jitter.
        kafka: told what writing meets.
        tracer: makes spans of the calls; None: nobody follows any.
    """

    def __init__(
        self,
        rules: DeliveryRules,
        http: WebhookHttp,
        producer: AIOKafkaProducer,
        events: EventTopic,
        lines: WebhookEvents,
        *,
        hosts: HostLines,
        metrics: WebhookMetrics,
        clock: Clock,
        rng: random.Random,
        kafka: Outage,
        tracer: Tracer | None = None,
    ) -> None:
        self._rules = rules
        self._http = http
        self._producer = producer
        self._events = events
        self._lines = lines
        self._hosts = hosts
        self._failing: dict[str, None] = {}
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._kafka = kafka
        self._tracer = tracer

    async def deliver(self, record: ConsumerRecord) -> None:
        """Returns when all that follows from a record is on Kafka's in-sync replicas.

        Raises:
            KafkaError: Kafka refused for good.
        """
        try:
            callback = read_callback(
                record.value, record.headers, record.timestamp / 1e3, allow_http=self._rules.allow_http
            )
        except ValueError as error:
            await self._bury(record, record.headers, WEBHOOK_REFUSED, str(error))
            return
        schedule, now = self._rules.schedule, self._clock.now()
        if (tier_s := schedule.tier_s(callback.due_at - now)) is not None:
            await self._move(callback, tier_s)
        elif await self._hosts.enter(callback.url.host, len(callback.body)):
            await self._attempt(callback, record)
        else:
            self._metrics.busy.inc()
            await self._put_off(callback, record)

    async def _put_off(self, callback: Callback, record: ConsumerRecord) -> None:
        """Its host has no time for it."""
        host, due_s = callback.url.host, self._clock.now() - callback.due_at
        if due_s <= BUSY_S_MAX:
            tier_s = self._rules.schedule.busy_tier_s(callback.busy, is_failing=host in self._failing)
            await self._move(callback.found_busy(), tier_s)
            return
        error = f"{host} had no time for it in {due_s / 3600:.0f} hours: it has more callbacks than it takes"
        await self._conclude(callback, record, GivenUp(WEBHOOK_FAILED, error), 0.0)

    async def _attempt(self, callback: Callback, record: ConsumerRecord) -> None:
        """One call; the turn for it is ours."""
        host, started = callback.url.host, self._clock.monotonic()
        try:
            outcome = await self._call(callback)
        finally:
            self._hosts.leave(host, len(callback.body))
        duration_s = self._clock.monotonic() - started
        self._metrics.attempts.labels(outcome_word(outcome)).inc()
        self._metrics.attempt_seconds.observe(duration_s)
        verdict = self._rules.schedule.after(callback.attempt, outcome, self._clock.now(), self._rng)
        self._note_health(host, isinstance(verdict, Delivered))
        await self._conclude(callback, record, verdict, duration_s)

    def _note_health(self, host: str, is_well: bool) -> None:
        self._failing.pop(host, None)
        if is_well:
            return
        if len(self._failing) >= _FAILING_MAX:
            del self._failing[next(iter(self._failing))]
        self._failing[host] = None

    async def _call(self, callback: Callback) -> Outcome:
        keys = self._rules.keys.get(callback.tenant, ())
        if not keys:
            tenant = f"tenant {callback.tenant!r}" if callback.tenant else "requests without a tenant"
            return Refused(f"{tenant}: no secret in PIPELINE_WEBHOOKS__SECRETS, and nothing is sent unsigned")
        timestamp_s = int(self._clock.now())
        # A signature of 8 MiB takes 5 ms.
        signed = {
            "webhook-id": callback.request_id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": signatures(keys, callback.request_id, timestamp_s, callback.body),
        }
        headers = callback.http_headers() | signed
        if self._tracer is None:
            return await self._http.post(callback.url, callback.body, headers)
        span = self._begin(self._tracer, callback, headers)
        headers["traceparent"] = span.traceparent.decode()
        outcome = await self._http.post(callback.url, callback.body, headers)
        self._end(span, outcome)
        return outcome

    def _begin(self, tracer: Tracer, callback: Callback, headers: Mapping[str, str]) -> Span:
        url = callback.url
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            # Without its query, where receivers put their secrets.
            "url.full": f"{url.scheme}://{url.place}{url.target.partition('?')[0]}",
            "server.address": url.host,
            "server.port": url.port,
            "inference.request_id": callback.request_id,
            "inference.model_name": callback.model_name,
        }
        if callback.attempt:
            attributes["http.request.resend_count"] = callback.attempt
        cause = headers.get("traceparent", "").encode()
        parent = cause if is_traceparent(cause) else None
        return tracer.begin("POST", "client", self._clock.now(), attributes, parent=parent)

    def _end(self, span: Span, outcome: Outcome) -> None:
        now = self._clock.now()
        if isinstance(outcome, Answered):
            error = str(outcome.status) if outcome.status >= 400 else ""
            span.end(now, {"http.response.status_code": outcome.status}, error=error)
        elif isinstance(outcome, Refused):
            span.end(now, {}, error="refused", message=outcome.text)
        else:
            span.end(now, {}, error=outcome.kind, message=outcome.text)

    async def _conclude(
        self, callback: Callback, record: ConsumerRecord, verdict: Delivered | Retry | GivenUp, duration_s: float
    ) -> None:
        """Writes what comes of an attempt, then its event."""
        now, attempt = self._clock.now(), callback.attempt
        columns = {
            "request_id": callback.request_id, "tenant": callback.tenant, "model_name": callback.model_name,
        }  # fmt: skip
        if isinstance(verdict, Delivered):
            line = self._lines.delivered(callback.source, columns, now, duration_s, attempt)
        else:
            due_at = verdict.due_at if isinstance(verdict, Retry) else None
            line = self._lines.failed(callback.source, columns, now, duration_s, attempt, verdict.error, due_at)
        if isinstance(verdict, Retry):
            tier_s = self._rules.schedule.tier_s(verdict.due_at - now)
            await self._move(callback.tried(verdict.due_at), tier_s or self._rules.schedule.tiers_s[0])
        elif isinstance(verdict, GivenUp):
            await self._bury(record, callback.headers, verdict.reason, verdict.error)
        await self._until_written(lambda: self._events.publish([line]))

    async def _move(self, callback: Callback, tier_s: float) -> None:
        key, headers = callback.request_id.encode(), callback.record_headers()
        await self._write(self._rules.tier_topics[tier_s], key, callback.body, headers)

    async def _bury(self, record: ConsumerRecord, headers: Headers, reason: str, error: str) -> None:
        self._metrics.dead_letters.labels(reason).inc()
        ours = dead_letter_headers(reason, error, record.topic, record.partition, record.offset)
        await self._write(self._rules.dead_letter_topic, record.key, record.value, [*headers, *ours])

    async def _write(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        await self._until_written(lambda: self._producer.send_and_wait(topic, value, key=key, headers=headers))

    async def _until_written(self, write: Callable[[], Awaitable[Any]]) -> None:
        attempt = 0
        while True:
            try:
                await write()
            except KafkaError as error:
                if not error.retriable:
                    raise
                attempt += 1
                self._kafka.met(error)
                await asyncio.sleep(retry_pause_s(attempt, self._rng))
            else:
                self._kafka.over()
                return
