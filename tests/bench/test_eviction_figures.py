"""Traces and rivals of the cache's figures: they are what they say, and the figures have their shape."""

import os
from functools import cache
from statistics import mean

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bench.effort import Effort
from pipeline.bench.eviction_figures import OPTIMUM, OURS, PLAIN, hit_ratios, policies
from pipeline.bench.eviction_rivals import Lru, Sieve, Sized, belady_hits
from pipeline.bench.eviction_traces import ORDERS, make_trace
from pipeline.bench.main import run
from pipeline.core.cache_key import CacheScope
from pipeline.core.eviction import ENTRY_BYTES
from tests.schemas.records import FAST

SCOPE = CacheScope(None, "bench", "1", "0")
ONE = 1000 + ENTRY_BYTES


def key(number: int) -> bytes:
    """A key of 32 bytes."""
    return number.to_bytes(32, "big")


def hits_of(policy: Lru | Sieve, text: str) -> str:
    """Which of these requests, a letter each, are hits: those letters, and a dot for each miss."""
    told = []
    for letter in text:
        if policy.get(key(ord(letter)), 0.0) is not None:
            told.append(letter)
            continue
        policy.put(key(ord(letter)), Sized(1000), 1.0, SCOPE)
        told.append(".")
    return "".join(told)


@pytest.mark.parametrize("order", ORDERS)
def test_traces_are_the_same_every_time(order: str) -> None:
    """A trace is made of its name and length alone, of about that length, every key with a size."""
    trace = make_trace(order, 3000, 0.1, equal_sizes=False)
    assert trace == make_trace(order, 3000, 0.1, equal_sizes=False)
    assert 2700 <= len(trace.keys) <= 3000
    assert all(trace.sizes[number] > 0 for number in trace.keys)


def test_lru_drops_what_was_not_used_longest() -> None:
    """Three fit: the read `a` outlives `b`."""
    assert hits_of(Lru(3 * ONE), "abcadab") == "...a.a."


def test_sieve_drops_what_was_not_read_since_the_hand_passed() -> None:
    """Three fit: `a` was read and is passed over, `b` goes; the hand then stands at `c`, which goes next."""
    assert hits_of(Sieve(3 * ONE), "abcadaebc") == "...a.a..."
    assert hits_of(Sieve(3 * ONE), "abcadeda") == "...a..da"


@cache
def most_hits(requests: tuple[int, ...], held: frozenset[int], room: int) -> int:
    """The most hits there can be, by trying everything."""
    if not requests:
        return 0
    first, rest = requests[0], requests[1:]
    if first in held:
        return 1 + most_hits(rest, held, room)
    choices = [held]
    if len(held) < room:
        choices.append(held | {first})
    choices += [held - {victim} | {first} for victim in held]
    return max(most_hits(rest, choice, room) for choice in choices)


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(1, 3))
@FAST
def test_optimum_of_equal_sizes_is_the_optimum(requests: list[int], room: int) -> None:
    """It has as many hits as any way to choose who leaves, or not to store at all."""
    found = belady_hits(requests, [1000] * 5, room * ONE)
    assert sum(found) == most_hits(tuple(requests), frozenset(), room)


@pytest.mark.parametrize("name", [OURS, PLAIN, "SIEVE", "W-TinyLFU"])
def test_policies_keep_to_the_bound_and_to_the_time(name: str) -> None:
    """Whatever is stored, no more than the bound is found again, and nothing once its time is up."""
    policy = policies(100_000, 80)[name]
    stored = {}
    for number in range(3000):
        if policy.get(key(number % 700), 0.0) is None:
            stored[number % 700] = size = 100 + number * 37 % 3000
            policy.put(key(number % 700), Sized(size), 1.0, SCOPE)
    there = [number for number in stored if policy.get(key(number), 0.0) is not None]
    assert len(there) > 10
    assert sum(stored[number] + ENTRY_BYTES for number in there) <= 100_000
    assert [number for number in stored if policy.get(key(number), 1.0) is not None] == []


def test_cache_is_nearer_to_the_optimum_than_lru() -> None:
    """What the choice rests on, in short traces: better than LRU in sum, never above the optimum of equal sizes."""
    ratios = list(hit_ratios(4000))
    assert len(ratios) == len(ORDERS) * 2 * 2
    for one in ratios:
        if one.equal_sizes:
            assert max(one.by_requests.values()) == one.by_requests[OPTIMUM]
    assert mean(one.by_requests[OURS] for one in ratios) > mean(one.by_requests[PLAIN] for one in ratios) + 0.03


def test_figures_have_yardstick_and_rivals(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hit ratio and costs come with LRU beside them, and with what the other policies did."""
    for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
        monkeypatch.delenv(name)
    names = ["cache.hit_ratio", "cache.get", "cache.put"]
    assert run(names, True, Effort(cpu_rounds=2, cpu_calls=20, cpu_distinct=30)) == 0
    figures = {figure["name"]: figure for figure in orjson.loads(capfdbinary.readouterr().out)}
    assert list(figures) == names
    for figure in figures.values():
        assert min(figure["value"], figure["yardstick"], figure["ratio"]) > 0
    assert figures["cache.get"]["notes"].keys() == {"SIEVE", "W-TinyLFU"}
    assert {"distance of SIEVE", "scan: S3-FIFO", "bytes: optimum"} <= figures["cache.hit_ratio"]["notes"].keys()
