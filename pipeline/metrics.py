"""The metrics of the worker and the engine: every name, its unit, what it tells and what to do about it.

Counts of the hot path are plain integers, read when Prometheus asks: a labelled counter of the client library costs
0.6 us with its lock, an integer in a dict 0.1 us.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MetricName = Literal[
    "pipeline_requests",
    "pipeline_results",
    "pipeline_dead_letters",
    "pipeline_duplicates",
    "pipeline_answers_repeated",
    "pipeline_cache_bytes",
    "pipeline_cache_entries",
    "pipeline_cache_evictions",
    "pipeline_in_flight",
    "pipeline_in_flight_bytes",
    "pipeline_partitions_assigned",
    "pipeline_batch_rows",
    "pipeline_inference_seconds",
    "pipeline_publish_seconds",
]


class MetricSpec(NamedTuple):
    """What one metric is for.

    Attributes:
        kind: counter, gauge or histogram.
        help: what it counts, with its unit, and what a bad value calls for.
    """

    kind: Literal["counter", "gauge", "histogram"]
    help: str


METRICS: dict[MetricName, MetricSpec] = {
    "pipeline_requests": MetricSpec("counter", "Requests by model and cache status. Few hits: see docs on keys."),
    "pipeline_results": MetricSpec("counter", "Results published, by status. Failed ones name their code in events."),
    "pipeline_dead_letters": MetricSpec("counter", "Records sent to the dead letters: `pipeline dead-letter list`."),
    "pipeline_duplicates": MetricSpec("counter", "Requests with an id that was used before: no second answer."),
    "pipeline_answers_repeated": MetricSpec("counter", "Requests delivered again whose answer was in the log already."),
    "pipeline_cache_bytes": MetricSpec("gauge", "Bytes held by the cache, of PIPELINE_CACHE__MAX_BYTES."),
    "pipeline_cache_entries": MetricSpec("gauge", "Answers held by the in-memory cache."),
    "pipeline_cache_evictions": MetricSpec("counter", "Answers evicted. Many, and few hits: enlarge the cache."),
    "pipeline_in_flight": MetricSpec("gauge", "Requests taken, not answered. At its bound: add Tritons."),
    "pipeline_in_flight_bytes": MetricSpec("gauge", "Input bytes of requests taken and not answered."),
    "pipeline_partitions_assigned": MetricSpec("gauge", "Partitions owned. 0 for long: too many workers."),
    "pipeline_batch_rows": MetricSpec("histogram", "Rows of each call to Triton."),
    "pipeline_inference_seconds": MetricSpec("histogram", "Seconds of each call to Triton."),
    "pipeline_publish_seconds": MetricSpec("histogram", "Seconds from a result's being ready to Kafka's confirmation."),
}  # fmt: skip

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def histogram(name: MetricName, buckets: tuple[float, ...], registry: CollectorRegistry | None) -> Histogram:
    """A histogram of the catalogue."""
    return Histogram(name, METRICS[name].help, buckets=buckets, registry=registry)


class EngineMetrics:
    """What the engine and its dispatcher count.

    Args:
        registry: where they are exported; None counts for nobody.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.requests: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.batch_rows = histogram("pipeline_batch_rows", _ROWS, registry)
        self.inference_seconds = histogram("pipeline_inference_seconds", _SECONDS, registry)
        if registry is not None:
            registry.register(LabelledCounts("pipeline_requests", ("model_name", "cache_status"), self.requests))

    def count(self, model_name: str, cache_status: str) -> None:
        """One more request that met the cache this way."""
        self.requests[model_name, cache_status] += 1


class LabelledCounts(Collector):
    """Exports a dict of integers as one labelled counter."""

    def __init__(self, name: MetricName, labels: tuple[str, ...], counts: Mapping[tuple[str, ...], int]) -> None:
        self._name, self._labels, self._counts = name, labels, counts

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        family = CounterMetricFamily(self._name, METRICS[self._name].help, labels=self._labels)
        for values, count in list(self._counts.items()):
            family.add_metric(values, count)
        yield family


class Reading(Collector):
    """Exports one number that is read when asked."""

    def __init__(self, name: MetricName, read: Callable[[], float]) -> None:
        self._name, self._read = name, read

    def collect(self) -> Iterator[Metric]:
        """The number as it is now."""
        kind, text = METRICS[self._name]
        family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
        yield family(self._name, text, value=self._read())


def publish_seconds(registry: CollectorRegistry | None) -> Histogram:
    """Seconds from ready to confirmed."""
    return histogram("pipeline_publish_seconds", _SECONDS, registry)
