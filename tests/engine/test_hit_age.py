"""How old the answers were that hits were given, as Prometheus sees it."""

from prometheus_client import CollectorRegistry

from pipeline.metrics import EngineMetrics

AGE = "pipeline_cache_hit_age_seconds"


def test_hit_ages_are_a_histogram() -> None:
    """Each hit counts in every bucket whose bound its age does not exceed, in the sum, and as a hit of its model."""
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    for age_s in (0.0, 0.5, 1.0, 1.5, 300.0, 1e6):
        metrics.count_hit("digits", age_s)
    found = {
        sample.labels["le"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == f"{AGE}_bucket"
    }
    assert found == {
        "1.0": 3, "10.0": 4, "60.0": 4, "300.0": 5, "900.0": 5, "1800.0": 5, "3600.0": 5, "14400.0": 5,
        "86400.0": 5, "+Inf": 6,
    }  # fmt: skip
    assert registry.get_sample_value(f"{AGE}_count") == 6
    assert registry.get_sample_value(f"{AGE}_sum") == 1_000_303.0
    hits = {"model_name": "digits", "cache_status": "hit"}
    assert registry.get_sample_value("pipeline_requests_total", hits) == 6


def test_hit_ages_are_counted_for_nobody_too() -> None:
    """Without a registry the counts are kept, and exported nowhere."""
    metrics = EngineMetrics()
    metrics.count_hit("digits", 2.0)
    assert (metrics.hit_ages.counts[:3], metrics.hit_ages.total) == ([0, 1, 0], 2.0)
