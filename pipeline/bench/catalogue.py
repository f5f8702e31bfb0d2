"""Every benchmark: which figures it gives, and which servers it needs."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.bench import blobs, cache_key, engine_hit, eviction_figures, workload
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Figure
from pipeline.bench.rig import Rig
from pipeline.config import Settings

# They take minutes, the first gigabytes of disk besides: only when they are named.
_ONLY_NAMED = {"memory", "warm"}


@dataclass(frozen=True, slots=True)
class Alone:
    """A benchmark of this process alone."""

    group: str
    figures: tuple[str, ...]
    measure: Callable[[Settings, Effort], Awaitable[list[Figure]]]


@dataclass(frozen=True, slots=True)
class OnServers:
    """A benchmark on Kafka, with Tritons that serve `models`, if any, or ClickHouse where it says so."""

    group: str
    figures: tuple[str, ...]
    measure: Callable[[Rig, Effort], Awaitable[list[Figure]]]
    models: tuple[str, ...] = ()
    tritons: int = 0
    clickhouse: bool = False


Benchmark = Alone | OnServers


def _benchmarks() -> tuple[Benchmark, ...]:
    from pipeline.bench import (
        gateway,
        gateway_overload,
        hit_latency,
        hit_throughput,
        large,
        memory_flat,
        miss,
        shared_cache,
        sink_memory,
        sink_rows,
        swap,
        triton,
        warm_start,
        worker_memory,
    )

    digits = (workload.MODEL,)
    return (
        Alone("engine", ("engine.hit_cpu", "engine.hit_events_cpu"), engine_hit.measure),
        Alone("cache", ("cache.key_600kb", "cache.key_4kb", "cache.key_256b"), cache_key.measure),
        Alone("cache", ("cache.hit_ratio",), eviction_figures.measure_hits),
        Alone("cache", ("cache.get", "cache.put"), eviction_figures.measure_costs),
        Alone("cache", ("cache.shared_get", "cache.shared_burst"), shared_cache.measure),
        # Misses run in this very process, so they come before the load generator has scattered its memory.
        OnServers("miss", ("miss.throughput", "miss.dispatch", "miss.latency"), miss.measure, models=digits, tritons=1),
        OnServers(
            "large",
            ("large.grpc_8mb", "large.shared_8mb", "large.shared_600kb"),
            large.measure,
            models=(blobs.MODEL,),
            tritons=1,
        ),
        *[
            OnServers(
                "triton",
                (f"triton.{name}_instance_p99", f"triton.{name}_instance_p99_cost"),
                run,
                models=digits,
                tritons=1,
            )
            for name, run in (("slow", triton.measure_slow), ("stopped", triton.measure_stopped))
        ],
        OnServers("triton", ("triton.overload_goodput",), triton.measure_overload, models=digits, tritons=1),
        OnServers("triton", ("triton.swap_failures", "triton.swap_p99"), swap.measure, models=digits, tritons=2),
        OnServers("hit", ("hit.throughput", "hit.cpu"), hit_throughput.measure, models=digits, tritons=1),
        OnServers("hit", ("hit.latency_p50", "hit.latency_p99"), hit_latency.measure, models=digits, tritons=1),
        OnServers("gateway", ("gateway.hit_p50", "gateway.hit_p99"), gateway.measure, models=digits, tritons=1),
        OnServers(
            "gateway",
            ("gateway.overload_p99", "gateway.overload_goodput"),
            gateway_overload.measure,
            models=digits,
            tritons=1,
        ),
        OnServers("sink", ("sink.throughput",), sink_rows.measure, clickhouse=True),
        *[
            OnServers(
                "memory", (case.name,), partial(worker_memory.measure, case=case), models=(blobs.MODEL,), tritons=1
            )
            for case in worker_memory.CASES
        ],
        OnServers("memory", ("worker.memory_flat",), memory_flat.measure, models=digits, tritons=1),
        OnServers("memory", ("sink.backlog_memory",), sink_memory.measure, clickhouse=True),
        OnServers("warm", ("cache.warm_start",), warm_start.measure, models=digits, tritons=1),
    )


class UnknownBenchmarkError(ValueError):
    """A name that is neither a group nor a figure."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        super().__init__(f"there is no benchmark {name!r}; groups and figures: {', '.join(known)}")


def chosen(names: Sequence[str]) -> list[tuple[Benchmark, frozenset[str]]]:
    """The benchmarks to run, in the catalogue's order, each with the figures that are wanted of it.

    Args:
        names: groups (`hit`) or figures (`hit.throughput`); none for all that take less than minutes.

    Raises:
        UnknownBenchmarkError: a name that is neither.
    """
    benchmarks = _benchmarks()
    figures = [figure for benchmark in benchmarks for figure in benchmark.figures]
    groups = list(dict.fromkeys(benchmark.group for benchmark in benchmarks))
    for name in names:
        if name not in groups and name not in figures:
            raise UnknownBenchmarkError(name, [*groups, *figures])
    wanted = set(names) or set(groups) - _ONLY_NAMED
    found = []
    for benchmark in benchmarks:
        whole = benchmark.group in wanted
        some = frozenset(figure for figure in benchmark.figures if whole or figure in wanted)
        if some:
            found.append((benchmark, some))
    return found
