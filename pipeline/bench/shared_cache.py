"""`cache.shared_get` and `cache.shared_burst`: look-ups in the shared cache, beside bare GETs of the same bytes."""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median, quantiles
from uuid import uuid4

import numpy as np
from redis.asyncio import Redis

from pipeline.adapters.redis import RedisSharedCache
from pipeline.adapters.redis_connection import client_of
from pipeline.adapters.system import SystemClock, rare_garbage_collections
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Figure, paired
from pipeline.bench.rig import temporary_folder, valkey_on
from pipeline.bench.workload import MODEL
from pipeline.config import CacheSettings, Settings
from pipeline.core.answer import stored_answer
from pipeline.core.cache_key import CacheScope
from pipeline.core.shared_entry import entry_name
from pipeline.ports import SharedAnswer
from schemas.tensor import from_numpy

IN_FLIGHT = 64
_SCOPE = CacheScope(None, MODEL, "1", "0" * 64)
_STORED_S_MAX = 10.0


@dataclass(slots=True)
class _Sides:
    """The one and the other way to the same entries."""

    cache: RedisSharedCache
    bare: Redis
    keys: Sequence[bytes]
    names: Sequence[str]


async def measure(settings: Settings, effort: Effort) -> list[Figure]:
    """Both figures, in turns."""
    async with AsyncExitStack() as closing:
        folder = closing.enter_context(temporary_folder())
        redis = await closing.enter_async_context(valkey_on(settings, folder))
        # A budget nobody misses: what is late would be told as quick.
        cache_settings = CacheSettings(shared_budget_ms=5000)
        prefix = f"bench-{uuid4().hex[:8]}."
        cache = RedisSharedCache(redis, cache_settings, prefix, SystemClock(), random.Random())
        closing.push_async_callback(cache.close)
        closing.push_async_callback(cache.clear)
        bare = client_of(redis)
        closing.push_async_callback(bare.aclose)
        keys = [number.to_bytes(32, "big") for number in range(effort.distinct)]
        sides = _Sides(cache, bare, keys, [entry_name(prefix, _SCOPE, key) for key in keys])
        await _fill(sides)
        with rare_garbage_collections():
            return [await _single(sides, effort), await _burst(sides, effort)]


async def _fill(sides: _Sides) -> None:
    """Answers of `digits`: a label and ten probabilities."""
    rng = np.random.default_rng(1)
    for key in sides.keys:
        raised = np.exp(rng.standard_normal(10))
        tensors = [
            from_numpy("label", rng.integers(0, 10, (1, 1))),
            from_numpy("probabilities", (raised / raised.sum()).astype(np.float32).reshape(1, 10)),
        ]
        answer = stored_answer(tensors, stored_at=time.monotonic(), instance="triton-0")
        sides.cache.store(key, _SCOPE, answer, 3600.0, replace=True, winner=lambda _: None)
    async with asyncio.timeout(_STORED_S_MAX):
        while True:
            if sides.cache.metrics.writes["stored",] == len(sides.keys):
                return
            await asyncio.sleep(0.01)


async def _single(sides: _Sides, effort: Effort) -> Figure:
    ours: list[float] = []
    bare: list[float] = []
    p99: dict[str, list[float]] = {"p99_us": [], "bare_p99_us": []}
    for number in range(effort.miss_pairs + 1):
        taken = [await _look_up_us(sides, index) for index in range(effort.miss_calls)]
        plain = [await _get_us(sides, index) for index in range(effort.miss_calls)]
        if number:  # the first round connects
            ours.append(median(taken))
            bare.append(median(plain))
            p99["p99_us"].append(quantiles(taken, n=100)[98])
            p99["bare_p99_us"].append(quantiles(plain, n=100)[98])
    return paired(
        "cache.shared_get", "us", ours, bare, None,
        how="p50 of one look-up that finds an answer of digits: asked, PTTL and GET, checked, decoded, told",
        yardstick_how="one GET of the same bytes on a bare redis.asyncio client",
        notes={name: median(values) for name, values in p99.items()},
    )  # fmt: skip


async def _burst(sides: _Sides, effort: Effort) -> Figure:
    ours: list[float] = []
    bare: list[float] = []
    for number in range(effort.miss_pairs + 1):
        rounds = max(effort.miss_calls // IN_FLIGHT, 2)
        began = time.perf_counter()
        for _ in range(rounds):
            await asyncio.gather(*(_found(sides, index) for index in range(IN_FLIGHT)))
        middle = time.perf_counter()
        for _ in range(rounds):
            pipeline = sides.bare.pipeline(transaction=False)
            for index in range(IN_FLIGHT):
                pipeline.get(sides.names[index % len(sides.names)])
            await pipeline.execute()
        if number:
            ours.append(rounds * IN_FLIGHT / (middle - began))
            bare.append(rounds * IN_FLIGHT / (time.perf_counter() - middle))
    return paired(
        "cache.shared_burst", "look-ups/s", ours, bare, None,
        how=f"{IN_FLIGHT} look-ups at once, which leave as one pipeline",
        yardstick_how=f"pipelines of {IN_FLIGHT} GETs on a bare redis.asyncio client",
    )  # fmt: skip


async def _look_up_us(sides: _Sides, index: int) -> float:
    began = time.perf_counter()
    return (await _found(sides, index) - began) * 1e6


async def _get_us(sides: _Sides, index: int) -> float:
    began = time.perf_counter()
    await sides.bare.get(sides.names[index % len(sides.names)])
    return (time.perf_counter() - began) * 1e6


def _found(sides: _Sides, index: int) -> asyncio.Future[float]:
    """When an answer was told; an error where none was."""
    told: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def found(shared: SharedAnswer | None) -> None:
        if shared is None:
            told.set_exception(RuntimeError("an answer that was stored is not found"))
        else:
            told.set_result(time.perf_counter())

    if not sides.cache.look_up(sides.keys[index % len(sides.keys)], _SCOPE, found):
        told.set_exception(RuntimeError("the shared cache is not asked"))
    return told
