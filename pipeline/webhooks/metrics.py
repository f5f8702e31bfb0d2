"""What the webhooks process counts, on a Prometheus registry of its caller's."""

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# A receiver that only notes what it got answers in 10-100 ms; 15 s is where an attempt is given up.
_ATTEMPT_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 15.0, 30.0)


@dataclass(frozen=True, slots=True)
class WebhookMetrics:
    """The process's collectors.

    Attributes:
        attempts: attempts by `outcome`: 2xx, 3xx, 4xx, 5xx, other, timeout, dns, connection, tls, protocol, refused
            (nothing was called: no secret, or an address that is not public). Many of one kind: see the log of events,
            `webhook.failed`.
        attempt_seconds: one attempt, however it ended.
        busy: callbacks for which their host had no time, put off to a delay tier. Many: a receiver is slow or dead;
            `webhooks.max_in_flight_per_host`.
        dead_letters: callbacks given up, by `reason`: `pipeline dead-letter list`.
        in_flight: calls that are out, of `webhooks.max_in_flight`. At its bound: start another process.
        oldest_due_seconds: for how long the longest-waiting due callback that was fetched has been due. Growing:
            likewise.
    """

    attempts: Counter
    attempt_seconds: Histogram
    busy: Counter
    dead_letters: Counter
    in_flight: Gauge
    oldest_due_seconds: Gauge

    @classmethod
    def on(cls, registry: CollectorRegistry) -> "WebhookMetrics":
        """The collectors, registered.

        Raises:
            ValueError: the registry has them already.
        """
        return cls(
            attempts=Counter("pipeline_webhook_attempts", "Attempts to deliver", ["outcome"], registry=registry),
            attempt_seconds=Histogram(
                "pipeline_webhook_attempt_seconds", "One attempt", buckets=_ATTEMPT_BUCKETS_S, registry=registry
            ),
            busy=Counter("pipeline_webhook_busy", "Callbacks that found their host busy", registry=registry),
            dead_letters=Counter(
                "pipeline_webhook_dead_letters", "Callbacks given up", ["reason"], registry=registry
            ),
            in_flight=Gauge("pipeline_webhook_in_flight", "Calls that are out", registry=registry),
            oldest_due_seconds=Gauge(
                "pipeline_webhook_oldest_due_seconds", "How long the oldest due callback has been due",
                registry=registry,
            ),
        )  # fmt: skip

    def watch(self, calls: Callable[[], float], oldest_due_s: Callable[[], float]) -> None:
        """Reads these two when they are asked for."""
        self.in_flight.set_function(calls)
        self.oldest_due_seconds.set_function(oldest_due_s)
