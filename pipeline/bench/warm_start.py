"""`cache.warm_start`: how many hits a worker has in its first minute, with the shared cache and without one."""

import asyncio
import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import orjson
from prometheus_client.parser import text_string_to_metric_families

from pipeline.adapters.redis import RedisSharedCache
from pipeline.adapters.system import SystemClock
from pipeline.bench.effort import Effort
from pipeline.bench.figure import Figure
from pipeline.bench.kafka_load import prefill, producer_of, read_values
from pipeline.bench.rig import LogEnds, Rig, valkey_on
from pipeline.bench.worker_memory import answered
from pipeline.bench.workload import MODEL, NO_ID, images, with_fresh_id
from pipeline.client.records import RequestRecord, build_record
from pipeline.config import RedisSettings, Settings
from pipeline.stack.ports import PortBook

_SEED = 20261127
# A start of 10 s on a busy machine, then a worker that is six times slower than it is asked.
_START_S, _RATE_MIN = 60.0, 150.0
# Before the restart, for answers that are all stored: a backlog would be taken in faster than it is written behind.
_FASTER = 3
# How far a request may be sent behind its time: at 300/s, three leave at once.
_TICK_S = 0.01
_FLUSH_S = 10.0
# What waited for the start is answered in the first second; it has the least hits.
_BEGINNINGS_S = (1, 5, 10)
_METRICS_PORT = 9464
_HITS = {"hit", "coalesced"}


class Met(NamedTuple):
    """How one request met the cache.

    Attributes:
        at_s: when its result was written, Unix seconds.
        key: its cache key.
        status: its cache status, empty where it has none.
    """

    at_s: float
    key: str
    status: str


class Start(NamedTuple):
    """One worker's beginning.

    Attributes:
        earlier: what the worker before it answered.
        later: what it answered, in order.
        started_s: from the process's start to the first answer.
        metrics: what the two exported at their ends.
    """

    earlier: list[Met]
    later: list[Met]
    started_s: float
    metrics: tuple[str, str]


async def measure(rig: Rig, effort: Effort) -> list[Figure]:
    """The figure: a restart that finds the answers in Redis, then one without a Redis, on topics of their own."""
    async with AsyncExitStack() as closing:
        redis = await closing.enter_async_context(valkey_on(rig.settings, rig.folder))
        settings = await rig.topics("warm")
        closing.push_async_callback(_clear, redis, settings)
        warm = await _restart(rig, effort, settings, redis.url or "")
        cold = await _restart(rig, effort, await rig.topics("cold"), "")
    return [figure_of(warm, cold, effort)]


async def _clear(redis: RedisSettings, settings: Settings) -> None:
    """Somebody's own Redis is left as it was."""
    cache = RedisSharedCache(redis, settings.cache, settings.kafka.topic_prefix, SystemClock(), Random())
    try:
        await cache.clear()
    finally:
        await cache.close()


async def _restart(rig: Rig, effort: Effort, settings: Settings, redis_url: str) -> Start:
    """A worker that answers for a while, and the one that takes its place."""
    records = ZipfRecords(effort.warm_distinct, _SEED)
    port = PortBook(rig.folder / "ports.json").take("worker-metrics", _METRICS_PORT)
    variables = {
        "PIPELINE_WORKER__GROUP": f"{settings.kafka.topic_prefix}worker",
        "PIPELINE_WORKER__METRICS_PORT": str(port),
        "PIPELINE_REDIS__URL": redis_url,
    }
    name = "warm" if redis_url else "cold"
    requests, results = settings.topic("requests"), settings.topic("results")
    limit_s = _START_S + effort.warm_requests / _RATE_MIN
    async with LogEnds(settings, results) as ends:
        start = await ends.now()
        async with rig.process(settings, f"{name}-first", "pipeline", "worker", variables=variables) as first:
            await asyncio.to_thread(prefill, settings.kafka, requests, islice(records, 1))
            await answered(first, ends, 1, time.monotonic() + _START_S)
            some = islice(records, effort.warm_requests - 1)
            async with SteadyLoad(settings, some, effort.warm_rate * _FASTER):
                await answered(first, ends, effort.warm_requests, time.monotonic() + limit_s)
            before = await _metrics(port)
        middle = await ends.now()
        began = time.monotonic()
        async with rig.process(settings, f"{name}-second", "pipeline", "worker", variables=variables) as second:
            async with SteadyLoad(settings, records, effort.warm_rate) as load:
                await answered(second, ends, effort.warm_requests + 1, began + limit_s)
                started_s = time.monotonic() - began
                await asyncio.sleep(effort.warm_seconds)
            await answered(second, ends, effort.warm_requests + load.sent, time.monotonic() + limit_s)
            after = await _metrics(port)
        end = await ends.now()
    earlier = await asyncio.to_thread(read_values, settings.kafka, results, start, middle)
    later = await asyncio.to_thread(read_values, settings.kafka, results, middle, end)
    found = Start(in_order(earlier), in_order(later), started_s, (before, after))
    share = hits_percent(within(found.later, effort.warm_seconds))
    rig.tell(f"cache.warm_start: {name}: first answer after {started_s:.1f} s, {share:.1f} % hits from then on")
    return found


async def _metrics(port: int) -> str:
    async with (
        aiohttp.ClientSession(raise_for_status=True) as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as response,
    ):
        return await response.text()


class ZipfRecords:
    """Request records without end, drawn one by one: the tensor of rank r with weight 1/r.

    Args:
        distinct: how many tensors.
        seed: of the tensors and of their order.
    """

    def __init__(self, distinct: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        weights = np.cumsum(1.0 / np.arange(1, distinct + 1))
        self._parts = weights / weights[-1]
        self._templates = [
            build_record(NO_ID, MODEL, {"image": image}, now=time.time(), model_version=None)
            for image in images(distinct, seed)
        ]

    def __iter__(self) -> Iterator[RequestRecord]:
        return self

    def __next__(self) -> RequestRecord:
        rank = int(np.searchsorted(self._parts, self._rng.random(), side="right"))
        return with_fresh_id(self._templates[rank])


class SteadyLoad:
    """Sends records at a fixed rate, whatever becomes of them, inside of its block.

    Args:
        settings: where Kafka is, and whose requests topic.
        records: taken one by one.
        rate: per second.

    Attributes:
        sent: how many so far.
    """

    def __init__(self, settings: Settings, records: Iterator[RequestRecord], rate: int) -> None:
        self.sent = 0
        self._producer = producer_of(settings.kafka, **{"linger.ms": 0})
        self._topic = settings.topic("requests")
        self._records = records
        self._rate = rate

    async def __aenter__(self) -> "SteadyLoad":
        self._sending = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sending.cancel()
        with suppress(asyncio.CancelledError):
            await self._sending
        await asyncio.to_thread(self._producer.flush, _FLUSH_S)

    async def _send(self) -> None:
        began = time.monotonic()
        while True:
            due = int((time.monotonic() - began) * self._rate)
            for record in islice(self._records, due - self.sent):
                self._producer.produce(self._topic, record.value, record.key, headers=record.headers)
                self.sent += 1
            self._producer.poll(0)
            await asyncio.sleep(_TICK_S)


def in_order(messages: Collection[Any]) -> list[Met]:
    """Results as they were written: equal requests are in one partition, so their order is certain."""
    ordered = sorted(messages, key=lambda message: (message.timestamp()[1], message.offset()))
    found = []
    for message in ordered:
        parameters = orjson.loads(message.value()).get("parameters", {})
        met = Met(message.timestamp()[1] / 1e3, parameters.get("cache_key", ""), parameters.get("cache_status", ""))
        found.append(met)
    return found


def within(later: Sequence[Met], seconds: float) -> list[Met]:
    """The results of so many seconds from the first on."""
    return [met for met in later if met.at_s < later[0].at_s + seconds]


def hits_percent(some: Sequence[Met]) -> float:
    """How many in a hundred results cost no inference of their own."""
    return 100 * sum(met.status in _HITS for met in some) / max(len(some), 1)


def known_percent(earlier: Sequence[Met], some: Sequence[Met]) -> float:
    """How many in a hundred results were of a key that had an answer before: no cache can have more hits."""
    seen = {met.key for met in earlier}
    known = 0
    for met in some:
        known += met.key in seen
        seen.add(met.key)
    return 100 * known / max(len(some), 1)


def figure_of(warm: Start, cold: Start, effort: Effort) -> Figure:
    """The figure of a start with the shared cache and one without."""
    ours, plain = within(warm.later, effort.warm_seconds), within(cold.later, effort.warm_seconds)
    value, yardstick = hits_percent(ours), hits_percent(plain)
    return Figure(
        "cache.warm_start", value, "%", yardstick, value / yardstick if yardstick else None, None,
        how=f"hits, coalesced ones included, among the results of a worker's first {effort.warm_seconds:g} s, started "
        f"when another of its group had answered {effort.warm_requests:,} requests; {effort.warm_rate}/s from its "
        f"start on, Zipf 1.0 over {effort.warm_distinct:,} tensors",
        yardstick_how="the same without a Redis",
        rounds=1,
        notes=_notes("", warm, ours) | shared_cache_notes(*warm.metrics) | _notes("cold_", cold, plain),
    )  # fmt: skip


def _notes(prefix: str, start: Start, some: Sequence[Met]) -> dict[str, float]:
    notes: dict[str, float] = {"started_s": start.started_s}
    for seconds in _BEGINNINGS_S:
        beginning = within(some, seconds)
        notes[f"hits_{seconds}s_percent"] = hits_percent(beginning)
        notes[f"known_{seconds}s_percent"] = known_percent(start.earlier, beginning)
    notes["known_percent"] = known_percent(start.earlier, some)
    notes["misses"] = sum(met.status == "miss" for met in some)
    notes["results"] = len(some)
    return {prefix + name: value for name, value in notes.items()}


def shared_cache_notes(before: str, after: str) -> dict[str, float]:
    """What the worker before wrote to the shared cache, and how the one after found it: counts, and times in ms."""
    counted = _samples(after, "pipeline_shared_cache_look_up_seconds_bucket")
    buckets = sorted((float(labels["le"]), value) for labels, value in counted)
    notes = {f"look_up_p{part}_ms": quantile(buckets, part / 100) * 1e3 for part in (50, 99)}
    for labels, value in _samples(after, "pipeline_shared_cache_look_ups_total"):
        notes[f"look_ups_{labels['outcome']}"] = value
    for labels, value in _samples(before, "pipeline_shared_cache_writes_total"):
        notes[f"writes_{labels['outcome']}"] = value
    return notes


def _samples(metrics: str, name: str) -> Iterator[tuple[dict[str, str], float]]:
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == name:
                yield sample.labels, sample.value


def quantile(buckets: Sequence[tuple[float, float]], part: float) -> float:
    """A quantile of a histogram as Prometheus guesses it: evenly spread within a bucket.

    Args:
        buckets: upper bound and count up to it, ascending, the last without a bound.
        part: 0.5 for the median.

    Returns:
        0 where nothing was counted; the highest bound where it lies above.
    """
    rank = part * buckets[-1][1] if buckets else 0.0
    lower, counted = 0.0, 0.0
    for bound, count in buckets:
        if count > counted and count >= rank:
            return lower if math.isinf(bound) else lower + (bound - lower) * (rank - counted) / (count - counted)
        lower, counted = bound, count
    return 0.0
