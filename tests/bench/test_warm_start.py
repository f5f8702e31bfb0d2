"""What the benchmark of warm starts asks and concludes."""

from collections import Counter
from itertools import islice
from math import inf

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pipeline.bench.catalogue import chosen
from pipeline.bench.effort import Effort
from pipeline.bench.warm_start import (
    Met,
    Start,
    ZipfRecords,
    figure_of,
    hits_percent,
    known_percent,
    quantile,
    shared_cache_notes,
    within,
)
from pipeline.metrics import SharedCacheMetrics

# Unpopular tensors are still found in the shared cache when the burst at the start is over.
TINY = Effort(warm_distinct=500, warm_requests=500, warm_rate=100, warm_seconds=2.0)


def met(*statuses: str, at_s: float = 0.0) -> list[Met]:
    """Results at one moment, each of a key of its own."""
    return [Met(at_s, f"{at_s}-{number}", status) for number, status in enumerate(statuses)]


def exported(metrics_registry: CollectorRegistry) -> str:
    """What a worker with this registry says at /metrics."""
    return generate_latest(metrics_registry).decode()


def test_warm_start_is_measured_only_when_it_is_named() -> None:
    """It takes minutes: neither everything nor the group `cache` has it."""
    wanted = {names: {figure for _, some in chosen(names) for figure in some} for names in ((), ("cache",), ("warm",))}
    assert wanted["warm",] == {"cache.warm_start"}
    assert not wanted["warm",] & (wanted[()] | wanted["cache",])


def test_zipf_records_come_in_one_order_under_fresh_ids() -> None:
    """Both workers are asked the same tensors in the same order, and no request is a duplicate of another."""
    one, other = (list(islice(ZipfRecords(30, 7), 400)) for _ in range(2))
    assert [record.key for record in one] == [record.key for record in other]
    assert [record.key for record in islice(ZipfRecords(30, 8), 400)] != [record.key for record in one]
    assert len({record.id for record in one + other}) == 800


def test_zipf_records_favour_few_tensors() -> None:
    """The most popular of 30 tensors is asked a quarter of the time, the tenth a tenth as often."""
    counts = [count for _, count in Counter(record.key for record in islice(ZipfRecords(30, 7), 4000)).most_common()]
    assert 0.2 < counts[0] / 4000 < 0.3
    assert 5 < counts[0] / counts[9] < 15
    assert len(counts) == 30


def test_minute_begins_with_the_first_answer() -> None:
    """Results count by when they were written; one at the end of the time is not in it any more."""
    later = met("miss", at_s=100.0) + met("hit", at_s=100.9) + met("hit", at_s=101.0)
    assert within(later, 1.0) == later[:2]


def test_coalesced_results_are_hits_and_failed_ones_are_not() -> None:
    """Only what cost no inference of its own counts, in percent of all results."""
    assert hits_percent(met("hit", "coalesced", "miss", "")) == 50.0
    assert hits_percent([]) == 0.0


def test_known_keys_were_answered_before() -> None:
    """What the worker before answered is known, and what this one did a result ago."""
    earlier, some = [Met(0.0, "a", "miss")], [Met(1.0, key, "miss") for key in ("a", "b", "b", "c")]
    assert known_percent(earlier, some) == 50.0


def test_quantiles_are_those_of_prometheus() -> None:
    """Evenly spread within a bucket; the last bound is all that is known of what lies above it."""
    buckets = [(0.1, 0.0), (0.2, 50.0), (0.4, 90.0), (inf, 100.0)]
    assert quantile(buckets, 0.5) == pytest.approx(0.2)
    assert quantile(buckets, 0.7) == pytest.approx(0.3)
    assert quantile(buckets, 0.99) == pytest.approx(0.4)
    assert quantile([(0.1, 0.0), (inf, 0.0)], 0.5) == 0.0


def test_shared_cache_is_told_from_the_metrics() -> None:
    """Writes are those of the worker before the restart, look-ups those of the one after it."""
    before, after = CollectorRegistry(), CollectorRegistry()
    SharedCacheMetrics(before).writes["stored",] = 9
    second = SharedCacheMetrics(after)
    second.look_ups["hit",] = 7
    second.writes["stored",] = 1
    for _ in range(7):
        second.look_up_seconds.observe(0.0015)
    notes = shared_cache_notes(exported(before), exported(after))
    times = {name: notes.pop(name) for name in ("look_up_p50_ms", "look_up_p99_ms")}
    assert notes == {"look_ups_hit": 7.0, "writes_stored": 9.0}
    assert all(1.0 < time <= 2.0 for time in times.values())


def test_figure_sets_both_starts_side_by_side() -> None:
    """The value is the start with the shared cache, the yardstick the one without, each with its own notes."""
    warm = Start([], met("hit", "hit", "hit", "miss"), 3.0, ("", ""))
    cold = Start([], met("hit", "miss", "miss", "miss"), 4.0, ("", ""))
    figure = figure_of(warm, cold, TINY)
    assert (figure.value, figure.yardstick, figure.ratio) == (75.0, 25.0, 3.0)
    assert (figure.notes["misses"], figure.notes["cold_misses"]) == (1, 3)
    assert (figure.notes["started_s"], figure.notes["cold_started_s"]) == (3.0, 4.0)
