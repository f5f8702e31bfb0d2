"""Every benchmark: which figures it gives, and which servers it needs."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pipeline.bench import cache_key, engine_hit
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Figure
from pipeline.bench.rig import Rig
from pipeline.config import Settings


@dataclass(frozen=True, slots=True)
class Alone:
    """A benchmark of this process alone."""

    figures: tuple[str, ...]
    measure: Callable[[Settings, Effort], Awaitable[list[Figure]]]


@dataclass(frozen=True, slots=True)
class OnServers:
    """A benchmark on Kafka, with a Triton or ClickHouse where it says so."""

    figures: tuple[str, ...]
    measure: Callable[[Rig, Effort], Awaitable[list[Figure]]]
    triton: bool = False
    clickhouse: bool = False


Benchmark = Alone | OnServers


def _benchmarks() -> tuple[Benchmark, ...]:
    from pipeline.bench import hit_latency, hit_throughput, miss, sink_rows

    return (
        Alone(("engine.hit_cpu", "engine.hit_events_cpu"), engine_hit.measure),
        Alone(("cache.key_600kb", "cache.key_4kb", "cache.key_256b"), cache_key.measure),
        # Misses run in this very process, so they come before the load generator has scattered its memory.
        OnServers(("miss.throughput", "miss.dispatch", "miss.latency"), miss.measure, triton=True),
        OnServers(("hit.throughput", "hit.cpu"), hit_throughput.measure, triton=True),
        OnServers(("hit.latency_p50", "hit.latency_p99"), hit_latency.measure, triton=True),
        OnServers(("sink.throughput",), sink_rows.measure, clickhouse=True),
    )


class UnknownBenchmarkError(ValueError):
    """A name that is neither a group nor a figure."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        super().__init__(f"there is no benchmark {name!r}; groups and figures: {', '.join(known)}")


def chosen(names: Sequence[str]) -> list[tuple[Benchmark, frozenset[str]]]:
    """The benchmarks to run, in the catalogue's order, each with the figures that are wanted of it.

    Args:
        names: groups (`hit`) or figures (`hit.throughput`); none for all.

    Raises:
        UnknownBenchmarkError: a name that is neither.
    """
    benchmarks = _benchmarks()
    figures = [figure for benchmark in benchmarks for figure in benchmark.figures]
    groups = list(dict.fromkeys(figure.partition(".")[0] for figure in figures))
    for name in names:
        if name not in groups and name not in figures:
            raise UnknownBenchmarkError(name, [*groups, *figures])
    found = []
    for benchmark in benchmarks:
        wanted = frozenset(
            figure for figure in benchmark.figures if not names or figure in names or figure.partition(".")[0] in names
        )
        if wanted:
            found.append((benchmark, wanted))
    return found
