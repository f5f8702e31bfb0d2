"""How much is measured: the defaults give figures worth reading, the tests take next to nothing."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """Counts and durations of all benchmarks.

    Attributes:
        cpu_rounds: rounds of pieces whose CPU time is taken.
        cpu_calls: calls in each.
        cpu_distinct: distinct tensors where nothing is to be remembered from one time to the next.
        distinct: distinct tensors of the hit benchmarks.
        hit_requests: requests of one throughput run that count.
        hit_skipped: requests before them: the misses, and the start-up.
        hit_pairs: pairs of throughput runs.
        latency_pairs: pairs of latency phases.
        latency_seconds: of one phase.
        latency_rate: requests per second.
        gateway_rate: requests per second over HTTP.
        gateway_distinct: distinct tensors among them.
        overload_rounds: rounds of the gateway at twice its capacity.
        overload_seconds: of one of their four phases.
        miss_requests: requests of one miss round.
        miss_pairs: pairs of miss rounds.
        miss_calls: single calls for the latency of a miss.
        sink_batches: full batches for each of two partitions, per run.
        sink_batch_rows: lines of one batch.
        sink_pairs: pairs of sink runs.
        backlog_records: requests that wait before a worker or a sink starts, for the memory it takes.
        backlog_bytes: of each one's tensor.
        flat_seconds: how long a worker is kept busy, to see whether its memory grows.
        flat_warm_requests: requests before the first reading: what has a bound has reached it.
        fleet_rounds: rounds of the benchmarks on four Tritons.
        fleet_rate: requests per second, where the fleet is not to be loaded.
        fleet_seconds: of one phase.
        swaps: versions that take over one after the other.
        swap_rate: requests per second meanwhile.
        swap_quiet_s: how long the same are asked before the first.
        warm_distinct: tensors that a worker which is restarted is asked for.
        warm_requests: requests before it is.
        warm_rate: requests per second afterwards.
        warm_seconds: how long, from its first answer.
    """

    # 25 rounds of 2,000 calls of 10 us are half a second: some round meets a quiet moment.
    cpu_rounds: int = 25
    cpu_calls: int = 2000
    # Twice what `core/cache_key.py` and `schemas/tensor.py` remember of requests that were asked before.
    cpu_distinct: int = 20_000
    distinct: int = 1000
    # Seconds at 15,000-50,000/s. A fetch brings up to 7,000 records of one partition before any of the next: after
    # 32,000 all four have begun, and a tensor that was computed is a hit from then on.
    hit_requests: int = 80_000
    hit_skipped: int = 32_000
    hit_pairs: int = 5
    latency_pairs: int = 3
    latency_seconds: float = 8.0
    latency_rate: int = 500
    gateway_rate: int = 200
    gateway_distinct: int = 200
    # At 900/s a phase at twice that has 14,000 requests, and all places would be filled within its first second.
    overload_rounds: int = 3
    overload_seconds: float = 8.0
    miss_requests: int = 12_800
    miss_pairs: int = 7
    miss_calls: int = 1000
    sink_batches: int = 2
    sink_batch_rows: int = 50_000
    sink_pairs: int = 3
    # 1.2 GB, four times what the bounds of these benchmarks allow to be held.
    backlog_records: int = 2000
    backlog_bytes: int = 600_000
    flat_seconds: float = 60.0
    # 800 requests have eight above their p99. A hundred a second leave two cores at rest, but for the four Tritons.
    fleet_rounds: int = 3
    fleet_rate: int = 100
    fleet_seconds: float = 8.0
    # The bar names 100. Each takes 4 s: found, loaded twice, two seconds' notice.
    swaps: int = 100
    swap_rate: int = 200
    swap_quiet_s: float = 10.0
    # The ids of 100,000 requests are remembered for each of 4 partitions; the cache of 4 MiB is full after 5,000.
    flat_warm_requests: int = 440_000
    # A minute asks for some 5,000 of 10,000 tensors: a worker without a memory has a quarter of misses.
    warm_distinct: int = 10_000
    warm_requests: int = 20_000
    warm_rate: int = 300
    warm_seconds: float = 60.0
