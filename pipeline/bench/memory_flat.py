"""`worker.memory_flat`: whether a busy worker's memory stays where it is once its cache is full."""

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import chain
from statistics import linear_regression, median
from typing import NamedTuple

from pipeline.bench.effort import Effort
from pipeline.bench.figure import Bar, Figure
from pipeline.bench.kafka_load import compress_topics, prefill
from pipeline.bench.process_memory import MIB, resident_bytes
from pipeline.bench.rig import LogEnds, Rig
from pipeline.bench.worker_memory import answered
from pipeline.bench.workload import RequestRecords
from pipeline.client.records import RequestRecord
from pipeline.config import Settings
from pipeline.stack.process import Child

_BAR = Bar("ratio_at_most", 1.1)
_CACHE_BYTES = 4 * MIB
# Asked again and again: a third of what the cache holds.
_HOT = 700
# The next wave leaves when half of this one is answered: the worker never rests, and never lags.
_WAVE = 1000
_WAVE_LIMIT_S = 60.0
# A single reading catches the worker at some moment of its rounds.
_READINGS = 5


class Reading(NamedTuple):
    """Requests answered since the start, and the worker's resident memory then, in MiB."""

    answered: int
    resident_mib: float


async def measure(rig: Rig, effort: Effort) -> list[Figure]:
    """One worker under a steady mix of hits and misses, each request with an id of its own."""
    settings = await rig.topics("flat")
    outputs = [settings.topic(name) for name in ("requests", "results", "events")]
    await asyncio.to_thread(compress_topics, settings.kafka, outputs, "lz4")
    variables = {
        "PIPELINE_WORKER__GROUP": f"{settings.kafka.topic_prefix}worker",
        "PIPELINE_CACHE__MAX_BYTES": str(_CACHE_BYTES),
    }
    rig.tell(f"worker.memory_flat: {effort.flat_warm_requests:,} requests, then {effort.flat_seconds:g} s more")
    async with (
        LogEnds(settings, settings.topic("results")) as ends,
        rig.process(settings, "flat", "pipeline", "worker", variables=variables) as child,
    ):
        load = _Load(settings, child, ends)
        await load.run(lambda: load.sent < effort.flat_warm_requests)
        load.readings.clear()
        began = time.monotonic()
        await load.run(lambda: time.monotonic() < began + effort.flat_seconds)
        seconds = time.monotonic() - began
    return [figure_of(load.readings, seconds)]


class _Load:
    """Keeps a worker busy, wave after wave, and reads its memory after each.

    Attributes:
        sent: requests since the start.
        readings: one for each wave.
    """

    def __init__(self, settings: Settings, child: Child, ends: LogEnds) -> None:
        self._settings = settings
        self._child = child
        self._ends = ends
        self._hot = RequestRecords(_HOT, seed=1)
        self.sent = 0
        self.readings: list[Reading] = []

    async def run(self, more: Callable[[], bool]) -> None:
        """Sends waves as long as `more` says, then waits for the last answers."""
        assert self._child.pid is not None, "started"
        topic = self._settings.topic("requests")
        while more():
            await asyncio.to_thread(prefill, self._settings.kafka, topic, _wave(self._hot))
            self.sent += _WAVE
            await self._answered(self.sent - _WAVE // 2)
            self.readings.append(Reading(self.sent, resident_bytes(self._child.pid) / MIB))
        await self._answered(self.sent)

    async def _answered(self, count: int) -> None:
        await answered(self._child, self._ends, count, time.monotonic() + _WAVE_LIMIT_S)


def _wave(hot: RequestRecords) -> Iterator[RequestRecord]:
    """As many tensors that were asked before as such that never were, in turn."""
    half = _WAVE // 2
    return chain.from_iterable(zip(hot.take(half), RequestRecords(half).take(half), strict=True))


def figure_of(readings: list[Reading], seconds: float) -> Figure:
    """The figure of at least two readings, taken over so many seconds."""
    first = median(reading.resident_mib for reading in readings[:_READINGS])
    last = median(reading.resident_mib for reading in readings[-_READINGS:])
    answered_count = readings[-1].answered - readings[0].answered + _WAVE
    slope, _ = linear_regression(
        [reading.answered / 1e6 for reading in readings], [reading.resident_mib for reading in readings]
    )
    return Figure(
        "worker.memory_flat", last, "MiB", first, last / first, _BAR,
        how=f"resident memory of a worker at the end of {seconds:.0f} s of hits and misses, its cache of "
        f"{_CACHE_BYTES // MIB} MiB full",
        yardstick_how="the same at their beginning",
        rounds=1,
        notes={
            "requests": answered_count,
            "requests_per_second": answered_count / seconds,
            "mib_per_million_requests": slope,
            "highest_mib": max(reading.resident_mib for reading in readings),
        },
    )  # fmt: skip
