"""What of the shared cache reaches Prometheus."""

from prometheus_client import CollectorRegistry, generate_latest

from pipeline.metrics import METRICS, SharedCacheMetrics


def test_every_count_is_exported() -> None:
    """Each name of the catalogue that is the shared cache's shows what was counted, with its label."""
    registry = CollectorRegistry()
    metrics = SharedCacheMetrics(registry)
    metrics.look_ups["hit",] += 3
    metrics.writes["stored",] += 2
    metrics.errors["timeout",] += 1
    metrics.refused_entries["checksum",] += 4
    metrics.bytes["in",] += 5
    metrics.saved_bytes, metrics.queue_bytes, metrics.usable = 6, 7, False
    metrics.look_up_seconds.observe(0.001)
    text = generate_latest(registry).decode()
    for line in (
        'look_ups_total{outcome="hit"} 3.0', 'writes_total{outcome="stored"} 2.0', 'errors_total{kind="timeout"} 1.0',
        'refused_entries_total{reason="checksum"} 4.0', 'bytes_total{direction="in"} 5.0', "saved_bytes_total 6.0",
        "queue_bytes 7.0", "usable 0.0", "look_up_seconds_count 1.0",
    ):  # fmt: skip
        assert f"pipeline_shared_cache_{line}" in text
    names = [name for name in METRICS if name.startswith("pipeline_shared_cache_")]
    assert all(f"# HELP {name}" in text for name in names)
