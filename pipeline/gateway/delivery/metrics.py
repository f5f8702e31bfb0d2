"""What the gateway's delivery counts: plain integers, read when Prometheus asks."""

from collections import defaultdict
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class DeliveryMetrics:
    """Counts of requests in and results out.

    Attributes:
        submissions: by outcome: accepted, repeated (nothing was sent again), invalid, id_reused,
            unconfirmed (by Kafka).
        look_ups: by outcome: memory, store, log, pending, unknown, gone, unavailable.
        waits: by what ended them: reply, store, time.
        kept: results read for the store, by outcome: kept, too_large, refused (no room), expired, foreign (no result).
        store_errors: calls of the result store that failed, by operation.
        replies: copies read that somebody here had asked for, and others.

    Args:
        registry: where they are exported; None counts for nobody.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.submissions: defaultdict[str, int] = defaultdict(int)
        self.look_ups: defaultdict[str, int] = defaultdict(int)
        self.waits: defaultdict[str, int] = defaultdict(int)
        self.kept: defaultdict[str, int] = defaultdict(int)
        self.store_errors: defaultdict[str, int] = defaultdict(int)
        self.replies: defaultdict[str, int] = defaultdict(int)
        if registry is not None:
            registry.register(_Exported(self))

    def counts(self) -> dict[str, dict[str, int]]:
        """All of them, by name and label."""
        return {name: dict(getattr(self, name)) for name in _HELP}


# Name of the attribute: label, and what it tells.
_HELP = {
    "submissions": ("outcome", "Requests by outcome. Unconfirmed: Kafka does not answer in time."),
    "look_ups": ("outcome", "Results asked for, by where they were found. Unavailable: neither Redis nor ClickHouse."),
    "waits": ("ended_by", "Waits by what ended them. Many by store and few by reply: see the replies' partitions."),
    "kept": ("outcome", "Results read for the result store. Refused: Redis is full; they are found in ClickHouse."),
    "store_errors": ("operation", "Failed calls of the result store; the log has the cause."),
    "replies": ("whose", "Copies of results read: own, or of others (partitions that moved)."),
}


class _Exported(Collector):
    def __init__(self, metrics: DeliveryMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        for name, (label, text) in _HELP.items():
            family = CounterMetricFamily(f"pipeline_delivery_{name}", text, labels=[label])
            for value, count in list(getattr(self._metrics, name).items()):
                family.add_metric([value], count)
            yield family
