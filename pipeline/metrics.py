"""The metrics of the worker and the engine: every name, its unit, what it tells and what to do about it.

Counts of the hot path are plain integers, read when Prometheus asks: a labelled counter of the client library costs
0.6 us with its lock, an integer in a dict 0.1 us.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
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
    "pipeline_cache_expired",
    "pipeline_cache_refused",
    "pipeline_cache_retired",
    "pipeline_cache_hit_age_seconds",
    "pipeline_shared_cache_look_ups",
    "pipeline_shared_cache_look_up_seconds",
    "pipeline_shared_cache_writes",
    "pipeline_shared_cache_errors",
    "pipeline_shared_cache_refused_entries",
    "pipeline_shared_cache_bytes",
    "pipeline_shared_cache_saved_bytes",
    "pipeline_shared_cache_queue_bytes",
    "pipeline_shared_cache_usable",
    "pipeline_in_flight",
    "pipeline_in_flight_bytes",
    "pipeline_partitions_assigned",
    "pipeline_batch_rows",
    "pipeline_inference_seconds",
    "pipeline_publish_seconds",
    "pipeline_instance_calls",
    "pipeline_instance_retries",
    "pipeline_instance_probes",
    "pipeline_instance_ejections",
    "pipeline_instance_in_flight",
    "pipeline_instance_latency_seconds",
    "pipeline_instance_ejected",
    "pipeline_instance_share",
    "pipeline_fleet_queue",
    "pipeline_fleet_queue_bytes",
    "pipeline_fleet_queue_age_seconds",
    "pipeline_fleet_in_flight",
    "pipeline_fleet_shed",
    "pipeline_stood_still_seconds",
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
    "pipeline_cache_expired": MetricSpec("counter", "Answers dropped as their time was up."),
    "pipeline_cache_refused": MetricSpec("counter", "Answers too large to be stored. Many: enlarge the cache."),
    "pipeline_cache_retired": MetricSpec("counter", "Answers dropped as their version is not served any more."),
    "pipeline_cache_hit_age_seconds": MetricSpec("histogram", "Age of the answers that hits were given, in seconds."),
    "pipeline_shared_cache_look_ups": MetricSpec("counter", "Look-ups in Redis by outcome. Many late: it is slow."),
    "pipeline_shared_cache_look_up_seconds": MetricSpec("histogram", "Seconds to a reply, in time or late."),
    "pipeline_shared_cache_writes": MetricSpec("counter", "Answers to write, by outcome. Dropped: Redis is slow."),
    "pipeline_shared_cache_errors": MetricSpec("counter", "Failed tries by kind; the log has the cause."),
    "pipeline_shared_cache_refused_entries": MetricSpec("counter", "Unreadable, by reason. Who else writes there?"),
    "pipeline_shared_cache_bytes": MetricSpec("counter", "Bytes of entries read (in) and written (out)."),
    "pipeline_shared_cache_saved_bytes": MetricSpec("counter", "Bytes of written entries that compression saved."),
    "pipeline_shared_cache_queue_bytes": MetricSpec("gauge", "Bytes that wait, of PIPELINE_CACHE__SHARED_QUEUE_BYTES."),
    "pipeline_shared_cache_usable": MetricSpec("gauge", "1 while Redis is asked. 0 for long: see its line in the log."),
    "pipeline_in_flight": MetricSpec("gauge", "Requests taken, not answered. At its bound: add Tritons."),
    "pipeline_in_flight_bytes": MetricSpec("gauge", "Input bytes of requests taken and not answered."),
    "pipeline_partitions_assigned": MetricSpec("gauge", "Partitions owned. 0 for long: too many workers."),
    "pipeline_batch_rows": MetricSpec("histogram", "Rows of each call to Triton."),
    "pipeline_inference_seconds": MetricSpec("histogram", "Seconds of each call to Triton."),
    "pipeline_publish_seconds": MetricSpec("histogram", "Seconds from a result's being ready to Kafka's confirmation."),
    "pipeline_instance_calls": MetricSpec("counter", "Calls by instance and outcome. Outrun: another was quicker."),
    "pipeline_instance_retries": MetricSpec("counter", "Calls to this instance as another failed or was overdue."),
    "pipeline_instance_probes": MetricSpec("counter", "Copies of calls, sent to see whether it is back."),
    "pipeline_instance_ejections": MetricSpec("counter", "How often it was taken out. Many: look at its log."),
    "pipeline_instance_in_flight": MetricSpec("gauge", "Calls that are out. Far more than others': it is slow."),
    "pipeline_instance_latency_seconds": MetricSpec("gauge", "The peak-EWMA latency that it is chosen by, in seconds."),
    "pipeline_instance_ejected": MetricSpec("gauge", "1 while it gets no calls but probes. For long: it is down."),
    "pipeline_instance_share": MetricSpec("gauge", "Part of its usual calls: below 1 in the seconds after it is back."),
    "pipeline_fleet_queue": MetricSpec("gauge", "Requests that wait for the fleet, by model. Growing: add Tritons."),
    "pipeline_fleet_queue_bytes": MetricSpec("gauge", "Input bytes of those, by model."),
    "pipeline_fleet_queue_age_seconds": MetricSpec("gauge", "How long the oldest of them has waited, in seconds."),
    "pipeline_fleet_in_flight": MetricSpec("gauge", "Calls that are out, by model."),
    "pipeline_fleet_shed": MetricSpec("counter", "Not executed, by model and reason: overloaded, or unwanted by then."),
    "pipeline_stood_still_seconds": MetricSpec("counter", "Seconds this process stood still. Many: its host is full."),
}  # fmt: skip

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_AGE_SECONDS = (1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14_400.0, 86_400.0)
_LOOK_UP_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1)
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def histogram(name: MetricName, buckets: tuple[float, ...], registry: CollectorRegistry | None) -> Histogram:
    """A histogram of the catalogue."""
    return Histogram(name, METRICS[name].help, buckets=buckets, registry=registry)


class EngineMetrics:
    """What the engine and its dispatcher count.

    Attributes:
        requests: by model and cache status.
        hit_ages: how old the answers were that hits were given.
        instance_calls: by instance and outcome: answered, refused (the tensors), failed (the model), not_ready,
            unavailable, timed_out, outrun (given up, as another answered or nobody waits), broken (a bug).
        instance_retries: by instance.
        fleet_shed: requests that were not executed, by model and reason: overloaded, unwanted.
        stood_still_s: how long this process did nothing while calls were out.

    Args:
        registry: where they are exported; None counts for nobody.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.instance_calls: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.instance_retries: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.fleet_shed: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.stood_still_s = 0.0
        self.requests: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.hit_ages = PlainHistogram("pipeline_cache_hit_age_seconds", _AGE_SECONDS)
        self.batch_rows = histogram("pipeline_batch_rows", _ROWS, registry)
        self.inference_seconds = histogram("pipeline_inference_seconds", _SECONDS, registry)
        if registry is not None:
            registry.register(LabelledCounts("pipeline_requests", ("model_name", "cache_status"), self.requests))
            registry.register(self.hit_ages)
            registry.register(LabelledCounts("pipeline_instance_calls", ("instance", "outcome"), self.instance_calls))
            registry.register(LabelledCounts("pipeline_instance_retries", ("instance",), self.instance_retries))
            registry.register(LabelledCounts("pipeline_fleet_shed", ("model_name", "reason"), self.fleet_shed))
            registry.register(Reading("pipeline_stood_still_seconds", lambda: self.stood_still_s))
        self._registry = registry

    def watch_fleet(
        self,
        instances: Callable[[], Mapping[str, Mapping[MetricName, float]]],
        models: Callable[[], Mapping[str, Mapping[MetricName, float]]],
    ) -> None:
        """Exports what is true of each instance, and of each model's queue, when it is asked for.

        Args:
            instances: by instance, the readings of each.
            models: by model name, likewise.
        """
        if self._registry is not None:
            self._registry.register(LabelledReadings("instance", instances))
            self._registry.register(LabelledReadings("model_name", models))

    def count(self, model_name: str, cache_status: str) -> None:
        """One more request that met the cache this way."""
        self.requests[model_name, cache_status] += 1

    def count_hit(self, model_name: str, age_s: float) -> None:
        """One more request that was given a stored answer of this age: 0.1 us more than `count`."""
        self.requests[model_name, "hit"] += 1
        self.hit_ages.observe(age_s)


class SharedCacheMetrics:
    """What the shared cache counts.

    Attributes:
        look_ups: by outcome, one for each that was wanted: hit, miss, refused (an entry that cannot be read), late,
            failed, not_asked (not usable at present, or too many wait).
        writes: by outcome, one for each answer: stored, not_first, dropped (the queue is full, or it is not usable),
            too_large, expired (before it was written), failed.
        errors: tries that failed as a whole, or that were refused, by kind.
        refused_entries: by reason.
        bytes: of entries, by direction: in, out.
        saved_bytes: of written entries.
        queue_bytes: of answers that wait to be written.
        usable: whether it is asked at present.

    Args:
        registry: where they are exported; None counts for nobody.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.look_ups: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.writes: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.errors: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.refused_entries: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.bytes: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.saved_bytes = 0
        self.queue_bytes = 0
        self.usable = True
        self.look_up_seconds = histogram("pipeline_shared_cache_look_up_seconds", _LOOK_UP_SECONDS, registry)
        if registry is None:
            return
        registry.register(LabelledCounts("pipeline_shared_cache_look_ups", ("outcome",), self.look_ups))
        registry.register(LabelledCounts("pipeline_shared_cache_writes", ("outcome",), self.writes))
        registry.register(LabelledCounts("pipeline_shared_cache_errors", ("kind",), self.errors))
        registry.register(LabelledCounts("pipeline_shared_cache_refused_entries", ("reason",), self.refused_entries))
        registry.register(LabelledCounts("pipeline_shared_cache_bytes", ("direction",), self.bytes))
        registry.register(Reading("pipeline_shared_cache_saved_bytes", lambda: self.saved_bytes))
        registry.register(Reading("pipeline_shared_cache_queue_bytes", lambda: self.queue_bytes))
        registry.register(Reading("pipeline_shared_cache_usable", lambda: self.usable))


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


class LabelledReadings(Collector):
    """Exports numbers that are read when asked, several for each value of one label."""

    def __init__(self, label: str, read: Callable[[], Mapping[str, Mapping[MetricName, float]]]) -> None:
        self._label, self._read = label, read

    def collect(self) -> Iterator[Metric]:
        """The numbers as they are now."""
        families: dict[MetricName, CounterMetricFamily | GaugeMetricFamily] = {}
        for value, readings in self._read().items():
            for name, number in readings.items():
                if name not in families:
                    kind, text = METRICS[name]
                    family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
                    families[name] = family(name, text, labels=[self._label])
                families[name].add_metric([value], number)
        yield from families.values()


class Reading(Collector):
    """Exports one number that is read when asked."""

    def __init__(self, name: MetricName, read: Callable[[], float]) -> None:
        self._name, self._read = name, read

    def collect(self) -> Iterator[Metric]:
        """The number as it is now."""
        kind, text = METRICS[self._name]
        family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
        yield family(self._name, text, value=self._read())


class PlainHistogram(Collector):
    """Exports plain integers in fixed buckets: 0.1 us for each observation, a histogram of the library 0.7 us.

    Args:
        name: of the catalogue.
        bounds: the buckets' upper bounds, ascending; one without a bound comes behind them.
    """

    def __init__(self, name: MetricName, bounds: tuple[float, ...]) -> None:
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self._name, self._bounds = name, bounds

    def observe(self, value: float) -> None:
        """One more, in the first bucket whose bound it does not exceed."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now, each with those of the buckets before it."""
        bounds = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self.counts), strict=True))
        yield HistogramMetricFamily(self._name, METRICS[self._name].help, buckets=buckets, sum_value=self.total)


def publish_seconds(registry: CollectorRegistry | None) -> Histogram:
    """Seconds from ready to confirmed."""
    return histogram("pipeline_publish_seconds", _SECONDS, registry)
