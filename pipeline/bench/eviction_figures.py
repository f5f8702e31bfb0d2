"""How near the cache comes to the optimum, and what a look-up and a store cost, beside LRU with an `OrderedDict`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from random import Random
from statistics import mean

from pipeline.bench.effort import Effort
from pipeline.bench.eviction_rivals import Lru, Policy, Sieve, Sized, WTinyLfu, belady_hits
from pipeline.bench.eviction_traces import LOOP_TO_CACHE, ORDERS, Trace, make_trace
from pipeline.bench.figure import Bar, Figure, best
from pipeline.bench.timing import cpu_microseconds
from pipeline.config import Settings
from pipeline.core.cache_key import CacheScope
from pipeline.core.eviction import ENTRY_BYTES
from pipeline.core.response_cache import ResponseCache

CACHE_PARTS = (0.01, 0.1)
OPTIMUM, OURS, PLAIN = "optimum", "S3-FIFO", "LRU"
# 2,000 calls a round make 50,000 requests a trace: all traces are 12 s.
_TRACE_REQUESTS_PER_CALL = 25
# Entries of the caches whose calls are timed, and how many keys are stored in turn: none is remembered any more when it
# comes again.
_TIMED_ENTRIES = 10_000
_TIMED_KEYS = 50_000
_SCOPE = CacheScope(None, "bench", "1", "0")
_FAR = 1e9


@dataclass(frozen=True, slots=True)
class HitRatios:
    """One trace in one size of cache: hits by policy, as parts of the requests and of the bytes asked for."""

    order: str
    equal_sizes: bool
    cache_part: float
    by_requests: Mapping[str, float]
    by_bytes: Mapping[str, float]


async def measure_hits(_settings: Settings, effort: Effort) -> list[Figure]:
    """`cache.hit_ratio`."""
    ratios = list(hit_ratios(effort.cpu_calls * _TRACE_REQUESTS_PER_CALL))
    ours, plain = distance(ratios, OURS), distance(ratios, PLAIN)
    return [
        Figure(
            "cache.hit_ratio", ours, "points", plain, ours / plain if plain else None, Bar("ratio_at_most", 0.5),
            f"hits that the optimum has more, in points of the requests, mean of {len(ratios)} traces",
            "LRU in as many bytes", 1, notes=_hit_notes(ratios),
        )
    ]  # fmt: skip


async def measure_costs(_settings: Settings, effort: Effort) -> list[Figure]:
    """`cache.get` and `cache.put`."""
    drawn, value = Random(1), Sized(1000)
    keys = [drawn.randbytes(32) for _ in range(_TIMED_KEYS)]
    gets, puts = {}, {}
    for name, policy in policies(_TIMED_ENTRIES * (value.size_bytes + ENTRY_BYTES), _TIMED_ENTRIES).items():
        for key in keys:
            _ask(policy, key, value)
        live = [key for key in keys if policy.get(key, 0.0) is not None]
        drawn.shuffle(live)
        gets[name] = _getting(policy, live)
        puts[name] = _putting(policy, keys, value)
    found = cpu_microseconds(gets, rounds=effort.cpu_rounds, calls=effort.cpu_calls)
    stored = cpu_microseconds(puts, rounds=effort.cpu_rounds, calls=effort.cpu_calls)
    return [
        _cost("cache.get", found, f"CPU of a hit in a cache of {_TIMED_ENTRIES:,} entries, best round"),
        _cost("cache.put", stored, "CPU of a store for which another entry has to leave, best round"),
    ]


def policies(bytes_max: int, entries: int) -> dict[str, Policy]:
    """Ours and its rivals, empty, with room for so many bytes: about so many entries."""
    return {
        OURS: ResponseCache[Sized](bytes_max),
        PLAIN: Lru(bytes_max),
        "SIEVE": Sieve(bytes_max),
        "W-TinyLFU": WTinyLfu(bytes_max, entries),
    }


def hit_ratios(length: int) -> Iterator[HitRatios]:
    """Every order with equal and with lognormal sizes, in every size of cache.

    Args:
        length: requests of each trace; first requests, which nobody can answer, count as all the others.
    """
    for order in ORDERS:
        for equal_sizes in (True, False):
            for part in CACHE_PARTS:
                trace = make_trace(order, length, part, equal_sizes=equal_sizes)
                yield _ratios(trace, order, part, equal_sizes)


def _ratios(trace: Trace, order: str, part: float, equal_sizes: bool) -> HitRatios:
    footprint = trace.footprint
    # A loop is made for the cache, and not the other way round: it has no other keys that the cache is a part of.
    entries = int(len(footprint) / LOOP_TO_CACHE) if order == "loop" else int(len(footprint) * part)
    bytes_max = int(entries * (mean(footprint) + ENTRY_BYTES))
    hits = {OPTIMUM: belady_hits(trace.keys, trace.sizes, bytes_max)}
    drawn = Random(1)
    keys = [drawn.randbytes(32) for _ in trace.sizes]
    values = [Sized(size) for size in trace.sizes]
    for name, policy in policies(bytes_max, entries).items():
        hits[name] = [_ask(policy, keys[key], values[key]) for key in trace.keys]
    asked = [trace.sizes[key] for key in trace.keys]
    return HitRatios(
        order, equal_sizes, part,
        {name: mean(found) for name, found in hits.items()},
        {
            name: sum(size for size, hit in zip(asked, found, strict=True) if hit) / sum(asked)
            for name, found in hits.items()
        },
    )  # fmt: skip


def _ask(policy: Policy, key: bytes, value: Sized) -> bool:
    if policy.get(key, 0.0) is not None:
        return True
    policy.put(key, value, _FAR, _SCOPE)
    return False


def distance(ratios: Sequence[HitRatios], name: str) -> float:
    """How many hits in a hundred requests the optimum has more than this policy, the mean of these traces."""
    return 100 * mean(one.by_requests[OPTIMUM] - one.by_requests[name] for one in ratios)


def _hit_notes(ratios: Sequence[HitRatios]) -> dict[str, float]:
    names = list(ratios[0].by_requests)
    notes = {f"distance of {name}": distance(ratios, name) for name in names if name not in {OPTIMUM, OURS, PLAIN}}
    for order in ORDERS:
        for name in names:
            found = mean(one.by_requests[name] for one in ratios if one.order == order)
            notes[f"{order}: {name}"] = 100 * found
    for name in names:
        notes[f"bytes: {name}"] = 100 * mean(one.by_bytes[name] for one in ratios)
    return notes


def _getting(policy: Policy, live: list[bytes]) -> Callable[[int], object]:
    return lambda call: policy.get(live[call % len(live)], 0.0)


def _putting(policy: Policy, keys: list[bytes], value: Sized) -> Callable[[int], object]:
    number = partial(next, count())
    return lambda _: policy.put(keys[number() % len(keys)], value, _FAR, _SCOPE)


def _cost(name: str, taken: Mapping[str, list[float]], how: str) -> Figure:
    figure = best(
        name, "us", taken[OURS], taken[PLAIN], None, how=how, yardstick_how="the same of LRU with an OrderedDict"
    )  # fmt: skip
    rivals = {rival: min(times) for rival, times in taken.items() if rival not in {OURS, PLAIN}}
    return replace(figure, notes=rivals)
