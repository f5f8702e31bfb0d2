"""Which benchmarks a name chooses."""

import pytest

from pipeline.bench.catalogue import UnknownBenchmarkError, chosen

# Named by the contract, of the parts that exist.
CONTRACT_FIGURES = {
    "hit.throughput", "hit.latency_p50", "hit.latency_p99", "engine.hit_cpu", "cache.key_600kb", "miss.throughput",
    "miss.latency", "sink.throughput",
}  # fmt: skip


def figures(*names: str) -> set[str]:
    return {figure for _, wanted in chosen(names) for figure in wanted}


def test_no_name_chooses_everything() -> None:
    """Every figure of the contract is there."""
    assert figures() >= CONTRACT_FIGURES


def test_group_chooses_its_figures() -> None:
    """A group is what stands before the dot."""
    assert figures("hit") == {"hit.throughput", "hit.cpu", "hit.latency_p50", "hit.latency_p99"}


def test_figure_chooses_itself_alone() -> None:
    """A single figure brings only the benchmark that measures it."""
    assert figures("hit.latency_p99", "sink") == {"hit.latency_p99", "sink.throughput"}
    assert len(chosen(["hit.latency_p99"])) == 1


def test_memory_is_measured_only_when_it_is_named() -> None:
    """What takes minutes and gigabytes does not run for everybody; its figures may be named one by one."""
    memory = figures("memory")
    assert memory >= {"worker.backlog_memory", "worker.memory_flat", "sink.backlog_memory"}
    assert not figures() & memory
    assert figures("sink") == {"sink.throughput"}
    assert figures("sink.backlog_memory", "cache.key_4kb") == {"sink.backlog_memory", "cache.key_4kb"}


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    """A misspelt name does not measure nothing in silence."""
    with pytest.raises(UnknownBenchmarkError, match=r"no benchmark 'hits'.*hit\.throughput"):
        chosen(["hits"])
