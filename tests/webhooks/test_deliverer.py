"""One callback at a time, in virtual time: what is written for each outcome, and in which order."""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaConnectionError, KafkaError, TopicAuthorizationFailedError
from prometheus_client import CollectorRegistry

from pipeline.adapters.event_topic import EventTopic
from pipeline.core.callback_record import Callback, read_callback
from pipeline.core.callback_url import CallbackUrl
from pipeline.core.webhook_events import WebhookEvents
from pipeline.core.webhook_schedule import Answered, Outcome, RetrySchedule, Unanswered
from pipeline.core.webhook_signature import signing_key
from pipeline.outage import Outage
from pipeline.webhooks.deliverer import Deliverer, DeliveryRules
from pipeline.webhooks.in_flight import HostLines
from pipeline.webhooks.metrics import WebhookMetrics
from schemas.event import Event
from tests.simulation.virtual_time import settle, simulated, the_clock
from tests.webhooks.callbacks import SECRET, callback_record

Headers = list[tuple[str, bytes]]
URL = "https://receiver.example/in"
TIERS: dict[float, str] = {5: "webhooks.5s", 30: "webhooks.30s", 300: "webhooks.5m", 1800: "webhooks.30m"}


@dataclass
class Written:
    """A producer that notes records, and fails first with what it is given."""

    records: list[tuple[str, bytes | None, bytes | None, Headers]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    async def send_and_wait(
        self, topic: str, value: bytes | None, *, key: bytes | None = None, partition: int | None = None,
        headers: Headers,
    ) -> None:  # fmt: skip
        """Notes one record."""
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        self.records.append((topic, key, value, headers))


@dataclass
class ScriptedHttp:
    """Answers as it is told; notes the calls."""

    outcomes: list[Outcome]
    takes_s: float = 0.25
    calls: list[tuple[CallbackUrl, Mapping[str, str]]] = field(default_factory=list)

    async def post(self, url: CallbackUrl, body: bytes, headers: Mapping[str, str]) -> Outcome:
        """One attempt."""
        self.calls.append((url, headers))
        await asyncio.sleep(self.takes_s)
        return self.outcomes[min(len(self.calls), len(self.outcomes)) - 1]


class Bench:
    """A deliverer on fakes."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.http, self.written = ScriptedHttp(list(outcomes)), Written()
        producer: Any = self.written
        http: Any = self.http
        clock = the_clock()
        self.hosts = HostLines(4, 1, count_max=8, bytes_max=1 << 20)
        self.deliverer = Deliverer(
            DeliveryRules(
                keys={"": [signing_key(SECRET)]}, schedule=RetrySchedule((5.0, 300.0), tuple(TIERS)),
                tier_topics=TIERS, dead_letter_topic="dead-letter", allow_http=False,
            ),
            http, producer, EventTopic(producer, "events"), WebhookEvents("w-1", 7), hosts=self.hosts,
            metrics=WebhookMetrics.on(CollectorRegistry()), clock=clock, rng=random.Random(1),
            kafka=Outage("Kafka", clock.monotonic),
        )  # fmt: skip

    async def take(
        self, *, url: str = URL, changed: Headers | None = None, value: bytes | None = b"", **made: Any
    ) -> None:
        """One record of the webhooks topic, at offset 7 of its partition 1."""
        body, headers = callback_record(url, "r-1", completed_at=the_clock().now(), **made)
        names = {name for name, _ in changed or ()}
        headers = [header for header in headers if header[0] not in names] + list(changed or ())
        value = body if value == b"" else value
        await self.deliverer.deliver(
            ConsumerRecord("webhooks", 1, 7, 0, 0, b"r-1", value, None, 0, 0, tuple(headers))
        )  # fmt: skip

    def topics(self) -> list[str]:
        """Where something was written, in the order of writing."""
        return [topic for topic, *_ in self.written.records]

    def event(self) -> Event:
        """The last event."""
        value = next(value for topic, _, value, _ in reversed(self.written.records) if topic == "events")
        assert value is not None
        return Event.model_validate_json(value)

    def moved(self) -> Callback:
        """The record that went to a tier, or to the dead letters, first."""
        _, key, value, headers = self.written.records[0]
        assert key == b"r-1"
        return read_callback(value, headers, 0.0, allow_http=False)


@simulated
async def test_delivered_leaves_an_event_alone() -> None:
    """One call, one event with the request's columns and the call's duration, the same id however often it is told."""
    made = Bench(Answered(200))
    await made.take()
    await made.take()
    assert made.topics() == ["events", "events"]
    first, again = (Event.model_validate_json(value or b"") for _, _, value, _ in made.written.records)
    assert first.event_id == again.event_id
    assert (first.event_type, first.request_id, first.model_name) == ("webhook.delivered", "r-1", "echo")
    assert (first.duration_us, first.attributes) == (250_000, {"attempt": 1})
    ((url, headers), _) = made.http.calls
    assert str(url) == URL
    assert headers["webhook-id"] == "r-1"
    assert int(headers["webhook-timestamp"]) == int(the_clock().now() - 0.5)
    assert headers["content-type"] == "application/json"


@simulated
async def test_failed_attempt_is_written_before_its_event() -> None:
    """The next attempt's record stands before the event: a crash in between repeats the call, and loses nothing."""
    made = Bench(Unanswered("connection", "nobody there"))
    await made.take(changed=[("webhook-busy", b"3")])
    assert made.topics() == ["webhooks.5s", "events"]
    moved = made.moved()
    assert (moved.attempt, moved.busy) == (1, 0)
    assert (moved.source, moved.request_id) == ("inference.requests:3:0", "r-1")
    assert moved.due_at == pytest.approx(the_clock().now() + 5, abs=0.001)
    assert moved.body == callback_record(URL, "r-1")[0]
    event = made.event()
    assert event.event_type == "webhook.failed"
    assert (event.attributes["error"], event.attributes["is_last"]) == ("nobody there", False)
    await made.take(changed=[("webhook-attempt", b"1")])
    assert made.event().event_id != event.event_id


@pytest.mark.parametrize(
    ("outcome", "attempt", "reason"),
    [(Answered(500), b"2", "WEBHOOK_FAILED"), (Answered(410), b"0", "WEBHOOK_GONE")],
)
@simulated
async def test_given_up_is_a_dead_letter(outcome: Outcome, attempt: bytes, reason: str) -> None:
    """It has the record's key, bytes and headers, why, and where it was; the event says that it was the last."""
    made = Bench(outcome)
    await made.take(changed=[("webhook-attempt", attempt)])
    assert made.topics() == ["dead-letter", "events"]
    assert made.moved().attempt == int(attempt)
    told = dict(made.written.records[0][3])
    assert told["reason"] == reason.encode()
    assert (told["source-topic"], told["source-partition"], told["source-offset"]) == (b"webhooks", b"1", b"7")
    assert made.event().attributes["is_last"] is True


@simulated
async def test_unsigned_is_never_sent() -> None:
    """A tenant without a secret is told in a dead letter, and nobody is called."""
    made = Bench(Answered(200))
    await made.take(tenant="acme")
    assert made.http.calls == []
    told = dict(made.written.records[0][3])
    assert told["reason"] == b"WEBHOOK_REFUSED"
    assert told["error"].startswith(b"tenant 'acme': no secret")
    assert made.event().tenant == "acme"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ([("webhook-url", b"http://receiver.example/")], "header webhook-url: "),
        ([("webhook-url", b"")], "header webhook-url: "),
        ([("ce_id", b"not an id")], "header ce_id: "),
        ([("webhook-attempt", b"-1")], "header webhook-attempt: "),
        ([("webhook-attempt", b"9" * 16)], "header webhook-attempt: "),
        ([("webhook-due", b"soon")], "header webhook-due: "),
    ],
)
@simulated
async def test_foreign_record_is_buried(changed: Headers, words: str) -> None:
    """A record that is no callback does not stop its partition: it is set aside as it came, its header named."""
    made = Bench(Answered(200))
    await made.take(changed=changed)
    assert (made.topics(), made.http.calls) == (["dead-letter"], [])
    assert dict(made.written.records[0][3])["error"].decode().startswith(words)
    await made.take(value=None)
    assert made.written.records[-1][:3] == ("dead-letter", b"r-1", None)


@pytest.mark.parametrize(("left_s", "topic"), [(0.5, "webhooks.5s"), (29.0, "webhooks.5s"), (31.0, "webhooks.30s"),
                                               (9000.0, "webhooks.30m")])  # fmt: skip
@simulated
async def test_what_is_not_due_waits_on(left_s: float, topic: str) -> None:
    """A record whose stay in a tier is over before its time goes to another one; nobody is called early."""
    made = Bench(Answered(200))
    await made.take(changed=[("webhook-due", b"%d" % ((the_clock().now() + left_s) * 1e3))])
    assert (made.topics(), made.http.calls) == ([topic], [])
    assert (made.moved().attempt, made.moved().busy) == (0, 0)


@simulated
async def test_busy_host_puts_off_what_waits_too_long() -> None:
    """While a call hangs, the next of its host waits in line for 5 s, then in a tier, with no attempt counted."""
    made = Bench(Answered(200))
    made.http.takes_s = 60.0
    first = asyncio.create_task(made.take())
    await settle()
    await made.take()
    assert made.topics() == ["webhooks.5s"]
    assert (made.moved().attempt, made.moved().busy, len(made.http.calls)) == (0, 1, 1)
    await made.take(changed=[("webhook-busy", b"1")])
    assert made.topics()[-1] == "webhooks.30s"
    # 75 hours late, there is no point in asking again.
    late = b"%d" % ((the_clock().now() - 76 * 3600) * 1e3)
    await made.take(changed=[("webhook-due", late)])
    assert made.topics()[-2:] == ["dead-letter", "events"]
    await first


@simulated
async def test_failing_host_is_left_alone_for_longer() -> None:
    """What waits for a host whose last attempt failed comes back ever later; one that answers is kept busy again."""
    made = Bench(Answered(500), Answered(200))
    await made.take()
    made.http.takes_s = 60.0
    out = asyncio.create_task(made.take())
    await settle()
    await made.take(changed=[("webhook-busy", b"9")])
    assert made.topics()[-1] == "webhooks.30m"
    await out
    out = asyncio.create_task(made.take())
    await settle()
    await made.take(changed=[("webhook-busy", b"9")])
    assert made.topics()[-1] == "webhooks.30s"
    await out


@simulated
async def test_kafka_outage_is_waited_for() -> None:
    """What cannot be written yet is written later, and the receiver is not called again for it."""
    made = Bench(Answered(500))
    made.written.failures = [KafkaConnectionError("away") for _ in range(5)]
    await made.take()
    assert made.topics() == ["webhooks.5s", "events"]
    assert len(made.http.calls) == 1


@simulated
async def test_refusal_by_kafka_ends_the_process() -> None:
    """What no waiting mends is raised: nothing of the record counts as done."""
    made = Bench(Answered(500))
    made.written.failures = [TopicAuthorizationFailedError("no")]
    with pytest.raises(KafkaError):
        await made.take()
    assert made.topics() == []


@simulated
async def test_binary_results_say_how_they_are_read() -> None:
    """Content type, the JSON's length and the trace go to the receiver; what is the pipeline's own does not."""
    made = Bench(Answered(200))
    own = [("content-type", b"application/octet-stream"), ("Inference-Header-Content-Length", b"12"),
           ("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"), ("worker-group", b"g")]  # fmt: skip
    await made.take(changed=own)
    _, headers = made.http.calls[0]
    assert set(headers) == {"content-type", "Inference-Header-Content-Length", "traceparent", "webhook-id",
                            "webhook-timestamp", "webhook-signature"}  # fmt: skip
    assert headers["Inference-Header-Content-Length"] == "12"
    assert orjson.loads(orjson.dumps(dict(headers)))["content-type"] == "application/octet-stream"


def test_record_without_attempts_has_had_none() -> None:
    """A dead letter that is sent again, its counts left out, is due when it was appended, under its old id."""
    value, headers = callback_record(URL, "r-1")
    counts = {"webhook-attempt", "webhook-due", "webhook-busy"}
    callback = read_callback(value, [header for header in headers if header[0] not in counts], 7.5, allow_http=False)
    assert (callback.attempt, callback.due_at, callback.busy, callback.request_id) == (0, 7.5, 0, "r-1")
