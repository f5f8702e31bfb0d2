"""What the gateway counts, on a Prometheus registry of its caller's."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.gateway.http.credentials import Credentials
from pipeline.gateway.http.limits import Limits

# Receipts take milliseconds, long polls up to a minute.
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class RequestKind(NamedTuple):
    """By what requests are counted."""

    route: str
    method: str
    status: int


class GatewayMetrics:
    """The gateway's counts.

    Attributes:
        requests: answered, by route, method and status.
        seconds: from the head of a request to the last byte of its answer, by route.
        clients_cut: who did not read their answer, or send their request, in time and were cut off.

    Args:
        registry: where they are exported.
        limits: whose state is exported too.
        connections: how many are open.
        credentials: whose counts by tenant are exported too; None: keys are not asked for.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        limits: Limits,
        connections: Callable[[], int],
        credentials: Credentials | None = None,
    ) -> None:
        self.requests: defaultdict[RequestKind, int] = defaultdict(int)
        self.clients_cut = 0
        self.seconds = Histogram(
            "pipeline_gateway_request_seconds",
            "Seconds from a request's head to the last byte of its answer, waiting included",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        registry.register(_Exported(self, limits, connections))
        if credentials is not None:
            registry.register(_ExportedQuotas(credentials))

    def note_cut(self) -> None:
        """A client was cut off."""
        self.clients_cut += 1


class _Exported(Collector):
    def __init__(self, metrics: GatewayMetrics, limits: Limits, connections: Callable[[], int]) -> None:
        self._metrics, self._limits, self._connections = metrics, limits, connections

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        requests = CounterMetricFamily(
            "pipeline_gateway_requests",
            "Requests answered. 429: see pipeline_gateway_refused; 503: Kafka does not answer.",
            labels=RequestKind._fields,
        )
        for kind, count in list(self._metrics.requests.items()):
            requests.add_metric([str(label) for label in kind], count)
        yield requests
        refused = CounterMetricFamily(
            "pipeline_gateway_refused",
            "Requests refused for want of places, of places to wait on, of bytes; or as it stops. Add gateways.",
            labels=("room",),
        )
        for room, count in self._limits.refused.items():
            refused.add_metric([room], count)
        yield refused
        yield CounterMetricFamily(
            "pipeline_gateway_clients_cut",
            "Connections ended for clients that did not read or send in time.",
            value=self._metrics.clients_cut,
        )
        for name, (text, value) in self._gauges().items():
            yield GaugeMetricFamily(name, text, value=value)

    def _gauges(self) -> Mapping[str, tuple[str, int]]:
        limits = self._limits
        return {
            "pipeline_gateway_in_flight": ("Requests in flight, of PIPELINE_GATEWAY__MAX_IN_FLIGHT.", limits.in_flight),
            "pipeline_gateway_waiting": ("Those that wait for an answer; three quarters may.", limits.waiting),
            "pipeline_gateway_held_bytes": (
                "Bytes of requests and answers, of PIPELINE_GATEWAY__MAX_IN_FLIGHT_BYTES.",
                limits.held_bytes,
            ),
            "pipeline_gateway_connections": ("Open connections.", self._connections()),
        }


class _ExportedQuotas(Collector):
    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        admitted = CounterMetricFamily(
            "pipeline_gateway_tenant_requests",
            "Requests handed in, by tenant of the API key and outcome. Refused: 429, the rate of its keys is used up.",
            labels=("tenant", "outcome"),
        )
        for tenant, outcomes in list(self._credentials.admitted.items()):
            for outcome, count in outcomes.items():
                admitted.add_metric([tenant, outcome], count)
        yield admitted
        limits = self._credentials.limits
        judged = CounterMetricFamily(
            "pipeline_gateway_rate_decisions",
            "Requests held against a rate, by who counted: redis for all gateways, or this gateway for itself.",
            labels=("counted_by",),
        )
        for counted_by, count in limits.counts.items():
            judged.add_metric([counted_by], count)
        yield judged
        yield GaugeMetricFamily(
            "pipeline_gateway_rates_shared",
            "1: rates are counted in Redis for all gateways. 0: no Redis, or away; tenants may have a rate at each.",
            value=limits.are_shared,
        )
